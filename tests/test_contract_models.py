"""Mixed precision, several optimizers, and variables that layers share."""

import keras
import numpy as np
import pytest
from keras import ops
from support.backend import (
    BACKEND,
    COMPILED,
    ON_TENSORFLOW,
    gradients_of,
    tensor,
    tensorflow_only,
)
from support.cases import DEFAULT, default_case, plain_case
from support.comparison import TOLERANCE, assert_agrees, assert_unchanged, snapshot
from support.models import dtype_policy, regression, regression_model
from support.training import hard_gradients, initial_weights, take_steps, variables_of

if ON_TENSORFLOW:
    import tensorflow as tf


@pytest.mark.parametrize(
    ("case", "policy"), [("adam", "mixed_bfloat16"), ("yogi", "mixed_float16")]
)
def test_mixed_precision_policies(case, policy):
    case = DEFAULT[case]
    x, y = regression()
    with dtype_policy(policy):
        mixed = regression_model(case.optimizer(), jit_compile=False)
    plain = regression_model(case.optimizer(), jit_compile=False)
    wraps = isinstance(mixed.optimizer, keras.optimizers.LossScaleOptimizer)
    assert wraps == (policy == "mixed_float16")
    if wraps:
        mixed.optimizer.initial_scale = 256.0  # Keras's 2¹⁵ overflows in the first steps
    start = plain.get_weights()
    for model in (mixed, plain):
        model.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0)
    inner = mixed.optimizer.inner_optimizer if wraps else mixed.optimizer
    assert int(inner.iterations) == 16
    for variable in mixed.trainable_variables:
        for name in inner.slots():
            slot = inner.get_slot(variable, name)
            assert keras.backend.standardize_dtype(slot.dtype) == "float32"
    of_each = zip(start, plain.get_weights(), mixed.get_weights(), strict=True)
    for before, exact, rounded in of_each:
        # Activations and gradients of 8 bits, in steps that depend on g / √v.
        assert 0 < np.abs(rounded - exact).max() < 0.1 * np.abs(exact - before).max()


# In eager mode on JAX, LossScaleOptimizer itself leaks a tracer.
@pytest.mark.parametrize("mode", ["jit"] if BACKEND == "jax" else sorted({"eager", COMPILED}))
@plain_case
def test_loss_scale_optimizer_skips_and_unscales(case, mode):
    """Its scale is a power of two: what it passes on is exact. A faulty step leaves no trace."""
    weights, gradients = initial_weights(), hard_gradients(4)
    faulty = [np.full_like(g, np.inf) for g in gradients[0]]
    plain, variables = case.optimizer(), variables_of(weights)
    scaled, scaled_variables = case.optimizer(), variables_of(weights)
    wrapper = keras.optimizers.LossScaleOptimizer(scaled, initial_scale=1024.0)
    take_steps(plain, variables, gradients, mode)
    take_steps(wrapper, scaled_variables, [[g * 1024 for g in row] for row in gradients[:2]], mode)
    before = snapshot(scaled, scaled_variables)
    take_steps(wrapper, scaled_variables, [faulty], mode)
    assert_unchanged(before, snapshot(scaled, scaled_variables))
    assert float(wrapper.dynamic_scale) == 512.0
    take_steps(wrapper, scaled_variables, [[g * 512 for g in row] for row in gradients[2:]], mode)
    assert_unchanged(snapshot(plain, variables), snapshot(scaled, scaled_variables))


# Several optimizers, shared variables


