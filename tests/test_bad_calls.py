"""A bad call is refused in words a person can act on, and leaves the optimizer as it was.

The constructor's arguments are in `test_arguments`. Here: everything that is called later.
"""

import functools
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
import pytest
from support.backend import ON_TENSORFLOW, array, tensorflow_only, tf_mode
from support.calls import (
    PREPARED,
    ROWS,
    WIDTH,
    after_one_step,
    every_prepared,
    good,
    indexed_slices,
    make,
    model_variables,
    ones,
    stepped,
)
from support.cases import OPTIONS, PLAIN
from support.comparison import assert_unchanged, snapshot

if ON_TENSORFLOW:
    import tensorflow as tf

pytestmark = pytest.mark.filterwarnings("ignore:Gradients do not exist")


@functools.cache
def lockstep(prepared):
    """An optimizer for the bad calls, and its twin, which makes the good ones alone."""
    return stepped(prepared, 1), stepped(prepared, 1)


class Bad(NamedTuple):
    call: Callable[[Any, list[keras.Variable]], Any]
    message: str  # a pattern
    error: type[Exception] | tuple[type[Exception], ...] = ValueError


def shape_of(name, bad):
    """A gradient of a wrong shape, where broadcasting or reshaping might make something of it."""
    return Bad(
        lambda o, v: o.apply(good(**{name: ones(*bad)}), v),
        rf"gradient of `{name}` .*shape.* Received: .*{re.escape(str(bad))}",
    )


# What JAX and PyTorch have no dtype for, Keras refuses before it is known whose gradient it is.
NO_DTYPE = "" if ON_TENSORFLOW else "|[Ii]nvalid dtype|[Dd]type .* not a valid|as a JAX value"


def dtype_of(bad):
    name = np.asarray(bad).dtype.name[:3]
    return Bad(
        lambda o, v: o.apply(good(bias=np.array(bad)), v),
        rf"gradient of `bias` .*floating.* Received: .*{name}" + NO_DTYPE * (name == "str"),
        (ValueError, TypeError) if NO_DTYPE and name == "str" else ValueError,
    )


def embedding(message, *arguments):
    return Bad(
        lambda o, v: o.apply(good(kernel=indexed_slices(*arguments)), v),
        f"gradient of `kernel` {message}",
    )


def count(gradients, variables=None, received=None):
    return Bad(
        lambda o, v: o.apply(*(g(v) for g in (gradients, variables) if g)),
        rf"`grads` .*one gradient.* per variable.* Received: {received}",
    )


UNKNOWN = "(Unknown variable|the variables that the optimizer was built with).*new"
ONE_ROW = [[1.0] * WIDTH]

