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

    The defaults v₀ = 1e-6 and ε = 1e-3 are large compared with small gradients. The gradient of a
    row of an Embedding is often 1e-3 or less. Bias correction divides v₀ as well, so √v̂ starts at
    0.03, and the first step is 3 % of η where Adam's is η. For such a model use
    `initial_accumulator_value=0.0` and `epsilon=1e-6`. `keras_yogi.diagnose` reports the share of
    the weights with √v̂ < ε, and of those whose v is still near v₀.

    If a batch looks up a row of an Embedding several times, the gradients of that row are summed
    before the update, as in a dense gradient.

    Args:
        learning_rate: η ≥ 0: a number, a `keras.optimizers.schedules.LearningRateSchedule`, or a
            callable without arguments. Defaults to 0.01.
        beta_1: β₁ in [0, 1), the decay rate of the momentum. Defaults to 0.9.
        beta_2: β₂ in [0, 1), the decay rate of the velocity. Defaults to 0.999.
        epsilon: ε ≥ 0, in units of the gradient. Defaults to 1e-3.
        initial_accumulator_value: v₀ ≥ 0, in units of the squared gradient. Defaults to 1e-6,
            the value that the paper's first author chose for TensorFlow Addons; textbooks use 0.0.
        activation: "sign", or "tanh" for TensorFlow Addons' tanh(10 (g² − v)) in the place of
            the sign. Defaults to "sign".
        l1_regularization_strength: ≥ 0. After the step, each weight moves towards zero by this
            times its effective learning rate (η / (1 − β₁ᵗ)) / (√v̂ + ε), and stops there: the
            proximal step of TensorFlow Addons. Defaults to 0.0.
        l2_regularization_strength: ≥ 0. After the step, each weight is divided by 1 + this times
            the same rate. Defaults to 0.0.
        epsilon_hat: add ε to √v before the bias correction instead, as TensorFlow Addons does.
            Defaults to False.
        sparse_update: how the gradient of an Embedding (tf.IndexedSlices) is applied. "exact":
            like a dense gradient; every row is updated in every step. "lazy": rows that are not
            in the batch keep their weights and slots, and a step costs as much as its rows do.
            With β₁ = 0 and no proximal step the two are equal: v does not change on a zero
            gradient.
            Defaults to "exact".
        fused: "auto": use the fused engine, which updates many variables in few operations, where
            it is available (TensorFlow, tf.distribute included, and PyTorch). True: use it, or
            raise an error that says why it is not available. False: update one variable after
            another, the reference implementation. `optimizer.engine` names the engine in use.
            Defaults to "auto".
        skip_nonfinite: skip a step if any gradient has a NaN or an infinity: weights and slots
            stay, and `skipped_steps` counts the step. A warning comes after a hundred skipped
            steps in a row (not from inside a program that XLA or torch.compile has compiled), and
            at the end of a `fit` that has skipped most steps. Defaults to False: NaN and infinity
            reach the weights, as in Keras.
        bias_correction: which moments are corrected for their start: "both"; "momentum": v̂ = v;
            "none": m̂ = m and v̂ = v. Defaults to "both".
        keep_residual: keep, in the slot "residual", what float16 and bfloat16 cannot hold of a
            weight. Weights in half precision are always updated in float32. With the residual
            they take 12 bytes each, slots included, as in float32 training. Without it they take
            10, and changes below half a unit in the last place are lost. Defaults to True.
        **keras_arguments: arguments of every Keras optimizer. `weight_decay` (≥ 0), `clipnorm`,
            `clipvalue`, `global_clipnorm` (> 0, at most one of the three),
            `ema_overwrite_frequency` (≥ 1), `loss_scale_factor` (> 0),
            `gradient_accumulation_steps` (≥ 2) and `name` default to None, `use_ema` to False,
            and `ema_momentum` (in [0, 1]) to 0.99.

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


# So that model.compile(optimizer="yogi") finds it; Keras knows its own as "adam" and as "Adam".
keras.saving.get_custom_objects().update(yogi=Yogi, Yogi=Yogi)
