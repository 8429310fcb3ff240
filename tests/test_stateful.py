"""Random sequences of whatever an optimizer is asked for in its life, on three of a kind: with the
fused engine, one variable after another, and in float64 NumPy. After each of them all three agree.

The default run is short and always the same. Settings, as environment variables:

    KERAS_YOGI_STATEFUL_EXAMPLES=500    so many examples, of other seeds each time, which are shrunk
    KERAS_YOGI_STATEFUL_STEPS=30        so many operations in each of them
    KERAS_YOGI_STATEFUL_DEVICES=2       variables may lie on a second logical CPU
    KERAS_YOGI_STATEFUL_WITHOUT=a,b     without these operations: to look behind a known fault
"""

import os
import threading
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule, run_state_machine_as_test
from support.scripts import run_pytest
from support.stateful import KINDS, ROADS, Gradient, assert_identical, checkpoint
from support.stateful_machine import (
    DEVICES,
    UNIT,
    Machine,
    hyperparameter_values,
    learning_rates,
    operation,
    proximal_values,
    without,
)

EXAMPLES = int(os.environ.get("KERAS_YOGI_STATEFUL_EXAMPLES", "0"))
STEPS = int(os.environ.get("KERAS_YOGI_STATEFUL_STEPS", "20" if EXAMPLES else "0"))

# Keras says so of every variable without a gradient; here that is half of the test.
pytestmark = pytest.mark.filterwarnings("ignore:Gradients do not exist for variables")

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


class OptimizerMachine(Machine):
    """One life of an optimizer: whatever it may be asked for."""

    # Steps

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

    # Saving and restoring

    @operation("save", lambda machine: len(machine.saved) < 2)
    @rule(data=st.data())
    def save(self, data):
        self.save_by_a_road(data)

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
    devices = {"KERAS_YOGI_STATEFUL_DEVICES": "2"}
    run = run_pytest("-q", "-o", "addopts=", name, cwd=here.parents[1], **devices)
    assert run.returncode == 0, run.stdout[-6000:]
