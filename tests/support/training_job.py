"""Small trainings for test_contract_state and test_faults, which start this file as a process.

python -m support.training_job continue FOLDER    goes on with every training saved in FOLDER
python -m support.training_job serve              forks a process for each line of its input
"""

import contextlib
import json
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import h5py
import keras
import numpy as np
import tensorflow as tf

import keras_yogi
from support.backend import WITHOUT_XLA
from support.cases import CASES
from support.models import EPOCHS, fit_sine, model_state, sine
from support.processes import HANG

Callbacks = Sequence[keras.callbacks.Callback]

# The optimizers, and how their trainings begin.
TRAININGS: dict[str, Callable[[], keras.optimizers.Optimizer]] = {
    "adam": lambda: keras_yogi.Adam(0.02, clipnorm=1.0),
    "warm amsgrad": lambda: keras_yogi.Adam(0.02, amsgrad=True, fused=False, weight_decay=0.01),
    "yogi": lambda: CASES["yogi"].optimizer(0.02, l2_regularization_strength=1e-3),
    "warm yogi": lambda: CASES["yogi"].optimizer(0.02, l2_regularization_strength=1e-3),
    "warm yogi, scaled loss": lambda: keras.optimizers.LossScaleOptimizer(keras_yogi.Yogi(0.02)),
}


def model_of(training: str, **options: bool) -> keras.Model:
    """A model with slots of both kinds: the fused engine packs those of the first layer's two
    variables, and leaves that of the last layer's, alone of its dtype, as Keras makes it.
    """
    keras.utils.set_random_seed(8)
    last = keras.layers.Dense(1, use_bias=False, dtype="float64")
    layers = [keras.layers.Dense(7, activation="tanh"), last]
    model = keras.Sequential([keras.Input((5,)), *layers])
    model.compile(TRAININGS[training](), loss="mse", **{**WITHOUT_XLA, **options})
    return model


def save_state(path: Path, model: keras.Model) -> None:
    np.savez(path, *model_state(model))


def load_state(path: Path) -> list[np.ndarray]:
    with np.load(path) as arrays:
        return list(arrays.values())


# Ways to save a training and to go on with it


def checkpoint(model: keras.Model) -> tf.train.Checkpoint:
    return tf.train.Checkpoint(model=model, optimizer=model.optimizer)


def manager(model: keras.Model, folder: Path) -> tf.train.CheckpointManager:
    return tf.train.CheckpointManager(checkpoint(model), str(folder), max_to_keep=2)


def backup(folder: Path, **options: int) -> keras.callbacks.BackupAndRestore:
    """As a careful user makes it: the previous backup stays until the next one is whole."""
    return keras.callbacks.BackupAndRestore(str(folder), double_checkpoint=True, **options)


def save_every_way(training: str, folder: Path) -> list[np.ndarray]:
    """Trains, saves and trains on: the state that has to be reached from every save."""
    model = model_of(training)
    if training.startswith("warm"):
        keras_yogi.warm_start(model, *sine())
    fit_sine(model, callbacks=[backup(folder / "backup", delete_checkpoint=False)])
    model.save(folder / "model.keras")
    model.save_weights(folder / "model.weights.h5")
    checkpoint(model).write(str(folder / "checkpoint"))
    manager(model, folder / "manager").save()
    fit_sine(model, first_epoch=EPOCHS)
    return model_state(model)


def continue_every_way(training: str, folder: Path) -> Iterator[tuple[str, keras.Model]]:
    """Loads and trains on; names each way, and gives the model, which is used for the next."""
    model = keras.models.load_model(folder / "model.keras")
    fit_sine(model, first_epoch=EPOCHS)
    yield ".keras file", model

    model = model_of(training)
    status = checkpoint(model).read(str(folder / "checkpoint"))
    fit_sine(model, first_epoch=EPOCHS)
    status.assert_consumed()
    yield "checkpoint, before the optimizer is built", model

    # From here on the optimizer is built, and has a state of its own that has to give way.
    checkpoint(model).read(str(folder / "checkpoint")).assert_consumed()
    fit_sine(model, first_epoch=EPOCHS)
    yield "checkpoint, after the optimizer is built", model

    model.load_weights(folder / "model.weights.h5")
    fit_sine(model, first_epoch=EPOCHS)
    yield "weights file", model

    assert manager(model, folder / "manager").restore_or_initialize()
    fit_sine(model, first_epoch=EPOCHS)
    yield "CheckpointManager", model

    fit_sine(model, first_epoch=EPOCHS, callbacks=[backup(folder / "backup")])
    yield "BackupAndRestore", model


WAYS = [
    ".keras file",
    "checkpoint, before the optimizer is built",
    "checkpoint, after the optimizer is built",
    "weights file",
    "CheckpointManager",
    "BackupAndRestore",
]


def continue_all(folder: Path) -> None:
    for training in TRAININGS:
        for way, model in continue_every_way(training, folder / training):
            save_state(folder / training / f"{way}.npz", model)


# A training that is killed


class Signs(keras.callbacks.Callback):
    """Writes a byte into a pipe as training begins (given as the first callback, before anything
    is restored) and after each batch.
    """

    def __init__(self, pipe: int) -> None:
        super().__init__()
        self.pipe = pipe

    def on_train_begin(self, logs: object = None) -> None:
        os.write(self.pipe, b".")

    def on_train_batch_end(self, batch: int, logs: object = None) -> None:
        os.write(self.pipe, b".")


