"""Adam (Kingma & Ba, 2015) and its AMSGrad variant (Reddi et al., 2018)."""

from typing import Unpack

import keras

from keras_yogi.checks import Fused, KerasArguments, LearningRate, SparseUpdate
from keras_yogi.optimizers.base import AdaptiveOptimizer
from keras_yogi.rules import AdamRule, BiasCorrection


@keras.saving.register_keras_serializable(package="keras_yogi")
class Adam(AdaptiveOptimizer):
    r"""The Adam optimizer as published, with ε outside the bias-corrected root.

    With gradient g, step t = 1, 2, … and slots that start at zero:

    ```
    m ← β₁ m + (1 − β₁) g                   slot "momentum"
    v ← v + (1 − β₂) (g² − v)               slot "velocity"
    m̂ = m / (1 − β₁ᵗ)     v̂ = v / (1 − β₂ᵗ)
    w ← w − η m̂ / (√v̂ + ε)
    ```

    If a batch looks up a row of an Embedding several times, the gradients of that row are summed
    before the update, as in a dense gradient.

    Args:
        learning_rate: η ≥ 0: a number, a `keras.optimizers.schedules.LearningRateSchedule`, or a
            callable without arguments. Defaults to 0.001.
        beta_1: β₁ in [0, 1), the decay rate of the momentum. Defaults to 0.9.
        beta_2: β₂ in [0, 1), the decay rate of the velocity. Defaults to 0.999.
        epsilon: ε ≥ 0, in units of the gradient. Defaults to 1e-6.
        amsgrad: divide by the largest velocity so far (slot "velocity_hat", before bias
            correction, as in Keras and PyTorch). Defaults to False.
        epsilon_hat: add ε to √v before the bias correction instead, as keras.optimizers.Adam
            does: `Adam(epsilon_hat=True, epsilon=1e-7)` is that optimizer. Defaults to False.
        sparse_update: how the gradient of an Embedding (tf.IndexedSlices) is applied. "exact":
            like a dense gradient; every row is updated in every step. "lazy": rows that are not
            in the batch keep their weights and slots, and a step costs as much as its rows do.
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
        >>> model.compile(optimizer=keras_yogi.Adam(0.001), loss="mse")

    References:
        Kingma & Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015, arXiv:1412.6980:
        Algorithm 1; section 2 for `epsilon_hat`.
        Reddi, Kale & Kumar, "On the Convergence of Adam and Beyond", ICLR 2018,
        arXiv:1904.09237: Algorithm 2 for `amsgrad`.
    """

    amsgrad: bool

    def __init__(
        self,
        learning_rate: LearningRate = 0.001,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-6,
        amsgrad: bool = False,
        epsilon_hat: bool = False,
        sparse_update: SparseUpdate = "exact",
        fused: Fused = "auto",
        skip_nonfinite: bool = False,
        bias_correction: BiasCorrection = "both",
        keep_residual: bool = True,
        **keras_arguments: Unpack[KerasArguments],
    ) -> None:
        super().__init__(
            learning_rate,
            AdamRule(beta_1, beta_2, epsilon, epsilon_hat, bias_correction, amsgrad),
            sparse_update=sparse_update,
            fused=fused,
            skip_nonfinite=skip_nonfinite,
            keep_residual=keep_residual,
            **keras_arguments,
        )