# Also in a graph, where shapes and dtypes are known when it is traced.
BAD_GRADIENTS = {
    **{
        f"shape {bad} for {name}": shape_of(name, bad)
        for name, shapes in {
            "kernel": [(), (1, 1), (WIDTH,), (1, WIDTH), (ROWS, 1), (WIDTH, ROWS), (12,)],
            "bias": [(), (1,), (3, 1), (1, 3), (2, 3), (0,), (4,)],
            "scale": [(1,), (1, 1), (3,), (0,)],
        }.items()
        for bad in shapes
    },
    "sizes that add up": Bad(
        lambda o, v: o.apply(good(bias=ones(), scale=ones(3)), v), "gradient of `bias`"
    ),
    "swapped gradients": Bad(
        lambda o, v: o.apply(good()[::-1], v), r"gradient of `kernel` .* Received: shape \(\)"
    ),
    "int": dtype_of([1, 2, 3]),
    "bool": dtype_of([True, False, True]),
    "complex": dtype_of([1j, 1j, 1j]),
    "string": dtype_of(["1", "2", "3"]),
    "no number": Bad(
        lambda o, v: o.apply(good(bias=object()), v),
        "object object" + NO_DTYPE,
        (TypeError, ValueError),
    ),
    "too few": count(lambda v: good()[:2], lambda v: v, "2 gradients for 3"),
    "too many": count(lambda v: [*good(), ones(2)], lambda v: v, "4 gradients for 3"),
    "too few, variables known": count(lambda v: good()[:2], received="2 gradients for 3"),
    "too many, variables known": count(lambda v: [*good(), None], received="4 gradients for 3"),
    "all None": Bad(lambda o, v: o.apply([None] * 3, v), "No gradients provided"),
    "all None, variables known": Bad(lambda o, v: o.apply([None] * 3), "No gradients provided"),
    "None": Bad(lambda o, v: o.apply(None, v), "`grads` must be a list.* Received: grads=None"),
    "a tensor": Bad(lambda o, v: o.apply(ones(3), v), "`grads` must be a list"),
    "a scalar tensor": Bad(lambda o, v: o.apply(ones(), v[2:]), "`grads` must be a list"),
    "an array": Bad(lambda o, v: o.apply(np.ones(3), v), "`grads` must be a list"),
    "a variable": Bad(
        lambda o, v: o.apply([ones(3)], v[1]), "`trainable_variables` must be a list"
    ),
    "names": Bad(
        lambda o, v: o.apply(good(), ["kernel", "bias", "scale"]),
        "`trainable_variables` must be a list of variables.* Received: .*'kernel'",
    ),
    "variables and gradients swapped": Bad(
        lambda o, v: o.apply(v, good()), "`trainable_variables` must be a list of variables"
    ),
    "apply_gradients, swapped": Bad(
        lambda o, v: o.apply_gradients(zip(v, good(), strict=True)),
        "`trainable_variables` must be a list of variables",
    ),
    "apply_gradients, no pairs": Bad(
        lambda o, v: o.apply_gradients([1.0, 2.0]), "", TypeError
    ),  # Python's own: cannot unpack
    "apply_gradients, nothing": Bad(lambda o, v: o.apply_gradients([]), "not enough values"),
    "apply_gradients, all None": Bad(
        lambda o, v: o.apply_gradients([(None, w) for w in v]), "No gradients provided"
    ),
    "unknown variable": Bad(
        lambda o, v: o.apply(good(), [*v[:2], keras.Variable(2.0, name="new")]),
        UNKNOWN,
    ),
    "one variable more": Bad(
        lambda o, v: o.apply([*good(), ones(2)], [*v, keras.Variable(np.ones(2), name="new")]),
        UNKNOWN,
    ),
    "variable twice": Bad(
        lambda o, v: o.apply([ones(3), ones(3)], [v[1], v[1]]),
        r"`trainable_variables` .*without repetitions.* Received: .*'bias', 'bias'",
    ),
}
BAD_ROWS = {
    "rows too narrow": embedding(r"must .*\(3,\).* Received: .*2", [[1.0, 1.0]], [1]),
    "rows of one": embedding(r"must .*\(3,\).* Received: .*1", [[1.0]], [1]),
    "rows too wide": embedding(r"must .*\(3,\).* Received: .*4", [[1.0] * 4], [1]),
    "rows without width": embedding(r"must .*\(3,\)", [1.0], [1]),
    "rows of integers": embedding("must .*floating.* Received: .*int32", [[1] * WIDTH], [1]),
    "float indices": embedding("must name rows by integers.* float32", ONE_ROW, [1.0]),
    "indices and rows differ": embedding("must", ONE_ROW * 2, [1]),
    "rows of a longer table": embedding(
        r"must .*\(4, 3\).* Received: .*\(9, 3\)", ONE_ROW, [1], (9, WIDTH)
    ),
    "rows of a table of one": embedding(
        r"must .*\(4, 3\).* Received: .*\(1, 3\)", ONE_ROW, [0], (1, WIDTH)
    ),
    "rows of a vector": Bad(
        lambda o, v: o.apply(good(scale=indexed_slices(ONE_ROW, [0])), v),
        "gradient of `scale` must",
    ),
}

# In a graph the values are not known. There TensorFlow's kernel fails on a row that is too large,
# when the graph runs, and adds nothing for a negative one.
BAD_VALUES = {
    "row too large": embedding(r"must name rows in \[0, 4\).* Received: .*9", ONE_ROW, [9]),
    "negative row": embedding(r"must name rows in \[0, 4\).* Received: .*-1", ONE_ROW, [-1]),
}


def rate(bad, message="`learning_rate` must be a number >= 0"):
    return Bad(
        lambda o, v: setattr(o, "learning_rate", bad),
        rf"{message}.* Received: learning_rate={re.escape(repr(bad))}",
    )


def weights_of(o):
    return [np.array(v.numpy()) + 1 for v in o.variables]


def state_of(o):
    store = {}
    o.save_own_variables(store)
    return {key: value + 1 for key, value in store.items()}


