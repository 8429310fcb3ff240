"""The optimizers and the options that the tests run over: one table, from which they select."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import keras
import pytest

import keras_yogi
from support.backend import ENGINES
from support.reference import Array, KerasReference, Reference

LEARNING_RATE = 0.0625  # exact in float32, which is what Keras keeps a learning rate in
BOTH = [keras_yogi.Adam, keras_yogi.Yogi]


@dataclass(frozen=True)
class Case:
    """An optimizer, and the reference that it has to agree with."""

    name: str
    optimizer_class: type
    hyperparameters: Mapping[str, Any]  # the constructor's and the reference's
    arguments: Mapping[str, Any] = field(default_factory=dict)  # the constructor's alone

    def optimizer(
        self, learning_rate: Any = LEARNING_RATE, **arguments: Any
    ) -> keras.optimizers.Optimizer:
        return self.optimizer_class(
            **{
                "learning_rate": learning_rate,
                **self.hyperparameters,
                **self.arguments,
                **arguments,
            }
        )

    def reference(
        self, weights: Array, learning_rate: float = LEARNING_RATE, **more: Any
    ) -> Reference:
        rule = self.optimizer_class.__name__.lower()
        return Reference(weights, rule, learning_rate, **{**self.hyperparameters, **more})

    def keras_reference(
        self,
        weights: Sequence[Array],
        learning_rate: float = LEARNING_RATE,
        **keras_arguments: Any,
    ) -> KerasReference:
        of_each = [self.reference(w, learning_rate) for w in weights]
        return KerasReference(of_each, **keras_arguments)

    def on(self, engine: str) -> "Case":
        """The same, by that engine."""
        arguments = {**self.arguments, **ENGINES[engine]}
        return replace(self, name=f"{self.name}, {engine}", arguments=arguments)


# β₂ = 0.9 remembers and forgets within the dozen steps of a test. ε = 1e-3: with a smaller one,
# rounding decides where gradients are nearly zero.
ADAM = dict(beta_2=0.9, epsilon=1e-3)
YOGI = dict(beta_2=0.9, epsilon=1e-3, initial_accumulator_value=1e-6)
CASES = {
    name: Case(name, optimizer_class, hyperparameters)
    for name, optimizer_class, hyperparameters in [
        ("adam", keras_yogi.Adam, ADAM),
        ("adam, defaults", keras_yogi.Adam, {}),
        ("adam, epsilon_hat", keras_yogi.Adam, {**ADAM, "epsilon": 1e-2, "epsilon_hat": True}),
        ("amsgrad", keras_yogi.Adam, {**ADAM, "amsgrad": True}),
        ("adam, no momentum", keras_yogi.Adam, dict(beta_1=0.0, beta_2=0.9)),
        ("adam, no memory", keras_yogi.Adam, dict(beta_1=0.5, beta_2=0.0, epsilon=1e-2)),
        *(
            (f"adam, correction of {which}", keras_yogi.Adam, {**ADAM, "bias_correction": which})
            for which in ("momentum", "none")
        ),
        ("yogi", keras_yogi.Yogi, YOGI),
        ("yogi, from zero", keras_yogi.Yogi, {**YOGI, "initial_accumulator_value": 0.0}),
        (
            "yogi, from one",
            keras_yogi.Yogi,
            {**YOGI, "epsilon": 1e-2, "initial_accumulator_value": 1.0},
        ),
        (
            "yogi, epsilon_hat",
            keras_yogi.Yogi,
            {**YOGI, "beta_2": 0.25, "epsilon": 1e-2, "epsilon_hat": True},
        ),
        (
            "yogi, tanh",
            keras_yogi.Yogi,
            {**YOGI, "activation": "tanh", "initial_accumulator_value": 0.0},
        ),
        *(
            (f"yogi, correction of {which}", keras_yogi.Yogi, {**YOGI, "bias_correction": which})
            for which in ("momentum", "none")
        ),
        (
            "yogi, proximal",
            keras_yogi.Yogi,
            {**YOGI, "l1_regularization_strength": 0.5, "l2_regularization_strength": 0.25},
        ),
    ]
}
# One of each kind: what a slot more or a step that depends on the weights may change.
KINDS = {name: CASES[name] for name in ("adam", "amsgrad", "yogi", "yogi, proximal")}
BY_ENGINE = {
    case.name: case for kind in KINDS.values() for case in (kind.on(engine) for engine in ENGINES)
}
# Where the test is about the plumbing, one rule of each class is enough, one of them fused,
PLAIN = {
    case.name: case for case in (CASES["adam"].on("unfused"), CASES["yogi"].on(list(ENGINES)[-1]))
}
# and where a model has to be compiled for it, what a user gets without asking.
DEFAULT = {name: CASES[name] for name in ("adam", "yogi")}

# What Keras and `apply` do around an update. Numbers that float32 holds: Keras rounds some of these
# arguments to it. The bounds of clipping are below the gradients of every training in the tests.
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "weight_decay": {"weight_decay": 0.25},
    "clipnorm": {"clipnorm": 2.0**-6},
    "clipvalue": {"clipvalue": 2.0**-6},
    "global_clipnorm": {"global_clipnorm": 2.0**-6},
    "ema": {"use_ema": True, "ema_momentum": 0.75},
    "ema, overwriting": {"use_ema": True, "ema_momentum": 0.75, "ema_overwrite_frequency": 2},
    "loss_scale_factor": {"loss_scale_factor": 8.0},
    "accumulation": {"gradient_accumulation_steps": 2},
    "accumulation, clipnorm, decay": {
        "gradient_accumulation_steps": 3,
        "clipnorm": 0.5,
        "weight_decay": 0.25,
    },
    "accumulation, overwriting ema": {
        "gradient_accumulation_steps": 2,
        "use_ema": True,
        "ema_momentum": 0.75,
        "ema_overwrite_frequency": 2,
    },
    "loss scale, global_clipnorm": {"loss_scale_factor": 8.0, "global_clipnorm": 0.5},
    "decay, overwriting ema": {
        "weight_decay": 0.25,
        "use_ema": True,
        "ema_momentum": 0.75,
        "ema_overwrite_frequency": 3,
    },
    "schedule": {"learning_rate": keras.optimizers.schedules.ExponentialDecay(0.0625, 2, 0.5)},
    "skip_nonfinite": {"skip_nonfinite": True},
    "lazy": {"sparse_update": "lazy"},
    "everything": {
        "learning_rate": keras.optimizers.schedules.ExponentialDecay(0.0625, 2, 0.5),
        "weight_decay": 0.25,
        "global_clipnorm": 0.5,
        "use_ema": True,
        "gradient_accumulation_steps": 2,
        "skip_nonfinite": True,
    },
}
CLIPPING = {name: OPTIONS[name] for name in ("clipnorm", "clipvalue", "global_clipnorm")}
# Of Keras alone: everything that an optimizer of any class takes.
KERAS_OPTIONS = {
    name: options
    for name, options in OPTIONS.items()
    if not {"skip_nonfinite", "sparse_update"} & set(options)
}


def over(cases: Mapping[str, Case]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", cases.values(), ids=cases)


def options(names: Iterable[str] = OPTIONS) -> pytest.MarkDecorator:
    names = list(names)
    return pytest.mark.parametrize("options", [OPTIONS[name] for name in names], ids=names)


every_case, plain_case, default_case = map(over, (BY_ENGINE, PLAIN, DEFAULT))


def with_limits(optimizer: Any, **limits: int) -> Any:
    """The optimizer, whose TensorFlow engine goes by these sizes when it is built."""
    from keras_yogi.engines import Limits

    optimizer.engine_limits = Limits(**limits)
    return optimizer


def with_small_packs(optimizer: Any) -> Any:
    """The optimizer, whose engine packs variables of up to 4 elements alone: a test's table of a
    few rows is a large variable then.
    """
    return with_limits(optimizer, pack_up_to=4)
