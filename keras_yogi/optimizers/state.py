"""How the state of an optimizer gets into Keras's files and out again."""

import warnings
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_yogi import checks


def save(store: Any, variables: Sequence[keras.Variable], skipped_steps: int, kept: str) -> None:
    """Writes variables by number, as Keras does; what Keras does not know, only if there is any.

    Args:
        store: maps names to arrays.
        variables: in Keras's order.
        skipped_steps: a count.
        kept: what the variables are, in words.
    """
    for index, variable in enumerate(variables):
        store[str(index)] = variable.numpy()
    if skipped_steps:
        store["skipped_steps"] = np.array(skipped_steps)
    if (attributes := _attributes(store)) is not None:
        attributes["kept"] = kept


def load(
    store: Any, variables: Sequence[keras.Variable], name: str, kept: str, built: bool
) -> int | None:
    """Fills variables, all of them or none.

    Args:
        store: what `save`, or keras.optimizers.Adam, has filled.
        variables: in Keras's order.
        name: the optimizer's, for messages.
        kept: what the variables are, in words.
        built: whether the optimizer is.

    Returns:
        The count of skipped steps; None, after a warning, if nothing was loaded.

    Raises:
        ValueError: an array has another shape than the variable that it is for.
    """
    saved = {key: np.asarray(store[key]) for key in store.keys()}  # noqa: SIM118
    skipped_steps = int(saved.pop("skipped_steps", 0))
    saved_kept = (_attributes(store) or {}).get("kept", kept)
    if len(saved) != len(variables) or saved_kept != kept:
        if not built:
            reason = "it has not been built yet: build or train it first"
        elif saved_kept != kept:
            reason = f"it keeps {kept}, and the saved one {saved_kept}"
        else:
            reason = f"it has {len(variables)} variables, and the saved one has {len(saved)}"
        warnings.warn(
            f"Nothing was loaded into optimizer '{name}', because {reason}.", stacklevel=3
        )
        return None
    names = [str(index) for index in range(len(variables))]
    if strange := [name for name in saved if name not in names]:
        raise ValueError(
            f"The state of '{name}' must be stored under the names {', '.join(names)}. "
            f"Received: {', '.join(strange)}"
        )
    checks.same_shapes(variables, [saved[name] for name in names])
    for name, variable in zip(names, variables, strict=True):
        variable.assign(saved[name])
    return skipped_steps


def _attributes(store: Any) -> Any:
    """Attributes of the HDF5 group behind a store. keras.optimizers.Adam compares the number of
    names in the store, so that a note cannot be one of them; Keras has no public way to the group.
    """
    return getattr(getattr(store, "_h5_entry_group", None), "attrs", None)
