"""Killed, out of disk space, not allowed to write: no training is lost."""

import functools
import json
import os
import random
import shutil
import signal
import subprocess

import keras
import pytest
from support import training_job as jobs
from support.comparison import assert_unchanged
from support.models import EPOCHS, model_state
from support.processes import environment, module_command

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL"),
]

KILLS = 12
ORDINARY = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]  # root, held to file modes


@functools.cache
def permissions_bind():
    """Whether a read-only folder can be had: root may write anything, unless it gives that up."""
    if os.geteuid() != 0:
        return True
    has_setpriv = shutil.which(ORDINARY[0]) is not None
    return has_setpriv and subprocess.run([*ORDINARY, "true"], check=False).returncode == 0


@pytest.fixture(scope="module")
def run():
    """Runs a job of support.training_job in a process of its own and returns its exit code."""
    command = module_command("support.training_job", "serve")
    if os.geteuid() == 0 and permissions_bind():
        command = [*ORDINARY, *command]
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with subprocess.Popen(command, env=environment(measured=False), **pipes) as server:

        def run(job, folder, kill=None, **arguments):
            request = {"job": job, "arguments": {"folder": str(folder), **arguments}}
            request |= {"kill": kill} if kill else {}
            print(json.dumps(request), file=server.stdin, flush=True)
            return int(server.stdout.readline())

        yield run


def test_a_training_killed_at_any_moment_ends_as_if_it_had_not_been(run, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    assert run("train_with_backups", whole) == 0

    moments = random.Random(20181203)
    for _ in range(KILLS):
        # From before anything is restored to eight backups later, and anywhere between the start
        # of a batch and the end of a backup: most kills leave a backup that is half written.
        moment = moments.randrange(1, 25), moments.uniform(0.0, 0.02)
        assert run("train_with_backups", killed, moment) == -signal.SIGKILL
    assert not (killed / "end.npz").exists()
    assert run("train_with_backups", killed) == 0
    assert_unchanged(jobs.load_state(killed / "end.npz"), jobs.load_state(whole / "end.npz"))


def restored_from_backup(folder):
    model = jobs.model_of("yogi")
    callback = jobs.backup(folder)
    callback.set_model(model)
    callback.on_train_begin()
    return model


def restored_from_manager(folder):
    model = jobs.model_of("yogi")
    model.optimizer.build(model.trainable_variables)
    assert jobs.manager(model, folder).restore_or_initialize()
    return model


LAST_GOOD = {
    "BackupAndRestore": restored_from_backup,
    "ModelCheckpoint": lambda folder: keras.models.load_model(folder / f"{EPOCHS}.keras"),
    "CheckpointManager": restored_from_manager,
    "TensorBoard": restored_from_backup,
}
REASONS = {"disk full": "File too large", "read-only folder": "Permission denied"}


@pytest.mark.parametrize("writer", jobs.WRITERS)
@pytest.mark.parametrize("fault", jobs.FAULTS)
def test_the_last_good_checkpoint_outlives_a_failed_write(run, fault, writer, tmp_path):
    if fault == "read-only folder" and not permissions_bind():
        pytest.skip("root may write anything, and there is no setpriv to change that")
    assert run("train_into_fault", tmp_path, writer=writer, fault=fault) == 0
    assert REASONS[fault] in (tmp_path / "error.txt").read_text()
    model = LAST_GOOD[writer](tmp_path / "written")
    assert_unchanged(model_state(model), jobs.load_state(tmp_path / "last_good.npz"))
