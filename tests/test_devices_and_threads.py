"""Variables on several devices, and threads that train variables of their own."""

import threading
from pathlib import Path

import pytest
import tensorflow as tf
from support.backend import tf_mode
from support.cases import plain_case
from support.comparison import assert_all_close, snapshot
from support.scripts import run_pytest
from support.training import ones_of

in_eager_and_graph = pytest.mark.parametrize("mode", ["eager", "graph"])


@pytest.mark.slow
def test_variables_on_another_device():
    """In a process of its own, because TensorFlow must not have started."""
    path = Path(__file__).parent / "support" / "two_devices.py"
    run = run_pytest("-q", "-o", "addopts=", path, cwd=path.parents[1])
    assert run.returncode == 0, run.stdout[-6000:]


@in_eager_and_graph
@plain_case
def test_threads_train_variables_of_their_own(case, mode):
    """Each group of variables ends where one thread after another would have left it. The step's
    number is so large that it does not count who is first.
    """
    steps, late = 8, 10**6

    def run(in_threads):
        groups = [ones_of(*[(16, 16)] * 4, (5,)) for _ in range(4)]
        variables = [variable for group in groups for variable in group]
        optimizer = case.optimizer()
        optimizer.build(variables)
        optimizer.iterations.assign(late)
        errors = []
        begin = threading.Barrier(len(groups)) if in_threads else None

        def train(number, group):
            def train_step(scale):
                gradients = [tf.fill(v.shape, scale * (number + 1)) for v in group]
                optimizer.apply(gradients, group)

            try:
                step = tf_mode(mode)(train_step)
                if begin:
                    begin.wait(60)
                for i in range(steps):
                    step(tf.constant(1.0 / (i + 1)))
            except Exception as error:
                errors.append(error)

        threads = [threading.Thread(target=train, args=pair) for pair in enumerate(groups)]
        for thread in threads:
            thread.start()
            if not in_threads:
                thread.join()
        for thread in threads:
            thread.join()
        assert not errors
        # Keras adds 1 by reading and writing: a count may be lost between two threads.
        assert late < int(optimizer.iterations) <= late + steps * len(groups)
        return snapshot(optimizer, variables)[: len(variables)]

    assert_all_close(run(in_threads=True), run(in_threads=False), 1e-6)
