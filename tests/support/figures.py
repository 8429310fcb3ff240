"""The figures of an optimizer, recomputed from its slots by the float64 reference."""

import keras
import numpy as np
import pytest

from keras_yogi.diagnostics.gauge import FIGURES
from support.backend import array
from support.reference import Reference

# Slots are float32: a figure is a dozen operations on them, of 6e-8 each, and sums are in float64.
ROUNDING = 2e-6


def named_variables(dtype="float32", seed=0):
    random = np.random.default_rng(seed)
    shapes = {"embed/embeddings": (30, 4), "hidden/kernel": (4, 6), "out/bias": (3,), "scale": ()}
    variables = []
    for path, shape in shapes.items():
        variables.append(keras.Variable(random.normal(size=shape), dtype=dtype, name="x"))
        variables[-1]._path = path
    return variables


def take_random_steps(optimizer, variables, steps=5, seed=1):
    """Rows 20 and up of the embedding get no gradient, nor does the third weight of the bias."""
    random = np.random.default_rng(seed)
    optimizer.build(variables)
    for _ in range(steps):
        gradients = [random.normal(size=v.shape).astype("float32") for v in variables]
        gradients[0][20:] = 0
        gradients[2][2] = 0
        pairs = zip(gradients, variables, strict=True)
        # With the variables: without, LossScaleOptimizer of Keras 3.10 makes no step.
        optimizer.apply([keras.ops.cast(g, v.dtype) for g, v in pairs], variables)
    return optimizer


def reference_of(optimizer, variable, step):
    """The float64 reference in the state that the optimizer has for one variable."""
    config = optimizer.get_config()
    reference = Reference(
        array(variable.value).astype("float64"),
        "yogi" if "initial_accumulator_value" in config else "adam",
        float(array(optimizer.learning_rate)),
        step=step,
        **{
            name: config[name]
            for name in Reference.__dataclass_fields__
            if name in config and name != "learning_rate"
        },
    )
    for name in optimizer.slots():
        reference.slots[name] = array(optimizer.get_slot(variable, name)).astype("float64")
    return reference


def by_hand(optimizer, variables):
    """The figures in float64 NumPy, of each of the variables and of all of them together."""
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    t = int(array(inner.iterations.value))
    columns = []
    for variable in variables:
        reference = reference_of(inner, variable, t)
        correction_1, correction_2 = reference.corrections()
        w, m, v = reference.weights, reference.slots["momentum"], reference.slots["velocity"]
        largest = list(reference.slots.values())[-1]
        effective = reference.learning_rate_per_weight() * correction_1
        root = np.sqrt(largest / correction_2)
        dominated = (np.sqrt(largest) if inner.epsilon_hat else root) < inner.epsilon
        update = reference.descended() - w
        # The seed as the weights' dtype holds it.
        initial = keras.ops.convert_to_tensor(
            np.array(reference.initial_accumulator_value), variable.dtype
        )
        at_initial = v == array(initial).astype("float64")
        noise = np.where(m == 0, 0, np.abs(m / correction_1) / np.where(root == 0, 1, root))
        touched = np.where(at_initial & (m == 0), np.nan, effective)
        columns.append((w, m, v, update, effective, touched, dominated, at_initial, noise))
    flat = [tuple(np.ravel(each) for each in column) for column in columns]
    together = tuple(np.concatenate(each) for each in zip(*flat, strict=True))
    return [_figures(column) for column in flat], _figures(together)


def _figures(column):
    w, m, v, update, effective, touched, dominated, at_initial, noise = column
    norms = [np.sqrt(np.sum(x**2)) for x in (w, m, v, update)]
    return dict(
        zip(
            FIGURES,
            (
                *norms,
                norms[3] / norms[0] if norms[3] else 0.0,
                effective.min(),
                np.median(effective),
                np.quantile(effective, 0.999),
                effective.max(),
                np.nan if np.all(np.isnan(touched)) else np.nanmax(touched),
                dominated.mean(),
                at_initial.mean(),
                np.median(noise),
            ),
            strict=True,
        )
    )


def assert_figures(report, optimizer, variables, rounding=ROUNDING):
    expected, model = by_hand(optimizer, variables)
    for name, of_variable in zip(report.variables, expected, strict=True):
        found = {key: report.variables[name][key] for key in FIGURES}
        assert found == pytest.approx(of_variable, rel=rounding, nan_ok=True), name
    assert {key: report.model[key] for key in FIGURES} == pytest.approx(
        model, rel=rounding, nan_ok=True
    )
