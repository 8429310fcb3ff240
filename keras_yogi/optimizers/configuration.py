"""Constructor arguments and configs, also of a subclass that renames arguments."""

import inspect
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeVar

import keras

from keras_yogi import checks, engines
from keras_yogi.checks import KerasArguments

Optimizer = TypeVar("Optimizer", bound=keras.optimizers.Optimizer)


def given_arguments(cls: type, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
    """The arguments of a constructor call by name, with defaults."""
    try:
        given = _signature(cls).bind_partial(*args, **kwargs)
    except TypeError:  # the constructor will raise it, too
        given = _signature(cls).bind_partial()
    given.apply_defaults()
    return MappingProxyType(given.arguments)


def parameters(cls: type) -> set[str]:
    """Names of the constructor's parameters."""
    of_all = _signature(cls).parameters.values()
    return {p.name for p in of_all if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}


def construct(
    cls: type[Optimizer], config: Mapping[str, Any], custom_objects: Mapping[str, Any] | None
) -> Optimizer:
    """Creates an optimizer from a config; arguments as in `AdaptiveOptimizer.from_config`."""
    config = {
        name: keras.saving.deserialize_keras_object(value, custom_objects=custom_objects)
        if isinstance(value, dict) and "class_name" in value
        else value
        for name, value in config.items()
    }
    if config.get("fused") is True and engines.backend.unsupported_reason():
        config["fused"] = "auto"
    taken = parameters(cls)
    if any(p.kind is p.VAR_KEYWORD for p in _signature(cls).parameters.values()):
        taken |= KerasArguments.__annotations__.keys()
    optimizer = cls(**{name: config[name] for name in config.keys() & taken})
    # Keys that the constructor of a subclass renames or does not take.
    for name in config.keys() - taken:
        if not hasattr(optimizer, name):
            raise checks.reject(name, f"an argument of {cls.__name__}", config[name])
        setattr(optimizer, name, config[name])
    return optimizer


def _signature(cls: type) -> inspect.Signature:
    """The constructor's signature without `self`. inspect.signature(cls) may find `__new__`."""
    signature = inspect.signature(cls.__init__)  # type: ignore[misc]
    return signature.replace(parameters=list(signature.parameters.values())[1:])
