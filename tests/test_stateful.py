"""Random sequences of whatever an optimizer is asked for in its life, on three of a kind: with the
fused engine, one variable after another, and in float64 NumPy. After each of them all three agree.

The default run is short and always the same. Settings, as environment variables:

    KERAS_YOGI_STATEFUL_EXAMPLES=500    so many examples, of other seeds each time, which are shrunk
    KERAS_YOGI_STATEFUL_STEPS=30        so many operations in each of them
    KERAS_YOGI_STATEFUL_DEVICES=2       variables may lie on a second logical CPU
    KERAS_YOGI_STATEFUL_WITHOUT=a,b     without these operations: to look behind a known fault
"""

import copy
import os
import shutil
import tempfile
import threading
from dataclasses import replace
from pathlib import Path

import keras
import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, Phase, event, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from support.cases import KINDS as RULES
from support.processes import run_python
from support.stateful import (
    KINDS,
    ROADS,
    Gradient,
    RowReference,
    Side,
    assert_identical,
    checkpoint,
)

EXAMPLES = int(os.environ.get("KERAS_YOGI_STATEFUL_EXAMPLES", "0"))
STEPS = int(os.environ.get("KERAS_YOGI_STATEFUL_STEPS", "20" if EXAMPLES else "0"))
DEVICES = int(os.environ.get("KERAS_YOGI_STATEFUL_DEVICES", "1"))
WITHOUT = set(filter(None, os.environ.get("KERAS_YOGI_STATEFUL_WITHOUT", "").split(",")))

if DEVICES > 1:  # before TensorFlow starts: in a process of its own
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0],
        [tf.config.LogicalDeviceConfiguration()] * DEVICES,
    )

# Keras says so of every variable without a gradient; here that is half of the test.
pytestmark = pytest.mark.filterwarnings("ignore:Gradients do not exist for variables")

# Numbers that float32, in which Keras keeps a learning rate, holds exactly.
learning_rates = st.sampled_from([0.0625, 0.125, 0.03125])
# β₂ up to 0.9: remembers and forgets within a run. ε is far above what float32 loses of √v.
hyperparameter_values = {
    "beta_1": st.sampled_from([0.0, 0.5, 0.9]),
    "beta_2": st.sampled_from([0.9, 0.99, 0.999]),
    "epsilon": st.sampled_from([1e-3, 0.01, 0.25]),
}
proximal_values = {
    "l1_regularization_strength": st.sampled_from([0.0, 0.5]),
    "l2_regularization_strength": st.sampled_from([0.0, 0.25]),
}
bad_values = st.sampled_from(
    [
        ("beta_1", 1.5),
        ("beta_1", "0.9"),
        ("beta_2", 1.0),
        ("beta_2", float("nan")),
        ("epsilon", -1.0),
        ("epsilon", None),
        ("learning_rate", -0.5),
        ("learning_rate", float("inf")),
    ]
)
# Another value than the one that an optimizer was built with
fixed_values = {
    "amsgrad": lambda old: not old,
    "skip_nonfinite": lambda old: not old,
    "initial_accumulator_value": lambda old: old + 1.0,
    "sparse_update": lambda old: "lazy" if old == "exact" else "exact",
}
OPTIONS = [
    {},
    {"weight_decay": 0.125},
    {"clipnorm": 0.5},
    {"clipvalue": 0.25},
    {"global_clipnorm": 0.5},
    {"use_ema": True, "ema_momentum": 0.5},
    {"use_ema": True, "ema_momentum": 0.5, "ema_overwrite_frequency": 3},
    {"skip_nonfinite": True},
    {"skip_nonfinite": True, "weight_decay": 0.125},
    {"gradient_accumulation_steps": 2},
    {"loss_scale_factor": 8.0},
    {"loss_scale_factor": 8.0, "clipnorm": 0.5, "weight_decay": 0.125},
]
# Roundings of a few operations a step, over some dozens of steps: of the largest value that the
# array has held, from which cancellation starts. Half precision is kept as exactly as float32.
UNIT = {"float32": 2.0**-24, "float64": 2.0**-53, "bfloat16": 2.0**-24}
REFERENCE_ROUNDINGS = 400
ENGINE_ROUNDINGS = 100  # the same operations in another order


