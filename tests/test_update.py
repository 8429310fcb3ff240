"""The update against the float64 reference: weights and slots, at every step, in every mode."""

import keras
import numpy as np
import pytest
from support.backend import COMPILED, ENGINES, MODES, XLA, array, tensor
from support.cases import BOTH, CASES, KINDS
from support.comparison import assert_follows_the_reference, assert_same_trajectory
from support.reference import reference_trajectory
from support.training import hard_gradients, initial_weights, take_steps, trajectory, variables_of

import keras_yogi

# Every rule in both dtypes, by each engine and in each compiled mode; every kind of rule compiled
# in float64.
LAST = list(ENGINES)[-1]
HOW = [
    *((case, engine, "eager", "float32") for case in CASES for engine in ENGINES),
    *((case, LAST, mode, "float32") for case in CASES for mode in MODES if mode != "eager"),
    *((case, "unfused", "eager", "float64") for case in CASES),
    *((case, engine, COMPILED, "float64") for case in KINDS for engine in ENGINES),
    *((case, "unfused", XLA, "float32") for case in KINDS if len(ENGINES) > 1),
]


@pytest.mark.parametrize(("case", "engine", "mode", "dtype"), dict.fromkeys(HOW))
def test_update_is_the_published_one(case, engine, mode, dtype):
    assert_follows_the_reference(CASES[case].on(engine), mode, dtype)


def test_the_gradients_are_hard():
    """They hold what the comparison needs: zeros, and velocities on both sides of g²."""
    gradients = hard_gradients()
    states = reference_trajectory(CASES["yogi"].keras_reference(initial_weights()), gradients)
    above = below = zero = 0
    for state, row in zip(states, gradients, strict=False):
        for variable, g in zip(state, row, strict=True):
            above += np.sum(np.square(g) > variable["velocity"])
            below += np.sum((np.square(g) < variable["velocity"]) & (g != 0))
            zero += np.sum(g == 0)
    assert min(above, below, zero) > 20


@pytest.mark.parametrize("beta", [0.0, 0.1, 0.9, 0.999, 1 - 1e-6])
def test_bias_correction_keeps_its_digits_in_float32(beta):
    """1 − βᵗ computed in float32 loses them: for β = 0.999 and t = 1 it is off by 1.3e-5."""
    rule = keras_yogi.Adam(beta_1=beta, beta_2=beta).rule
    for step in [1, 2, 10, 1000, 10**7]:
        exact = -np.expm1(np.float64(step) * np.log(beta)) if beta else 1.0
        scalars = rule.scalars(0.5, step, "float32")
        for ours in (scalars.correction_1, scalars.correction_2):
            # a few float32 roundings of 6e-8
            assert float(ours) == pytest.approx(exact, rel=3e-7)


@pytest.mark.parametrize(
    ("arguments", "share"),
    [({}, 0.03), ({"initial_accumulator_value": 0.0, "epsilon": 1e-6}, 1.0)],
)
def test_first_step_of_yogi_on_a_small_gradient(arguments, share):
    """What its docstring says: 0.001 / (√(1e-6 / 0.001) + 0.001) = 0.031 of η, by default."""
    states = trajectory(keras_yogi.Yogi(1.0, **arguments), [np.zeros(1)], [[np.full(1, 1e-3)]])
    assert -states[-1][0]["weights"] == pytest.approx(share, rel=0.03)  # "3 %" has one digit


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize(
    ("optimizer_class", "start"),
    [(keras_yogi.Adam, {}), (keras_yogi.Yogi, {"initial_accumulator_value": 2.0**-20})],
)
def test_half_precision_takes_the_steps_of_float32(optimizer_class, start, dtype):
    """To the last bit, from weights and gradients that half precision holds."""
    weights, row = [np.array([0.5, -2.0, 3.0])], [np.array([2.0**-10, 0.5, -40.0])]
    single = trajectory(optimizer_class(0.001, **start), weights, [row] * 5)
    half = trajectory(optimizer_class(0.001, **start), weights, [row] * 5, dtype=dtype)
    assert_same_trajectory(half, single, 0.0)


@pytest.mark.parametrize("engine", ENGINES)
def test_an_average_that_keeps_nothing_is_its_value_to_the_bit(engine):
    """β₁ = 0 and a momentum of 1: 1 + (1e-9 − 1) would be 0 in float32."""
    (variable,) = variables_of([np.zeros(1)])
    optimizer = keras_yogi.Adam(beta_1=0.0, **ENGINES[engine])
    optimizer.build([variable])
    optimizer.set_slot(variable, "momentum", np.ones(1))
    take_steps(optimizer, [variable], [[np.full(1, 1e-9)]])
    assert array(optimizer.get_slot(variable, "momentum")) == np.float32(1e-9)


@pytest.mark.parametrize("optimizer_class", BOTH)
def test_a_step_that_fails_leaves_nothing_behind_for_the_next(optimizer_class, monkeypatch):
    """Nor does it change anything: the steps after it are those of an optimizer without it."""

    def trained(fail):
        dtypes = ("float32", "float16", "float32")
        variables = [keras.Variable(np.ones(3), dtype=dtype) for dtype in dtypes]
        gradients = [keras.ops.cast(tensor([1.0, -2.0, 0.5]), v.dtype) for v in variables]
        optimizer = optimizer_class(0.5, fused=False)
        optimizer.build(variables)
        if fail:
            optimizer.learning_rate = 100.0
            with monkeypatch.context() as context:
                context.setattr(type(optimizer.rule), "update", lambda *values: 1 / 0)
                with pytest.raises(ZeroDivisionError):
                    optimizer.apply(gradients)
            optimizer.learning_rate = 0.5
        for _ in range(2):
            optimizer.apply(gradients)
        return [v.numpy().tobytes() for v in variables]

    assert trained(fail=True) == trained(fail=False)
