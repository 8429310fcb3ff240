"""One life of an optimizer, on three of a kind: how it begins, how a step is drawn and made on all
of them, and what is compared after every operation. The operations are in test_stateful.
"""

import copy
import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import event
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition

from support.cases import KINDS as RULES
from support.stateful import KINDS, ROADS, Gradient, RowReference, Side, assert_identical

DEVICES = int(os.environ.get("KERAS_YOGI_STATEFUL_DEVICES", "1"))
WITHOUT = set(filter(None, os.environ.get("KERAS_YOGI_STATEFUL_WITHOUT", "").split(",")))

if DEVICES > 1:  # before TensorFlow starts: in a process of its own
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0],
        [tf.config.LogicalDeviceConfiguration()] * DEVICES,
    )

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


class Machine(RuleBasedStateMachine):
    """What every operation is made of."""

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

    # What an operation needs to know

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

    # What holds after every operation, and after a refusal

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

    def assert_refused(self, name, value):
        """By name, and nothing has changed."""
        for side in self.sides:
            before, old = side.snapshot(), getattr(side.optimizer, name)
            old = float(old) if name == "learning_rate" else old
            with pytest.raises((ValueError, AttributeError, TypeError), match=name):
                setattr(side.optimizer, name, value)
            assert getattr(side.optimizer, name) == old
            assert_identical(before, side.snapshot(), "after a value that was refused")
