"""What several examples train on what: the data, the models and the losses."""

import hashlib
import io
import os
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import layers, ops
from sklearn import datasets, model_selection

AIRFOIL_FILE = "airfoil_self_noise.dat"
AIRFOIL_URL = f"https://d2l-data.s3-accelerate.amazonaws.com/{AIRFOIL_FILE}"
AIRFOIL_SHA1 = "76e5be1548fd8222e5074cf0faae75edff8cf93f"
AIRFOIL_ROWS = 1500  # of 1,503: what the textbook trains on

Rows = tuple[np.ndarray, np.ndarray]


class DataError(Exception):
    """The data cannot be had; the message says what to do."""


@dataclass(frozen=True)
class Job:
    """What is trained on what."""

    train: Rows
    validation: Rows | None
    layers: Callable[[], list[layers.Layer]]
    loss: Callable[[Any, Any], Any]
    loss_name: str

    def model(self) -> keras.Model:
        return keras.Sequential([keras.Input(self.train[0].shape[1:]), *self.layers()])

    def parts(self) -> dict[str, Rows]:
        """The rows that a loss is measured over."""
        parts = {"training": self.train, "validation": self.validation}
        return {part: rows for part, rows in parts.items() if rows is not None}

    def initial_weights(self, seed: int) -> list[np.ndarray]:
        keras.utils.set_random_seed(seed)
        return self.model().get_weights()


def load(name: str, airfoil_data: Path | None = None) -> Job:
    """The job of this name: "diabetes", "digits" or "airfoil"."""
    if name == "airfoil":
        return airfoil(airfoil_data)
    return {"diabetes": diabetes, "digits": digits}[name]()


def standardized(values: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """`values` in standard deviations from the mean of `reference`, column by column."""
    return ((values - reference.mean(axis=0)) / reference.std(axis=0)).astype("float32")


def diabetes() -> Job:
    """A small network; a fifth of the patients are kept for validation."""
    x, y = datasets.load_diabetes(return_X_y=True)
    x, x_validation, y, y_validation = model_selection.train_test_split(
        x, y[:, None], test_size=0.2, random_state=0
    )
    return Job(
        (standardized(x, x), standardized(y, y)),
        (standardized(x_validation, x), standardized(y_validation, y)),
        lambda: [layers.Dense(16, activation="relu"), layers.Dense(1)],
        keras.losses.mean_squared_error,
        "mean squared error / variance of the target",
    )


def digits() -> Job:
    """A small network; a fifth of the digits are kept for validation."""
    x, y = datasets.load_digits(return_X_y=True)
    x, x_validation, y, y_validation = model_selection.train_test_split(
        x.astype("float32") / 16.0, y, test_size=0.2, random_state=0, stratify=y
    )
    return Job(
        (x, y),
        (x_validation, y_validation),
        lambda: [layers.Dense(32, activation="relu"), layers.Dense(10, activation="softmax")],
        keras.losses.sparse_categorical_crossentropy,
        "cross-entropy (nats)",
    )


def airfoil(data: Path | None) -> Job:
    """The textbook's linear regression; it keeps no rows for validation."""
    rows = np.loadtxt(io.BytesIO(airfoil_bytes(data)))
    rows = standardized(rows, rows)[:AIRFOIL_ROWS]
    return Job(
        (rows[:, :-1], rows[:, -1:]),
        None,
        lambda: [layers.Dense(1, kernel_initializer=keras.initializers.RandomNormal(stddev=0.01))],
        lambda y, prediction: ops.square(prediction - y) / 2,
        "mean squared error / 2",
    )


def airfoil_bytes(data: Path | None) -> bytes:
    """The data file: given (itself, or a folder that holds it), else downloaded and cached."""
    how = f"Give the file, or its folder, with --data or $KERAS_YOGI_DATA (it is {AIRFOIL_URL})."
    given = data or os.environ.get("KERAS_YOGI_DATA")
    if given:
        path = Path(given)
        path = path / AIRFOIL_FILE if path.is_dir() else path
    else:
        try:
            path = Path(keras.utils.get_file(AIRFOIL_FILE, AIRFOIL_URL))
        except Exception as error:  # the class that get_file raises when there is no network
            raise DataError(f"cannot download {AIRFOIL_FILE}: {error}. {how}") from error
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}. {how}") from error
    sha1 = hashlib.sha1(content, usedforsecurity=False).hexdigest()
    if sha1 != AIRFOIL_SHA1:
        raise DataError(
            f"{path} is not the textbook's file: its SHA-1 must be {AIRFOIL_SHA1}. Received: {sha1}"
        )
    return content


