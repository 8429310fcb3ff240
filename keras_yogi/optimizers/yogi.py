"""Yogi (Zaheer et al., 2018)."""

from typing import Unpack

import keras

from keras_yogi.checks import Fused, KerasArguments, LearningRate, SparseUpdate
from keras_yogi.optimizers.base import AdaptiveOptimizer
from keras_yogi.rules import Activation, BiasCorrection, YogiRule


@keras.saving.register_keras_serializable(package="keras_yogi")
class Yogi(AdaptiveOptimizer):
    r"""The Yogi optimizer: Adam whose velocity cannot forget faster than the gradient allows.

    With gradient g, step t = 1, 2, …, m₀ = 0 and v₀ = `initial_accumulator_value`:

    ```
    m ← β₁ m + (1 − β₁) g                   slot "momentum"
    v ← v + (1 − β₂) sign(g² − v) g²        slot "velocity"
    m̂ = m / (1 − β₁ᵗ)     v̂ = v / (1 − β₂ᵗ)
    w ← w − η m̂ / (√v̂ + ε)
    ```

    Adam's velocity decays at the rate β₂ whatever the gradient is; where gradients are sparse, it
    forgets, and the effective learning rate η / (√v̂ + ε) explodes. Yogi's v moves by at most
    (1 − β₂) g² a step, and not at all on a zero gradient.

    The defaults v₀ = 1e-6 and ε = 1e-3 are large where gradients are small. The mean loss over a
    batch gives a row of an Embedding a gradient of about 1e-3 or less; the bias correction divides
    v₀, too, so that √v̂ begins at 0.03, and the first step is 3 % of η where Adam's is η. Then take
    `initial_accumulator_value=0.0` and `epsilon=1e-6`; `keras_yogi.diagnose` shows for which share
    of the weights √v̂ is below ε, and which still have v = v₀.

    A gradient of an Embedding that names a row several times counts as the sum of its pieces, as
    it does for a dense gradient.

    Args:
        learning_rate: η ≥ 0: a number, a `keras.optimizers.schedules.LearningRateSchedule`, or a
            callable without arguments. Defaults to 0.01.
        beta_1: β₁ in [0, 1), the decay rate of the momentum. Defaults to 0.9.
        beta_2: β₂ in [0, 1), the decay rate of the velocity. Defaults to 0.999.
        epsilon: ε ≥ 0, in units of the gradient. Defaults to 1e-3.
        initial_accumulator_value: v₀ ≥ 0, in units of the squared gradient. Defaults to 1e-6,
            TensorFlow Addons' value, which the paper's first author chose; 0.0 is the textbook's.
        activation: "sign", or "tanh" for TensorFlow Addons' tanh(10 (g² − v)) in the place of
            the sign. Defaults to "sign".
        l1_regularization_strength: ≥ 0. After the step, each weight moves towards zero by this
            times its effective learning rate (η / (1 − β₁ᵗ)) / (√v̂ + ε), and stops there: the
            proximal step of TensorFlow Addons. Defaults to 0.0.
        l2_regularization_strength: ≥ 0. After the step, each weight is divided by 1 + this times
            the same rate. Defaults to 0.0.
        epsilon_hat: add ε to √v before the bias correction instead, as TensorFlow Addons does.
            Defaults to False.
        sparse_update: how the gradient of an Embedding (tf.IndexedSlices) is applied. "exact": as
            its dense twin; every row moves in every step. "lazy": rows that the batch does not
            name keep their weights and slots, so that a step costs what the batch's rows cost;
            the momentum alone is then another than with "exact", and with β₁ = 0 nothing is.
            Defaults to "exact".
        fused: "auto": update many variables in few operations where that is possible (on
            TensorFlow, tf.distribute included, and on PyTorch); True: do, or say why not; False:
            one variable after another, which is the specification. `optimizer.engine` tells which
            it is. Defaults to "auto".
        skip_nonfinite: a step with a NaN or an infinity in any gradient changes nothing and is
            counted in `skipped_steps`. A hundred in a row are told at once, but from inside a
            program that XLA or torch.compile has compiled; `fit` warns at its end if most steps
            were skipped. Defaults to False: they reach the weights, as in Keras.
        bias_correction: which moments are corrected for their start: "both"; "momentum": v̂ = v;
            "none": m̂ = m and v̂ = v. Defaults to "both".
        keep_residual: weights in float16 and bfloat16 are updated in float32, and what they cannot
            hold is kept beside them in the slot "residual": 12 bytes a weight in all, as in
            float32 training. False forgets it (10 bytes): changes below half a unit in the last
            place are then lost. Defaults to True.
        **keras_arguments: Keras's own: `weight_decay` (≥ 0 or None), `clipnorm`, `clipvalue`,
            `global_clipnorm` (> 0 or None, one of the three), `use_ema`, `ema_momentum` (in
            [0, 1]), `ema_overwrite_frequency` (≥ 1 or None), `loss_scale_factor` (> 0 or None),
            `gradient_accumulation_steps` (≥ 2 or None), `name`.

    Raises:
        ValueError: an argument breaks its rule or is unknown.

    Example:
    >>> import keras, keras_yogi
    >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    >>> model.compile(optimizer=keras_yogi.Yogi(0.01), loss="mse")

    References:
        Zaheer, Reddi, Sachan, Kale & Kumar, "Adaptive Methods for Nonconvex Optimization",
        NeurIPS 2018: Algorithm 2. The paper's algorithm has no bias correction; the version
        that its first author gave to TensorFlow Addons has it, and so has every later one.
    """

    def __init__(
        self,
        learning_rate: LearningRate = 0.01,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-3,
        initial_accumulator_value: float = 1e-6,
        activation: Activation = "sign",
        l1_regularization_strength: float = 0.0,
        l2_regularization_strength: float = 0.0,
        epsilon_hat: bool = False,
        sparse_update: SparseUpdate = "exact",
        fused: Fused = "auto",
        skip_nonfinite: bool = False,
        bias_correction: BiasCorrection = "both",
        keep_residual: bool = True,
        **keras_arguments: Unpack[KerasArguments],
    ) -> None:
        rule = YogiRule(
            beta_1,
            beta_2,
            epsilon,
            epsilon_hat,
            bias_correction,
            initial_accumulator_value,
            activation,
            l1_regularization_strength,
            l2_regularization_strength,
        )
        super().__init__(
            learning_rate,
            rule,
            sparse_update=sparse_update,
            fused=fused,
            skip_nonfinite=skip_nonfinite,
            keep_residual=keep_residual,
            **keras_arguments,
        )


# So that model.compile(optimizer="yogi") finds it.
keras.saving.get_custom_objects()["yogi"] = Yogi
