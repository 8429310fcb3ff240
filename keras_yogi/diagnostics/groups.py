"""Variables that are looked at together: those of one optimizer and of one dtype."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from keras_yogi.diagnostics import looks, reading
from keras_yogi.diagnostics.looks import Look
from keras_yogi.diagnostics.parts import Part, Progress
from keras_yogi.diagnostics.quantiles import OfRows
from keras_yogi.diagnostics.sampling import Sample

Array = np.ndarray

FRACTIONS = (0.5, 0.999)
"""Of which quantiles are told: the median, and what one weight in a thousand exceeds."""

CHUNK = 2**20
"""Weights that are looked at in one go where all of a large variable's are."""


class Sight(NamedTuple):
    """A look at a sample, in tensors, which stay what they are when training goes on."""

    sums: Any  # a table
    of_weights: Look | None
    progress: Progress


class Seen(NamedTuple):
    """What is kept of it, in numbers."""

    sums: dict[str, Array]  # by variable
    of_weights: Look | None  # tensors: what nobody asks for need not leave the device
    progress: Progress


class Group:
    """Variables of one optimizer and of one dtype."""

    def __init__(
        self, part: Part, dtype: str, own: Sequence[int], most: int, compiled: bool
    ) -> None:
        """Takes the variables by their places in the part.

        Args:
            part: the optimizer and its variables.
            dtype: what the optimizer computes in.
            own: places of the variables in the part, rising.
            most: weights of one variable that are looked at.
            compiled: make a graph, which pays if the group is looked at often.
        """
        self.part, self.dtype = part, dtype
        self.variables = [part.variables[i] for i in own]
        self.slots = {name: [of_all[i] for i in own] for name, of_all in part.slots.items()}
        self.sample = Sample([int(np.prod(v.shape)) for v in self.variables], most)
        self.quantiles_of_each = OfRows(self.sample.counts, FRACTIONS)
        self._compiled = compiled
        # Graphs hold the hyperparameters as fixed numbers, and one source of the learning rate,
        # which is kept so that no other one can get its id.
        self._observations: dict[Any, tuple[Callable[..., Sight], Any]] = {}

    def look(self) -> Sight:
        """Looks at the sample of every variable, and at the optimizer's progress."""
        source = self.part.source_of_rate
        key = self.part.rule, id(source)
        given = [self.part.rate_now] if self.part.rate_is_a_function else []
        scalars = [np.array(each, self.dtype) for each in given]
        if key not in self._observations:
            self._observations[key] = self._observation(*scalars), source
        observation, _ = self._observations[key]
        return observation(*scalars)

    def seen(self, sight: Sight) -> Seen:
        """In numbers, what `look` has returned."""
        step, rate = map(reading.number, sight.progress)
        sums = dict(zip(self._names, _array(sight.sums), strict=True))
        return Seen(sums, sight.of_weights, Progress(int(step), float(rate)))

    def _observation(self, *scalars: Array) -> Callable[..., Sight]:
        every = {"weights": self.variables, **self.slots}
        readers = {name: self.sample.reader(of_all, self.dtype) for name, of_all in every.items()}
        owners, count = self.sample.owners.astype("int32"), len(self.variables)

        def of_all(*learning_rate: Any) -> Sight:
            # In the same graph: to ask for two numbers apart costs a tenth of it all.
            progress = self.part.progress(*learning_rate)
            streams = {name: read() for name, read in readers.items()}
            seen = self._look(streams, progress)
            added = looks.summands(streams, seen)
            self._names, table = looks.sums(added, seen, owners, count)
            return Sight(table, seen, progress)

        return reading.in_a_graph(of_all, *scalars) if self._compiled else of_all

    def _look(self, streams: dict[str, Any], progress: Progress) -> Look | None:
        rule = self.part.rule
        if rule is None:
            return None
        rate = ops.cast(progress.learning_rate, self.dtype)
        step = ops.maximum(progress.step, 1)  # that the bias corrections are of
        stored = keras.backend.standardize_dtype(self.variables[0].dtype)
        return looks.look(
            rule,
            streams["weights"],
            [streams[name] for name in self.slots],
            rule.scalars(rate, step, self.dtype),
            ops.cast(ops.full((1,), rule.initial_values["velocity"], stored), self.dtype),
        )

    def sums_over_all(
        self, progress: Progress, place: int, row: int
    ) -> tuple[dict[str, float], int]:
        """As `Seen.sums`, over all weights of one variable, a part of it at a time.

        Args:
            progress: of the optimizer.
            place: of the variable in the group.
            row: length of the variable's rows.

        Returns:
            The sums, and the number of rows that no gradient has reached.
        """
        every = {"weights": self.variables, **self.slots}
        flat = {name: ops.reshape(of_all[place], [-1]) for name, of_all in every.items()}
        length = max(CHUNK // row, 1) * row
        total: dict[str, float] = {}
        rows = 0
        for first in range(0, int(self.sample.sizes[place]), length):
            streams = {
                name: ops.cast(values[first : first + length], self.dtype)
                for name, values in flat.items()
            }
            seen = self._look(streams, progress)
            owners = np.zeros(streams["weights"].shape, "int32")
            added = looks.summands(streams, seen)
            names, table = looks.sums(added, seen, owners, 1)
            for name, (number,) in zip(names, ops.convert_to_numpy(table), strict=True):
                total[name] = merged(name, [total[name], number]) if name in total else number
            if seen is not None:
                whole_rows = ops.all(ops.reshape(seen.untouched, [-1, row]), axis=1)
                rows += int(ops.convert_to_numpy(ops.sum(ops.cast(whole_rows, "int32"))))
        return total, rows


def groups_of(part: Part, most: int, compiled: bool) -> list[Group]:
    """A part's variables, one group a dtype; `most` and `compiled` are those of `Group`."""
    by_dtype: dict[str, list[int]] = {}
    for place, variable in enumerate(part.variables):
        if np.prod(variable.shape):
            dtype = keras.backend.standardize_dtype(variable.dtype)
            by_dtype.setdefault(dtype, []).append(place)
    # Slots that lie in one array come next to each other, and are read in one go.
    slot = next(iter([*part.slots.values(), part.variables]))
    groups = []
    for dtype, own in sorted(by_dtype.items()):
        of_arrays: dict[int, list[int]] = {}
        for place in own:
            of_arrays.setdefault(id(reading.location(slot[place])[0]), []).append(place)
        own = [place for of_array in of_arrays.values() for place in of_array]
        computed_in = "float32" if dtype in ("float16", "bfloat16") else dtype
        groups.append(Group(part, computed_in, own, most, compiled))
    return groups


def _array(tensor: Any) -> Array:
    return np.array(ops.convert_to_numpy(tensor))  # JAX's own may not be written to


def merged(name: str, values: Any) -> float:
    """What `looks.sums` would give for several variables together."""
    return float(looks.EXTREMES.get(name, np.sum)(values))
