"""Libraries that pass optimizers around: KerasHub, KerasRS, KerasTuner, scikeras.

Every model is made from its configuration, and learns random numbers: nothing is downloaded.
"""

import functools
import pickle

import keras
import numpy as np
import pytest
import tensorflow as tf
from sklearn.model_selection import GridSearchCV

import keras_yogi

pytestmark = [
    # The libraries' own calls of Keras and NumPy; of keras_yogi nothing is let through.
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.filterwarnings("error:.*keras_yogi.*"),
]

SEED = 20181203
EPOCHS = 4  # of four steps
AS_IT_COMES = dict(batch_size=16, shuffle=False, verbose=0)
# Keras's Adam and ours compute the same formula in float32, in another order of operations, for
# 16 steps. Where a gradient is near zero Adam takes a whole step of 0.01 in the direction of its
# rounding: epsilon is so large that it does not.
EPSILON = 1e-3
TOLERANCE = 1e-5

rng = np.random.default_rng(SEED)
TOKENS = rng.integers(0, 20, (64, 6))
IDS = rng.integers(0, 50, (64, 3))
ROWS = rng.normal(size=(64, 3)).astype("float32")
CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def library(name):
    """Skips where there is none. All models start alike: an import may draw random numbers."""
    module = pytest.importorskip(name)
    keras.utils.set_random_seed(SEED)
    return module


def classifier(optimizer):
    """A BERT of one layer that tells whether a sequence begins with an even token."""
    hub = library("keras_hub")
    backbone = hub.models.BertBackbone(
        vocabulary_size=20,
        num_layers=1,
        num_heads=2,
        hidden_dim=8,
        intermediate_dim=16,
        max_sequence_length=6,
    )
    model = hub.models.BertTextClassifier(backbone, num_classes=2, preprocessor=None)
    model.compile(optimizer, CROSS_ENTROPY)
    inputs = {"token_ids": TOKENS, "segment_ids": 0 * TOKENS, "padding_mask": 0 * TOKENS + 1}
    return model, inputs, TOKENS[:, 0] % 2


def language_model_with_lora(optimizer):
    """A Gemma of one layer whose LoRA kernels alone are trained, to repeat a token."""
    hub = library("keras_hub")
    backbone = hub.models.GemmaBackbone(
        vocabulary_size=20,
        num_layers=1,
        num_query_heads=2,
        num_key_value_heads=1,
        head_dim=4,
        hidden_dim=8,
        intermediate_dim=16,
    )
    backbone.enable_lora(2)
    model = hub.models.GemmaCausalLM(backbone, preprocessor=None)
    model.compile(optimizer, CROSS_ENTROPY)
    assert all("lora" in v.path for v in model.trainable_variables)
    return model, {"token_ids": TOKENS, "padding_mask": 0 * TOKENS + 1}, TOKENS


def recommender(optimizer):
    """Two features that look up rows of one DistributedEmbedding."""
    rs = library("keras_rs")
    table = rs.layers.TableConfig("table", 50, 4, optimizer=optimizer, combiner="sum")
    features = {
        name: rs.layers.FeatureConfig(name, table, (16, 3), (16, 4)) for name in ("user", "item")
    }
    inputs = {name: keras.Input((3,), 16, dtype="int32", name=name) for name in features}
    rows = rs.layers.DistributedEmbedding(features)(inputs)
    outputs = keras.layers.Dense(1)(keras.layers.Concatenate()(list(rows.values())))
    model = keras.Model(inputs, outputs)
    model.compile(optimizer, "mse")
    return model, {"user": IDS, "item": IDS[::-1]}, IDS.sum(axis=1) / 100


JOBS = [classifier, language_model_with_lora, recommender]


class KerasAdam(keras.optimizers.Adam):
    """With the sum of a row's gradients. Of a row that a batch has named twice Keras's own would
    square them one by one (docs/variants.md).
    """

    def apply(self, gradients, trainable_variables=None):
        super().apply([tf.convert_to_tensor(g) for g in gradients], trainable_variables)


OPTIMIZERS = {
    "keras": lambda: KerasAdam(0.01, epsilon=EPSILON),
    "adam": lambda: keras_yogi.Adam(0.01, epsilon=EPSILON, epsilon_hat=True),
    "yogi": lambda: keras_yogi.Yogi(0.01, epsilon=EPSILON),
}
every_job = pytest.mark.parametrize("job", JOBS)
each_of_ours = pytest.mark.parametrize("name", ["adam", "yogi"])


@pytest.fixture(scope="module")
def trained():
    """`trained(job, name)`: a model after some epochs, with its data and losses. All start alike,
    and no test trains it further.
    """

    @functools.cache
    def train(job, name):
        model, x, y = job(OPTIMIZERS[name]())
        losses = model.fit(x, y, epochs=EPOCHS, **AS_IT_COMES).history["loss"]
        assert int(model.optimizer.iterations) == 4 * EPOCHS
        return model, x, y, losses

    return train


def assert_equal_arrays(ones, others):
    for a, b in zip(ones, others, strict=True):
        np.testing.assert_array_equal(np.array(a), np.array(b))


def everything(model):
    return [*model.weights, *model.optimizer.variables]


