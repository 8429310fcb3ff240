"""What keras_yogi.diagnose says in words: each warning on a case that has the fault, and on one
that has it not, on either side of the threshold where that can be set.
"""

import warnings

import keras
import numpy as np
import pytest
from support.models import regression, regression_model

import keras_yogi
from keras_yogi.statistics import advice
from keras_yogi.statistics.figures import SMALL_STEP


def variable(shape=(20, 50), name="embed", value=1.0):
    return keras.Variable(np.full(shape, value, "float32"), name=name)


def optimizer_with(variables, momentum=0.1, velocity=0.01, optimizer=None, steps=1000):
    """Healthy slots: |m̂| / √v̂ = 1, √v̂ = 0.1 or a little more."""
    optimizer = optimizer or keras_yogi.Adam(0.001)
    optimizer.build(variables)
    optimizer.iterations.assign(steps)
    for each in variables:
        optimizer.set_slot(each, "momentum", np.full(each.shape, momentum, "float32"))
        optimizer.set_slot(each, "velocity", np.full(each.shape, velocity, "float32"))
    return optimizer


def change(optimizer, variable, slot, rows, value):
    values = np.array(optimizer.get_slot(variable, slot))
    values[rows] = value
    optimizer.set_slot(variable, slot, values)


def test_healthy_slots_give_no_warning():
    assert keras_yogi.diagnose(optimizer_with([variable()])).warnings == []


def test_the_end_of_fit_is_silent():
    """Where warnings are errors too, and none of those that NumPy gives for Keras is left out."""
    model = regression_model(keras_yogi.Adam())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.fit(*regression(), batch_size=8, epochs=4, verbose=0)
        keras_yogi.diagnose(model.optimizer)


# Forgetting


def train_with_rare_rows(optimizer, steps=200):
    """Rows 0 to 3 of an embedding have a gradient in the first step alone, the others always."""
    table = variable((100, 4), "embed")
    optimizer.build([table])
    random = np.random.default_rng(0)
    for step in range(steps):
        gradient = random.normal(size=table.shape).astype("float32")
        if step:
            gradient[:4] = 0
        optimizer.apply([gradient])
    return keras_yogi.diagnose(optimizer)


def test_adam_forgets_rare_rows():
    """√v falls by √0.9 a step: 200 steps make 0.9^-100 = 37,649-fold of an effective rate."""
    (warning,) = train_with_rare_rows(keras_yogi.Adam(0.001, beta_2=0.9, epsilon=1e-12)).warnings
    assert warning.startswith("the effective learning rate of `embed` is ")
    assert warning.endswith(
        " times the usual one in 4 % of its weights, where no gradient has come for long: "
        "the second moment of Adam forgets; try Yogi or a larger ε"
    )
    times = float(warning.split("` is ")[1].split(" times")[0].replace(",", ""))
    # A row's one gradient is not quite as large as the others' mean square.
    assert 0.9**-100 / 5 < times < 0.9**-100 * 20


def test_yogi_does_not_forget_them():
    assert train_with_rare_rows(keras_yogi.Yogi(0.001, beta_2=0.9)).warnings == []


def test_nor_does_adam_with_a_larger_epsilon():
    assert train_with_rare_rows(keras_yogi.Adam(0.001, beta_2=0.9, epsilon=1e-2)).warnings == []


def test_keras_adam_forgets_too():
    adam = keras.optimizers.Adam(0.001, beta_2=0.9, epsilon=1e-12)
    (warning,) = train_with_rare_rows(adam).warnings
    assert "try Yogi" in warning


@pytest.mark.parametrize(("growth", "warned"), [(900, False), (1100, True)])
def test_threshold_of_growth(growth, warned):
    table = variable()
    optimizer = optimizer_with([table], optimizer=keras_yogi.Adam(0.001, epsilon=0.0))
    change(optimizer, table, "momentum", slice(0, 1), 0)
    change(optimizer, table, "velocity", slice(0, 1), 0.01 / growth**2)
    found = keras_yogi.diagnose(optimizer).warnings
    assert bool(found) == warned
    if warned:
        assert "is 1,100 times the usual one in 5 % of its weights" in found[0]


def test_a_single_weight_is_no_reason_to_worry():
    table = variable((40, 50))
    optimizer = optimizer_with([table], optimizer=keras_yogi.Adam(0.001, epsilon=0.0))
    place = (0, slice(0, 1))  # one of 2,000
    change(optimizer, table, "momentum", place, 0)
    change(optimizer, table, "velocity", place, 1e-12)
    assert keras_yogi.diagnose(optimizer).warnings == []


