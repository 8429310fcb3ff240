"""How two runs are compared, and to which tolerance."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from support.reference import Array, KerasReference, reference_trajectory
from support.training import hard_gradients, held, initial_weights, state_of, trajectory

# Of each coordinate's largest value over the run. float64: a dozen roundings of 1.1e-16 a step
# over 15 steps. float32 likewise, of 6e-8.
TOLERANCE = {"float64": 1e-13, "float32": 4e-6}
# Of each array's largest value. A compiled step sums in another order than single operations: 6e-8
# a sum in the gradients of a dozen steps, each of which feeds the next; 4e-6 has been seen. An
# option that is not heeded moves the weights by 100 times as much, which is tested too.
ANOTHER_ORDER = 5e-5


def assert_same_trajectory(actual: list, expected: list, tolerance: float) -> None:
    """Weights and slots, at every step, to `tolerance` of each coordinate's largest value."""
    assert len(actual) == len(expected)
    for variable in range(len(expected[0])):
        for name in expected[0][variable]:
            want = np.stack([state[variable][name] for state in expected])
            got = np.stack([state[variable][name] for state in actual]).astype("float64")
            largest = np.abs(want).max(axis=0)
            error = np.abs(got - want) / np.where(largest > 0, largest, 1)
            step = int(np.argmax(error.reshape(len(error), -1).max(axis=1)))
            assert np.all(error <= tolerance), (
                f"{name} of variable {variable} is off by {error.max():.2e} of its largest value, "
                f"worst at step {step}; allowed: {tolerance:.0e}"
            )


def assert_follows_the_reference(case: Any, mode: str, dtype: str) -> None:
    """Weights and slots over 15 hard steps, in one of `backend.MODES`.

    Half precision is computed in float32, and variable and residual hold all of that.
    """
    weights = [held(w, dtype) for w in initial_weights()]
    gradients = [[held(g, dtype) for g in row] for row in hard_gradients()]
    actual = trajectory(case.optimizer(), weights, gradients, mode, dtype)
    expected = reference_trajectory(case.keras_reference(weights), gradients)
    tolerance = TOLERANCE["float64" if dtype == "float64" else "float32"]
    assert_same_trajectory(actual, expected, tolerance)


def assert_all_close(actual: Sequence[Any], expected: Sequence[Any], tolerance: float) -> None:
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_allclose(
            np.asarray(a, "float64"), np.asarray(b, "float64"), rtol=tolerance, atol=tolerance
        )


def assert_close(actual: Any, expected: Array, tolerance: float, label: str = "") -> None:
    """To `tolerance` of the array's largest value."""
    scale = np.max(np.abs(expected), initial=0.0) or 1.0
    np.testing.assert_allclose(
        np.asarray(actual, "float64"), expected, rtol=0, atol=tolerance * scale, err_msg=label
    )


def assert_nearly_unchanged(
    before: Sequence[Array], after: Sequence[Array], tolerance: float = ANOTHER_ORDER
) -> None:
    for old, new in zip(before, after, strict=True):
        assert_close(new, old.astype("float64"), tolerance)


def assert_agrees(
    optimizer: Any,
    variables: Sequence[keras.Variable],
    reference: KerasReference,
    tolerance: float,
) -> None:
    """Weights and slots, now, to `tolerance` of each array's largest value."""
    actual = state_of(optimizer, variables)
    for variable, got, want in zip(variables, actual, reference.state(), strict=True):
        assert set(got) == set(want)
        for name, expected in want.items():
            assert_close(got[name], expected, tolerance, f"{name} of {variable.name}")


def snapshot(
    optimizer: keras.optimizers.Optimizer, variables: Sequence[keras.Variable] = ()
) -> list[Array]:
    """Copies of the weights and of everything that the optimizer keeps."""
    return [np.array(v.numpy()) for v in [*variables, *optimizer.variables]]


def assert_unchanged(before: Sequence[Array], after: Sequence[Array]) -> None:
    """Bitwise, NaN included."""
    for old, new in zip(before, after, strict=True):
        assert old.dtype == new.dtype
        assert old.shape == new.shape
        assert old.tobytes() == new.tobytes()
