"""The figures of an optimizer, recomputed by hand from its slots."""

import keras
import numpy as np
import pytest

from keras_yogi.diagnostics.gauge import FIGURES

# Slots are float32: a figure is a dozen operations on them, of 6e-8 each, and sums are in float64.
ROUNDING = 2e-6


def variables_of(dtype="float32", seed=0):
    random = np.random.default_rng(seed)
    shapes = {"embed/embeddings": (30, 4), "hidden/kernel": (4, 6), "out/bias": (3,), "scale": ()}
    variables = []
    for path, shape in shapes.items():
        variables.append(keras.Variable(random.normal(size=shape), dtype=dtype, name="x"))
        variables[-1]._path = path
    return variables


def train(optimizer, variables, steps=5, seed=1):
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


def by_hand(optimizer, variables):
    """The figures in float64 NumPy, of each of the variables and of all of them together."""
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    t = int(inner.iterations.numpy())
    columns = []
    for variable in variables:
        w = np.array(keras.ops.cast(variable, "float64"))
        m, *second = (
            np.array(keras.ops.cast(inner.get_slot(variable, name), "float64"))
            for name in inner.slot_names
        )
        unbiased = float(inner._velocity_bias.value) == 0.0
        correction_1 = 1 - inner.beta_1**t
        correction_2 = 1.0 if unbiased else 1 - inner.beta_2**t
        root = np.sqrt(second[-1] / correction_2)
        rate = float(inner.learning_rate.numpy())
        if inner.epsilon_hat:
            effective = rate * np.sqrt(correction_2) / (np.sqrt(second[-1]) + inner.epsilon)
            dominated = np.sqrt(second[-1]) < inner.epsilon
        else:
            effective = rate / (root + inner.epsilon)
            dominated = root < inner.epsilon
        update = -effective * m / correction_1
        l1 = getattr(inner, "l1_regularization_strength", 0.0)
        l2 = getattr(inner, "l2_regularization_strength", 0.0)
        if l1 or l2:
            moved, per_weight = w + update, effective / correction_1
            moved = np.sign(moved) * np.maximum(np.abs(moved) - per_weight * l1, 0)
            update = moved / (1 + per_weight * l2) - w
        # The seed as the weights' dtype holds it.
        initial = getattr(inner, "initial_accumulator_value", 0.0)
        initial = keras.ops.convert_to_tensor(np.array(initial), variable.dtype)
        initial = float(keras.ops.cast(initial, "float64"))
        noise = np.where(m == 0, 0, np.abs(m / correction_1) / np.where(root == 0, 1, root))
        at_initial = second[0] == initial
        touched = np.where(at_initial & (m == 0), np.nan, effective)
        columns.append((w, m, second[0], update, effective, touched, dominated, at_initial, noise))
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
