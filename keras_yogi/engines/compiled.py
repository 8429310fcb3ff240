"""Updates compiled with XLA, one for each rule."""

import functools
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from keras_yogi.rules import Rule

Compiler = Callable[[Callable[..., Any], Rule], Callable[..., Any]]


def compiler() -> Compiler:
    """Makes compiled functions, and keeps those of the last rules.

    What it returns takes a function and a rule, and gives the function with the rule as its first
    argument, compiled for each set of shapes that it is called with. One of these for each
    optimizer: TensorFlow's functions refer to the variables that they were first called with, and
    fail when these are gone.
    """

    @functools.lru_cache(maxsize=8)
    def compiled(function: Callable[..., Any], rule: Rule) -> Callable[..., Any]:
        return tf.function(functools.partial(function, rule), autograph=False, jit_compile=True)

    return compiled


def is_compiled_here() -> bool:
    """Whether an update that is called now is to be compiled: in a graph, if there is an XLA.

    Eager calls are carried out operation by operation, until a graph is made of the whole step.
    """
    return not tf.executing_eagerly() and xla_is_available()


@functools.cache
def xla_is_available() -> bool:
    """Not every build of TensorFlow can compile for the CPU: ask it, once."""
    try:
        with tf.init_scope():
            tf.function(lambda: tf.zeros(()) + 1.0, jit_compile=True)()
    except (tf.errors.OpError, NotImplementedError, ValueError):
        return False
    return True
