"""`keras_yogi.Adam(epsilon_hat=True, epsilon=1e-7)` is `keras.optimizers.Adam()`."""

import functools

import keras
import numpy as np
import pytest
from sklearn.datasets import load_diabetes
from support.backend import FIT_MODES, WITHOUT_XLA
from support.cases import OPTIONS

import keras_yogi

SCHEDULE = keras.optimizers.schedules.ExponentialDecay(0.01, decay_steps=10, decay_rate=0.8)
ADAM_OPTIONS = {
    **{
        name: OPTIONS[name]
        for name in (
            "plain",
            "weight_decay",
            "clipnorm",
            "clipvalue",
            "global_clipnorm",
            "ema, overwriting",
            "loss_scale_factor",
            "accumulation",
        )
    },
    "schedule": {"learning_rate": SCHEDULE},
    "callable": {"learning_rate": lambda: 0.003},
    "amsgrad": {"amsgrad": True, "beta_2": 0.5},
    "all of them": {
        "amsgrad": True,
        "learning_rate": SCHEDULE,
        "weight_decay": 0.25,
        "global_clipnorm": 0.5,
        "use_ema": True,
        "gradient_accumulation_steps": 2,
    },
}
# In `fit` Keras multiplies the loss with it, and nothing is left of it.
WITHOUT_EFFECT = ("plain", "loss_scale_factor")


def fit_diabetes(optimizer, exclude=None, **compile_arguments):
    """Weights and losses of a small regression on real data: 13 whole batches."""
    x, y = (values[:416] for values in load_diabetes(return_X_y=True))
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


@functools.cache
def without_options(beta_2):
    adam = keras_yogi.Adam(beta_2=beta_2, epsilon=1e-7, epsilon_hat=True)
    return fit_diabetes(adam, **WITHOUT_XLA)


@pytest.mark.parametrize(
    ("name", "exclude"), [*((name, None) for name in ADAM_OPTIONS), ("weight_decay", ["bias"])]
)
def test_equals_keras_adam_over_a_fit(name, exclude):
    ours, our_losses = (
        without_options(0.999)
        if name == "plain"
        else fit_diabetes(
            keras_yogi.Adam(epsilon=1e-7, epsilon_hat=True, **ADAM_OPTIONS[name]),
            exclude,
            **WITHOUT_XLA,
        )
    )
    theirs, their_losses = fit_diabetes(
        keras.optimizers.Adam(**ADAM_OPTIONS[name]), exclude, **WITHOUT_XLA
    )
    # float32 rounding, grown over 65 steps: an Adam step depends on g / √v alone, so that a
    # rounding of 1e-7 in a nearly zero gradient moves a weight by up to the learning rate × 1e-3
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-6)
    np.testing.assert_allclose(our_losses, their_losses, rtol=1e-5)
    # The comparison can fail: with an option that is not heeded the weights would be elsewhere.
    plain, _ = without_options(ADAM_OPTIONS[name].get("beta_2", 0.999))
    apart = max(np.abs(a - b).max() for a, b in zip(ours, plain, strict=True))
    assert (apart > 8e-6) == (name not in WITHOUT_EFFECT)


HOW = {name: FIT_MODES[name] for name in FIT_MODES if FIT_MODES[name] != WITHOUT_XLA}  # as above


@pytest.mark.parametrize("compile_arguments", HOW.values(), ids=HOW)
def test_equals_keras_adam_however_fit_runs(compile_arguments):
    ours, _ = fit_diabetes(keras_yogi.Adam(epsilon=1e-7, epsilon_hat=True), **compile_arguments)
    theirs, _ = fit_diabetes(keras.optimizers.Adam(), **compile_arguments)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-6)  # as above


def test_the_comparison_tells_epsilons_apart():
    ours, _ = fit_diabetes(keras_yogi.Adam(epsilon=1e-3), **WITHOUT_XLA)
    theirs, _ = fit_diabetes(keras.optimizers.Adam(epsilon=1e-3), **WITHOUT_XLA)
    assert max(np.abs(a - b).max() for a, b in zip(ours, theirs, strict=True)) > 1e-3
