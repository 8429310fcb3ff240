"""A config of TensorFlow Addons' Yogi becomes the keras_yogi.Yogi that goes on as it would."""

import json

import keras
import numpy as np
import pytest
from support.tfa_files import CONFIG, SCHEDULE, YOGI

import keras_yogi
from keras_yogi.migration import load_tfa


@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        {"class_name": "Addons>Yogi", "config": CONFIG},
        {"class_name": "Yogi", "config": CONFIG},
        {  # tf.keras.optimizers.serialize
            "module": "tensorflow_addons.optimizers.yogi",
            "class_name": "Yogi",
            "config": CONFIG,
            "registered_name": "Addons>Yogi",
        },
    ],
)
def test_config_is_taken_over_as_it_is(config):
    before = json.dumps(config)
    optimizer = load_tfa(config)
    assert type(optimizer) is keras_yogi.Yogi
    ours = optimizer.get_config()
    expected = {
        "name": "Yogi",
        "learning_rate": float(np.float32(0.02)),
        "beta_1": 0.800000011920929,
        "beta_2": 0.9990000128746033,
        "epsilon": 9.999999747378752e-05,
        "epsilon_hat": True,
        "l1_regularization_strength": 0.0,
        "l2_regularization_strength": 0.0,
        "activation": "sign",
        "initial_accumulator_value": 1e-06,
        "weight_decay": None,
    }
    assert {name: ours[name] for name in expected} == expected
    assert json.dumps(config) == before


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({"beta1": 0.0}, {"beta_1": 0.0}),
        ({"beta2": 0.9}, {"beta_2": 0.9}),
        ({"activation": "tanh"}, {"activation": "tanh"}),
        ({"initial_accumulator_value": 1.0}, {"initial_accumulator_value": 1.0}),
        ({"l1_regularization_strength": 0.1}, {"l1_regularization_strength": 0.1}),
        ({"l2_regularization_strength": 0.1}, {"l2_regularization_strength": 0.1}),
        ({"clipnorm": 1.0}, {"clipnorm": 1.0}),
        ({"clipvalue": 1.0}, {"clipvalue": 1.0}),
        ({"global_clipnorm": 1.0}, {"global_clipnorm": 1.0}),
        ({"name": "mine"}, {"name": "mine"}),
    ],
)
def test_every_key_has_its_argument(theirs, ours):
    config = load_tfa(theirs).get_config()
    assert {name: config[name] for name in ours} == ours


def test_missing_keys_have_the_defaults_of_tensorflow_addons():
    config = load_tfa({}).get_config()
    assert config["learning_rate"] == float(np.float32(0.01))
    assert [config[name] for name in ("beta_1", "beta_2", "epsilon")] == [0.9, 0.999, 1e-3]
    assert (config["initial_accumulator_value"], config["activation"]) == (1e-6, "sign")


@pytest.mark.parametrize("extra", [{}, {"module": "keras.optimizers.schedules"}])
def test_schedule(extra):
    optimizer = load_tfa({**CONFIG, "learning_rate": {**SCHEDULE, **extra}})
    for step in (0, 1, 7):
        optimizer.iterations.assign(step)
        # 1e-6: the schedule computes in float32
        np.testing.assert_allclose(optimizer.learning_rate, 0.02 * 0.9 ** (step / 5), rtol=1e-6)


def test_decay_divides_the_learning_rate():
    optimizer = load_tfa({**CONFIG, "learning_rate": 0.5, "decay": 0.25})
    for step in (0, 1, 2, 10, 1000):
        optimizer.iterations.assign(step)
        # 1e-6: the schedule computes in float32
        np.testing.assert_allclose(optimizer.learning_rate, 0.5 / (1 + 0.25 * step), rtol=1e-6)


@keras.saving.register_keras_serializable(package="tests")
class Halving(keras.optimizers.schedules.LearningRateSchedule):
    """A schedule that Keras does not have."""

    def __call__(self, step):
        return 0.5 ** keras.ops.cast(step, "float32")

    def get_config(self):
        return {}


def test_schedule_of_the_user():
    config = {"learning_rate": {"class_name": "Halves", "config": {}}}
    assert isinstance(load_tfa(config, {"Halves": Halving})._learning_rate, Halving)
    config = {"learning_rate": {"class_name": "tests>Halving", "config": {}}}
    assert isinstance(load_tfa(config)._learning_rate, Halving)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({**CONFIG, "beta_1": 0.9}, r"no keys but name, .*Received: \{'beta_1': 0.9\}"),
        ({**CONFIG, "amsgrad": True}, "Received: {'amsgrad': True}"),
        ({**CONFIG, "skip_nonfinite": True}, "Received: {'skip_nonfinite': True}"),
        ({"class_name": "Adam", "config": {}}, r"must be tfa.optimizers.Yogi .*Received: 'Adam'"),
        ({"class_name": "Addons>LAMB", "config": {}}, "Received: 'Addons>LAMB'"),
        ({"class_name": None, "config": {}}, "Received: None"),
        ({"class_name": "Yogi", "config": 3}, "`config` must be a dict.*Received: config=3"),
        ({"class_name": "Yogi"}, "`config` must be a dict.*Received: config=None"),
        (
            {"class_name": "Addons>Lookahead", "config": {"optimizer": YOGI, "sync_period": 6}},
            "Received: 'Addons>Lookahead' around 'Addons>Yogi'",
        ),
        (
            {"class_name": "Addons>MovingAverage", "config": {"optimizer": YOGI}},
            "Received: 'Addons>MovingAverage' around 'Addons>Yogi'",
        ),
        (
            {"class_name": "LossScaleOptimizer", "config": {"inner_optimizer": YOGI}},
            "Received: 'LossScaleOptimizer' around 'Addons>Yogi'",
        ),
        ({**CONFIG, "beta1": 1.0}, r"`beta_1` must be .*\[0, 1\).*1.0"),
        ({**CONFIG, "activation": "relu"}, "`activation` must be .*'relu'"),
        ({**CONFIG, "decay": -1.0}, "`decay` must be .*-1.0"),
        (
            {**CONFIG, "learning_rate": SCHEDULE, "decay": 0.1},
            "`learning_rate beside decay` must be a number",
        ),
        (
            {**CONFIG, "learning_rate": {"class_name": "Addons>Cyclical", "config": {}}},
            r"learning_rate=.*a schedule \(unknown: Addons>Cyclical\).*`custom_objects`",
        ),
        ({**CONFIG, "learning_rate": {"class_name": "CosineDecay"}}, "a schedule .*config"),
        (3, r"`path_or_config` must be a path or an optimizer config. Received: .*=3"),
        (None, "`path_or_config` must be"),
    ],
)
def test_config_that_is_refused(config, message):
    with pytest.raises(ValueError, match=message):
        load_tfa(config)
