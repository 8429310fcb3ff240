"""The server of federated learning: `KerasStrategy` of examples/federated.py, beside Flower's own.

Runs where Flower is installed (the extra `federated`).
"""

import importlib.util
import inspect
import logging
import os
import random
import re
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from support.processes import ROOT, run_python

import keras_yogi

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"  # read when Flower is imported
pytest.importorskip("flwr")

import flwr.serverapp.strategy as flower
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict

logging.getLogger("flwr").setLevel("ERROR")  # it writes a dozen lines a round
EXAMPLES = ROOT / "examples"
PAGE = ROOT / "docs" / "federated.md"


@pytest.fixture(scope="module")
def federated():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLES))
        import federated

        yield federated


@pytest.fixture
def answering(federated):
    """A class of grids whose clients change the weights as the round's number says: heavy-tailed,
    with many zeros. They have unequal numbers of examples.
    """

    class Answering(federated.clients.HereGrid):
        def __init__(self, shuffled=False):
            super().__init__()
            self.shuffled = shuffled

        def send_and_receive(self, messages, *, timeout=None):
            replies = [self.answer(message) for message in messages]
            if self.shuffled:
                random.Random(len(replies)).shuffle(replies)
            return replies

        def answer(self, message):
            node = message.metadata.dst_node_id
            generator = np.random.default_rng((message.content["config"]["server-round"], node))
            changed = [
                w + generator.standard_t(2, w.shape) * (generator.random(w.shape) < 0.3)
                for w in message.content["arrays"].to_numpy_ndarrays()
            ]
            metrics = MetricRecord({"num-examples": 1 + node**2, "node": node})
            content = {"arrays": ArrayRecord(changed), "metrics": metrics}
            return Message(RecordDict(content), reply_to=message)

    return Answering


def small_model(optimizer, *more_layers):
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            keras.Input((3,), dtype="float64"),
            keras.layers.Dense(4, dtype="float64"),
            *more_layers,
            keras.layers.Dense(2, dtype="float64"),
        ]
    )
    model.compile(optimizer)
    return model


def rounds_of(strategy, grid, start, rounds=12):
    """The server's weights after each round."""
    seen = []

    def watch(_, arrays):
        seen.append([w.copy() for w in arrays.to_numpy_ndarrays()])

    strategy.start(grid, ArrayRecord(start), num_rounds=rounds, evaluate_fn=watch)
    return seen[1:]


def exactly(rate):
    """A schedule: Keras would keep a number in float32."""
    return lambda: rate


# Flower's strategy, the Keras optimizer that computes the same, and its count of steps at first
PAIRS = {
    "FedYogi": (
        lambda **n: flower.FedYogi(eta=0.01, beta_2=0.99, tau=1e-3, **n),
        lambda: keras_yogi.Yogi(
            exactly(0.01), beta_2=0.99, initial_accumulator_value=0.0, bias_correction="none"
        ),
        0,
    ),
    "FedAdam": (
        lambda **n: flower.FedAdam(eta=0.01, beta_2=0.99, tau=1e-3, **n),
        lambda: keras_yogi.Adam(exactly(0.01), beta_2=0.99, epsilon=1e-3, epsilon_hat=True),
        1,
    ),
    "FedAvg": (lambda **n: flower.FedAvg(**n), lambda: keras.optimizers.SGD(1.0), 0),
}
NODES = {"fraction_evaluate": 0.0, "min_train_nodes": 5, "min_available_nodes": 5}


@pytest.mark.parametrize("name", PAIRS)
def test_equals_flowers_own_strategy_round_by_round(federated, answering, name):
    """To a dozen roundings a round of the largest weight, as in test_parity: 1e-13."""
    new_flower, new_optimizer, first_iteration = PAIRS[name]
    model = small_model(new_optimizer())
    model.optimizer.build(model.trainable_variables)
    model.optimizer.iterations.assign(first_iteration)
    start = model.get_weights()
    theirs = rounds_of(new_flower(**NODES), answering(), start)
    ours = rounds_of(federated.KerasStrategy(model, **NODES), answering(), start)
    assert len(ours) == len(theirs) == 12
    for got, want in zip(ours, theirs, strict=True):
        for a, b in zip(got, want, strict=True):
            assert a.dtype == b.dtype == np.float64
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-13 * np.abs(b).max())
    assert np.abs(ours[-1][0] - start[0]).max() > 0.01