BATCHES = 361
SAVE_FREQ = 3  # does not divide BATCHES: the last backup always has a batch to come


def train_with_backups(folder: Path, signs: int) -> None:
    """One long epoch, which begins at the batch that the backup has come to.

    (Keras restores the epoch alone: which batch is next has to follow from the optimizer.)
    """
    put_right(folder / "backup")
    model = model_of("yogi")
    if not (folder / "backup" / "latest.weights.h5").exists():
        keras_yogi.warm_start(model, *sine())

    def batches() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for index in range(int(model.optimizer.iterations), BATCHES):
            yield sine(seed=index, samples=16)

    signature = tuple(tf.TensorSpec((16, size), "float32") for size in (5, 1))
    dataset = tf.data.Dataset.from_generator(batches, output_signature=signature)
    callbacks = [Signs(signs), backup(folder / "backup", save_freq=SAVE_FREQ)]
    model.fit(dataset, callbacks=callbacks, shuffle=False, verbose=0)
    save_state(folder / "end.npz", model)


def put_right(folder: Path) -> None:
    """What BackupAndRestore leaves to its user after a kill in the middle of a write: it goes back
    to the previous backup where HDF5 says OSError, but not where it says RuntimeError, nor from an
    empty training_metadata.json, nor before there is a previous one.
    """
    try:
        with h5py.File(folder / "latest.weights.h5") as file:
            file.visit(lambda name: None)
        json.loads((folder / "training_metadata.json").read_text())
    except FileNotFoundError:
        return  # nothing is saved yet, or only the metadata is missing, which Keras accepts
    except (OSError, RuntimeError, ValueError) as damage:
        if not (folder / "latest.weights.h5.bkp").exists():
            shutil.rmtree(folder)
        elif not isinstance(damage, OSError):
            for previous in folder.glob("*.bkp"):
                shutil.copy(previous, previous.with_suffix(""))


# A training that cannot write


class SaveToManager(keras.callbacks.Callback):
    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def on_train_begin(self, logs: object = None) -> None:
        self.manager = manager(self.model, self.folder)

    def on_epoch_end(self, epoch: int, logs: object = None) -> None:
        self.manager.save()


WRITERS: dict[str, Callable[[Path], Callbacks]] = {
    "BackupAndRestore": lambda folder: [backup(folder, delete_checkpoint=False)],
    "ModelCheckpoint": lambda folder: [keras.callbacks.ModelCheckpoint(folder / "{epoch}.keras")],
    "CheckpointManager": lambda folder: [SaveToManager(folder)],
    "TensorBoard": lambda folder: [
        keras.callbacks.TensorBoard(folder / "logs"),
        backup(folder, delete_checkpoint=False),
    ],
}


@contextlib.contextmanager
def disk_full(folder: Path) -> Iterator[None]:
    """No file may grow beyond 100 bytes: what a process can do to itself without privileges."""
    import resource  # not on Windows

    unlimited = resource.RLIM_INFINITY
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, unlimited))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (unlimited, unlimited))


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[None]:
    paths = [folder, *folder.rglob("*")]
    modes = [path.stat().st_mode for path in paths]
    for path, mode in zip(paths, modes, strict=True):
        path.chmod(mode & ~0o222)
    try:
        yield
    finally:
        for path, mode in zip(paths, modes, strict=True):
            path.chmod(mode)


FAULTS = {"disk full": disk_full, "read-only folder": read_only}


def train_into_fault(folder: Path, signs: int, writer: str, fault: str) -> None:
    """Trains, and goes on when nothing can be written any more; keeps the state at that moment
    and the error.
    """
    model = model_of("yogi", run_eagerly=True)
    (folder / "written").mkdir()
    fit_sine(model, callbacks=WRITERS[writer](folder / "written"))
    save_state(folder / "last_good.npz", model)
    message = "no error"
    with FAULTS[fault](folder / "written"):
        try:
            fit_sine(model, first_epoch=EPOCHS, callbacks=WRITERS[writer](folder / "written"))
        except Exception as error:
            message = f"{type(error).__name__}: {error}"
    (folder / "error.txt").write_text(message)


# Processes without TensorFlow's seconds of import


JOBS = {"train_with_backups": train_with_backups, "train_into_fault": train_into_fault}


def serve() -> None:
    """Forks this process, which has imported TensorFlow but not yet used it, for every request.

    A request is a line of JSON: the name of a job, its arguments, and, for one that is to be
    killed, how many signs of life to wait for and how many seconds from the last of them. The
    answer is the job's exit code, negative for a signal.
    """
    for line in sys.stdin:
        request = json.loads(line)
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            _run(JOBS[request["job"]], writer, **request["arguments"])
        os.close(writer)
        if "kill" in request:
            signs, delay = request["kill"]
            for _ in range(signs):
                os.read(reader, 1)
            time.sleep(delay)
            os.kill(pid, signal.SIGKILL)  # no other process has its id before the next line
        _, status = os.waitpid(pid, 0)
        os.close(reader)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _run(job: Callable[..., None], signs: int, folder: str, **arguments: str) -> None:
    signal.alarm(HANG)  # ends the process even if a lock was held when it was forked
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # standard output is for the answers
    try:
        job(Path(folder), signs, **arguments)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["continue", folder]:
            continue_all(Path(folder))
        case ["serve"]:
            serve()