def least_squares(job: Job) -> float:
    """The lowest loss that airfoil's linear model can have."""
    x, y = (values.astype("float64") for values in job.train)
    x = np.column_stack([x, np.ones(len(x))])
    weights = np.linalg.lstsq(x, y, rcond=None)[0]
    return float(np.mean((x @ weights - y) ** 2 / 2))


# The standard library's source, and a language model

# Modules that every supported Python has, each in one file.
MODULES = {
    "training": """
        argparse ast asyncio/base_events bdb calendar codecs configparser contextlib
        dataclasses dis doctest enum fractions functools gettext heapq html/parser
        http/client imaplib inspect ipaddress locale mailbox ntpath optparse os pdb pickle
        pickletools platform plistlib posixpath pprint pstats pydoc random shlex shutil
        smtplib socket ssl statistics tarfile tempfile threading tokenize traceback typing
        unittest/mock urllib/request warnings webbrowser
    """,
    "validation": "difflib subprocess textwrap",
}

BYTES = 256
LONGEST = 5  # bytes that an embedding stands for
WIDTH, HEADS = 64, 4
WINDOW, BATCH_SIZE = 64, 32  # bytes of a sequence, sequences of a batch
VALIDATION_WINDOWS, VALIDATION_BATCH = 256, 128


class Text(NamedTuple):
    content: np.ndarray  # of uint8
    inputs: np.ndarray  # what a model is given for each byte
    sha256: str


def text_of_bytes(content: bytes) -> Text:
    """A model is given the bytes themselves."""
    array = np.frombuffer(content, "uint8")
    return Text(array, array, hashlib.sha256(content).hexdigest())


def source_bytes(part: str) -> bytes:
    """The source of MODULES."""
    folder = Path(sysconfig.get_path("stdlib"))
    try:
        return b"".join((folder / f"{name}.py").read_bytes() for name in MODULES[part].split())
    except OSError as error:
        message = f"the standard library's source must be there. Received: {error}"
        raise DataError(message) from error


def source(part: str, table_rows: int) -> Text:
    """The source of MODULES; a model is given `hashed_endings`."""
    text = text_of_bytes(source_bytes(part))
    return text._replace(inputs=hashed_endings(text.content, table_rows))


def hashed_endings(content: np.ndarray, table_rows: int) -> np.ndarray:
    """For the last 1, 2, …, LONGEST bytes up to each byte: a row of the table.

    Multiplied by an odd constant and shifted, as in Fibonacci hashing: every ending of every
    length has a row that looks drawn at random, and some endings share one.
    """
    mixed, by_length = np.zeros(len(content), "uint64"), []
    for length in range(1, LONGEST + 1):
        byte = np.zeros(len(content), "uint64")  # before the text: 0, which is no byte + 1
        byte[length - 1 :] = content[: len(content) - length + 1].astype("uint64") + 1
        mixed = (mixed + byte) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(29)
        by_length.append((mixed >> np.uint64(20)) % np.uint64(table_rows))
    return np.stack(by_length, axis=1).astype("int32")


def windows(text: Text, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Inputs of (windows, WINDOW) bytes and their targets: the byte after each."""
    positions = starts[:, None] + np.arange(WINDOW)
    return text.inputs[positions], text.content[positions + 1].astype("int32")


def batches(text: Text, steps: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    generator = np.random.default_rng(seed)
    for _ in range(steps):
        yield windows(text, generator.integers(len(text.content) - WINDOW, size=BATCH_SIZE))


def validation_windows(text: Text) -> tuple[np.ndarray, np.ndarray]:
    """Evenly spread over the text."""
    last = len(text.content) - WINDOW - 1
    return windows(text, np.linspace(0, last, VALIDATION_WINDOWS).astype(int))


def language_model(table_rows: int, dtype: str = "float32") -> keras.Model:
    """One transformer block over the sum of the embeddings, which say where a byte stands."""
    inputs = keras.Input((WINDOW, LONGEST), dtype="int32")
    x = ops.sum(layers.Embedding(table_rows, WIDTH, name="table", dtype=dtype)(inputs), axis=2)
    y = layers.LayerNormalization(dtype=dtype)(x)
    attention = layers.MultiHeadAttention(HEADS, WIDTH // HEADS, dtype=dtype)
    x += attention(y, y, use_causal_mask=True)
    y = layers.LayerNormalization(dtype=dtype)(x)
    y = layers.Dense(4 * WIDTH, activation="gelu", dtype=dtype)(y)
    x += layers.Dense(WIDTH, dtype=dtype)(y)
    y = layers.LayerNormalization(dtype=dtype)(x)
    return keras.Model(inputs, layers.Dense(BYTES, dtype=dtype)(y))
