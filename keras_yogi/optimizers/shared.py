"""What the variables of one step share, where they are updated one after another."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any


class Shared:
    """Values that are computed once a step.

    An object of its own, because a dictionary that is an attribute of an optimizer is saved in
    TensorFlow's checkpoints. Not a context variable: under tf.distribute each replica begins the
    step in a thread of its own, and one thread makes it.
    """

    def __init__(self) -> None:
        self._values: dict[str, Any] | None = None

    @contextlib.contextmanager
    def in_a_step(self) -> Iterator[None]:
        """While a step is made; what was computed is forgotten in the end, even by an error."""
        self._values = {}
        try:
            yield
        finally:
            self._values = None

    def get(self, key: str, compute: Callable[[], Any]) -> Any:
        """The value of this key; outside of a step it is computed whenever it is asked for."""
        if self._values is None:
            return compute()
        if key not in self._values:
            self._values[key] = compute()
        return self._values[key]
