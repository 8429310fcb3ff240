"""The recordings are what the libraries compute, and keras_yogi computes it beside them.

Runs where optax, torch, torch_optimizer, pytorch_optimizer or flwr is installed, each on its own.
"""

import importlib
from importlib import metadata

import pytest
from record_peers import PEERS, installed, record, recordable
from support.peer_formulas import PeerFormula, peer_trajectory
from support.recorded_runs import RUN_OF
from support.recordings import MANIFEST, RECORDED_TOLERANCE, Recording, differences


def needs(library):
    return pytest.mark.skipif(not installed(library), reason=f"{library} is not installed")


def live_runs():
    return [pytest.param(lib, name, marks=needs(lib), id=name) for lib, name in recordable()]


@pytest.mark.parametrize(("library", "name"), live_runs())
def test_library_computes_what_was_recorded_and_so_do_we(library, name):
    recorded, live = Recording.load(name), record(library, name)
    tolerance = RECORDED_TOLERANCE[recorded.dtype]
    drift = differences(live.trajectory, recorded.trajectory)
    assert max(drift.values()) <= tolerance, (
        f"{library} {metadata.version(library)} no longer computes what was recorded with "
        f"{MANIFEST[name]['versions']}: {drift}"
    )
    ours, theirs = RUN_OF[name].formula(name), PeerFormula.of(name)
    explained = peer_trajectory(ours, live) if ours != theirs else live.trajectory
    off = differences(RUN_OF[name].run(live), explained)
    assert max(off.values()) <= tolerance, off


REFUSING = {
    "torch_adam_lr1e-2_eps1e-6": "torch",
    "torch_adamw_wd1e-2": "torch",
    "torch_optimizer_yogi_default": "torch_optimizer",
    "pytorch_optimizer_yogi_default": "pytorch_optimizer",
}


@pytest.mark.parametrize(
    ("library", "setting"),
    [pytest.param(lib, s, marks=needs(lib), id=s) for s, lib in REFUSING.items()],
)
def test_sparse_gradients_are_refused(library, setting):
    """By every one of torch's but SparseAdam; keras_yogi takes them (test_parity)."""
    torch = pytest.importorskip("torch")
    weights = torch.nn.Parameter(torch.zeros(3, 2))
    weights.grad = torch.sparse_coo_tensor(
        [[1, 1]], torch.ones(2, 2), (3, 2), check_invariants=True
    )
    optimizer = PEERS[library][setting](importlib.import_module(library), [weights])
    with pytest.raises(Exception, match="not support sparse grad"):
        optimizer.step()