def test_small_gradients_that_still_come_are_not_forgetting():
    table = variable()
    optimizer = optimizer_with([table], optimizer=keras_yogi.Adam(0.001, epsilon=0.0))
    change(optimizer, table, "momentum", slice(0, 1), 1e-6)
    change(optimizer, table, "velocity", slice(0, 1), 1e-12)
    assert keras_yogi.diagnose(optimizer).warnings == []


def test_a_variable_that_is_wholly_forgotten_is_measured_by_the_others():
    table, other = variable(name="embed"), variable(name="out")
    optimizer = optimizer_with([table, other], optimizer=keras_yogi.Adam(0.001, epsilon=0.0))
    change(optimizer, table, "momentum", slice(None), 0)
    change(optimizer, table, "velocity", slice(None), 1e-10)
    (warning,) = keras_yogi.diagnose(optimizer).warnings
    assert "`embed` is 10,000 times the usual one in 100 % of its weights" in warning


def test_growth_since_an_earlier_report():
    table = variable()
    optimizer = optimizer_with([table], optimizer=keras_yogi.Adam(0.001, epsilon=0.0))
    earlier = keras_yogi.diagnose(optimizer)
    # Momentum too: to the slots alone, this looks like a layer with small gradients.
    change(optimizer, table, "momentum", slice(None), 1e-5)
    change(optimizer, table, "velocity", slice(None), 1e-10)
    assert keras_yogi.diagnose(optimizer).warnings == []
    (warning,) = keras_yogi.diagnose(optimizer, since=earlier).warnings
    assert "has grown: its 99.9th percentile is 10,000 times that of the earlier" in warning
    assert "Adam forgets; try Yogi or a larger ε" in warning


def test_growth_is_seen_beside_rows_that_were_never_touched():
    """Whose effective learning rate is η / ε throughout, larger than what the others grow to."""
    table = variable((100, 50))
    optimizer = optimizer_with([table], optimizer=keras_yogi.Adam(0.001, epsilon=1e-6))
    for slot in ("momentum", "velocity"):
        change(optimizer, table, slot, slice(40), 0)
    earlier = keras_yogi.diagnose(optimizer)
    change(optimizer, table, "momentum", slice(40, None), 1e-5)
    change(optimizer, table, "velocity", slice(40, None), 1e-9)
    report = keras_yogi.diagnose(optimizer, since=earlier)
    highest = 0.001 / (np.sqrt(1e-9 / (1 - 0.999**1000)) + 1e-6)
    assert report.model["effective_lr_max"] == pytest.approx(highest)
    (warning,) = report.warnings
    assert "`embed` has grown: its 99.9th percentile is 3," in warning
    assert keras_yogi.diagnose(optimizer, since=report).warnings == []


def test_a_larger_learning_rate_is_no_growth():
    table = variable()
    optimizer = optimizer_with([table], optimizer=keras_yogi.Adam(1e-6))
    earlier = keras_yogi.diagnose(optimizer)
    optimizer.learning_rate = 0.01
    assert keras_yogi.diagnose(optimizer, since=earlier).warnings == []


@pytest.mark.parametrize(
    "optimizer",
    [
        keras_yogi.Adam(0.001, beta_2=0.9, epsilon=1e-12, amsgrad=True),
        keras_yogi.Yogi(0.001, beta_2=0.9, epsilon=0.0, initial_accumulator_value=0.0),
        keras_yogi.Adam(0.001, beta_2=0.9, epsilon=1e-12, sparse_update="lazy"),
    ],
    ids=["amsgrad", "yogi", "lazy rows"],
)
def test_what_cannot_forget_is_not_said_to_forget(optimizer):
    """Rows whose velocity is small beside the others': because their gradients were."""
    table = variable((100, 4), "embeddings")
    optimizer = optimizer_with([table], optimizer=optimizer)
    for slot in [name for name in optimizer.slots() if name != "momentum"]:
        change(optimizer, table, slot, slice(None), 0.01)
        change(optimizer, table, slot, slice(4), 1e-11)
    change(optimizer, table, "momentum", slice(4), 0)
    report = keras_yogi.diagnose(optimizer)
    assert not any("forget" in warning for warning in report.warnings)
    earlier = report
    for slot in [name for name in optimizer.slots() if name != "momentum"]:
        change(optimizer, table, slot, slice(4, None), 1e-12)
    found = keras_yogi.diagnose(optimizer, since=earlier).warnings
    assert not any("forget" in warning for warning in found)


