"""The figures of an optimizer, recomputed by hand from its slots in float64."""

import dataclasses

import keras
import numpy as np
import pytest
from keras import ops

from keras_yogi.rules import YogiRule
from support.backend import array
from support.reference import Reference

# Slots are float32: a figure is a dozen operations on them, of 6e-8 each, and sums are in float64.
ROUNDING = 2e-6

REFERENCE_FIELDS = {field.name for field in dataclasses.fields(Reference)}
FIGURES = (
    "weight_norm",
    "momentum_norm",
    "velocity_norm",
    "update_norm",
    "update_to_weight_ratio",
    "reached_share",
    "effective_lr_min",
    "effective_lr_median",
    "effective_lr_p99_9",
    "effective_lr_max",
    "epsilon_share",
    "initial_velocity_share",
    "held_back_share",
    "signal_to_noise_median",
)


def variables_of(dtype="float32", seed=0):
    random = np.random.default_rng(seed)
    shapes = {"embed/embeddings": (30, 4), "hidden/kernel": (4, 6), "out/bias": (3,), "scale": ()}
    variables = []
    for path, shape in shapes.items():
        variables.append(keras.Variable(random.normal(size=shape), dtype=dtype, name="x"))
        variables[-1]._path = path
    return variables


def gradients_of(variables, random):
    """Rows 20 and up of the embedding get no gradient, nor does the third weight of the bias."""
    gradients = [random.normal(size=v.shape).astype("float32") for v in variables]
    gradients[0][20:] = 0
    gradients[2][2] = 0
    return [keras.ops.cast(g, v.dtype) for g, v in zip(gradients, variables, strict=True)]


def train(optimizer, variables, steps=5, seed=1):
    random = np.random.default_rng(seed)
    optimizer.build(variables)
    for _ in range(steps):
        # With the variables: without, LossScaleOptimizer of Keras 3.10 makes no step.
        optimizer.apply(gradients_of(variables, random), variables)
    return optimizer


def by_hand(optimizer, variables, learning_rate=None):
    """The figures of each of the variables, and of all of them together.

    `learning_rate` is the last step's, of a schedule.
    """
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    columns = [_columns(inner, variable, learning_rate) for variable in variables]
    together = [np.concatenate(each) for each in zip(*columns, strict=True)]
    return [_figures(*column) for column in columns], _figures(*together)


def _columns(optimizer, variable, learning_rate):
    """What is known of each weight of a variable."""
    rule = optimizer.rule
    w = _float64(variable.value)
    slots = [_float64(optimizer.get_slot(variable, name)) for name in rule.initial_values]
    m, v, last = slots[0], slots[1], slots[-1]
    fields = {k: value for k, value in dataclasses.asdict(rule).items() if k in REFERENCE_FIELDS}
    reference = Reference(
        w,
        "yogi" if isinstance(rule, YogiRule) else "adam",
        learning_rate or float(array(ops.convert_to_tensor(optimizer.learning_rate))),
        step=max(int(array(optimizer.iterations)), 1),
        **fields,
    )
    # Of a rule of one's own too: the root is taken of the last slot.
    reference.slots = {"momentum": m, "velocity": last, "velocity_hat": last}
    correction_1, correction_2 = reference.corrections()
    rate = reference.learning_rate_per_weight() * correction_1
    root = np.sqrt(last / correction_2)
    below = (np.sqrt(last) if rule.epsilon_hat else root) < rule.epsilon
    update = reference.descended() - w
    # The initial values as the slots' dtype holds them.
    kept_in = optimizer.get_slot(variable, "velocity").dtype
    initial = [
        _float64(keras.ops.convert_to_tensor(np.array(value), kept_in))
        for value in rule.initial_values.values()
    ]
    reached = np.any([s != i for s, i in zip(slots, initial, strict=True)], axis=0)
    near = (last <= 2 * initial[-1]) & (initial[-1] > 0)
    small = np.abs(m / correction_1) * rate < 0.05 * reference.learning_rate
    held_back = (below | near) & small
    noise = np.where(m == 0, 0, np.abs(m / correction_1) / np.where(root == 0, 1, root))
    return [
        np.ravel(each) for each in (w, m, v, update, reached, rate, below, near, held_back, noise)
    ]


def _figures(w, m, v, update, reached, rate, below, near, held_back, noise):
    norms = [np.sqrt(np.sum(x**2)) for x in (w, m, v, update)]
    ratio = norms[3] / norms[0] if norms[3] else 0.0
    if reached.any():
        columns = (rate, below, near, held_back, noise)
        rate, below, near, held_back, noise = (each[reached] for each in columns)
        rates = [rate.min(), *_quantiles(rate, [0.5, 0.999]), rate.max()]
        rest = [*rates, below.mean(), near.mean(), held_back.mean(), *_quantiles(noise, [0.5])]
    else:
        rest = [np.nan] * 8
    return dict(zip(FIGURES, [*norms, ratio, reached.mean(), *rest], strict=True))


def _quantiles(values, fractions):
    return np.quantile(values, fractions, method="inverted_cdf")


def _float64(tensor):
    """By NumPy: JAX has none unless it is told to."""
    return array(tensor).astype("float64")


def assert_figures(report, optimizer, variables, rounding=ROUNDING):
    expected, model = by_hand(optimizer, variables)
    for name, of_variable in zip(report.variables, expected, strict=True):
        found = {key: report.variables[name][key] for key in FIGURES}
        assert found == pytest.approx(of_variable, rel=rounding, nan_ok=True), name
    assert {key: report.model[key] for key in FIGURES} == pytest.approx(
        model, rel=rounding, nan_ok=True
    )