def test_another_rule_is_told_apart(federated, answering):
    """Adam's second moment in the place of Yogi's."""
    adam = keras_yogi.Adam(exactly(0.01), beta_2=0.99, epsilon=1e-3, bias_correction="none")
    model = small_model(adam)
    start = model.get_weights()
    theirs = rounds_of(PAIRS["FedYogi"][0](**NODES), answering(), start)
    ours = rounds_of(federated.KerasStrategy(model, **NODES), answering(), start)
    assert np.abs(ours[-1][0] - theirs[-1][0]).max() > 1e-4


def test_order_of_the_replies_does_not_matter(federated, answering):
    models = [small_model(PAIRS["FedYogi"][1]()) for _ in range(3)]
    orders = [(False, "node"), (True, "node"), (True, None)]
    ends = [
        rounds_of(
            federated.KerasStrategy(model, ordered_by_key=key, **NODES),
            answering(shuffled),
            model.get_weights(),
        )[-1]
        for model, (shuffled, key) in zip(models, orders, strict=True)
    ]
    for a, b in zip(ends[0], ends[1], strict=True):
        np.testing.assert_array_equal(a, b)
    # Unordered, the sums round otherwise: the order is what makes the others equal.
    assert any(np.any(a != b) for a, b in zip(ends[0], ends[2], strict=True))


def test_weights_that_are_not_trained_become_the_clients_mean(federated, answering):
    model = small_model(keras_yogi.Yogi(), keras.layers.BatchNormalization(dtype="float64"))
    start = model.get_weights()
    (theirs,) = rounds_of(flower.FedAvg(**NODES), answering(), start, rounds=1)
    rounds_of(federated.KerasStrategy(model, **NODES), answering(), start, rounds=1)
    means = [w for v, w in zip(model.weights, theirs, strict=True) if not v.trainable]
    assert len(means) == 2
    for variable, mean in zip(model.non_trainable_variables, means, strict=True):
        # Flower draws the clients' order, and with it the sum's roundings.
        np.testing.assert_allclose(variable, mean, rtol=0, atol=1e-14 * np.abs(mean).max())


def test_round_without_an_answer_changes_nothing(federated):
    model = small_model(keras_yogi.Yogi())
    before = model.get_weights()
    strategy = federated.KerasStrategy(model, ordered_by_key="node")
    assert strategy.aggregate_train(1, []) == (None, None)
    assert int(model.optimizer.iterations) == 0
    for a, b in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)


# A restart of the server

RESUME = """
import sys, keras, numpy as np
sys.path.insert(0, sys.argv[1])
import federated
for name in sys.argv[2:]:
    model = keras.models.load_model(f"{name}.keras")
    federated.train(federated.clients.HereGrid(), model, 0.1, 0.3, seed=4, rounds=3)
    arrays = [*model.get_weights(), *(v.numpy() for v in model.optimizer.variables)]
    np.savez(f"{name}.npz", *arrays)
"""


