"""What holds for any shape, dtype, hyperparameter and gradient, from 1e-20 to 1e20.

Over the update one variable after another, which is the specification; that the fused engine
agrees with it is tested in `test_engine`.
"""

from typing import Any, NamedTuple

import keras
import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.backend import BACKEND, array, tensor
from support.cases import BOTH
from support.reference import Reference
from support.training import state_of

import keras_yogi

pytestmark = pytest.mark.float64


def examples(number):
    return settings(
        # JAX compiles every operation anew for every shape.
        max_examples=number // 20 if BACKEND == "jax" else number,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )


class Format(NamedTuple):
    """A dtype: the unit roundoff of what is kept in it, what may be flushed to zero, the gradients
    that it can square.
    """

    unit: float
    tiny: float
    exponents: tuple[int, int]  # of ten


FORMATS = {
    # Weights and slots of half precision are kept as exactly as float32; float16's to 2⁻⁴¹.
    "float16": Format(2.0**-24, 2.0**-41, (-2, 1)),
    "bfloat16": Format(2.0**-24, 2.0**-126, (-20, 17)),
    "float32": Format(2.0**-24, 2.0**-126, (-20, 17)),
    "float64": Format(2.0**-53, 2.0**-1022, (-20, 20)),
}


class Problem(NamedTuple):
    dtype: str
    hyperparameters: dict[str, Any]
    weights: np.ndarray
    gradients: np.ndarray  # one a step


NUMPY = {"bfloat16": ml_dtypes.bfloat16}


def rounded(values, dtype):
    """As float64, what an array holds after it was stored as `dtype`."""
    return np.array(values).astype(NUMPY.get(dtype, dtype)).astype("float64")


@st.composite
def problems(draw, rules=("adam", "yogi"), dtypes=tuple(FORMATS), max_steps=5):
    dtype = draw(st.sampled_from(dtypes))
    rule = draw(st.sampled_from(rules))
    hyperparameters = dict(
        rule=rule,
        learning_rate=draw(st.floats(0, 1, width=32)),
        beta_1=draw(st.just(0.0) | st.sampled_from([0.5, 0.9]) | st.floats(1e-3, 0.9999)),
        beta_2=draw(st.just(0.0) | st.sampled_from([0.9, 0.999]) | st.floats(1e-3, 0.9999)),
        epsilon=10.0 ** draw(st.floats(-8, 0)),
        epsilon_hat=draw(st.booleans()),
    )
    if rule == "adam":
        hyperparameters["amsgrad"] = draw(st.booleans())
    else:
        hyperparameters["initial_accumulator_value"] = draw(st.sampled_from([0.0, 1e-6, 1.0]))
        hyperparameters["activation"] = draw(st.sampled_from(["sign", "tanh"]))
    shape = tuple(draw(st.lists(st.integers(0, 4), max_size=3)))
    steps = draw(st.integers(1, max_steps))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    low, high = FORMATS[dtype].exponents
    # Every coordinate of every step at a scale of its own, or all near one scale.
    exponents = random.uniform(low, high, size=(steps, *shape))
    if draw(st.booleans()):
        exponents = np.full_like(exponents, draw(st.integers(low, high)))
    kept = random.random(size=exponents.shape) > draw(st.sampled_from([0.0, 0.3]))
    gradients = random.normal(size=exponents.shape) * 10.0**exponents * kept
    return Problem(
        dtype,
        hyperparameters,
        rounded(random.normal(size=shape), dtype),
        rounded(gradients, dtype),
    )


def optimizer_of(rule, **hyperparameters):
    optimizer = {"adam": keras_yogi.Adam, "yogi": keras_yogi.Yogi}[rule]
    return optimizer(**hyperparameters, fused=False)


class Run:
    """An optimizer and one variable."""

    def __init__(self, problem, **more):
        self.optimizer = optimizer_of(**{**problem.hyperparameters, **more})
        self.variable = keras.Variable(problem.weights, dtype=problem.dtype)
        self.optimizer.build([self.variable])
        self.dtype = problem.dtype

    def step(self, gradient):
        self.optimizer.apply([tensor(gradient, self.dtype)], [self.variable])

    def stored(self, slot):
        return array(self.optimizer.get_slot(self.variable, slot))

    def state(self):
        return state_of(self.optimizer, [self.variable])[0]


class ErrorBound:
    """How far from the float64 reference a computation in a narrower format may be.

    An operation is off by `unit` of its result, or by `tiny` where it underflows. A line of the
    formulas has four of them (measured: it is off by at most 0.44 of that). An error in m counts
    times the rate, an error in v through the root and the quotient, and all go on to the next step.
    """

    ROUNDINGS = 4

    def __init__(self, problem):
        self.reference = Reference(problem.weights, **problem.hyperparameters)
        self.format = FORMATS[problem.dtype]
        start = self.reference.slots["velocity"]
        self.velocity = self._rounding(start)  # v₀ is stored too
        self.errors = {name: np.zeros_like(start) for name in self.reference.slots}
        self.errors["weights"] = np.zeros_like(start)

    def _rounding(self, *of):
        largest = np.max(np.abs(of), axis=0)
        return self.ROUNDINGS * (self.format.unit * largest + self.format.tiny)

    def _velocity_error(self, v, square):
        r = self.reference
        if r.rule == "adam":
            return r.beta_2 * self.velocity + self._rounding(v, square)
        error = self.velocity + self._rounding(v, square)
        # Where g² is as near to v as that, the sign is anybody's; tanh(10 x) is less abrupt.
        apart = 10 * error if r.activation == "tanh" else 2.0 * (np.abs(square - v) <= error)
        return error + (1 - r.beta_2) * square * np.minimum(2.0, apart)

    def update(self, gradient):
        r, old = self.reference, dict(self.reference.slots)
        w, square = r.weights, np.square(gradient)
        self.velocity = self._velocity_error(old["velocity"], square)
        in_v = self.velocity
        in_m = r.beta_1 * self.errors["momentum"] + self._rounding(old["momentum"], gradient)
        r.update(gradient)
        m, v = r.slots["momentum"], r.slots["velocity"]
        if r.amsgrad:
            v = r.slots["velocity_hat"]
            in_v = self.errors["velocity_hat"] = np.maximum(self.errors["velocity_hat"], in_v)
        self.errors.update(momentum=in_m, velocity=self.velocity)

        correction_1, correction_2 = r.corrections()
        epsilon = r.epsilon if r.epsilon_hat else r.epsilon * np.sqrt(correction_2)
        root = np.sqrt(v)
        in_root = np.sqrt(in_v)  # or less, where in_v is small beside v
        in_root = np.minimum(in_root, in_v / np.maximum(root, in_root))
        denominator = root + epsilon
        smallest = np.maximum(epsilon, denominator - in_root)
        scale = r.learning_rate * np.sqrt(correction_2) / correction_1
        step = scale * np.abs(m) / denominator
        self.errors["weights"] = (
            self.errors["weights"]
            + scale * in_m / smallest
            + step * in_root / smallest
            + self._rounding(w, r.weights, step)
        )


@given(problems())
@examples(200)
def test_any_update_is_the_published_one(problem):
    """Weights and slots, at every step, to the rounding errors of the dtype and no more."""
    run, bound = Run(problem), ErrorBound(problem)
    for gradient in problem.gradients:
        run.step(gradient)
        bound.update(gradient)
        expected = {"weights": bound.reference.weights, **bound.reference.slots}
        for name, actual in run.state().items():
            error = np.abs(actual.astype("float64") - expected[name])
            assert np.all(error <= bound.errors[name]), (name, error, bound.errors[name])


def test_the_bound_is_tight():
    """On plain gradients it is a few dozen roundings of 6e-8 in float32, not a licence."""
    random = np.random.default_rng(31)
    for rule in ["adam", "yogi"]:
        hyperparameters = dict(rule=rule, learning_rate=0.5, beta_2=0.9, epsilon=1e-3)
        gradients = random.uniform(0.5, 2.0, size=(5, 20))
        problem = Problem("float32", hyperparameters, random.normal(size=20), gradients)
        bound = ErrorBound(problem)
        for gradient in gradients:
            bound.update(gradient)
        assert bound.errors["weights"].max() < 2e-5  # five steps of up to 0.5
        assert bound.errors["velocity"].max() < 1e-5


@given(problems())
@examples(60)
def test_velocity_is_never_negative(problem):
    run = Run(problem)
    for gradient in problem.gradients:
        run.step(gradient)
        assert np.all(run.stored("velocity") >= 0)


@given(problems(rules=["yogi"]))
@examples(60)
def test_yogi_velocity_moves_by_at_most_the_new_square(problem):
    """|v' − v| ≤ (1 − β₂) g², up to the rounding of both."""
    run, form = Run(problem), FORMATS[problem.dtype]
    for gradient in problem.gradients:
        before = run.stored("velocity").astype("float64")
        run.step(gradient)
        after = run.stored("velocity").astype("float64")
        allowed = (1 - problem.hyperparameters["beta_2"]) * np.square(gradient)
        roundings = form.unit * np.maximum(before, after) + form.tiny
        assert np.all(np.abs(after - before) <= allowed * (1 + 4 * form.unit) + roundings)


@given(problems(rules=["yogi"]), st.booleans())
@examples(60)
def test_yogi_velocity_stays_where_the_gradient_is_zero(problem, negative):
    """Bitwise; so does Adam's only while it is zero."""
    run = Run(problem)
    for gradient in problem.gradients:
        run.step(gradient)
    before = run.stored("velocity")
    run.step(np.full_like(problem.weights, -0.0 if negative else 0.0))
    assert run.stored("velocity").tobytes() == before.tobytes()


@given(problems(rules=["adam"], dtypes=["float32", "float64"]))
@examples(40)
def test_adam_velocity_forgets(problem):
    run, beta_2 = Run(problem), problem.hyperparameters["beta_2"]
    for gradient in problem.gradients:
        run.step(gradient)
    before = run.stored("velocity").astype("float64")
    run.step(np.zeros_like(problem.weights))
    form = FORMATS[problem.dtype]
    error = np.abs(run.stored("velocity") - beta_2 * before)
    assert np.all(error <= 3 * form.unit * before + form.tiny)


@given(problems())
@examples(60)
def test_without_a_learning_rate_the_weights_stay(problem):
    """Bitwise, whatever the gradients and however small the denominator."""
    run = Run(problem, learning_rate=0.0)
    before = run.state()
    for gradient in problem.gradients:
        run.step(gradient)
    assert run.state()["weights"].tobytes() == before["weights"].tobytes()


# Where float32 ends: g² is below its smallest number from |g| < 1e-23 on (it loses digits from
# 1e-19 on, and may be flushed to zero there), and infinite from |g| > 1.85e19 on.

signs = st.sampled_from([-1.0, 1.0])


@given(st.floats(-38, -23), signs, st.sampled_from([0.0, 1e-6, 1.0]))
@examples(40)
def test_squares_that_underflow(exponent, sign, start):
    """v does not see them; the weight moves by no more than η |g| / ε, as without underflow."""
    gradient = np.float32(sign * 10.0**exponent)
    for optimizer in [
        keras_yogi.Adam(0.5, fused=False),
        keras_yogi.Yogi(0.5, epsilon=1e-6, initial_accumulator_value=start, fused=False),
    ]:
        variable = keras.Variable(np.float32(0.0))
        optimizer.build([variable])
        before = array(optimizer.get_slot(variable, "velocity"))
        optimizer.apply([tensor(gradient)], [variable])
        assert array(optimizer.get_slot(variable, "velocity")) == before
        assert abs(variable.numpy()) <= 0.5 * abs(gradient) / 1e-6 * (1 + 1e-5)


@pytest.mark.parametrize("optimizer_class", BOTH)
@given(st.floats(1.9e19, 3e38), signs)
@examples(25)
def test_squares_that_overflow(optimizer_class, size, sign):
    """The velocity is infinite, so the weight stays in this step. From then on Yogi's weight
    stays for good, for an infinite v never comes back; Adam's becomes NaN, for ∞ − ∞ is.
    """
    variable = keras.Variable(np.array([1.0, 1.0], "float32"))
    optimizer = optimizer_class(0.5, fused=False)
    optimizer.apply([tensor(np.array([sign * size, 0.5]), "float32")], [variable])
    assert np.isposinf(array(optimizer.get_slot(variable, "velocity"))[0])
    first, other = variable.numpy()
    assert first == 1.0
    assert other < 1.0
    optimizer.apply([tensor(np.array([0.5, 0.5]), "float32")], [variable])
    first, then = variable.numpy()
    assert then < other
    if optimizer_class is keras_yogi.Yogi:
        assert first == 1.0
    else:
        assert np.isnan(first)


@pytest.mark.parametrize("optimizer_class", BOTH)
@given(st.floats(1e15, 1.8e19), signs)
@examples(25)
def test_the_largest_squares_that_do_not(optimizer_class, size, sign):
    """Just below, the first step is η, as for any gradient that dwarfs ε (and v₀)."""
    variable = keras.Variable(np.float32(1.0))
    optimizer = optimizer_class(0.5, fused=False)
    optimizer.apply([tensor(sign * size, "float32")], [variable])
    assert variable.numpy() == pytest.approx(1.0 - sign * 0.5, rel=1e-6)


@pytest.mark.parametrize("optimizer_class", BOTH)
def test_without_epsilon_a_zero_gradient_divides_zero_by_zero(optimizer_class):
    """As the formula says, where v₀ = 0; with ε > 0 or v₀ > 0 the weight stays."""
    start = {} if optimizer_class is keras_yogi.Adam else {"initial_accumulator_value": 0.0}
    for epsilon, expected in [(0.0, np.nan), (1e-30, 1.0)]:
        variable = keras.Variable(np.float32(1.0))
        optimizer = optimizer_class(0.5, epsilon=epsilon, fused=False, **start)
        optimizer.apply([tensor(0.0, "float32")], [variable])
        np.testing.assert_equal(variable.numpy(), np.float32(expected))
