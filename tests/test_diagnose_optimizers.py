"""keras_yogi.diagnose of rules of a user's own, of other optimizers, and of what is around them."""

import dataclasses

import keras
import numpy as np
import pytest
from support.figures import (
    FIGURES,
    ROUNDING,
    assert_figures,
    by_hand,
    gradients_of,
    train,
    variables_of,
)

import keras_yogi
from keras_yogi.optimizers import AdaptiveOptimizer
from keras_yogi.rules import AdamRule, AdaptiveRule

# Rules of a user's own


@dataclasses.dataclass(frozen=True)
class Largest(AdaptiveRule):
    def second_moments(self, gradient, momentum, velocity, *others):
        return (keras.ops.maximum(velocity, keras.ops.square(gradient)),)


@dataclasses.dataclass(frozen=True)
class Sign(AdamRule):
    """Has the update of Lion, without saying so in `descend`."""

    def update(self, gradient, weights, slots, scalars):
        _, slots = super().update(gradient, weights, slots, scalars)
        return weights - scalars.learning_rate * keras.ops.sign(slots[0]), slots


@dataclasses.dataclass(frozen=True)
class DescribedSign(Sign):
    def descend(self, weights, slots, scalars):
        return weights - scalars.learning_rate * keras.ops.sign(slots[0])


@dataclasses.dataclass(frozen=True)
class Scaled(AdamRule):
    """Says of each of its methods what it does."""

    def learning_rate_per_weight(self, slots, scalars):
        return 2.0 * super().learning_rate_per_weight(slots, scalars)


NORMS = {"weight_norm", "momentum_norm", "velocity_norm", "reached_share"}
UPDATES = {"update_norm", "update_to_weight_ratio"}


@pytest.mark.parametrize(
    ("rule", "figures", "note"),
    [
        (Largest(), set(FIGURES), ""),
        (Scaled(), set(FIGURES), ""),
        (Sign(), NORMS, "its rule has an `update` without a `descend`"),
        (DescribedSign(), NORMS | UPDATES, "no effective learning rates"),
    ],
)
def test_a_rule_of_ones_own_has_the_figures_that_are_true_of_it(rule, figures, note):
    optimizer, variables = AdaptiveOptimizer(0.0625, rule), variables_of()
    train(optimizer, variables)
    before = variables[1].numpy().astype("float64")
    optimizer.apply(gradients_of(variables, np.random.default_rng(9)), variables)
    report = keras_yogi.diagnose(optimizer)
    assert report.variables["hidden/kernel"].keys() == figures
    assert [note in each for each in report.notes] == [True] * bool(note)
    if figures >= UPDATES:
        change = np.linalg.norm(variables[1].numpy() - before)
        found = report.variables["hidden/kernel"]["update_norm"]
        assert found == pytest.approx(change, rel=1e-5)


def test_an_update_step_of_ones_own_has_norms_alone():
    class Halved(keras_yogi.Adam):
        def update_step(self, gradient, variable, learning_rate):
            super().update_step(gradient, variable, learning_rate / 2)

    class HalvedKerasAdam(keras.optimizers.Adam):
        def update_step(self, gradient, variable, learning_rate):
            super().update_step(gradient, variable, learning_rate / 2)

    for optimizer in (Halved(), HalvedKerasAdam()):
        report = keras_yogi.diagnose(train(optimizer, variables_of()))
        assert report.variables["scale"].keys() == NORMS - {"reached_share"}
        assert "only norms are known" in report.notes[0]


# Other optimizers, and what is wrapped around them


@pytest.mark.parametrize("amsgrad", [False, True])
def test_keras_adam_has_all_figures(amsgrad):
    """Of the same slots, the same as ours: its ε is added before the correction."""
    variables, twins = variables_of(), variables_of()
    arguments = dict(epsilon=1e-3, amsgrad=amsgrad)
    theirs = train(keras.optimizers.Adam(0.0625, **arguments), variables)
    ours = train(keras_yogi.Adam(0.0625, **arguments, epsilon_hat=True), twins)
    report = keras_yogi.diagnose(theirs)
    assert report.notes == []
    # Rounded otherwise, in five steps.
    for name, figures in keras_yogi.diagnose(ours).variables.items():
        assert report.variables[name] == pytest.approx(figures, rel=1e-4, nan_ok=True)


def test_other_optimizers_have_norms():
    variables = variables_of()
    report = keras_yogi.diagnose(train(keras.optimizers.SGD(0.5, momentum=0.9), variables))
    assert set(report.variables["scale"]) == {"weight_norm", "momentum_norm"}
    assert set(report.model) == {"learning_rate", "weight_norm", "momentum_norm", "skipped_steps"}
    norm = np.sqrt(sum(np.sum(v.numpy().astype("float64") ** 2) for v in variables))
    assert report.model["weight_norm"] == pytest.approx(norm, rel=ROUNDING)
    assert report.notes == ["SGD: only norms are known, of weight, momentum"]


def test_a_loss_scale_optimizer_is_looked_into():
    variables = variables_of()
    inner = keras_yogi.Adam(0.0625)
    outer = train(keras.optimizers.LossScaleOptimizer(inner, initial_scale=2.0), variables)
    assert_figures(keras_yogi.diagnose(outer), inner, variables)


@pytest.mark.skipif(not hasattr(keras.optimizers, "MultiOptimizer"), reason="newer Keras")
def test_a_multi_optimizer_is_looked_into():
    variables = variables_of()
    ours = keras_yogi.Yogi(0.0625, name="ours")
    rest = keras.optimizers.SGD(0.5, name="rest")
    by_path = keras.optimizers.OptimizerMap(rest, {"embed/.*": ours, "hidden/.*": ours})
    multi = train(keras.optimizers.MultiOptimizer(by_path), variables)
    report = keras_yogi.diagnose(multi)
    assert report.model["learning_rate_ours"] == 0.0625
    assert report.model["learning_rate_rest"] == 0.5
    expected, model = by_hand(ours, variables[:2])
    for name, of_variable in zip(("embed/embeddings", "hidden/kernel"), expected, strict=True):
        found = {key: report.variables[name][key] for key in FIGURES}
        assert found == pytest.approx(of_variable, rel=ROUNDING)
    assert set(report.variables["scale"]) == {"weight_norm"}
    # The weights are of all, the rest of those whose rule is known; but the update, only of all.
    assert report.model["reached_share"] == pytest.approx(model["reached_share"], rel=ROUNDING)
    assert "update_norm" not in report.model
    assert report.model["weight_norm"] > model["weight_norm"]


@pytest.mark.parametrize("optimizer_class", [keras_yogi.Yogi, keras.optimizers.Adam])
def test_variables_without_slots_are_left_out(optimizer_class):
    """As the scales of a model in float8, which Keras overwrites with their gradients."""
    kernel = keras.Variable(np.ones((2, 3), "float32"), name="kernel")
    scale = keras.Variable(np.ones(3, "float32"), name="scale")
    scale.overwrite_with_gradient = True
    optimizer = optimizer_class(0.0625)
    optimizer.build([scale, kernel])
    optimizer.apply([np.full(3, 7, "float32"), np.ones((2, 3), "float32")], [scale, kernel])
    report = keras_yogi.diagnose(optimizer)
    assert list(report.variables) == ["kernel"]
    assert report.variables["kernel"]["update_norm"] == pytest.approx(0.0625 * 6**0.5, rel=0.1)