def test_stopped_and_resumed_in_a_new_process_the_rest_is_the_same(federated, tmp_path):
    def train(model, rounds):
        federated.train(federated.clients.HereGrid(), model, 0.1, 0.3, seed=4, rounds=rounds)

    names, expected = ["FedYogi", "FedAdam", "FedAvg"], {}
    for name in names:
        uninterrupted, stopped = (
            federated.new_model(federated.OPTIMIZERS[name](0.1), seed=4) for _ in range(2)
        )
        train(uninterrupted, 6)
        train(stopped, 3)
        stopped.save(tmp_path / f"{name}.keras")
        assert int(uninterrupted.optimizer.iterations) == 6
        state = uninterrupted.optimizer.variables
        expected[name] = [*uninterrupted.get_weights(), *(v.numpy() for v in state)]
    finished = run_python("-c", RESUME, EXAMPLES, *names, cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr[-2000:]
    for name in names:
        with np.load(tmp_path / f"{name}.npz") as end:
            resumed = [end[f"arr_{i}"] for i in range(len(expected[name]))]
        for a, b in zip(resumed, expected[name], strict=True):
            np.testing.assert_array_equal(a, b)


# The clients


def test_client_descends_the_gradient(federated):
    """Of the mean cross-entropy, against TensorFlow's; float32 sums of 64 products: 1e-5."""
    model = federated.new_model(keras.optimizers.SGD(), seed=0)
    x, y = (part[:20] for part in federated.clients.digits()["training"])
    with tf.GradientTape() as tape:
        losses = keras.losses.sparse_categorical_crossentropy(y, model(x), from_logits=True)
        loss = tf.reduce_mean(losses)
    gradients = tape.gradient(loss, [v.value for v in model.trainable_variables])
    weights = model.get_weights()
    for got, w, g in zip(
        federated.clients.descended(weights, x, y, 0.5), weights, gradients, strict=True
    ):
        np.testing.assert_allclose(got, w - 0.5 * g.numpy(), rtol=0, atol=1e-5)
        assert got.dtype == np.float32


@pytest.mark.parametrize("alpha", [1.0, 0.1])
def test_devices_share_the_rows_out(federated, alpha):
    held = federated.clients.devices(alpha, 0)
    assert len(held) == 40
    assert {len(rows) for rows in held} == {29}
    everything = np.concatenate(held)
    assert len(np.unique(everything)) == len(everything)
    others = federated.clients.devices(alpha, 1)
    assert any(np.any(a != b) for a, b in zip(held, others, strict=True))


def test_severe_split_has_fewer_classes_on_a_device(federated):
    labels = federated.clients.digits()["training"][1]

    def share_of_two_classes(alpha):
        counts = [np.bincount(labels[rows]) for rows in federated.clients.devices(alpha, 0)]
        return np.mean([np.sort(of)[-2:].sum() / of.sum() for of in counts])

    assert share_of_two_classes(0.1) > 0.8 > 0.65 > share_of_two_classes(1.0)


def test_parts_of_the_digits_have_no_row_in_common(federated):
    parts = federated.clients.digits()
    assert sum(len(y) for _, y in parts.values()) == 1797
    for x, y in parts.values():
        assert len(x) == len(y)
        assert set(y) == set(range(10))


# The example and the page


def test_rounds_to_an_accuracy(federated):
    curve = [0.1, 0.5, 0.9, 0.7, 0.95]
    assert federated.rounds_to(curve, 0.9) == 2
    assert federated.rounds_to(curve, 0.99) == 4


def test_strategy_of_the_page_is_that_of_the_example(federated):
    assert inspect.getsource(federated.KerasStrategy) in PAGE.read_text("utf-8")


def test_code_of_the_page_runs(federated, answering, tmp_path, monkeypatch):
    """As the server's main function, then a restart, with clients that answer at once."""
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in re.findall(r"^```python\n(.*?)^```", PAGE.read_text("utf-8"), re.M | re.S):
        exec(block, names)
    grid = answering()
    names["server"](grid, None)
    model = keras.models.load_model("server.keras")
    assert int(model.optimizer.iterations) == 50
    assert names["resume"](grid, 2).arrays is not None


SIMULATION = """
import sys
sys.path.insert(0, sys.argv[1])
import federated
ends = []
def task(grid):
    ends.append(federated.run(grid, "FedYogi", 0.1, (0.3, 0.03), 3, 4))
task(federated.clients.HereGrid())
federated.in_simulation_engine(task)
assert len(ends[0]["test"]) == 5
assert ends[0] == ends[1], ends
"""


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed")
def test_simulation_engine_gives_the_same_numbers(tmp_path):
    finished = run_python(
        "-c",
        SIMULATION,
        EXAMPLES,
        cwd=tmp_path,
        PYTHONPATH=os.pathsep.join([str(EXAMPLES), *sys.path]),
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