# ε and v₀


@pytest.mark.parametrize(("rows", "warned"), [(196, False), (198, True)])
def test_threshold_of_epsilon(rows, warned):
    out = variable((200, 5), "out")
    optimizer = optimizer_with([out], optimizer=keras_yogi.Adam(0.001, epsilon=1e-3))
    change(optimizer, out, "velocity", slice(rows), 1e-8)
    change(optimizer, out, "momentum", slice(rows), 1e-4)
    found = keras_yogi.diagnose(optimizer).warnings
    assert bool(found) == warned
    if warned:
        text = "ε dominates 99 % of `out`: it trains like SGD with momentum"
        assert found[0].startswith(text)


def test_epsilon_of_a_training_that_has_the_fault():
    """Gradients of 1e-4 beside Yogi's ε = 1e-3, and beside Adam's of 1e-6."""
    yogi = keras_yogi.Yogi(initial_accumulator_value=0.0)
    for optimizer, warned in ((yogi, True), (keras_yogi.Adam(), False)):
        out = variable(name="out")
        optimizer.build([out])
        for _ in range(200):
            optimizer.apply([np.full(out.shape, 1e-4, "float32")])
        found = keras_yogi.diagnose(optimizer).warnings
        assert any("it trains like SGD" in text for text in found) == warned


def test_rows_that_were_never_touched_are_not_dominated():
    table = variable((100, 4), "embed")
    optimizer = optimizer_with([table])
    change(optimizer, table, "velocity", slice(1, None), 0)
    change(optimizer, table, "momentum", slice(1, None), 0)
    assert keras_yogi.diagnose(optimizer).warnings == []


def text_classifier(optimizer, examples=3000, vocabulary=2000):
    """A mean over 200 tokens: a row of the table has a small part in the loss."""
    keras.utils.set_random_seed(0)
    random = np.random.default_rng(0)
    frequency = 1 / np.arange(1, vocabulary + 1)
    tokens = random.choice(vocabulary, (examples, 200), p=frequency / frequency.sum())
    meaning = random.normal(size=vocabulary)[tokens].mean(axis=1)
    layers = [
        keras.layers.Embedding(vocabulary, 16, name="embed"),
        keras.layers.GlobalAveragePooling1D(),
        keras.layers.Dense(1, activation="sigmoid", name="out"),
    ]
    model = keras.Sequential([keras.Input((200,), dtype="int32"), *layers])
    model.compile(optimizer, loss="binary_crossentropy", metrics=["accuracy"])
    labels = (meaning > np.median(meaning)).astype("float32")
    history = model.fit(tokens, labels, epochs=2, batch_size=32, verbose=0)
    return model, history.history["accuracy"][-1]


def perceptron(optimizer, epochs):
    keras.utils.set_random_seed(0)
    x = np.random.default_rng(0).normal(size=(1000, 20)).astype("float32")
    y = np.sin(x[:, :3].sum(axis=1))
    layers = [keras.layers.Dense(64, activation="relu") for _ in range(2)]
    model = keras.Sequential([keras.Input((20,)), *layers, keras.layers.Dense(1)])
    model.compile(optimizer, loss="mse")
    losses = model.fit(x, y, epochs=epochs, batch_size=32, verbose=0).history["loss"]
    return model, losses[-1]


def test_a_text_classifier_that_yogis_defaults_hold_back():
    with pytest.warns(UserWarning, match="Nearly all weights hardly move"):  # at the end of `fit`
        model, accuracy = text_classifier(keras_yogi.Yogi(0.01))
    assert accuracy < 0.6
    (warning,) = keras_yogi.diagnose(model).warnings
    assert warning.startswith("v₀ dominates 99.9 % of `embed/embeddings`")
    assert warning.endswith("try initial_accumulator_value=0.0, epsilon=1e-06")
    sentence = advice.silent_start(model.optimizer)
    assert "initial_accumulator_value=1e-06 and epsilon=0.001" in sentence
    assert sentence.endswith("try initial_accumulator_value=0.0, epsilon=1e-06")


def test_a_text_classifier_with_what_the_warning_says():
    yogi = keras_yogi.Yogi(0.01, initial_accumulator_value=0.0, epsilon=1e-6)
    model, accuracy = text_classifier(yogi)
    assert accuracy > 0.8
    assert keras_yogi.diagnose(model).warnings == []
    assert advice.silent_start(yogi) is None


