"""Slots are variables, whatever memory they lie in; what is never trained needs none."""

import keras
import numpy as np
import pytest
from keras import ops
from support.backend import ON_TENSORFLOW, tensorflow_only, tf_mode
from support.cases import plain_case
from support.comparison import assert_all_close
from support.training import ones_of

if ON_TENSORFLOW:
    import tensorflow as tf

pytestmark = pytest.mark.filterwarnings("ignore:Gradients do not exist for variables")


@plain_case
def test_slots_compare_and_round_like_variables(case):
    optimizer = case.optimizer()
    optimizer.build(ones_of((3, 2), (2,)))
    for slot in optimizer.slots()["momentum"]:
        assert np.all(ops.convert_to_numpy(slot == 0))
        assert not np.any(ops.convert_to_numpy(slot != 0))
        np.testing.assert_array_equal(ops.convert_to_numpy(round(slot)), 0)
        np.testing.assert_array_equal(ops.convert_to_numpy(ops.add(slot, 1)), 1)
        assert keras.backend.standardize_dtype(ops.convert_to_tensor(slot, "float16").dtype) == (
            "float16"
        )
        assert (slot.trainable, slot.overwrite_with_gradient) == (False, False)
        assert slot in [slot]


@plain_case
def test_a_stateless_scope_has_values_of_its_own(case):
    optimizer = case.optimizer()
    optimizer.build(ones_of((2,), (3,)))
    slot = optimizer.slots()["momentum"][0]
    with keras.StatelessScope([(slot, ops.ones(2))]) as scope:
        slot.assign(slot + 10.0)
        inside = ops.convert_to_numpy(slot.value)
    np.testing.assert_array_equal(inside, 11)
    np.testing.assert_array_equal(ops.convert_to_numpy(scope.get_current_value(slot)), 11)
    np.testing.assert_array_equal(ops.convert_to_numpy(slot.value), 0)


@tensorflow_only
@pytest.mark.parametrize("mode", ["eager", "graph"])
@pytest.mark.parametrize("found", ["variables", "slots"])
@plain_case
def test_slots_behave_like_variables(case, found, mode):
    """They compute, are indexed, added to and taken from, in graphs too."""
    optimizer = case.optimizer()
    optimizer.build(ones_of((3, 2), (2,)))
    slot = optimizer.variables[2] if found == "variables" else optimizer.slots()["velocity"][0]
    slot.assign(np.arange(1.0, 7.0).reshape(3, 2))
    old = slot.numpy().astype("float64")

    def compute():
        return [
            slot * 0.5,
            0.5 * slot,
            slot + 1.0,
            1.0 + slot,
            slot - 1.0,
            1.0 - slot,
            slot / 2.0,
            1.0 / slot,
            slot**2,
            -slot,
            abs(slot),
            slot[0],
            slot[:, 1],
            slot @ tf.ones((2, 1)),
            slot > 2.0,
            keras.ops.sqrt(slot),
            tf.sqrt(slot),
            tf.reduce_sum(slot),
        ]

    expected = [
        *[old * 0.5, 0.5 * old, old + 1, old + 1, old - 1, 1 - old, old / 2, 1 / old],
        *[old**2, -old, old, old[0], old[:, 1], old @ np.ones((2, 1)), old > 2],
        *[np.sqrt(old), np.sqrt(old), old.sum()],
    ]
    assert_all_close(tf_mode(mode)(compute)(), expected, 1e-6)
    assert slot.ndim == 2
    assert tuple(slot.shape) == (3, 2)
    assert slot.dtype == "float32"
    np.testing.assert_array_equal(np.asarray(slot), old)

    def change():
        slot.assign_add(np.ones((3, 2)))
        slot.assign_sub(np.full((3, 2), 0.5))
        slot.assign(slot * 2.0)

    tf_mode(mode)(change)()
    np.testing.assert_array_equal(slot.numpy(), (old + 0.5) * 2)


@tensorflow_only
@pytest.mark.parametrize("others", ["string", "int32", "bool"])
@plain_case
def test_a_variable_that_is_never_trained_may_have_any_dtype(case, others, tmp_path):
    """It is in the list of a model's variables, and has no gradient."""
    value = {"string": "label", "int32": [1, 2], "bool": [True]}[others]
    weights, other = variables = [tf.Variable([1.0, 2.0]), tf.Variable(value)]
    optimizer = case.optimizer()
    optimizer.build(variables)
    optimizer.apply([tf.ones(2), None], variables)
    assert np.all(weights.numpy() < [1.0, 2.0])
    assert np.array_equal(other.numpy(), tf.constant(value).numpy())
    checkpoint = tf.train.Checkpoint(optimizer=optimizer)
    path = checkpoint.write(str(tmp_path / "checkpoint"))
    momentum = optimizer.get_slot(weights, "momentum").numpy()
    optimizer.apply([tf.ones(2), None], variables)
    checkpoint.read(path).assert_existing_objects_matched()
    np.testing.assert_array_equal(optimizer.get_slot(weights, "momentum"), momentum)
