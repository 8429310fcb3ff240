"""Saves an optimizer's state to Keras's files, and loads it.

Variables are stored by number, as Keras's own Adam stores them. Residuals of half precision follow,
with a note of the model variables that they belong to.
"""

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
from keras import ops

from keras_yogi import checks, half_precision

if TYPE_CHECKING:
    from keras_yogi.optimizers.base import AdaptiveOptimizer

Residuals = Mapping[int, tuple[str, Any]]
"""Maps a model variable's index to its half-precision dtype and its residual as stored."""


def save(optimizer: "AdaptiveOptimizer", store: Any) -> None:
    """Writes the state: Keras's variables first, then the residuals.

    Args:
        optimizer: the optimizer to save.
        store: a mutable mapping from names to arrays.
    """
    variables, residuals = _numbered_variables(optimizer)
    for index, variable in enumerate([*variables, *(slot for _, slot in residuals.values())]):
        store[str(index)] = variable.numpy()
    if optimizer.skipped_steps:
        store["skipped_steps"] = np.array(optimizer.skipped_steps)
    if (attributes := _attributes(store)) is not None:
        attributes["kept"] = _kept(optimizer)
        if residuals:
            attributes["residuals"] = [f"{i} {dtype}" for i, (dtype, _) in residuals.items()]


def load(optimizer: "AdaptiveOptimizer", store: Any) -> None:
    """Loads the state: all of it or, with a warning or an error, nothing.

    Args:
        optimizer: the optimizer to load into.
        store: a mapping that `save` or keras.optimizers.Adam filled.

    Raises:
        ValueError: an array has an unknown name or the wrong shape, or a residual does not fit.
    """
    name, trained = optimizer.name, optimizer.trained_variables if optimizer.built else []
    variables, residuals = _numbered_variables(optimizer)
    kept = _kept(optimizer)
    saved = {key: np.asarray(store[key]) for key in store.keys()}  # noqa: SIM118
    skipped_steps = int(saved.pop("skipped_steps", 0))
    attributes = _attributes(store) or {}
    saved_kept = attributes.get("kept", kept)
    places = [str(text).split() for text in attributes.get("residuals", ())]
    dtypes = {int(index): dtype for index, dtype in places}
    # A store without attributes, such as a dict: only the number of arrays tells.
    if not attributes and len(saved) == len(variables) + len(residuals):
        dtypes = {index: dtype for index, (dtype, _) in residuals.items()}
    if len(saved) - len(dtypes) != len(variables) or saved_kept != kept:
        if not trained:
            reason = "it has not been built yet: build or train it first"
        elif saved_kept != kept:
            reason = f"it keeps {kept}, and the saved one keeps {saved_kept}"
        else:
            reason = f"it has {len(variables)} variables, and the saved one has {len(saved)}"
        warnings.warn(
            f"Nothing was loaded into optimizer '{name}', because {reason}.", stacklevel=3
        )
        return
    names = [str(index) for index in range(len(saved))]
    if strange := [name for name in saved if name not in names]:
        raise ValueError(
            f"The state of '{name}' must be stored under the names {', '.join(names)}. "
            f"Received: {', '.join(strange)}"
        )
    values = [saved[name] for name in names]
    own, further = values[: len(variables)], values[len(variables) :]
    half = half_precision.HALF
    if unknown := {i: d for i, d in dtypes.items() if i >= len(trained) or d not in half}:
        raise ValueError(
            f"The residuals of '{name}' must belong to its {len(trained)} variables, and be of "
            f"float16 or bfloat16. Received: {unknown}"
        )
    checks.same_shapes([*variables, *(trained[i] for i in dtypes)], values)
    for variable, value in zip(variables, own, strict=True):
        variable.assign(value)
    for counter, count in zip(optimizer.counters, (skipped_steps, 0), strict=False):
        counter.assign(count)
    pairs = zip(dtypes.items(), further, strict=True)
    _take_residuals(optimizer, {index: (dtype, value) for (index, dtype), value in pairs})


def _take_residuals(optimizer: "AdaptiveOptimizer", residuals: Residuals) -> None:
    """Loads residuals. Where the dtype has changed, the weights must be loaded already."""
    lost = []
    for index, (variable, own) in enumerate(_with_residuals(optimizer)):
        dtype, stored = residuals.get(index, (None, None))
        if dtype is None:
            if own is not None:
                own.assign(ops.zeros(variable.shape, "int16"))
        elif dtype == keras.backend.standardize_dtype(variable.dtype):
            if own is None:
                lost.append(checks.path(variable))
            else:
                own.assign(stored)
        else:  # saved in half precision, loaded into another dtype
            value = ops.cast(variable, "float32")
            half = ops.cast(value, dtype)
            whole = half_precision.join(half, ops.convert_to_tensor(stored))
            unchanged = ops.equal(ops.cast(half, "float32"), value)
            half_precision.write(variable, own, ops.where(unchanged, whole, value))
    if lost:
        warnings.warn(
            f"Optimizer '{optimizer.name}' has keep_residual=False: the saved part of the weights "
            f"beyond half precision is lost, for {len(lost)} variables from `{lost[0]}` on.",
            stacklevel=4,
        )


def _numbered_variables(
    optimizer: "AdaptiveOptimizer",
) -> tuple[list[keras.Variable], Residuals]:
    """The variables that Keras's own Adam would store, in its order; and the residuals."""
    residuals = {
        index: (keras.backend.standardize_dtype(variable.dtype), slot)
        for index, (variable, slot) in enumerate(_with_residuals(optimizer))
        if slot is not None
    }
    apart = [*optimizer.counters, *(slot for _, slot in residuals.values())]
    known = {id(variable) for variable in apart}
    return [v for v in optimizer.variables if id(v) not in known], residuals


def _with_residuals(optimizer: "AdaptiveOptimizer") -> list[tuple[Any, Any]]:
    """The model variables, each with its residual or None."""
    if not optimizer.built:
        return []
    variables = optimizer.trained_variables
    residuals = optimizer.slots().get(half_precision.RESIDUAL, [None] * len(variables))
    return list(zip(variables, residuals, strict=True))


def _kept(optimizer: "AdaptiveOptimizer") -> str:
    """The parts of the state: two states of the same number and shapes can differ in meaning."""
    kept = list(optimizer.rule.initial_values)
    kept += ["average"] if optimizer.use_ema else []
    kept += ["gradient_accumulator"] if optimizer.gradient_accumulation_steps else []
    return ", ".join(kept)


def _attributes(store: Any) -> Any:
    """The attributes of the HDF5 group behind a store, or None. A note cannot be an entry of the
    store, because keras.optimizers.Adam compares the number of entries. Keras has no public access
    to the group.
    """
    return getattr(getattr(store, "_h5_entry_group", None), "attrs", None)
