"""For each recording, how keras_yogi is told to compute the same; and where it does not, why."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from keras.optimizers import Optimizer
from keras.optimizers.schedules import ExponentialDecay

from keras_yogi import Adam, Yogi
from support.peer_formulas import PeerFormula
from support.recordings import MANIFEST, RecordedTrajectory, Recording
from support.replay import RecordedRates, replay


@dataclass(frozen=True)
class RecordedRun:
    """One implementation in one setting, recorded as `recording`__f64 and/or `recording`__f32."""

    recording: str
    optimizer: type[Optimizer]
    learning_rate: Any
    arguments: Mapping[str, Any] = field(default_factory=dict)
    initial_slots: Mapping[str, float] = field(default_factory=dict)
    first_iteration: int = 0
    # Where keras_yogi is not to be equal: the fields of the recorded `PeerFormula` in which its own
    # formula is another, and how far apart that takes the quantities it concerns, in float64.
    otherwise: Mapping[str, Any] = field(default_factory=dict)
    apart: Mapping[str, float] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        return [n for n in MANIFEST if n.rpartition("__")[0] == self.recording]

    def formula(self, name: str) -> PeerFormula:
        """What keras_yogi computes."""
        return replace(PeerFormula.of(name), **self.otherwise)

    def run(self, recording: Recording, mode: str = "graph", **changed: Any) -> RecordedTrajectory:
        """The run by keras_yogi; `changed` replaces arguments, to make a wrong variant."""
        exact = recording.dtype == "float64"
        rate = RecordedRates(recording, self.first_iteration) if exact else self.learning_rate
        optimizer = self.optimizer(rate, **{**self.arguments, **changed})
        return replay(optimizer, recording, self.initial_slots, mode, self.first_iteration)


def stored_as_float32(**numbers: float) -> dict[str, float]:
    return {name: float(np.float32(number)) for name, number in numbers.items()}


DECAY = ExponentialDecay(0.01, decay_steps=10, decay_rate=0.9)
BETAS = stored_as_float32(beta_1=0.9, beta_2=0.999)
# TensorFlow Addons and legacy Keras keep hyperparameters in float32 variables.
TFA = {"epsilon_hat": True, **stored_as_float32(epsilon=1e-3), **BETAS}
LEGACY = {"epsilon_hat": True, "epsilon": 1e-7, **BETAS}
KERAS = {"epsilon_hat": True, "epsilon": 1e-7}
MOMENTUM_TOO = {"momentum": 1e-6}

# 1 − βᵗ from a β that was rounded to float32: at first off by 1.3e-5, of which the root leaves
# half; ours is exact. keras.optimizers.Adam does so for float64 weights too, optax in float32.
EXACT_POWERS = {"beta_1_of_powers": None, "beta_2_of_powers": None}
# An Embedding's gradient changes weights and slots as its dense form would: repeated rows are
# summed before they are squared, and a row that is not named has a gradient of zero. A case that
# is given an argument for lazy rows loses this entry and must then be equal.
EXACT_ROWS = {"rows": "exact"}
# Keras passes `weight_decay` through float32.
ROUNDED_DECAY = stored_as_float32(weight_decay=0.01)


def _keras(setting: str, param: float, rate: Any = 0.001, **arguments: Any) -> RecordedRun:
    return RecordedRun(
        f"keras3_adam_{setting}",
        Adam,
        rate,
        {**KERAS, **arguments},
        otherwise=EXACT_POWERS,
        apart={"param": param},
    )


def _tfa(setting: str, rate: Any = 0.01, **arguments: Any) -> RecordedRun:
    return RecordedRun(f"tfa_yogi_{setting}", Yogi, rate, {**TFA, **arguments})


RECORDED_RUNS = [
    RecordedRun("textbook_adam", Adam, 0.01),
    RecordedRun("textbook_yogi", Yogi, 0.01, {"initial_accumulator_value": 0.0}),
    _keras("default", 2.4e-6),
    _keras("amsgrad", 2.4e-6, amsgrad=True),
    _keras("clipnorm", 1.4e-6, clipnorm=1.0),
    _keras("weight_decay", 2.4e-6, weight_decay=0.01),
    _keras("expdecay", 9.5e-6, DECAY),
    _keras("sparse_unique", 1.3e-6),
    RecordedRun(
        "keras3_adam_sparse",
        Adam,
        0.001,
        KERAS,
        otherwise={**EXACT_POWERS, **EXACT_ROWS},
        apart={"param": 0.033, "v": 0.64},
    ),
    RecordedRun("tf215_legacy_adam_default", Adam, 0.001, LEGACY),
    RecordedRun("tf215_legacy_adam_amsgrad", Adam, 0.001, {**LEGACY, "amsgrad": True}),
    _tfa("default"),
    RecordedRun("tfa_yogi_default_f64hyper", Yogi, 0.01, {"epsilon_hat": True}),
    _tfa("beta1_0", beta_1=0.0),
    _tfa("tanh", activation="tanh"),
    _tfa("l1", **stored_as_float32(l1_regularization_strength=0.01)),
    _tfa("l2", **stored_as_float32(l2_regularization_strength=0.02)),
    _tfa(
        "l1l2",
        **stored_as_float32(l1_regularization_strength=0.01, l2_regularization_strength=0.02),
    ),
    _tfa("expdecay", DECAY),
    _tfa("v0_1", initial_accumulator_value=1.0),
    # With β₁ = 0 a row without a gradient has no momentum to move it: nothing to differ in.
    RecordedRun(
        "tfa_yogi_sparse_beta1_0", Yogi, 0.01, {**TFA, "beta_1": 0.0}, otherwise=EXACT_ROWS
    ),
    RecordedRun("tfa_yogi_sparse", Yogi, 0.01, TFA, otherwise=EXACT_ROWS, apart={"param": 0.49}),
    RecordedRun(
        "optax_adam_lr1e-2_eps1e-6",
        Adam,
        0.01,
        otherwise=EXACT_POWERS,
        apart={"param": 8.9e-6},
    ),
    RecordedRun(
        "optax_yogi_lr1e-2",
        Yogi,
        0.01,
        initial_slots=MOMENTUM_TOO,
        otherwise=EXACT_POWERS,
        apart={"param": 4.5e-6},
    ),
    RecordedRun(
        "optax_scale_by_yogi_v0_0",
        Yogi,
        0.01,
        {"initial_accumulator_value": 0.0},
        otherwise=EXACT_POWERS,
        apart={"param": 4.5e-6},
    ),
    RecordedRun("torch_adam_lr1e-2_eps1e-6", Adam, 0.01),
    RecordedRun(
        "torch_adamw_wd1e-2",
        Adam,
        0.001,
        {"epsilon": 1e-8, "weight_decay": 0.01},
        otherwise=ROUNDED_DECAY,
        apart={"param": 1.3e-11},
    ),
    RecordedRun(
        "torch_sparse_adam",
        Adam,
        0.01,
        {"epsilon": 1e-8, "epsilon_hat": True},
        otherwise=EXACT_ROWS,
        apart={"param": 0.35, "m": 3.2, "v": 0.034},
    ),
    RecordedRun(
        "flwr_fedyogi",
        Yogi,
        0.01,
        {"beta_2": 0.99, "initial_accumulator_value": 0.0, "bias_correction": "none"},
    ),
    # Flower's t is the number of the round, which starts at 1, plus 1.
    RecordedRun(
        "flwr_fedadam",
        Adam,
        0.01,
        {"beta_2": 0.99, "epsilon": 1e-3, "epsilon_hat": True},
        first_iteration=1,
    ),
    RecordedRun("torch_optimizer_yogi_default", Yogi, 0.01, initial_slots=MOMENTUM_TOO),
    RecordedRun("pytorch_optimizer_yogi_default", Yogi, 0.01, initial_slots=MOMENTUM_TOO),
]

RUN_OF = {name: run for run in RECORDED_RUNS for name in run.names}
