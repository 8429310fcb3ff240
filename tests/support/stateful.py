"""What the stateful test is made of: kinds of variables, gradients of every form, a reference that
knows rows, two optimizers side by side, and the roads by which a state is saved and restored.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from keras_yogi.engines import Limits
from support.reference import Array, KerasReference
from support.training import state_of


class Kind(NamedTuple):
    """A variable's shape and dtype, and whether rows of it may have a gradient."""

    shape: tuple[int, ...]
    dtype: str = "float32"
    has_rows: bool = False

    @property
    def is_trained(self) -> bool:
        return "float" in self.dtype

    @property
    def is_half(self) -> bool:
        return self.dtype == "bfloat16"

    def values(self, random: np.random.Generator) -> Any:
        """Something to begin with."""
        if self.dtype == "string":
            return "label"
        return random.normal(size=self.shape) if self.is_trained else np.arange(2)

    def variable(self, value: Any) -> Any:
        if self.dtype == "string":  # Keras has no variables of this dtype; its optimizers take them
            return tf.Variable(value)
        return keras.Variable(value, dtype=self.dtype, trainable=self.is_trained)


# Small ones share an array in the fused engine, "large" and "large table" are compiled on their
# own. The layouts are the same in every example, so that little has to be compiled.
KINDS = {
    "matrix": Kind((3, 2)),
    "scalar": Kind(()),
    "table": Kind((9, 3), has_rows=True),
    "vector": Kind((5,)),
    "aligned": Kind((2, 16)),
    "empty": Kind((0,)),
    "double": Kind((4,), "float64"),
    "double matrix": Kind((2, 2), "float64"),
    "half": Kind((3,), "bfloat16"),
    "half table": Kind((6, 2), "bfloat16", has_rows=True),
    "large": Kind((230, 230)),
    "large table": Kind((17_000, 3), has_rows=True),
    "label": Kind((), "string"),
    "count": Kind((2,), "int32"),
}


@dataclass(frozen=True)
class Gradient:
    """How the gradient of one variable looks: its values are drawn from a seed."""

    kind: Kind
    form: str  # "none", "dense", "rows", "many pieces", "no rows", "not a number"
    static: str = "known"  # what a graph knows: everything, the "rank" alone, or "nothing"

    def arrays(self, seed: Sequence[int]) -> list[Array]:
        """The dense values, or the rows' values and their indices; nothing for "none"."""
        random = np.random.default_rng(list(seed))
        if self.form == "none":
            return []
        if self.form in ("dense", "not a number"):
            shape = self.kind.shape
        else:
            pieces = {"rows": random.integers(1, 7), "many pieces": 400, "no rows": 0}[self.form]
            shape = (pieces, *self.kind.shape[1:])
        scale = 10.0 ** random.uniform(-2, 1, size=shape)
        values = scale * random.standard_t(2, size=shape) * (random.random(shape) > 0.2)
        if self.form == "many pieces":
            # Added one by one in half precision, they would not get beyond 256 times their size.
            values = np.full(shape, random.integers(1, 8) / 4)
        elif self.kind.is_half:  # numbers whose sums half precision holds exactly
            values = np.clip(np.round(4 * values), -20, 20) / 4
        if self.form == "not a number":
            values = np.full(shape, np.nan)
        if self.form in ("dense", "not a number"):
            return [values]
        rows = self.kind.shape[0] if self.form == "rows" else 1
        return [values, random.integers(0, rows, size=len(values)).astype("int32")]

    def tensors(self, arrays: Sequence[Array]) -> list[tf.Tensor]:
        """The arrays as a step is given them."""
        values = [tf.constant(a, self.kind.dtype) for a in arrays[:1]]
        return values + [tf.constant(indices) for indices in arrays[1:]]

    def assembled(self, tensors: Sequence[tf.Tensor]) -> Any:
        """What `apply` gets."""
        tensors = [self._hidden(tensor) for tensor in tensors]
        if not tensors:
            return None
        if len(tensors) == 1:
            return tensors[0]
        return tf.IndexedSlices(*tensors, tf.constant(self.kind.shape))

    def _hidden(self, tensor: tf.Tensor) -> tf.Tensor:
        if self.static == "nothing":
            return tf.numpy_function(lambda array: array, [tensor], tensor.dtype)
        if self.static == "rank":
            unknown = [None] * len(tensor.shape)
            return tf.raw_ops.PlaceholderWithDefault(input=tensor, shape=unknown)
        return tensor

    def dense(self, tensors: Sequence[tf.Tensor]) -> Array | None:
        """For the reference: in float64, what the tensors hold."""
        if not tensors:
            return None
        values = tf.cast(tensors[0], "float64").numpy()
        if len(tensors) == 1:
            return values
        table = np.zeros(self.kind.shape)
        np.add.at(table, tensors[1].numpy(), values)
        return table


@dataclass
class RowReference(KerasReference):
    """`KerasReference` of which `named` rows alone move: {position: indices} of a lazy step."""

    named: dict[int, Array] = field(default_factory=dict)

    def _update(self, step: int, gradients: dict[int, Array]) -> None:
        for i, g in gradients.items():
            reference = self.of_each[i]
            before, slots = reference.weights, dict(reference.slots)
            super()._update(step, {i: g})
            if i in self.named:  # Keras decays all rows
                kept = before * (1 - reference.learning_rate * self.weight_decay)
                rest = np.setdiff1d(np.arange(len(before)), self.named[i])
                reference.weights[rest] = kept[rest]
                for name, old in slots.items():
                    reference.slots[name] = reference.slots[name].copy()
                    reference.slots[name][rest] = old[rest]