LAST_SHAPE = r"must be .*shape \(.*\)\. Received: shape \(7,\)"
BAD_SETTINGS = {
    **{f"learning_rate {bad}": rate(bad) for bad in [-0.1, float("nan"), float("inf"), True]},
    **{f"learning_rate {bad!r}": rate(bad) for bad in ["0.1", None, 1j]},
    "learning_rates": Bad(
        lambda o, v: setattr(o, "learning_rate", [0.1, 0.2]), "`learning_rate` must be a number"
    ),
    "learning_rate array": Bad(
        lambda o, v: setattr(o, "learning_rate", np.array([0.1, 0.2])),
        "`learning_rate` must be a number",
    ),
    "iterations": Bad(lambda o, v: setattr(o, "iterations", 3), "iterations", AttributeError),
    "weights, too few": Bad(
        lambda o, v: o.set_weights(weights_of(o)[:-1]), r"`weights` must hold \d+ .* Received: \d+"
    ),
    "weights, too many": Bad(
        lambda o, v: o.set_weights([*weights_of(o), np.ones(1)]),
        r"`weights` must hold \d+ .* Received: \d+",
    ),
    "weights of a wrong shape": Bad(
        lambda o, v: o.set_weights([*weights_of(o)[:-1], np.ones(7)]), LAST_SHAPE
    ),
    "state, too short": Bad(
        lambda o, v: o.load_own_variables({"0": np.array(7)}), "Nothing was loaded", UserWarning
    ),
    "state, too long": Bad(
        lambda o, v: o.load_own_variables({**state_of(o), "more": np.ones(1)}),
        "Nothing was loaded",
        UserWarning,
    ),
    "state of a wrong shape": Bad(
        lambda o, v: o.load_own_variables({**state_of(o), str(len(state_of(o)) - 1): np.ones(7)}),
        LAST_SHAPE,
    ),
    "state under other names": Bad(
        lambda o, v: o.load_own_variables({f"slot {k}": a for k, a in state_of(o).items()}),
        "must be stored under the names 0, 1, .* Received: slot 0",
    ),
    "get_slot, no such slot": Bad(
        lambda o, v: o.get_slot(v[0], "v"), "`name` must be one of .*velocity.* Received: name='v'"
    ),
    "get_slot, no name": Bad(lambda o, v: o.get_slot(v[0], None), "`name` must be one of"),
    "get_slot, unknown variable": Bad(
        lambda o, v: o.get_slot(keras.Variable(1.0), "velocity"), "`variable` must be one of"
    ),
    "get_slot, a name": Bad(
        lambda o, v: o.get_slot("kernel", "velocity"), "`variable` must be .* Received: .*kernel"
    ),
    "set_slot, wrong shape": Bad(
        lambda o, v: o.set_slot(v[0], "velocity", np.ones(3)), r"shape.*\(4, 3\).*\(3,\)"
    ),
    "set_slot, would broadcast": Bad(
        lambda o, v: o.set_slot(v[0], "velocity", 1.0), r"shape.*\(4, 3\).*\(\)"
    ),
    "set_slot, unknown variable": Bad(
        lambda o, v: o.set_slot(keras.Variable(1.0), "velocity", 1.0), "`variable` must be one of"
    ),
    "config with an unknown key": Bad(
        lambda o, v: type(o).from_config({**o.get_config(), "beta_3": 0.5}), "`beta_3` must be"
    ),
    "config with a bad value": Bad(
        lambda o, v: type(o).from_config({**o.get_config(), "beta_2": 1.5}), "`beta_2` must be"
    ),
    "config with an unknown schedule": Bad(
        lambda o, v: type(o).from_config({"learning_rate": {"class_name": "No", "config": {}}}),
        "No",
        (TypeError, ValueError),
    ),
}


def refusal(bad):
    expect = pytest.warns if bad.error is UserWarning else pytest.raises
    return expect(bad.error, match=re.compile(bad.message, re.DOTALL))


def assert_refused_without_a_trace(prepared, bad, modes=("eager",)):
    (optimizer, variables), twins = lockstep(prepared)
    try:
        for mode in modes:
            call = tf_mode(mode)(lambda: bad.call(optimizer, variables) and None)
            with refusal(bad):
                call()
            assert_unchanged(snapshot(*twins), snapshot(optimizer, variables))
        for o, v in [(optimizer, variables), twins]:
            o.apply(good(), v)
        assert_unchanged(snapshot(*twins), snapshot(optimizer, variables))
    except BaseException:
        lockstep.cache_clear()  # the next bad call deserves a sound optimizer
        raise


GRADIENTS = {**BAD_GRADIENTS, **(BAD_ROWS if ON_TENSORFLOW else {})}


@pytest.mark.parametrize("bad", GRADIENTS.values(), ids=GRADIENTS)
@pytest.mark.parametrize("prepared", PLAIN)
def test_bad_gradients(prepared, bad):
    modes = ("eager", "graph") if ON_TENSORFLOW else ("eager",)
    assert_refused_without_a_trace(prepared, bad, modes)


# One of each kind: what is refused does not depend on the options, what it may leave behind does.
EACH_KIND = ["shape (1, 3) for kernel", "int", "too few", "all None", "None", "unknown variable"]
EACH_KIND += ["variable twice", *(["rows too narrow", "float indices"] if ON_TENSORFLOW else [])]