@every_job
def test_adam_ends_where_keras_adam_ends(trained, job):
    ours, theirs, yogi = (trained(job, name)[0].weights for name in ("adam", "keras", "yogi"))
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(np.array(a), np.array(b), rtol=0, atol=TOLERANCE)
    apart = max(np.abs(np.array(a) - np.array(b)).max() for a, b in zip(ours, yogi, strict=True))
    assert apart > 100 * TOLERANCE  # another rule would be noticed


@every_job
def test_yogi_learns(trained, job):
    *_, losses = trained(job, "yogi")
    assert losses == sorted(losses, reverse=True)


@each_of_ours
def test_a_recommender_is_what_it_was_in_its_file(trained, name, tmp_path):
    model, x, y, _ = trained(recommender, name)
    model.save(tmp_path / "model.keras")
    first, second = (keras.models.load_model(tmp_path / "model.keras") for _ in range(2))
    assert type(first.optimizer) is type(model.optimizer)
    assert_equal_arrays(everything(first), everything(model))
    for loaded in (first, second):
        loaded.fit(x, y, **AS_IT_COMES)
    assert_equal_arrays(everything(first), everything(second))
    assert int(first.optimizer.iterations) == 4 * EPOCHS + 4


@each_of_ours
@pytest.mark.parametrize("job", [classifier, language_model_with_lora])
def test_a_task_of_keras_hub_is_what_it_was_in_its_checkpoint(trained, job, name, tmp_path):
    """A task of KerasHub compiles itself when it is loaded from a .keras file, with an optimizer
    that it chooses, whatever it was trained with. A checkpoint has the optimizer too.
    """
    model, x, y, losses = trained(job, name)
    path = tf.train.Checkpoint(model=model, optimizer=model.optimizer).save(tmp_path / "task")
    loaded, *_ = job(OPTIMIZERS[name]())
    loaded.optimizer.build(loaded.trainable_variables)
    checkpoint = tf.train.Checkpoint(model=loaded, optimizer=loaded.optimizer)
    checkpoint.restore(path).expect_partial()  # of the first model's metrics
    assert_equal_arrays(everything(loaded), everything(model))
    assert loaded.fit(x, y, **AS_IT_COMES).history["loss"][0] < losses[-1]


# Searches


def regression():
    return keras.Sequential(
        [keras.Input((3,)), keras.layers.Dense(4, "tanh"), keras.layers.Dense(1)]
    )


def test_keras_tuner_chooses_an_optimizer(tmp_path):
    tuner = library("keras_tuner")

    def build(parameters):
        keras.utils.set_random_seed(SEED)
        model = regression()
        model.compile(OPTIMIZERS[parameters.Choice("optimizer", list(OPTIMIZERS))](), "mse")
        return model

    search = tuner.GridSearch(build, "loss", directory=tmp_path)
    search.search(ROWS, ROWS.sum(axis=1), epochs=EPOCHS, shuffle=False, verbose=0)
    trials = search.oracle.trials.values()
    scores = {trial.hyperparameters.get("optimizer"): trial.score for trial in trials}
    assert scores["adam"] == pytest.approx(scores["keras"], rel=TOLERANCE)
    assert scores["yogi"] != pytest.approx(scores["adam"], rel=TOLERANCE)
    best = search.get_best_hyperparameters()[0].get("optimizer")
    assert scores[best] == min(scores.values())
    (model,) = search.get_best_models()
    assert type(model.optimizer) is type(OPTIMIZERS[best]())


def estimator(optimizer):
    scikeras = library("scikeras.wrappers")
    return scikeras.KerasRegressor(
        regression,
        optimizer=optimizer,
        optimizer__learning_rate=0.01,
        optimizer__epsilon=EPSILON,
        loss="mse",
        epochs=EPOCHS,
        shuffle=False,
        verbose=0,
        random_state=SEED,
    )


def test_scikeras_searches_over_optimizers():
    """By their classes and arguments, in scikit-learn's grid search."""
    grid = [
        {"optimizer": [keras.optimizers.Adam]},
        {"optimizer": [keras_yogi.Adam], "optimizer__epsilon_hat": [True]},
        {"optimizer": [keras_yogi.Yogi]},
    ]
    search = GridSearchCV(estimator("sgd"), grid, cv=2, refit=False, error_score="raise")
    search.fit(ROWS, ROWS.sum(axis=1))
    theirs, ours, yogi = search.cv_results_["mean_test_score"]
    assert ours == pytest.approx(theirs, rel=TOLERANCE)
    assert yogi != pytest.approx(ours, rel=TOLERANCE)


@pytest.mark.parametrize("optimizer_class", [keras_yogi.Adam, keras_yogi.Yogi])
def test_a_pickled_estimator_of_scikeras_goes_on(optimizer_class):
    trained = estimator(optimizer_class).fit(ROWS, ROWS.sum(axis=1))
    assert type(trained.model_.optimizer) is optimizer_class
    assert trained.model_.optimizer.epsilon == EPSILON
    losses = trained.history_["loss"]
    assert losses == sorted(losses, reverse=True)

    loaded = pickle.loads(pickle.dumps(trained))
    for each in (trained, loaded):
        each.partial_fit(ROWS, ROWS.sum(axis=1))
    assert_equal_arrays(everything(trained.model_), everything(loaded.model_))