@dataclass
class Side:
    """An optimizer and the variables it was built with, by name."""

    optimizer: keras.optimizers.Optimizer
    kinds: dict[str, Kind]
    devices: dict[str, str]
    limit: int | None
    values: dict[str, Any]
    variables: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        self.variables = {}
        for name, kind in self.kinds.items():
            with tf.device(self.devices[name]):
                self.variables[name] = kind.variable(self.values[name])
        if self.limit is not None:  # so that small variables are updated as large ones are
            self.optimizer.engine_limits = Limits(pack_up_to=self.limit)
        self.optimizer.build(list(self.variables.values()))

    def fresh(self) -> Side:
        """Another optimizer of the same configuration, with variables of its own."""
        config = self.optimizer.get_config()
        optimizer = type(self.optimizer).from_config(config)
        assert optimizer.get_config() == config
        return Side(optimizer, self.kinds, self.devices, self.limit, self.values)

    def trained(self) -> dict[str, Any]:
        return {n: v for n, v in self.variables.items() if self.kinds[n].is_trained}

    def step(
        self, plan: dict[str, Gradient], name_variables: bool = True
    ) -> Callable[[list[list[tf.Tensor]]], None]:
        """A function of the gradients' tensors that applies them, in the plan's order."""
        chosen = [self.variables[name] for name in plan]

        def apply(tensors: list[list[tf.Tensor]]) -> None:
            gradients = [g.assembled(t) for g, t in zip(plan.values(), tensors, strict=True)]
            self.optimizer.apply(gradients, *([chosen] if name_variables else []))

        return apply

    def snapshot(self) -> dict[str, Array]:
        """Copies of the weights and of everything that the optimizer keeps."""
        weights = {name: np.array(v.numpy()) for name, v in self.variables.items()}
        kept = {f"{i}: {v.path}": v for i, v in enumerate(self.optimizer.variables)}
        return {**weights, **{path: np.array(v.numpy()) for path, v in kept.items()}}

    def state(self) -> dict[str, dict[str, Array]]:
        """Weights and slots of each trained variable, in float64."""
        trained = self.trained()
        states = state_of(self.optimizer, list(trained.values()))
        return {
            name: {part: np.array(value, "float64") for part, value in state.items()}
            for name, state in zip(trained, states, strict=True)
        }


def assert_identical(before: dict[str, Array], after: dict[str, Array], what: str) -> None:
    """Bitwise, NaN included."""
    assert len(before) == len(after), what
    for (name, old), new in zip(before.items(), after.values(), strict=True):
        same = old.dtype == new.dtype and old.shape == new.shape and old.tobytes() == new.tobytes()
        assert same, f"{what}: {name} is {new}, and should be {old}"


# Roads of a state: each has `save(side, folder)`, whose result `load(result, side)` restores.


def _weights(side: Side) -> dict[str, Array]:
    return {name: np.array(v.numpy()) for name, v in side.trained().items()}


def _set_weights(weights: dict[str, Array], side: Side) -> None:
    for name, value in weights.items():
        side.variables[name].assign(value)


def _save_dictionary(side: Side, folder: Path) -> Any:
    store: dict[str, Array] = {}
    side.optimizer.save_own_variables(store)
    return _weights(side), {key: np.array(value) for key, value in store.items()}


def _load_dictionary(saved: Any, side: Side) -> None:
    _set_weights(saved[0], side)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing was loaded
        side.optimizer.load_own_variables(saved[1])


def _save_arrays(side: Side, folder: Path) -> Any:
    return _weights(side), [np.array(v.numpy()) for v in side.optimizer.variables]


def _load_arrays(saved: Any, side: Side) -> None:
    _set_weights(saved[0], side)
    side.optimizer.set_weights(saved[1])


class Holder(keras.Model):
    """A model that is nothing but its variables and its optimizer."""

    def __init__(self, side: Side) -> None:
        super().__init__()
        self.held = [v for v in side.variables.values() if isinstance(v, keras.Variable)]
        self.built = True
        self.compile(side.optimizer)


def _save_file(side: Side, folder: Path) -> Any:
    path = folder / f"{len(list(folder.iterdir()))}.weights.h5"
    Holder(side).save_weights(path)
    return path


def _load_file(saved: Any, side: Side) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Holder(side).load_weights(saved)


def checkpoint(side: Side) -> tf.train.Checkpoint:
    return tf.train.Checkpoint(optimizer=side.optimizer, weights=list(side.variables.values()))


def _save_checkpoint(side: Side, folder: Path) -> Any:
    return checkpoint(side).write(str(folder / f"{len(list(folder.iterdir()))}"))


def _load_checkpoint(saved: Any, side: Side) -> None:
    checkpoint(side).read(saved).assert_existing_objects_matched()


class Road(NamedTuple):
    save: Callable[[Side, Path], Any]
    load: Callable[[Any, Side], None]
    takes_strings: bool  # with keras.optimizers.Adam


ROADS = {
    "dictionary": Road(_save_dictionary, _load_dictionary, True),
    "arrays": Road(_save_arrays, _load_arrays, False),
    "file": Road(_save_file, _load_file, False),
    "checkpoint": Road(_save_checkpoint, _load_checkpoint, True),
}
