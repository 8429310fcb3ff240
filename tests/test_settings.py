"""Hyperparameters that are set once the optimizer is built: they count, or are refused by name."""

import numpy as np
import pytest
from keras import ops
from support.backend import ENGINES
from support.cases import plain_case
from support.comparison import assert_unchanged, snapshot
from support.training import ones_of

import keras_yogi


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("beta_1", 1.5),
        ("beta_1", -0.1),
        ("beta_2", 1.0),
        ("beta_2", "0.9"),
        ("epsilon", -1.0),
        ("epsilon", float("nan")),
        ("epsilon", None),
        ("learning_rate", -1.0),
        ("skip_nonfinite", True),
        ("sparse_update", "lazy"),
    ],
)
@plain_case
def test_a_bad_value_is_refused_when_it_is_set(case, name, value):
    """By name, and the old one stays. What decides on the state is not changed once it is there."""
    variables = ones_of((3,), (2, 2))
    optimizer = case.optimizer()
    optimizer.build(variables)
    before, config = snapshot(optimizer, variables), optimizer.get_config()
    with pytest.raises((ValueError, AttributeError, TypeError), match=name):
        setattr(optimizer, name, value)
    assert optimizer.get_config() == config
    assert_unchanged(before, snapshot(optimizer, variables))


def test_slots_of_a_rule_are_not_changed_once_they_are_there():
    adam, yogi = keras_yogi.Adam(), keras_yogi.Yogi()
    for optimizer in (adam, yogi):
        optimizer.build(ones_of((3,), (2,)))
    for optimizer, name, value in [
        (adam, "amsgrad", True),
        (yogi, "initial_accumulator_value", 1.0),
    ]:
        with pytest.raises((ValueError, AttributeError, TypeError), match=name):
            setattr(optimizer, name, value)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_regularization_that_is_set_later_counts(engine):
    """A rule that did not read the weights reads them from then on."""
    variables = ones_of((3,), (2, 2), (300, 200))
    optimizer = keras_yogi.Yogi(0.0625, **ENGINES[engine])
    optimizer.build(variables)
    zeros = [ops.zeros(v.shape) for v in variables]
    optimizer.apply(zeros)
    for variable in variables:
        np.testing.assert_array_equal(variable.numpy(), 1.0)
    optimizer.l2_regularization_strength = 0.25
    optimizer.apply(zeros)
    for variable in variables:
        assert np.all((variable.numpy() > 0.0) & (variable.numpy() < 1.0))
