"""How the state of an optimizer gets into Keras's files and out again."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_yogi import checks
from keras_yogi.half_precision import HALF

Residuals = Mapping[int, tuple[str, Any]]
"""By the model variable's index: its dtype in half precision, and the residual as it is stored."""


def save(
    store: Any,
    variables: Sequence[keras.Variable],
    residuals: Residuals,
    skipped_steps: int,
    kept: str,
) -> None:
    """Writes variables by number, as Keras does; what Keras does not know comes last.

    Args:
        store: maps names to arrays.
        variables: in Keras's order.
        residuals: of weights in half precision.
        skipped_steps: a count.
        kept: what the variables are, in words.
    """
    stored = [*variables, *(residual for _, residual in residuals.values())]
    for index, variable in enumerate(stored):
        store[str(index)] = variable.numpy()
    if skipped_steps:
        store["skipped_steps"] = np.array(skipped_steps)
    if (attributes := _attributes(store)) is not None:
        attributes["kept"] = kept
        if residuals:
            attributes["residuals"] = [f"{i} {dtype}" for i, (dtype, _) in residuals.items()]


def load(
    store: Any,
    variables: Sequence[keras.Variable],
    residuals: Residuals,
    trained: Sequence[Any],
    name: str,
    kept: str,
) -> tuple[int, Residuals] | None:
    """Fills variables, all of them or none.

    Args:
        store: what `save`, or keras.optimizers.Adam, has filled.
        variables: in Keras's order.
        residuals: those that the optimizer keeps.
        trained: the model variables that it was built with; none if it is not built.
        name: the optimizer's, for messages.
        kept: what the variables are, in words.

    Returns:
        The count of skipped steps, and the residuals that were saved, for the caller to take; None,
        after a warning, if nothing was loaded.

    Raises:
        ValueError: an array has another shape than the variable that it is for.
    """
    saved = {key: np.asarray(store[key]) for key in store.keys()}  # noqa: SIM118
    skipped_steps = int(saved.pop("skipped_steps", 0))
    attributes = _attributes(store) or {}
    saved_kept = attributes.get("kept", kept)
    places = [str(text).split() for text in attributes.get("residuals", ())]
    dtypes = {int(index): dtype for index, dtype in places}
    if not attributes and len(saved) == len(variables) + len(residuals):
        dtypes = {index: dtype for index, (dtype, _) in residuals.items()}
    if len(saved) - len(dtypes) != len(variables) or saved_kept != kept:
        if not trained:
            reason = "it has not been built yet: build or train it first"
        elif saved_kept != kept:
            reason = f"it keeps {kept}, and the saved one {saved_kept}"
        else:
            reason = f"it has {len(variables)} variables, and the saved one has {len(saved)}"
        warnings.warn(
            f"Nothing was loaded into optimizer '{name}', because {reason}.", stacklevel=3
        )
        return None
    names = [str(index) for index in range(len(saved))]
    if strange := [name for name in saved if name not in names]:
        raise ValueError(
            f"The state of '{name}' must be stored under the names {', '.join(names)}. "
            f"Received: {', '.join(strange)}"
        )
    values = [saved[name] for name in names]
    own, further = values[: len(variables)], values[len(variables) :]
    if unknown := {i: d for i, d in dtypes.items() if i >= len(trained) or d not in HALF}:
        raise ValueError(
            f"The residuals of '{name}' must be of its {len(trained)} variables, of float16 or "
            f"bfloat16. Received: {unknown}"
        )
    checks.same_shapes([*variables, *(trained[i] for i in dtypes)], values)
    for variable, value in zip(variables, own, strict=True):
        variable.assign(value)
    pairs = zip(dtypes.items(), further, strict=True)
    return skipped_steps, {index: (dtype, value) for (index, dtype), value in pairs}


def _attributes(store: Any) -> Any:
    """Attributes of the HDF5 group behind a store. keras.optimizers.Adam compares the number of
    names in the store, so that a note cannot be one of them; Keras has no public way to the group.
    """
    return getattr(getattr(store, "_h5_entry_group", None), "attrs", None)