def without(name):
    """Whether an operation is left out."""
    return name in WITHOUT


def operation(name, condition=lambda machine: True):
    """A rule that may be left out, for machines of which the condition holds."""

    def decorate(method):
        return precondition(lambda machine: not without(name) and condition(machine))(method)

    return decorate


class OptimizerMachine(RuleBasedStateMachine):
    """One life of an optimizer."""

    @initialize(data=st.data())
    def build(self, data):
        draw = data.draw
        self.folder = Path(tempfile.mkdtemp())
        options = draw(st.sampled_from(OPTIONS), label="options")
        rule_name = draw(st.sampled_from(list(RULES)), label="rule")
        sparse_update = draw(st.sampled_from(["exact", "lazy"]), label="sparse_update")
        hyperparameters = {"epsilon_hat": draw(st.booleans(), "epsilon_hat")}
        allowed = [name for name in KINDS if name not in WITHOUT and self.allows(options, name)]
        names = draw(
            st.lists(st.sampled_from(allowed), min_size=2, max_size=7, unique=True), label="names"
        )
        if not any(KINDS[name].is_trained for name in names):
            names.append("vector")
        kinds = {name: KINDS[name] for name in names}
        places = st.sampled_from([f"CPU:{i}" for i in range(DEVICES)])
        devices = {name: draw(places, "device") if DEVICES > 1 else "CPU:0" for name in names}
        if any(device != "CPU:0" for device in devices.values()):
            # XLA compiles for one device; what Keras does with all variables at once, it does on
            # the first.
            event("two devices")
        self.one_device = len({*devices.values(), "CPU:0"}) == 1
        limit = draw(st.sampled_from([None, 4]), label="pack_up_to")
        self.rate_is_callable = not without("callable") and draw(st.booleans(), "callable")
        # Exact in float32, to which Keras rounds what a callable returns when it decays weights.
        rate = 2.0**-7 if self.rate_is_callable else draw(learning_rates, label="learning_rate")

        random = np.random.default_rng(0)
        values = {name: kind.values(random) for name, kind in kinds.items()}
        case = replace(
            RULES[rule_name],
            hyperparameters={**RULES[rule_name].hyperparameters, **hyperparameters},
        )
        self.sides = [
            Side(
                case.optimizer(
                    (lambda: rate) if self.rate_is_callable else rate,
                    fused=fused,
                    sparse_update=sparse_update,
                    **options,
                ),
                kinds,
                devices,
                limit,
                values,
            )
            for fused in ("auto", False)
        ]
        self.kinds = kinds
        self.options = options
        self.trained = [name for name in names if kinds[name].is_trained]
        start = self.sides[1].state()  # rounded to each dtype
        self.reference = RowReference(
            [case.reference(start[name]["weights"], rate) for name in self.trained],
            **{name: value for name, value in options.items() if name != "skip_nonfinite"},
        )
        self.rate = rate
        accumulates = "gradient_accumulation_steps" in options
        self.lazy = sparse_update == "lazy" and not accumulates
        self.active = list(self.trained)
        self.skipped = 0
        self.largest = {}
        self.saved = []
        self.graph = None
        self.compilations = 0
        self.models_saved = 0
        self.drawn = 0

    def allows(self, options, name):
        """What Keras's own optimizers can do."""
        kind = KINDS[name]
        if not kind.is_trained:  # there is no average and no sum of strings
            return not {"use_ema", "gradient_accumulation_steps"} & set(options)
        return kind.dtype == "float32" or "global_clipnorm" not in options

    def teardown(self):
        if hasattr(self, "folder"):
            shutil.rmtree(self.folder, ignore_errors=True)

    # Steps

    def draw_plan(self, data, statics=("known",), among=None):
        """Some variables in some order, and how the gradient of each looks."""
        never_trained = [name for name in self.kinds if name not in self.trained]
        among = list(among or [*self.active, *never_trained])
        some = st.lists(st.sampled_from(among), min_size=1, unique=True)
        names = data.draw(st.just(among) | st.permutations(among) | some, label="order")
        plan = {}
        for name in names:
            kind = KINDS[name]
            possible = ["dense", "none"] if kind.is_trained else ["none"]
            if kind.has_rows:
                rows = ["rows", "many pieces", "no rows"]
                possible = [form for form in rows if not without(form)] + possible
            form = data.draw(st.sampled_from(possible), label=f"gradient of {name}")
            static = data.draw(st.sampled_from(statics), label="static") if form != "none" else ""
            plan[name] = Gradient(kind, form, static)
        if all(gradient.form == "none" for gradient in plan.values()):  # not a step: an error
            name = next((name for name in names if name in self.trained), among[0])
            plan[name] = Gradient(KINDS[name], "dense")
        return plan

    def draw_tensors(self, data, plan):
        """Others every time, whatever is drawn: where the same gradient comes again and again,
        Yogi's v ends at its square, and which of the two is larger is up to the last bit.
        """
        seed = data.draw(st.integers(0, 2**16), label="seed")
        self.drawn += 1
        return {
            name: gradient.tensors(gradient.arrays([seed, self.drawn, number]))
            for number, (name, gradient) in enumerate(plan.items())
        }

    def expect(self, plan, tensors):
        """The reference's step."""
        gradients = [None] * len(self.trained)
        for name, gradient in plan.items():
            if gradient.form != "none":
                gradients[self.trained.index(name)] = gradient.dense(tensors[name])
        finite = all(g is None or np.isfinite(g).all() for g in gradients)
        if not finite:
            self.skipped += 1
            return
        self.reference.named = {
            self.trained.index(name): tensors[name][1].numpy()
            for name in plan
            if self.lazy and len(tensors[name]) == 2
        }
        self.reference.apply(gradients, self.rate)

    def step_all(self, data, plan, wrap=lambda step: step):
        """One step of all three, and then the functions that made it."""
        all_in_order = list(plan) == list(self.kinds)
        name_variables = not all_in_order or data.draw(st.booleans(), label="variables are given")
        tensors = self.draw_tensors(data, plan)
        steps = [wrap(side.step(plan, name_variables)) for side in self.sides]
        for step in steps:
            step(list(tensors.values()))
        self.expect(plan, tensors)
        return steps

    @rule(data=st.data())
    def apply(self, data):
        """An eager step."""
        self.step_all(data, self.draw_plan(data))

    @rule(data=st.data())
    def apply_in_a_graph(self, data):
        """A step in a graph that knows no more of some gradients than their dtype."""
        statics = ("known", *(s for s in ("rank", "nothing") if not without(s)))
        plan = self.draw_plan(data, statics)
        steps = self.step_all(data, plan, lambda step: tf.function(step, autograph=False))
        self.graph = steps, plan

    @operation("xla", lambda machine: machine.compilations < 1 and machine.one_device)
    @rule(data=st.data())
    def apply_compiled(self, data):
        """A step compiled by XLA."""
        self.compilations += 1
        plan = self.draw_plan(data)
        compiled = lambda step: tf.function(step, autograph=False, jit_compile=True)  # noqa: E731
        self.graph = self.step_all(data, plan, compiled), plan

    @precondition(lambda machine: machine.graph is not None)
    @rule(data=st.data())
    def apply_the_graph_again(self, data):
        """The last graph, on other gradients, after whatever has happened meanwhile."""
        steps, plan = self.graph
        tensors = self.draw_tensors(data, plan)
        for step in steps:
            step(list(tensors.values()))
        self.expect(plan, tensors)

    @operation("not a number", lambda machine: "skip_nonfinite" in machine.options)
    @rule(data=st.data(), in_a_graph=st.booleans())
    def apply_what_is_not_finite(self, data, in_a_graph):
        """Such a step is skipped, and counted."""
        plan = self.draw_plan(data)
        names = [name for name in plan if name in self.trained and KINDS[name].shape != (0,)]
        if not names:
            return
        name = data.draw(st.sampled_from(names), label="not a number")
        plan[name] = Gradient(KINDS[name], "not a number")
        before = [side.snapshot() for side in self.sides]
        graph = lambda step: tf.function(step, autograph=False) if in_a_graph else step  # noqa: E731
        skipped = self.skipped
        self.step_all(data, plan, graph)
        assert self.skipped == skipped + 1
        for side, old in zip(self.sides, before, strict=True):
            new = side.snapshot()
            for state in (old, new):
                for counter in [key for key in state if "skipped_" in key]:
                    del state[counter]
            assert_identical(old, new, "a step that was skipped")

    @operation("eager sets")
    @rule(data=st.data())
    def apply_to_other_sets_of_variables(self, data):
        """A few eager steps, each on variables of its own choice, as stochastic depth has it."""
        for _ in range(3):
            present = data.draw(
                st.lists(st.sampled_from(self.active), min_size=1, unique=True), label="present"
            )
            form = lambda name: "dense" if name in present else "none"  # noqa: B023, E731
            plan = {name: Gradient(KINDS[name], form(name)) for name in self.active}
            self.step_all(data, plan)

    @operation(
        "threads",
        # Averages are of all variables, and so is the end of an accumulation: whose step is first?
        lambda machine: (
            len(machine.active) > 1
            and not {"use_ema", "gradient_accumulation_steps"} & set(machine.options)
        ),
    )
    @rule(data=st.data(), in_graphs=st.booleans(), steps=st.integers(1, 4))
    def apply_in_two_threads(self, data, in_graphs, steps):
        """Two threads train variables of their own. The step's number, which depends on who is
        first, is so large that the corrections are 1.
        """
        cut = data.draw(st.integers(1, len(self.active) - 1), label="cut")
        plans = [
            self.draw_plan(data, among=names) for names in (self.active[:cut], self.active[cut:])
        ]
        tensors = [[self.draw_tensors(data, plan) for _ in range(steps)] for plan in plans]
        calls, self.reference.calls = self.reference.calls, 10**6
        for side in self.sides:
            side.optimizer.iterations.assign(10**6)
            self.in_threads(side, plans, tensors, in_graphs)
        for plan, batches in zip(plans, tensors, strict=True):
            for batch in batches:
                self.expect(plan, batch)
        self.reference.calls -= 10**6 - calls
        for side in self.sides:  # Keras adds 1 by reading and writing: a count may be lost
            side.optimizer.iterations.assign(self.reference.calls)

    def in_threads(self, side, plans, tensors, in_graphs):
        errors = []
        together = threading.Barrier(len(plans))

        def train(plan, batches):
            try:
                step = side.step(plan)
                step = tf.function(step, autograph=False) if in_graphs else step
                together.wait(60)
                for batch in batches:
                    step(list(batch.values()))
            except Exception as error:
                errors.append(error)

        threads = [
            threading.Thread(target=train, args=pair) for pair in zip(plans, tensors, strict=True)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]

    # What a user changes between steps

    @operation("freeze", lambda machine: len(machine.active) > 1)
    @rule(data=st.data())
    def freeze(self, data):
        """From now on some variables alone are trained."""
        names = st.lists(st.sampled_from(self.active), min_size=1, unique=True)
        self.active = data.draw(names, label="go on with")

    @operation("set values")
    @rule(data=st.data(), seed=st.integers(0, 2**16))
    def set_weights_or_a_slot(self, data, seed):
        name = data.draw(st.sampled_from(self.trained), label="variable")
        parts = ["weights", *self.slot_names()]
        part = data.draw(st.sampled_from(parts), label="part")
        value = KINDS[name].values(np.random.default_rng(seed))
        value = value**2 if "velocity" in part else value
        value = tf.constant(value, KINDS[name].dtype)
        for side in self.sides:
            variable = side.variables[name]
            if part == "weights":
                variable.assign(value)
            else:
                side.optimizer.set_slot(variable, part, value)
        stored = tf.cast(value, "float64").numpy()
        if part == "weights" and KINDS[name].is_half:
            self.of(name).weights = self.kept_of(name, stored)
        elif part == "weights":
            self.of(name).weights = stored
        else:
            self.of(name).slots[part] = stored

    def slot_names(self):
        """But the residual: it counts as a part of the weights."""
        return [name for name in self.sides[0].optimizer.slots() if name != "residual"]

    def kept_of(self, name, stored):
        """The whole weights after the variable was set: a residual is half a unit at most."""
        for side in self.sides:
            weights = side.state()[name]["weights"].astype("float64")
            unit = np.spacing(np.abs(stored).astype(ml_dtypes.bfloat16)).astype("float64")
            assert np.all(np.abs(weights - stored) <= unit / 2)
        return weights

    def of(self, name):
        """The reference of one variable."""
        return self.reference.of_each[self.trained.index(name)]

    @operation("slot arithmetic")
    @rule(data=st.data())
    def compute_with_a_slot(self, data):
        """A slot does what a variable does."""
        name = data.draw(st.sampled_from(self.trained), label="variable")
        slot = data.draw(st.sampled_from(self.slot_names()), label="slot")
        tolerance = 4 * UNIT[KINDS[name].dtype]
        for side in self.sides:
            index = list(side.variables).index(name)
            variable = side.optimizer.slots()[slot][index]
            old = np.array(keras.ops.convert_to_numpy(variable), "float64")
            results = {
                "product": (variable * 0.5, old * 0.5),
                "reversed product": (0.5 * variable, old * 0.5),
                "sum": (variable + variable, 2 * old),
                "difference": (1.0 - variable, 1.0 - old),
                "quotient": (variable / 4, old / 4),
                "square": (variable**2, old**2),
                "negative": (-variable, -old),
                "whole": (variable[...], old),
            }
            assert variable.ndim == old.ndim
            assert tuple(variable.shape) == old.shape
            for what, (ours, expected) in results.items():
                ours = np.array(keras.ops.convert_to_numpy(ours), "float64")
                scale = 1.0 + np.max(np.abs(expected), initial=0.0)
                np.testing.assert_allclose(
                    ours, expected, rtol=0, atol=tolerance * scale, err_msg=what
                )
            # All exact, and a velocity stays at or above zero.
            variable.assign(variable * 0.5)
            variable.assign_add(np.full(old.shape, 0.5))
            variable.assign_sub(np.full(old.shape, 0.25))
        reference = self.of(name)
        reference.slots[slot] = reference.slots[slot] * 0.5 + 0.25

    @operation("hyperparameters")
    @rule(data=st.data())
    def set_a_hyperparameter(self, data):
        """It counts from the next step on; graphs hold what they were traced with, but for a
        learning rate that is a number.
        """
        possible = {**hyperparameter_values, "learning_rate": learning_rates}
        if self.rate_is_callable:
            possible["learning_rate"] = st.sampled_from([0.01, 0.05])
        if hasattr(self.sides[0].optimizer, "l1_regularization_strength"):
            possible.update(proximal_values)
        name = data.draw(st.sampled_from(list(possible)), label="hyperparameter")
        value = data.draw(possible[name], label="value")
        is_rate = name == "learning_rate"
        for side in self.sides:
            is_called = is_rate and self.rate_is_callable
            setattr(side.optimizer, name, (lambda: value) if is_called else value)
            np.testing.assert_allclose(float(getattr(side.optimizer, name)), value, rtol=1e-7)
            if not self.rate_is_callable:  # which Keras cannot write into a config
                assert side.optimizer.get_config()[name] == value
        if is_rate:
            self.rate = value
        else:
            for reference in self.reference.of_each:
                setattr(reference, name, value)
        if not is_rate or self.rate_is_callable:
            self.graph = None

    @operation("bad hyperparameters")
    @rule(bad=bad_values)
    def set_a_bad_hyperparameter(self, bad):
        self.assert_refused(*bad)

    @operation("fixed hyperparameters")
    @rule(data=st.data())
    def change_what_decides_on_the_state(self, data):
        """What says which slots there are, or how they are kept, stays as it was built."""
        optimizer = self.sides[0].optimizer
        names = [name for name in fixed_values if hasattr(optimizer, name)]
        name = data.draw(st.sampled_from(names), label="fixed")
        self.assert_refused(name, fixed_values[name](getattr(optimizer, name)))

    def assert_refused(self, name, value):
        """By name, and nothing has changed."""
        for side in self.sides:
            before, old = side.snapshot(), getattr(side.optimizer, name)
            old = float(old) if name == "learning_rate" else old
            with pytest.raises((ValueError, AttributeError, TypeError), match=name):
                setattr(side.optimizer, name, value)
            assert getattr(side.optimizer, name) == old
            assert_identical(before, side.snapshot(), "after a value that was refused")

    # Saving and restoring

    def remember(self):
        return copy.deepcopy(self.reference), dict(self.largest), self.skipped, self.rate

    def recall(self, remembered):
        """A file holds the state. What is an argument stays, and a callable is one."""
        now = self.reference.of_each[0]
        self.reference, self.largest, self.skipped, rate = copy.deepcopy(remembered)
        for reference in self.reference.of_each:
            for name in (*hyperparameter_values, *proximal_values):
                setattr(reference, name, getattr(now, name))
        if not self.rate_is_callable:
            self.rate = rate

    @operation("save", lambda machine: len(machine.saved) < 2)
    @rule(data=st.data())
    def save(self, data):
        self.save_by_a_road(data)

    def save_by_a_road(self, data):
        strings = any(kind.dtype == "string" for kind in self.kinds.values())
        roads = [
            name
            for name, road in ROADS.items()
            if not without(name) and (road.takes_strings or not strings)
        ]
        name = data.draw(st.sampled_from(roads), label="road")
        before = [side.snapshot() for side in self.sides]
        saved = [ROADS[name].save(side, self.folder) for side in self.sides]
        for side, old in zip(self.sides, before, strict=True):
            assert_identical(old, side.snapshot(), "after saving")
        self.saved.append((name, saved, before, self.remember()))

    @operation("save")
    @rule(data=st.data(), swap=st.booleans(), fresh=st.booleans())
    def restore(self, data, swap, fresh):
        """Into the same optimizer or one made of its config; into the same or the other engine."""
        if not self.saved:
            self.save_by_a_road(data)
            self.step_all(data, self.draw_plan(data))
        number = data.draw(st.integers(0, len(self.saved) - 1), label="which")
        name, saved, before, remembered = self.saved[number]
        if fresh and not self.rate_is_callable:
            self.sides = [side.fresh() for side in self.sides]
            self.graph = None
        order = [1, 0] if swap else [0, 1]
        for side, source in zip(self.sides, order, strict=True):
            ROADS[name].load(saved[source], side)
            assert_identical(before[source], side.snapshot(), f"restored from {name}")
        self.recall(remembered)

    @operation("asynchronous")
    @rule(data=st.data(), steps=st.sampled_from([1, 30]))
    def save_while_training_goes_on(self, data, steps):
        """A checkpoint that is written in the background is of the moment when it was asked for."""
        options = tf.train.CheckpointOptions(experimental_enable_async_checkpoint=True)
        remembered = self.remember()
        before = [side.snapshot() for side in self.sides]
        checkpoints = [checkpoint(side) for side in self.sides]
        number = len(list(self.folder.iterdir()))
        paths = [
            c.save(str(self.folder / f"asynchronous-{number}-{i}"), options=options)
            for i, c in enumerate(checkpoints)
        ]
        plan = {name: Gradient(KINDS[name], "dense") for name in self.active}
        tensors = self.draw_tensors(data, plan)
        for side in self.sides:
            step = side.step(plan)
            for _ in range(steps):
                step(list(tensors.values()))
        for side, c, path, old in zip(self.sides, checkpoints, paths, before, strict=True):
            c.sync()
            c.restore(path).assert_existing_objects_matched()
            assert_identical(old, side.snapshot(), "restored after training had gone on")
        self.recall(remembered)

    @operation("saved model", lambda machine: machine.models_saved < 1)
    @rule()
    def save_a_module_that_holds_the_optimizer(self):
        """tf.saved_model finds everything, and changes nothing."""
        self.models_saved += 1
        for number, side in enumerate(self.sides):
            module = tf.Module()
            module.optimizer = side.optimizer
            module.weights = [getattr(v, "value", v) for v in side.trained().values()]
            before = side.snapshot()
            tf.saved_model.save(module, str(self.folder / f"module-{number}"))
            assert_identical(before, side.snapshot(), "after saving")

    # What holds after every operation

    @invariant()
    def all_agree(self):
        if not hasattr(self, "reference"):
            return
        fused, unfused = (side.optimizer for side in self.sides)
        for optimizer in (fused, unfused):
            assert optimizer.skipped_steps == self.skipped
            divisor = self.options.get("gradient_accumulation_steps", 1)
            assert int(optimizer.iterations) == self.reference.calls // divisor
            rate = optimizer.learning_rate
            np.testing.assert_allclose(float(rate), self.rate, rtol=1e-7)
        states = [side.state() for side in self.sides]
        for name, expected in zip(self.trained, self.reference.state(), strict=True):
            self.compare(name, expected, *(state[name] for state in states))
        # And what Keras keeps: averages, sums, and what belongs to variables that stay.
        for ours, other in zip(fused.variables, unfused.variables, strict=True):
            a, b = (np.array(v.numpy()) for v in (ours, other))
            assert a.dtype == b.dtype
            assert a.shape == b.shape
            if a.dtype.name in UNIT:
                self.near(ours.path, ENGINE_ROUNDINGS, a.dtype.name, a, b)
            elif a.dtype.name != "int16":  # a residual, which is compared with the weights
                np.testing.assert_array_equal(a, b)

    def compare(self, name, expected, fused, unfused):
        dtype = KINDS[name].dtype
        for part, reference in expected.items():
            key = f"{part} of {name}"
            self.near(f"{key}, engines", ENGINE_ROUNDINGS, dtype, fused[part], unfused[part])
            self.near(f"{key}, formula", REFERENCE_ROUNDINGS, dtype, unfused[part], reference)

    def near(self, key, roundings, dtype, ours, expected):
        """To so many roundings of the largest value that has been there."""
        ours, expected = np.array(ours, "float64"), np.array(expected, "float64")
        assert np.isfinite(ours).all(), key
        largest = max(self.largest.get(key, 1e-6), np.max(np.abs(expected), initial=0.0))
        self.largest[key] = largest
        error = np.max(np.abs(ours - expected), initial=0.0) / largest / UNIT[dtype]
        assert error <= roundings, (
            f"{key}: off by {error:.3g} roundings of its largest value, {largest:.3g}; "
            f"allowed: {roundings}"
        )


def budget(examples, steps):
    """Always the same examples, in the default run; others and shrunk ones, in a long one."""
    return settings(
        max_examples=EXAMPLES or examples,
        stateful_step_count=STEPS or steps,
        derandomize=not EXAMPLES,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        # Shrinking would compile for minutes.
        phases=[Phase.generate, Phase.shrink] if EXAMPLES else [Phase.generate],
    )


def test_all_agree_after_any_sequence():
    examples = 12 if DEVICES == 1 else 4
    run_state_machine_as_test(OptimizerMachine, settings=budget(examples, steps=10))


@pytest.mark.skipif(DEVICES > 1, reason="this is that process")
@pytest.mark.slow
def test_all_agree_with_variables_on_two_devices():
    """In a process of its own, because TensorFlow must not have started."""
    here = Path(__file__)
    name = f"{here}::{test_all_agree_after_any_sequence.__name__}"
    command = ("-m", "pytest", "-q", "-o", "addopts=", name)
    run = run_python(*command, cwd=here.parents[1], KERAS_YOGI_STATEFUL_DEVICES="2")
    assert run.returncode == 0, run.stdout[-6000:]
