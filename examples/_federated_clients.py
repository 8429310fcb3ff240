"""The clients of federated.py: devices that hold digits, train on them, and send weights back.

Flower's simulation engine imports this module in processes of its own. It needs neither TensorFlow
nor Keras: a client may train with whatever it likes, and NumPy starts fastest.
"""

import functools
from collections.abc import Iterable
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity
from sklearn import datasets, model_selection

NODES = 5
"""Flower's nodes. Each stands for a group of devices, one of which is at hand in a round: which
one, the seed decides. Flower would draw nodes by their ids, and those are new in every run.
"""
DEVICES_PER_NODE = 8
BATCH_SIZE, LOCAL_EPOCHS = 10, 2

Weights = list[np.ndarray]
Rows = tuple[np.ndarray, np.ndarray]

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Some epochs of gradient descent on the rows of the device that is at hand."""
    config = message.content["config"]
    node, seed, round_number = context.node_config["partition-id"], config["seed"], config["round"]
    random = np.random.default_rng((seed, round_number, node))
    device = node * DEVICES_PER_NODE + random.integers(DEVICES_PER_NODE)
    x, y = (values[devices(config["alpha"], seed)[device]] for values in digits()["training"])
    weights = message.content["arrays"].to_numpy_ndarrays()
    for _ in range(LOCAL_EPOCHS):
        order = random.permutation(len(y))
        for first in range(0, len(y), BATCH_SIZE):
            rows = order[first : first + BATCH_SIZE]
            weights = descended(weights, x[rows], y[rows], config["client-rate"])
    answer = {
        "arrays": ArrayRecord(weights),
        "metrics": MetricRecord({"num-examples": len(y), "node": node}),
    }
    return Message(RecordDict(answer), reply_to=message)


@functools.cache
def digits() -> dict[str, Rows]:
    """Two thirds to train on, a sixth to choose learning rates by, a sixth to report."""
    x, y = datasets.load_digits(return_X_y=True)
    x = x.astype("float32") / 16.0
    x, x_rest, y, y_rest = model_selection.train_test_split(
        x, y, test_size=1 / 3, random_state=0, stratify=y
    )
    halves = model_selection.train_test_split(
        x_rest, y_rest, test_size=0.5, random_state=0, stratify=y_rest
    )
    return {"training": (x, y), "validation": tuple(halves[::2]), "test": tuple(halves[1::2])}


@functools.lru_cache(8)
def devices(alpha: float, seed: int) -> list[np.ndarray]:
    """Which rows each device holds: equally many, of classes in proportions of its own, drawn from
    a symmetric Dirichlet distribution (Hsu, Qi & Brown, 2019, arXiv:1909.06335). The larger `alpha`
    is, the more alike the devices are. A row belongs to one device.
    """
    labels = digits()["training"][1]
    random = np.random.default_rng(seed)
    count = NODES * DEVICES_PER_NODE
    left = [random.permutation(np.flatnonzero(labels == c)).tolist() for c in range(10)]
    held: list[np.ndarray] = []
    for _ in range(count):
        # The smallest float keeps a device going whose classes are used up.
        proportions = random.dirichlet(np.full(10, alpha)) + np.finfo("float64").tiny
        rows = []
        for _ in range(len(labels) // count):
            available = proportions * [len(of_class) > 0 for of_class in left]
            label = random.choice(10, p=available / available.sum())
            rows.append(left[label].pop())
        held.append(np.array(rows))
    return held


# A network of two layers: 64 pixels, 32 rectified units, 10 classes


def activations(weights: Weights, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    hidden = np.maximum(x @ weights[0] + weights[1], 0.0)
    logits = hidden @ weights[2] + weights[3]
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return hidden, exponentials / exponentials.sum(axis=1, keepdims=True)


def descended(weights: Weights, x: np.ndarray, y: np.ndarray, rate: float) -> Weights:
    """The weights after a step down the gradient of the mean cross-entropy."""
    hidden, error = activations(weights, x)
    error[np.arange(len(y)), y] -= 1.0
    error /= len(y)
    below = (error @ weights[2].T) * (hidden > 0)
    gradients = [x.T @ below, below.sum(axis=0), hidden.T @ error, error.sum(axis=0)]
    step = np.float32(rate)
    return [w - step * g for w, g in zip(weights, gradients, strict=True)]


def accuracy(weights: Weights, rows: Rows) -> float:
    x, y = rows
    return float(np.mean(activations(weights, x)[1].argmax(axis=1) == y))


class HereGrid(Grid):
    """Flower's way to the clients without a network: they answer at once, in this process.

    For what would wait most of the time: dozens of runs to choose learning rates by, and tests.
    The numbers are those of the simulation engine, to the last bit.
    """

    def __init__(self) -> None:
        # What Flower's servers set before a message can be made; the values go nowhere.
        TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 1
        self.contexts = {
            node: Context(0, node, {"partition-id": node}, RecordDict(), {})
            for node in range(NODES)
        }

    def get_node_ids(self) -> Iterable[int]:
        return list(self.contexts)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        return [app(message, self.contexts[message.metadata.dst_node_id]) for message in messages]

    # What the strategies do not ask for

    def set_run(self, run: Any) -> None:
        raise NotImplementedError

    @property
    def run(self) -> Any:
        raise NotImplementedError

    def create_message(self, *arguments: Any, **more: Any) -> Message:
        raise NotImplementedError

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        raise NotImplementedError

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        raise NotImplementedError
