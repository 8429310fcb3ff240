"""Small models, their data, and a training of each."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np

from support.backend import WITHOUT_XLA, gradients_of, tensor
from support.comparison import snapshot
from support.reference import Array


@contextlib.contextmanager
def dtype_policy(name: str) -> Iterator[None]:
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


class AfterEachBatch(keras.callbacks.Callback):
    """What `see` returns, at the end of each batch."""

    def __init__(self, see: Callable[[keras.Model], Any]) -> None:
        super().__init__()
        self.see, self.seen = see, []

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.seen.append(self.see(self.model))


# A linear target


def regression() -> tuple[Array, Array]:
    """Eight batches of eight; a model whose gradients are not tiny anywhere."""
    random = np.random.default_rng(11)
    x = random.normal(size=(64, 3)).astype("float32")
    return x, (x @ [[1.0], [-2.0], [0.5]] + 3.0).astype("float32")


def regression_model(optimizer: Any, **compile_arguments: Any) -> keras.Model:
    keras.utils.set_random_seed(12)
    layers = [keras.layers.Dense(4, activation="tanh"), keras.layers.Dense(1)]
    model = keras.Sequential([keras.Input((3,)), *layers])
    model.compile(optimizer, loss="mse", **{**WITHOUT_XLA, **compile_arguments})
    return model


# A sine: four batches of 16

EPOCHS = 2


def sine(seed: int = 6, samples: int = 64, infinite: bool = False) -> tuple[Array, Array]:
    """With `infinite`, one number of the second batch is."""
    x = np.random.default_rng(seed).normal(size=(samples, 5)).astype("float32")
    y = np.sin(x.sum(axis=1, keepdims=True))
    if infinite:
        x[20, 3] = np.inf
    return x, y


def sine_model(
    optimizer: Any, hidden: Sequence[keras.layers.Layer] = (), **arguments: Any
) -> keras.Model:
    """The same weights in every process and on every backend."""
    hidden = hidden or [keras.layers.Dense(7, activation="tanh")]
    model = keras.Sequential([keras.Input((5,)), *hidden, keras.layers.Dense(1)])
    random = np.random.default_rng(8)
    model.set_weights([random.normal(size=w.shape) / 2 for w in model.get_weights()])
    model.compile(optimizer, loss="mse", **{**WITHOUT_XLA, **arguments})
    return model


def fit_sine(
    model: keras.Model,
    epochs: int = EPOCHS,
    first_epoch: int = 0,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    infinite: bool = False,
) -> None:
    model.fit(
        *sine(infinite=infinite),
        batch_size=16,
        shuffle=False,
        verbose=0,
        initial_epoch=first_epoch,
        epochs=first_epoch + epochs,
        callbacks=list(callbacks),
    )


def by_loop(model: keras.Model, infinite: bool = False, epochs: int = EPOCHS) -> None:
    """The steps of `fit_sine`, one call of `apply` after another."""
    x, y = sine(infinite=infinite)
    variables = model.trainable_variables
    for start in list(range(0, len(x), 16)) * epochs:
        batch = slice(start, start + 16)
        gradients = gradients_of(
            lambda batch=batch: keras.ops.mean(
                keras.ops.square(model(x[batch]) - tensor(y[batch]))
            ),
            variables,
        )
        model.optimizer.apply(gradients, variables)
    model.optimizer.finalize_variable_values(variables)


def model_state(model: keras.Model) -> list[Array]:
    """Everything that a training leaves behind."""
    return snapshot(model.optimizer, model.weights)


# Words

VOCABULARY, LENGTH = 50, 12


def texts(samples: int = 128) -> tuple[Array, Array]:
    """Texts, and how much of each is the most frequent word. Frequent words come several times in
    a batch, as they do in text.
    """
    random = np.random.default_rng(4)
    words = np.minimum(random.zipf(1.3, size=(samples, LENGTH)) - 1, VOCABULARY - 1)
    return words.astype("int32"), (words == 0).mean(axis=1, keepdims=True).astype("float32")