@pytest.mark.parametrize("epochs", [1, 10])
@pytest.mark.parametrize("optimizer_class", [keras_yogi.Yogi, keras_yogi.Adam])
def test_no_warning_where_a_perceptron_learns(optimizer_class, epochs):
    model, loss = perceptron(optimizer_class(0.01), epochs)
    assert loss < (0.6 if epochs == 1 else 0.1)
    assert advice.silent_start(model.optimizer) is None


def test_epsilon_alone_may_hold_back():
    adam = keras_yogi.Adam(0.01, epsilon=1.0)
    with pytest.warns(UserWarning, match="Nearly all weights hardly move"):
        text_classifier(adam, examples=1000)
    assert advice.silent_start(adam).endswith("epsilon=1 are meant for: try epsilon=1e-06")


def test_no_warning_before_there_is_anything_to_see():
    optimizer = keras_yogi.Yogi(0.01)
    optimizer.build([variable()])
    assert advice.silent_start(optimizer) is None


# The others


@pytest.mark.parametrize(("rows", "warned"), [(49, False), (50, True)])
def test_threshold_of_initial_rows(rows, warned):
    table = variable((100, 4), "embeddings")
    optimizer = optimizer_with([table])
    change(optimizer, table, "velocity", slice(rows), 0)
    change(optimizer, table, "momentum", slice(rows), 0)
    found = keras_yogi.diagnose(optimizer).warnings
    assert len(found) == warned
    assert all("50 of the 100 rows of `embeddings` have the slots they" in w for w in found)


def test_a_variable_without_a_gradient():
    used, unused = variable(name="used"), variable(name="unused")
    optimizer = keras_yogi.Yogi()
    optimizer.build([used, unused])
    optimizer.apply([np.ones(used.shape, "float32"), None])
    assert keras_yogi.diagnose(optimizer).warnings == ["no gradient has reached `unused`"]


@pytest.mark.parametrize(("learning_rate", "warned"), [(0.09, False), (0.11, True)])
def test_threshold_of_the_update_ratio(learning_rate, warned):
    """Weights of 1, and an update of η each."""
    kernel, bias = variable(), variable((50,), "bias", 1e-9)
    optimizer = optimizer_with([kernel, bias], optimizer=keras_yogi.Adam(learning_rate))
    correction = 1 - 0.999**1000
    for each in (kernel, bias):
        optimizer.set_slot(each, "velocity", np.full(each.shape, 0.01 * correction, "float32"))
    text = "one update changes `embed` by 11 % of its norm: the learning rate is too large for it"
    assert keras_yogi.diagnose(optimizer).warnings == ([text] if warned else [])


@pytest.mark.parametrize(("slot", "value"), [("momentum", np.nan), ("velocity", np.inf)])
def test_slots_that_are_not_finite(slot, value):
    table = variable()
    optimizer = optimizer_with([table])
    change(optimizer, table, slot, slice(0, 1), value)
    text = ["`embed` or its slots hold NaN or infinity"]
    assert keras_yogi.diagnose(optimizer).warnings == text


def test_weights_that_are_not_finite_under_an_optimizer_of_another_rule():
    table = variable(value=np.nan)
    optimizer = keras.optimizers.SGD()
    optimizer.build([table])
    optimizer.iterations.assign(1)
    assert keras_yogi.diagnose(optimizer).warnings == ["`embed` or its slots hold NaN or infinity"]


@pytest.mark.parametrize(("finite", "warned"), [(150, False), (90, True)])
def test_threshold_of_skipped_steps(finite, warned):
    table = variable((2, 2))
    optimizer = keras_yogi.Adam(1e-5, skip_nonfinite=True)
    optimizer.build([table])
    optimizer.apply([np.full(table.shape, np.nan, "float32")])
    optimizer.apply([np.ones(table.shape, "float32")])
    optimizer.iterations.assign(finite)
    found = keras_yogi.diagnose(optimizer)
    assert found.model["skipped_steps"] == 1
    assert bool(found.warnings) == warned
    if warned:
        assert found.warnings[0].startswith("1 of 91 steps were skipped, because a gradient was")


def test_thresholds_are_the_documented_ones():
    assert (advice.GROWTH, advice.INITIAL_ROWS) == (1000, 0.5)
    assert (advice.HELD_BACK_SHARE, advice.EPSILON_SHARE, SMALL_STEP) == (0.98, 0.99, 0.05)
    assert (advice.UPDATE_RATIO, advice.SKIPPED_SHARE) == (0.1, 0.01)
    assert (advice.STALE_SIGNAL, advice.STALE_SHARE) == (1e-3, 1e-3)
