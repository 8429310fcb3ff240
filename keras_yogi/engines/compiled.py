"""Updates compiled with XLA, one for each rule."""

import functools
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from keras_yogi.rules import Rule

Compiler = Callable[[Callable[..., Any], Rule], Callable[..., Any]]


def compiler() -> Compiler:
    """A function that compiles updates, and caches those of the last 8 rules.

    It takes a function and a rule. It returns the function with the rule as its first argument,
    compiled for each set of shapes that it is called with. Each optimizer needs one of its own:
    TensorFlow's functions refer to the variables of their first call, and fail when these are gone.
    """

    @functools.lru_cache(maxsize=8)
    def compiled(function: Callable[..., Any], rule: Rule) -> Callable[..., Any]:
        return tf.function(functools.partial(function, rule), autograph=False, jit_compile=True)

    return compiled


def is_compiled_here() -> bool:
    """Whether an update that is called now gets compiled: in a graph, if XLA is available.

    Eager calls run operation by operation; repeated ones get a graph of the whole step.
    """
    return not tf.executing_eagerly() and xla_is_available()


@functools.cache
def xla_is_available() -> bool:
    """Whether this build of TensorFlow can compile for the CPU. It is tried once."""
    try:
        with tf.init_scope():
            tf.function(lambda: tf.zeros(()) + 1.0, jit_compile=True)()
    except (tf.errors.OpError, NotImplementedError, ValueError):
        return False
    return True