@pytest.mark.skipif(not hasattr(keras.optimizers, "MultiOptimizer"), reason="newer than this Keras")
def test_multi_optimizer():
    """Each part of the model is trained as if by its optimizer alone."""
    x, y = regression()
    adam, yogi = (case.optimizer() for case in DEFAULT.values())
    mapping = keras.optimizers.OptimizerMap(adam, {".*/bias": yogi})
    model = regression_model(keras.optimizers.MultiOptimizer(mapping))
    twin = regression_model("sgd")
    twin.set_weights(model.get_weights())
    model.fit(x, y, batch_size=16, epochs=2, shuffle=False, verbose=0)

    kernels = [v for v in twin.trainable_variables if v.name == "kernel"]
    biases = [v for v in twin.trainable_variables if v.name == "bias"]
    adam, yogi = (case.optimizer() for case in DEFAULT.values())
    for _ in range(2):
        for batch in np.split(np.arange(64), 4):
            gradients = gradients_of(
                lambda batch=batch: ops.mean(ops.square(twin(x[batch]) - tensor(y[batch]))),
                kernels + biases,
            )
            adam.apply(gradients[:2], kernels)
            yogi.apply(gradients[2:], biases)
    for a, b in zip(model.get_weights(), twin.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)  # the loss in another order


@default_case
def test_shared_layer(case):
    """A layer that is used twice is one variable, whose gradient is the sum over its uses."""
    layer = keras.layers.Dense(1, use_bias=False, kernel_initializer="ones")
    a, b = keras.Input((3,)), keras.Input((3,))
    model = keras.Model([a, b], layer(a) + 2 * layer(b))
    model.compile(case.optimizer(), loss=lambda y, p: ops.mean(p))
    random = np.random.default_rng(16)
    xs = [random.normal(size=(8, 3)).astype("float32") for _ in range(2)]
    model.fit(xs, np.ones((8, 1)), epochs=5, batch_size=8, verbose=0)
    reference = case.keras_reference([np.ones((3, 1))])
    for _ in range(5):
        reference.apply([(xs[0] + 2.0 * xs[1]).mean(axis=0)[:, None]])
    assert len(model.optimizer.slots()["momentum"]) == 1
    assert_agrees(model.optimizer, layer.weights, reference, 2 * TOLERANCE["float32"])


class TinyGAN(keras.Model):
    """A generator and a discriminator, each with an optimizer of its own."""

    def __init__(self):
        super().__init__()
        keras.utils.set_random_seed(17)
        self.generator = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
        self.discriminator = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])

    def compile(self, for_generator, for_discriminator, **arguments):
        super().compile(**arguments)
        self.for_generator, self.for_discriminator = for_generator, for_discriminator
        for_generator.build(self.generator.trainable_variables)
        for_discriminator.build(self.discriminator.trainable_variables)

    def train_step(self, data):
        noise, real = data
        loss_of = keras.losses.BinaryCrossentropy(from_logits=True)
        with tf.GradientTape(persistent=True) as tape:
            on_fake = self.discriminator(self.generator(noise))
            on_real = self.discriminator(real)
            ones, zeros = ops.ones_like(on_real), ops.zeros_like(on_fake)
            discriminators = loss_of(ones, on_real) + loss_of(zeros, on_fake)
            generators = loss_of(ones, on_fake)
        for part, optimizer, loss in [
            (self.discriminator, self.for_discriminator, discriminators),
            (self.generator, self.for_generator, generators),
        ]:
            variables = part.trainable_variables
            gradients = tape.gradient(loss, [v.value for v in variables])
            optimizer.apply_gradients(zip(gradients, variables, strict=True))
        return {"generator": generators, "discriminator": discriminators}


@tensorflow_only
def test_two_optimizers_on_two_parts_of_a_model():
    random = np.random.default_rng(18)
    noise, real = random.normal(size=(32, 2)), random.normal(size=(32, 3)) + 2.0
    weights = {}
    for run_eagerly in [False, True]:
        gan = TinyGAN()
        before = gan.get_weights()
        optimizers = [case.optimizer() for case in DEFAULT.values()]
        gan.compile(*optimizers, run_eagerly=run_eagerly)
        gan.fit(noise, real, batch_size=8, epochs=2, shuffle=False, verbose=0)
        assert [int(o.iterations) for o in optimizers] == [8, 8]
        assert [len(o.slots()["velocity"]) for o in optimizers] == [2, 2]
        weights[run_eagerly] = gan.get_weights()
        for a, b in zip(before, weights[run_eagerly], strict=True):
            assert np.all(a != b)
    for a, b in zip(*weights.values(), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)  # float32, 8 steps
