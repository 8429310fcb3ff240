"""`keras_yogi.Adam(epsilon_hat=True, epsilon=1e-7)` is `tf.keras.optimizers.Adam()`."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from sklearn.datasets import load_diabetes

import keras_yogi

SCHEDULE = keras.optimizers.schedules.ExponentialDecay(0.01, decay_steps=10, decay_rate=0.8)
OPTIONS = {
    "defaults": {},
    "amsgrad": {"amsgrad": True},
    "weight_decay": {"weight_decay": 0.05},
    "clipnorm": {"clipnorm": 0.1},
    "clipvalue": {"clipvalue": 0.05},
    "global_clipnorm": {"global_clipnorm": 0.1},
    "schedule": {"learning_rate": SCHEDULE},
    "callable": {"learning_rate": lambda: 0.003},
    "ema": {"use_ema": True, "ema_momentum": 0.9, "ema_overwrite_frequency": 7},
    "loss_scale_factor": {"loss_scale_factor": 64.0},
    "accumulation": {"gradient_accumulation_steps": 3},
    "all of them": {
        "learning_rate": SCHEDULE,
        "amsgrad": True,
        "weight_decay": 0.05,
        "global_clipnorm": 0.5,
        "use_ema": True,
        "gradient_accumulation_steps": 2,
    },
}


def fit(optimizer, exclude=None, **compile_arguments):
    """Weights and losses of a small regression on real data."""
    x, y = load_diabetes(return_X_y=True)
    x, y = (x / x.std()).astype("float32"), ((y - y.mean()) / y.std()).astype("float32")
    keras.utils.set_random_seed(7)
    model = keras.Sequential(
        [keras.Input((10,)), keras.layers.Dense(16, activation="tanh"), keras.layers.Dense(1)]
    )
    if exclude:
        optimizer.exclude_from_weight_decay(var_names=exclude)
    model.compile(optimizer, loss="mse", **compile_arguments)
    losses = model.fit(x, y, batch_size=32, epochs=5, verbose=0).history["loss"]
    return model.get_weights(), losses


@pytest.mark.parametrize(
    ("options", "exclude"),
    [
        *((options, None) for options in OPTIONS.values()),
        (OPTIONS["weight_decay"], ["bias"]),
    ],
    ids=[*OPTIONS, "exclude_from_weight_decay"],
)
def test_equals_keras_adam_over_a_fit(options, exclude):
    ours, our_losses = fit(keras_yogi.Adam(epsilon=1e-7, epsilon_hat=True, **options), exclude)
    theirs, their_losses = fit(tf.keras.optimizers.Adam(**options), exclude)
    # float32 rounding, grown over 70 steps: an Adam step depends on g / √v alone, so that a
    # rounding of 1e-7 in a nearly zero gradient moves a weight by up to the learning rate × 1e-3
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-6)
    np.testing.assert_allclose(our_losses, their_losses, rtol=1e-5)


@pytest.mark.parametrize("compile_arguments", [{"run_eagerly": True}, {"jit_compile": True}])
def test_equals_keras_adam_eagerly_and_in_xla(compile_arguments):
    ours, _ = fit(keras_yogi.Adam(epsilon=1e-7, epsilon_hat=True), **compile_arguments)
    theirs, _ = fit(tf.keras.optimizers.Adam(), **compile_arguments)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-6)


def test_the_comparison_tells_epsilons_apart():
    ours, _ = fit(keras_yogi.Adam(epsilon=1e-3))
    theirs, _ = fit(tf.keras.optimizers.Adam(epsilon=1e-3))
    assert max(np.abs(a - b).max() for a, b in zip(ours, theirs, strict=True)) > 1e-3
