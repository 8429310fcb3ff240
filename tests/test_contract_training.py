"""Keras's arguments, and averages of the weights, against a float64 account of them."""

import keras
import numpy as np
import pytest
from support.backend import BACKEND, COMPILED, ENGINES, XLA, array
from support.cases import (
    CASES,
    KERAS_OPTIONS,
    OPTIONS,
    PLAIN,
    default_case,
    every_case,
    options,
    plain_case,
)
from support.comparison import (
    TOLERANCE,
    assert_agrees,
    assert_close,
    assert_same_trajectory,
    assert_unchanged,
    snapshot,
)
from support.models import AfterEachBatch, regression, regression_model
from support.reference import reference_trajectory
from support.training import hard_gradients, initial_weights, take_steps, trajectory, variables_of

pytestmark = pytest.mark.float64


def assert_agrees_at_every_step(case, options, mode, dtype="float64"):
    if BACKEND == "torch" and {"clipnorm", "global_clipnorm"} & set(options):
        dtype = "float32"  # in which Keras computes the norms there
    weights, gradients = initial_weights(), hard_gradients()
    reference = case.keras_reference([w.astype(dtype) for w in weights], **options)
    expected = reference_trajectory(reference, gradients)
    actual = trajectory(case.optimizer(**options), weights, gradients, mode, dtype)
    # Clipping adds a norm and a quotient to the roundings that TOLERANCE counts.
    assert_same_trajectory(actual, expected, 2 * TOLERANCE[dtype])


# Schedules are in test_contract_learning_rates. Each engine has every option; where there is one
# engine alone, the rules take turns.
ARGUMENTS = [name for name, options in KERAS_OPTIONS.items() if "learning_rate" not in options]
CASES_OF_EACH = [
    (case, option)
    for number, option in enumerate(ARGUMENTS)
    for case in (PLAIN if len(ENGINES) > 1 else [list(PLAIN)[number % 2]])
]


@pytest.mark.parametrize(("case", "option"), CASES_OF_EACH)
def test_keras_arguments(case, option):
    assert_agrees_at_every_step(PLAIN[case], OPTIONS[option], COMPILED)


@options(["accumulation, clipnorm, decay", "decay, overwriting ema"])
@plain_case
def test_keras_arguments_together(case, options):
    assert_agrees_at_every_step(case, options, "eager")


@every_case
def test_keras_arguments_with_every_kind_of_rule(case):
    options = OPTIONS["accumulation, clipnorm, decay"]
    assert_agrees_at_every_step(case, options, COMPILED)


@pytest.mark.parametrize(
    ("case", "option"), [("adam", "global_clipnorm"), ("yogi", "accumulation, overwriting ema")]
)
def test_keras_arguments_in_xla(case, option):
    assert_agrees_at_every_step(CASES[case], OPTIONS[option], XLA, "float32")


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(
    ("mode", "by"), [("eager", {"var_list": [1]}), (COMPILED, {"var_names": ["w1"]})], ids=str
)
@plain_case
def test_exclude_from_weight_decay(case, mode, by, when):
    """Before `build`, as Keras's documentation wants it, and after it, as Keras lets it be."""
    weights, gradients = initial_weights(), hard_gradients()
    optimizer, variables = case.optimizer(weight_decay=0.25), variables_of(weights, "float64")
    if when == "after":
        optimizer.build(variables)
    optimizer.exclude_from_weight_decay(
        **{k: [variables[i] if k == "var_list" else i for i in v] for k, v in by.items()}
    )
    reference = case.keras_reference(weights, weight_decay=0.25, undecayed=[1])
    take_steps(optimizer, variables, gradients, mode)
    for row in gradients:
        reference.apply(row)
    assert_agrees(optimizer, variables, reference, TOLERANCE["float64"])


@default_case
def test_accumulated_gradients_are_the_large_batch(case):
    x, y = regression()
    small = regression_model(case.optimizer(gradient_accumulation_steps=4))
    large = regression_model(case.optimizer())
    small.fit(x, y, batch_size=8, epochs=6, shuffle=False, verbose=0)
    large.fit(x, y, batch_size=32, epochs=6, shuffle=False, verbose=0)
    assert int(small.optimizer.iterations) == int(large.optimizer.iterations) == 12
    for a, b in zip(small.get_weights(), large.get_weights(), strict=True):
        # The mean of four float32 means, and 12 steps that depend on it as g / √v.
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)


@default_case
def test_fit_ends_with_the_averages(case):
    x, y = regression()
    model = regression_model(case.optimizer(**OPTIONS["ema"]))
    weights = AfterEachBatch(lambda model: model.get_weights())
    model.fit(x, y, batch_size=8, epochs=2, verbose=0, callbacks=[weights])
    averages = weights.seen[0]
    for of_step in weights.seen[1:]:
        averages = [0.75 * a + 0.25 * w for a, w in zip(averages, of_step, strict=True)]
    for average, final, last in zip(averages, model.get_weights(), weights.seen[-1], strict=True):
        np.testing.assert_allclose(final, average, rtol=1e-5, atol=1e-7)  # float32, 16 steps
        assert np.abs(final - last).max() > 1e-3


@plain_case
def test_finalize_variable_values(case):
    weights, gradients = initial_weights(), hard_gradients()
    variables = variables_of(weights, "float64")
    optimizer = case.optimizer(**OPTIONS["ema"])
    reference = case.keras_reference(weights, **OPTIONS["ema"])
    take_steps(optimizer, variables, gradients)
    for row in gradients:
        reference.apply(row)
    optimizer.finalize_variable_values(variables)
    for variable, average in zip(variables, reference.averages, strict=True):
        assert_close(array(variable.value), average, TOLERANCE["float64"])
    without = case.optimizer()
    take_steps(without, variables, gradients[:1])
    before = snapshot(without, variables)
    without.finalize_variable_values(variables)
    assert_unchanged(before, snapshot(without, variables))


@default_case
def test_swapping_averages_for_validation(case):
    """keras.callbacks.SwapEMAWeights: validation sees the averages, training goes on without."""
    x, y = regression()
    model = regression_model(case.optimizer(use_ema=True, ema_momentum=0.5))
    trained = AfterEachBatch(lambda model: model.get_weights())
    validated = keras.callbacks.LambdaCallback()
    validated.on_test_begin = lambda logs=None: seen_in_validation.append(model.get_weights())
    seen_in_validation = []
    model.fit(
        x,
        y,
        batch_size=32,
        epochs=3,
        validation_data=(x, y),
        verbose=0,
        callbacks=[keras.callbacks.SwapEMAWeights(), trained, validated],
    )
    averages = trained.seen[0]
    for batch, weights in enumerate(trained.seen):
        averages = [0.5 * a + 0.5 * w for a, w in zip(averages, weights, strict=True)]
        if batch % 2:  # the last of an epoch
            for a, seen in zip(averages, seen_in_validation.pop(0), strict=True):
                # Keras swaps by adding and subtracting, in float32
                np.testing.assert_allclose(seen, a, rtol=0, atol=2e-6)
    assert not seen_in_validation
