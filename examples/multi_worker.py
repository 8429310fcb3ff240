"""Trains a small regression with several workers, under tf.distribute.MultiWorkerMirroredStrategy.

Every worker computes the gradients of its part of each batch; their sum updates all of them alike.
Keras 3's `fit` does not take the inputs of this strategy, whatever the optimizer is, so the loop is
written out here. It ends every epoch with a checkpoint; started again with the same arguments, it
goes on from the last one, also after a worker has died.

Two workers on this machine:

    python examples/multi_worker.py --workers 2

A cluster, one worker on each machine: the same TF_CONFIG everywhere, and `--folder` on a file
system that all machines see. On the first machine, and with `--task 1` on the second:

    export TF_CONFIG='{"cluster": {"worker": ["10.0.0.1:2222", "10.0.0.2:2222"]}}'
    python examples/multi_worker.py --task 0 --folder /shared/run

Printed, by worker 0: the training loss, and after the last epoch that of the final weights.
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow's start-up messages

QUICK_EPOCHS = 3


def train(options: argparse.Namespace) -> None:
    """What each worker does."""
    # Imported here, because the process that only starts the workers can do without.
    import keras
    import numpy as np
    import tensorflow as tf
    from sklearn.datasets import load_diabetes

    import keras_yogi

    # Before anything else of TensorFlow: it connects the workers.
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    x, y = load_diabetes(return_X_y=True)
    x, y = (x / x.std()).astype("float32"), ((y - y.mean()) / y.std()).astype("float32")[:, None]

    with strategy.scope():
        keras.utils.set_random_seed(0)
        layers = [keras.layers.Dense(32, activation="tanh"), keras.layers.Dense(1)]
        model = keras.Sequential([keras.Input(x.shape[1:]), *layers])
        optimizer = {"adam": keras_yogi.Adam, "yogi": keras_yogi.Yogi}[options.optimizer]()
        optimizer.build(model.trainable_variables)  # its state must be there to be restored

    def batches(epoch: int) -> tf.distribute.DistributedDataset:
        """All samples in the epoch's own order, in batches that are divided among the workers."""
        order = np.random.default_rng(epoch).permutation(len(x))
        dataset = tf.data.Dataset.from_tensor_slices((x[order], y[order]))
        dataset = dataset.batch(options.batch_size, drop_remainder=True)
        by_sample = tf.data.Options()  # not by file: there are none
        policy = tf.data.experimental.AutoShardPolicy.DATA
        by_sample.experimental_distribute.auto_shard_policy = policy
        return strategy.experimental_distribute_dataset(dataset.with_options(by_sample))

    @tf.function
    def train_step(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        def on_worker(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
            with tf.GradientTape() as tape:
                # The sum over workers is the mean over the whole batch, and so are the gradients.
                loss = tf.reduce_sum((model(x, training=True) - y) ** 2) / options.batch_size
            gradients = tape.gradient(loss, model.trainable_variables)
            optimizer.apply(gradients, model.trainable_variables)
            return loss

        return strategy.reduce("SUM", strategy.run(on_worker, args=(x, y)), axis=None)

    def one_epoch(epoch: int) -> float:
        return float(np.mean([train_step(*batch) for batch in batches(epoch)]))

    save_every_epoch(options, one_epoch, model=model, optimizer=optimizer)
    if options.task == 0:
        print(f"Final loss: {np.mean((model(x).numpy() - y) ** 2):.6f}", flush=True)


def save_every_epoch(
    options: argparse.Namespace, one_epoch: Callable[[int], float], **state: Any
) -> None:
    """Makes the epochs that no checkpoint has, with a checkpoint after each.

    All workers take part in saving, each into its own folder; all restore what worker 0 has.
    """
    import tensorflow as tf

    chief = options.task == 0
    epoch = tf.Variable(0, dtype="int64", trainable=False)
    checkpoint = tf.train.Checkpoint(epoch=epoch, **state)
    own_folder = options.folder / f"worker-{options.task}"
    manager = tf.train.CheckpointManager(checkpoint, str(own_folder), max_to_keep=2)
    latest = tf.train.latest_checkpoint(str(options.folder / "worker-0"))
    if latest:
        checkpoint.restore(latest).assert_existing_objects_matched()
        if chief:
            print(f"Restored {latest}: {int(epoch)} epochs are done", flush=True)

    while epoch < options.epochs:
        loss = one_epoch(int(epoch))
        epoch.assign_add(1)
        manager.save(checkpoint_number=epoch)
        if chief and int(epoch) % max(1, options.epochs // 10) == 0:
            print(f"Epoch {int(epoch)}: loss {loss:.4f}", flush=True)


def launch(workers: int, arguments: Sequence[str]) -> int:
    """Runs the workers on this machine. When one of them fails, the others are ended: alone they
    would wait for it. Returns the exit code.
    """
    cluster = {"worker": [f"127.0.0.1:{port}" for port in free_ports(workers)]}
    environment = {**os.environ, "TF_CONFIG": json.dumps({"cluster": cluster})}
    command = [sys.executable, __file__, *arguments, "--task"]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the workers are ended below
    processes = []
    try:
        for task in range(workers):
            processes.append(subprocess.Popen([*command, str(task)], env=environment))
            print(f"Worker {task} is process {processes[task].pid}", flush=True)
        while True:
            codes = [process.poll() for process in processes]
            for task, code in enumerate(codes):
                if code:
                    print(f"Worker {task} has failed ({code}); ending all", file=sys.stderr)
                    return 1
            if all(code == 0 for code in codes):
                return 0
            time.sleep(0.1)
    finally:
        for process in processes:
            process.kill()
            process.wait()


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:  # all open at once, so that they differ
        listeners = [stack.enter_context(socket.socket()) for _ in range(count)]
        for listener in listeners:
            listener.bind(("127.0.0.1", 0))
        return [listener.getsockname()[1] for listener in listeners]


def integer(at_least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < at_least:
            raise argparse.ArgumentTypeError(f"must be an integer >= {at_least}. Received: {text}")
        return int(text)

    return parse


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add(
        "--workers", type=integer(at_least=1), default=2, help="to start here; default: %(default)s"
    )
    add(
        "--task",
        type=integer(at_least=0),
        help="start none; be this worker of the cluster in TF_CONFIG",
    )
    add("--optimizer", choices=("adam", "yogi"), default="yogi", help="default: %(default)s")
    length = parser.add_mutually_exclusive_group()
    length.add_argument(
        "--epochs", type=integer(at_least=1), default=50, help="default: %(default)s"
    )
    length.add_argument("--quick", action="store_true", help=f"{QUICK_EPOCHS} epochs")
    add(
        "--batch-size",
        type=integer(at_least=1),
        default=64,
        help="of all workers; default: %(default)s",
    )
    add(
        "--folder",
        type=Path,
        default=Path("logs/multi_worker"),
        help="of the checkpoints; default: %(default)s",
    )
    options = parser.parse_args(argv)
    if options.quick:
        options.epochs = QUICK_EPOCHS
    if options.task is not None:
        try:
            config = json.loads(os.environ.get("TF_CONFIG", ""))
            config["cluster"]["worker"][options.task]
        except (ValueError, TypeError, KeyError, IndexError):
            parser.error(
                f"argument --task: the environment variable TF_CONFIG must be JSON with a "
                f"cluster that has a worker {options.task}. "
                f"Received: TF_CONFIG={os.environ.get('TF_CONFIG')}"
            )
        config["task"] = {"type": "worker", "index": options.task}
        os.environ["TF_CONFIG"] = json.dumps(config)
    return options


def main(argv: Sequence[str]) -> int:
    options = parse_arguments(argv)
    if options.task is None:
        return launch(options.workers, argv)
    train(options)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
