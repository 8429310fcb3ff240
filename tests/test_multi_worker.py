"""MultiWorkerMirroredStrategy with two processes on this machine, and examples/multi_worker.py."""

import contextlib
import json
import os
import re
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from support.cases import OPTIONS
from support.comparison import assert_same_trajectory
from support.distribute_cases import EXAMPLE, WORKER_LOOPS, free_ports
from support.distribute_training import FAULTS, replica_gradients
from support.processes import HANG, running
from test_distribute import SAME_OPERATIONS, Results, distributed, joint, one_device

pytestmark = pytest.mark.slow


def run_example(folder: Path, epochs: int, workers: int = 2) -> str:
    """Runs the example to its end; returns what it has printed."""
    log = folder.with_suffix(".log")
    arguments = ("--folder", folder, "--epochs", epochs, "--workers", workers)
    with running(log, EXAMPLE, *arguments, measured=True) as process:
        code = process.wait(HANG)
    assert code == 0, log.read_text()
    return log.read_text()


def wait_until(holds) -> None:
    end = time.monotonic() + HANG
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def worker_pids(log: Path) -> list[int]:
    return [int(pid) for pid in re.findall(r"Worker \d+ is process (\d+)", log.read_text())]


def assert_gone(pids: list[int]) -> None:
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def epochs_done(folder: Path) -> int:
    return int(tf.train.latest_checkpoint(str(folder)).rpartition("-")[2])


def last_state(folder: Path) -> dict[str, np.ndarray]:
    """Everything that the last checkpoint holds: weights, slots, counters."""
    reader = tf.train.load_checkpoint(tf.train.latest_checkpoint(str(folder)))
    names = [n for n in reader.get_variable_to_shape_map() if n.endswith("VARIABLE_VALUE")]
    return {name: reader.get_tensor(name) for name in names}


def assert_same_state(actual, expected, tolerance=0.0):
    """To `tolerance` of each array's largest entry."""
    assert actual.keys() == expected.keys()
    for name, want in expected.items():
        atol = tolerance * np.abs(want).max()
        np.testing.assert_allclose(actual[name], want, rtol=0, atol=atol, err_msg=name)


# The example


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """The folder of a run one of whose workers was killed after the first checkpoint."""
    folder = tmp_path_factory.mktemp("killed") / "run"
    log = folder.with_suffix(".log")
    with running(log, EXAMPLE, "--folder", folder, "--epochs", 1_000_000) as launcher:
        wait_until((folder / "worker-0" / "checkpoint").exists)
        pids = worker_pids(log)
        os.kill(pids[1], signal.SIGKILL)
        assert launcher.wait(HANG) == 1
        assert_gone(pids)
    assert f"Worker 1 has failed ({-signal.SIGKILL})" in log.read_text()
    return folder


@pytest.fixture(scope="module")
def epochs(killed):
    """How long to train, for the killed run to have something left to do."""
    return epochs_done(killed / "worker-0") + 4


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, epochs):
    """The folder of a run of two workers from start to end."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    losses = re.findall(r"loss:? ([\d.]+)", run_example(folder, epochs))
    assert float(losses[-1]) < float(losses[0])
    assert epochs_done(folder / "worker-0") == epochs
    return folder


def test_workers_end_alike(undisturbed):
    """With the same weights, slots and counters, to the bit."""
    states = [last_state(undisturbed / f"worker-{task}") for task in range(2)]
    assert len(states[0]) == 4 + 2 * 4 + 4  # weights, slots; counters and other scalars
    assert_same_state(*states)


def test_two_workers_equal_one_on_the_joint_batch(undisturbed, epochs, tmp_path):
    run_example(tmp_path / "run", epochs, workers=1)
    one = last_state(tmp_path / "run" / "worker-0")
    # float32 sums over 32 + 32 samples instead of 64, grown over some 30 steps
    assert_same_state(last_state(undisturbed / "worker-0"), one, tolerance=1e-5)


def test_goes_on_after_a_worker_was_killed(killed, undisturbed, epochs):
    """From the last checkpoint, to the same end as the run that nobody has disturbed, to the bit.
    The launcher has ended the other worker.
    """
    assert "Restored" in run_example(killed, epochs)
    assert_same_state(last_state(killed / "worker-0"), last_state(undisturbed / "worker-0"))


def test_a_launcher_that_is_ended_ends_its_workers(tmp_path):
    log = tmp_path / "log"
    with running(log, EXAMPLE, "--folder", tmp_path / "run") as launcher:
        wait_until(lambda: len(worker_pids(log)) == 2)
        launcher.terminate()
        assert launcher.wait(HANG) == 1
        assert_gone(worker_pids(log))


@pytest.mark.parametrize(
    ("arguments", "config", "message"),
    [
        (["--workers", "0"], "", "argument --workers: must be an integer >= 1. Received: 0"),
        (["--epochs", "x"], "", "argument --epochs: must be an integer >= 1. Received: x"),
        (["--task", "0"], "", "argument --task: the environment variable TF_CONFIG must be JSON"),
        (["--task", "2"], '{"cluster": {"worker": ["a:1", "b:1"]}}', "that has a worker 2"),
        (["--task", "-1"], "", "argument --task: must be an integer >= 0. Received: -1"),
    ],
)
def test_mistakes_on_the_command_line(arguments, config, message, tmp_path):
    log = tmp_path / "log"
    with running(log, EXAMPLE, *arguments, TF_CONFIG=config) as process:
        assert process.wait(HANG) == 2
    assert message in " ".join(log.read_text().split())


# Gradients that differ from worker to worker


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What each of two workers has, under MultiWorkerMirroredStrategy."""
    folder = tmp_path_factory.mktemp("workers")
    cluster = {"worker": [f"127.0.0.1:{port}" for port in free_ports(2)]}
    with contextlib.ExitStack() as stack:
        processes = []
        for index in range(2):
            config = {"cluster": cluster, "task": {"type": "worker", "index": index}}
            command = ("-m", "support.distribute_cases", "worker", folder)
            log = folder / f"{index}.log"
            worker = running(log, *command, measured=True, TF_CONFIG=json.dumps(config))
            processes.append(stack.enter_context(worker))
        codes = [process.wait(HANG) for process in processes]
    assert codes == [0, 0], (folder / "0.log").read_text()
    return [Results(folder / f"worker-{index}.jsonl") for index in range(2)]


@pytest.mark.parametrize("case", WORKER_LOOPS)
def test_equals_one_device_with_the_joint_gradient(results, case):
    first, second = (worker[case] for worker in results)
    assert first == second
    optimizer, option = case.split(", ")
    actual, steps = distributed(first), joint(replica_gradients())
    if option == "skip_nonfinite":
        assert first["skipped_steps"] == len(FAULTS)
        steps = [row for step, row in enumerate(steps) if step not in FAULTS]
        actual = [state for step, state in enumerate(actual) if step - 1 not in FAULTS]
    expected = one_device(optimizer, OPTIONS[option], steps)
    assert_same_trajectory(actual, expected, SAME_OPERATIONS)


@pytest.mark.parametrize("optimizer", ["yogi", "keras"])
def test_fit_does_not_take_the_inputs_of_this_strategy(results, optimizer):
    """Whatever the optimizer is: Keras hands PerReplica values to TensorFlow as if they were
    tensors, before it comes to any gradient.
    """
    for worker in results:
        error = worker.error(f"fit, {optimizer}")
        assert re.search(r"unsupported type .*PerReplica", error), error