@pytest.mark.parametrize("name", EACH_KIND)
@pytest.mark.parametrize("prepared", [name for name in PREPARED if name not in PLAIN])
def test_bad_gradients_beside_options(prepared, name):
    assert_refused_without_a_trace(prepared, GRADIENTS[name])


@pytest.mark.parametrize("name", [*(BAD_VALUES if ON_TENSORFLOW else {}), *BAD_SETTINGS])
@pytest.mark.parametrize("prepared", PLAIN)
def test_bad_values_and_settings(prepared, name):
    assert_refused_without_a_trace(prepared, {**BAD_VALUES, **BAD_SETTINGS}[name])


@tensorflow_only
@pytest.mark.parametrize("prepared", PLAIN)
def test_row_too_large_in_a_graph(prepared):
    optimizer, variables = stepped(prepared, 1)
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"9 is out of range \[0, 4\)"):
        tf.function(lambda: BAD_VALUES["row too large"].call(optimizer, variables))()


@pytest.mark.parametrize(
    "settable", [keras.optimizers.schedules.ExponentialDecay(0.1, 5, 0.5), lambda: 0.1]
)
@every_prepared
def test_learning_rate_assigned_on_a_schedule(prepared, settable):
    optimizer, variables = make(prepared, learning_rate=settable), model_variables()
    optimizer.apply(good(), variables)
    before = snapshot(optimizer, variables)
    with pytest.raises(TypeError, match=r"(?i)learning.?rate"):
        optimizer.learning_rate = 0.5
    assert_unchanged(before, snapshot(optimizer, variables))
    assert float(array(optimizer.learning_rate)) == pytest.approx(0.1, rel=0.2)


@every_prepared
def test_averages_are_for_the_variables_that_the_optimizer_was_built_with(prepared):
    """Keras on TensorFlow hands them out by position, to whatever it is given."""
    case, _ = PREPARED[prepared]
    optimizer, variables = case.optimizer(**OPTIONS["ema"]), model_variables()
    optimizer.apply(good(), variables)
    others = model_variables()
    before = snapshot(optimizer, [*variables, *others])
    for bad in [others, variables[::-1], variables[:2], variables[1]]:
        with pytest.raises(ValueError, match="`var_list` must be"):
            optimizer.finalize_variable_values(bad)
    assert_unchanged(before, snapshot(optimizer, [*variables, *others]))
    optimizer.finalize_variable_values(variables)


BEFORE_BUILD = {
    "apply without variables": Bad(lambda o, v: o.apply(good()), "must already be built"),
    "set_weights": Bad(lambda o, v: o.set_weights([np.ones(1)] * 3), "not yet been built"),
    "get_slot": Bad(lambda o, v: o.get_slot(v[0], "velocity"), "built"),
    "set_slot": Bad(lambda o, v: o.set_slot(v[0], "velocity", 0.0), "built"),
    "load_own_variables": Bad(
        lambda o, v: o.load_own_variables({str(i): np.ones(1) for i in range(9)}),
        "has not been built",
        UserWarning,
    ),
    **{
        f"build with {name}": Bad(
            lambda o, v, bad=bad: o.build(bad(v)), f"`variables` must be a list.*{message}"
        )
        for name, bad, message in [
            ("an array", lambda v: [*v[:2], np.ones(3)], "of variables.* Received: .*array"),
            ("a tensor", lambda v: [v[0], ones(3)], "of variables.* Received: .*(?i:tensor|array)"),
            ("names", lambda v: [v[0], "bias"], "of variables.* Received: .*bias"),
            ("a layer", lambda v: [keras.layers.Dense(1)], "of variables.* Received: .*Dense"),
            ("a variable", lambda v: v[0], "Received: .*kernel"),
            ("a name", lambda v: "kernel", "Received: .*kernel"),
            ("None", lambda v: None, "Received: variables=None"),
            ("a variable twice", lambda v: [v[0], v[1], v[0]], "without repetitions"),
        ]
    },
    "apply with a name": Bad(
        lambda o, v: o.apply(good(), [*v[:2], "scale"]), "`trainable_variables` must be a list of"
    ),
}


@pytest.mark.parametrize("bad", BEFORE_BUILD.values(), ids=BEFORE_BUILD)
@pytest.mark.parametrize("prepared", PLAIN)
def test_before_build(prepared, bad):
    """Nothing is left half built: the first good call builds the optimizer as if never used."""
    optimizer, variables = make(prepared), model_variables()
    names = [v.path for v in optimizer.variables]
    with refusal(bad):
        bad.call(optimizer, variables)
    assert not optimizer.built
    assert [v.path for v in optimizer.variables] == names
    optimizer.apply(good(), variables)
    assert_unchanged(after_one_step(prepared), snapshot(optimizer, variables))
