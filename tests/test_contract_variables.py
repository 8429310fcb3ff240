"""Variables of every shape and dtype, and those that Keras treats apart, in float64 by hand."""

import keras
import numpy as np
import pytest
from keras import ops
from support.backend import BACKEND, COMPILED, MODES, array, in_eager_and_compiled, tensor
from support.cases import default_case, plain_case
from support.comparison import TOLERANCE, assert_agrees
from support.training import hard_gradients, initial_weights, take_steps, variables_of

pytestmark = pytest.mark.float64


class Between(keras.constraints.Constraint):
    def __init__(self, low, high):
        self.low, self.high = low, high

    def __call__(self, w):
        return ops.clip(w, self.low, self.high)


@in_eager_and_compiled
@plain_case
def test_constraints(case, mode):
    weights, gradients = initial_weights(), hard_gradients()
    # On PyTorch Keras's constraints compute in float32.
    dtype = "float32" if BACKEND == "torch" else "float64"
    weights = [w.astype(dtype) for w in weights]
    optimizer, variables = case.optimizer(), variables_of(weights, dtype)
    variables[0].constraint = keras.constraints.NonNeg()
    variables[1].constraint = Between(-0.125, 0.125)
    bound = np.zeros(2, int)

    def constrained(i, low, high):
        def constraint(w):
            bound[i] += np.sum((w < low) | (w > high))
            return np.clip(w, low, high)

        return constraint

    constraints = {0: constrained(0, 0.0, np.inf), 1: constrained(1, -0.125, 0.125)}
    reference = case.keras_reference(weights, constraints=constraints)
    take_steps(optimizer, variables, gradients, mode)
    for row in gradients:
        reference.apply(row)
    assert_agrees(optimizer, variables, reference, TOLERANCE[dtype])
    assert np.all(bound > 3)


@pytest.mark.filterwarnings("ignore:Gradients do not exist")
@pytest.mark.parametrize(
    ("mode", "arguments"),
    [
        ("eager", {"weight_decay": 0.25}),
        (COMPILED, {}),
        # On JAX Keras keeps the sum of a variable that has no gradient when the others' are used.
        *(
            (mode, {"gradient_accumulation_steps": 2})
            for mode in ("eager", COMPILED)
            if BACKEND != "jax"
        ),
    ],
    ids=str,
)
@plain_case
def test_no_gradient_in_some_steps(case, mode, arguments):
    """Weights and slots stay, undecayed; t is the optimizer's and advances all the same."""
    weights = initial_weights()
    gradients = [
        [None if (step + i) % 3 == 0 and step < 13 else g for i, g in enumerate(row)]
        for step, row in enumerate(hard_gradients())
    ]
    optimizer, variables = case.optimizer(**arguments), variables_of(weights, "float64")
    reference = case.keras_reference(weights, **arguments)
    take_steps(optimizer, variables, gradients[:-1], mode)
    before = variables[1].numpy()
    take_steps(optimizer, variables, [[gradients[-1][0], None, gradients[-1][2]]], mode)
    np.testing.assert_array_equal(variables[1].numpy(), before)
    for row in [*gradients[:-1], [gradients[-1][0], None, gradients[-1][2]]]:
        reference.apply(row)
    assert_agrees(optimizer, variables, reference, TOLERANCE["float64"])


@in_eager_and_compiled
@plain_case
def test_overwrite_with_gradient(case, mode):
    """Keras's float8 scales: such a variable takes its gradient's value and has no slots."""
    weights, gradients = initial_weights(), hard_gradients()
    optimizer, variables = case.optimizer(weight_decay=0.25), variables_of(weights, "float64")
    variables[1].overwrite_with_gradient = True
    take_steps(optimizer, variables, gradients, mode)
    np.testing.assert_array_equal(variables[1].numpy(), gradients[-1][1].astype("float64"))
    others = [0, 2]
    reference = case.keras_reference([weights[i] for i in others], weight_decay=0.25)
    for row in gradients:
        reference.apply([row[i] for i in others])
    assert_agrees(optimizer, [variables[i] for i in others], reference, TOLERANCE["float64"])
    with pytest.raises(ValueError, match=r"`variable` must .*slot"):
        optimizer.get_slot(variables[1], "velocity")


@pytest.mark.parametrize(
    ("mode", "arguments"),
    [
        *((mode, {}) for mode in MODES),
        ("eager", {"clipnorm": 0.5}),
        ("eager", {"global_clipnorm": 0.5}),
        ("eager", {"gradient_accumulation_steps": 3}),
        ("eager", {"use_ema": True, "weight_decay": 0.25}),
    ],
    ids=str,
)
@default_case
def test_scalar_and_empty_variables(case, mode, arguments):
    variables = variables_of([np.float32(2.0), np.ones(0), np.ones((3, 0)), np.ones(2)])
    optimizer = case.optimizer(**arguments)
    take_steps(optimizer, variables, [[np.ones(v.shape) for v in variables]] * 6, mode)
    assert [v.shape for v in variables] == [(), (0,), (3, 0), (2,)]
    assert int(optimizer.iterations) == 6 // arguments.get("gradient_accumulation_steps", 1)
    assert all(np.isfinite(v.numpy()).all() for v in [*variables, *optimizer.variables])
    assert variables[0].numpy() < 2.0


@plain_case
def test_large_variable(case):
    """4M elements: every one is updated, by the same rule."""
    random = np.random.default_rng(14)
    weights = random.normal(size=(2000, 2000)).astype("float32")
    gradients = [[random.normal(size=weights.shape).astype("float32")] for _ in range(2)]
    optimizer, variables = case.optimizer(), variables_of([weights])
    reference = case.keras_reference([weights])
    take_steps(optimizer, variables, gradients)
    for row in gradients:
        reference.apply(row)
    assert_agrees(optimizer, variables, reference, TOLERANCE["float32"])


# Slots and weights are rounded when stored: half a unit in the last place, six times. The momentum
# can shrink between them, hence the factor of four. Half precision is kept as exactly as float32.
STORED = {"float16": 2.0**-24, "bfloat16": 2.0**-24, "float32": 2.0**-24, "float64": 2.0**-53}


@in_eager_and_compiled
@plain_case
def test_dtypes_mixed_in_one_optimizer(case, mode):
    random = np.random.default_rng(15)
    weights = random.uniform(0.5, 2.0, size=(4, 5))
    gradients = random.choice([-1, 1], size=(6, 4, 5)) * random.uniform(0.5, 2.0, size=(6, 4, 5))
    variables = [keras.Variable(w, dtype=d) for w, d in zip(weights, STORED, strict=True)]
    optimizer = case.optimizer()
    take_steps(optimizer, variables, list(gradients), mode)
    for i, (variable, (dtype, unit)) in enumerate(zip(variables, STORED.items(), strict=True)):

        def stored(values, dtype=dtype):
            return array(ops.cast(ops.cast(tensor(values), dtype), "float64"))

        reference = case.keras_reference([stored(weights[i])])
        for g in gradients[:, i]:
            reference.apply([stored(g)])
        assert keras.backend.standardize_dtype(variable.dtype) == dtype
        kept_in = "float64" if dtype == "float64" else "float32"
        for name in ("momentum", "velocity"):
            slot = optimizer.get_slot(variable, name)
            assert keras.backend.standardize_dtype(slot.dtype) == kept_in
        assert_agrees(optimizer, [variable], reference, 4 * 6 * unit)
