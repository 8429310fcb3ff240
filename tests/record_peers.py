"""Runs optimizers of other libraries again on the recorded problem, and prints the differences.

    python tests/record_peers.py record FOLDER    what is installed of optax, torch, flwr,
                                                  torch_optimizer and pytorch_optimizer, one .npz
                                                  file a run
    python tests/record_peers.py differences      the table of docs/variants.md

The versions that the recordings were made with are in golden/manifest.json.
"""

import argparse
import importlib.util
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from support.recordings import MANIFEST, RECORDED_TOLERANCE, RecordedTrajectory, Recording

# Library → its recordings → how the optimizer is made, given the library. JAX's transformations
# are made as they are, torch's optimizers from the list of parameters, Flower's strategies from the
# server's first weights.
PEERS: dict[str, dict[str, Callable[..., Any]]] = {
    "optax": {
        "optax_adam_lr1e-2_eps1e-6": lambda optax: optax.adam(1e-2, eps=1e-6),
        "optax_yogi_lr1e-2": lambda optax: optax.yogi(1e-2),
        "optax_scale_by_yogi_v0_0": lambda optax: optax.chain(
            optax.scale_by_yogi(initial_accumulator_value=0.0), optax.scale(-0.01)
        ),
    },
    "torch": {
        "torch_adam_lr1e-2_eps1e-6": lambda torch, p: torch.optim.Adam(p, lr=1e-2, eps=1e-6),
        "torch_adamw_wd1e-2": lambda torch, p: torch.optim.AdamW(p, weight_decay=1e-2),
        "torch_sparse_adam": lambda torch, p: torch.optim.SparseAdam(p, lr=1e-2),
    },
    "torch_optimizer": {
        "torch_optimizer_yogi_default": lambda library, p: library.Yogi(p),
    },
    "pytorch_optimizer": {
        "pytorch_optimizer_yogi_default": lambda library, p: library.Yogi(p),
    },
    "flwr": {
        "flwr_fedyogi": lambda flwr, p: flwr.server.strategy.FedYogi(initial_parameters=p),
        "flwr_fedadam": lambda flwr, p: flwr.server.strategy.FedAdam(
            initial_parameters=p, eta=1e-2, tau=1e-3
        ),
    },
}


def recordable() -> list[tuple[str, str]]:
    """(library, name of the recording) for every recording of the libraries above."""
    return [
        (library, name)
        for library, settings in PEERS.items()
        for name in MANIFEST
        if name.rpartition("__")[0] in settings
    ]


def installed(library: str) -> bool:
    return importlib.util.find_spec(library) is not None


def record(library: str, name: str) -> Recording:
    """The run `name` of the manifest, made again with the installed version."""
    recorded = Recording.load(name)
    make = PEERS[library][name.rpartition("__")[0]]
    os.environ["FLWR_TELEMETRY_ENABLED"] = "0"  # read when it is imported
    module = importlib.import_module(library)
    run = {"optax": _run_optax, "flwr": _run_flwr}.get(library, _run_torch)
    states = list(run(module, make, recorded))
    values = {key: np.stack([state[key] for state in states]) for key in states[0]}
    return Recording(name, {**recorded.arrays, **values})


def _run_optax(
    optax: Any, make: Callable[..., Any], recorded: Recording
) -> Iterator[dict[str, np.ndarray]]:
    import jax

    # Off for float32: it would give float32 parameters a bias correction in float64.
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", recorded.dtype == "float64")
    try:
        transformation = make(optax)
        weights = {name: jax.numpy.asarray(w) for name, w in recorded.weights.items()}
        state = transformation.init(weights)

        @jax.jit
        def take_step(gradients: Any, state: Any, weights: Any) -> tuple[Any, Any]:
            updates, state = transformation.update(gradients, state, weights)
            return optax.apply_updates(weights, updates), state

        for step in range(1, recorded.steps[-1] + 1):
            gradients = {name: recorded.gradient(name, step) for name in weights}
            weights, state = take_step(gradients, state, weights)
            if step in recorded.steps:
                m, v = (optax.tree.get(state, key) for key in ("mu", "nu"))
                yield _by_name({"param": weights, "m": m, "v": v})
    finally:
        jax.config.update("jax_enable_x64", before)


def _run_torch(
    library: Any, make: Callable[..., Any], recorded: Recording
) -> Iterator[dict[str, np.ndarray]]:
    import torch

    weights = {name: torch.nn.Parameter(torch.tensor(w)) for name, w in recorded.weights.items()}
    optimizer = make(library, list(weights.values()))
    for step in range(1, recorded.steps[-1] + 1):
        for name, parameter in weights.items():
            rows = recorded.rows(name, step)
            if rows is None:
                parameter.grad = torch.tensor(recorded.gradient(name, step))
            else:
                indices, values = map(torch.tensor, rows)
                parameter.grad = torch.sparse_coo_tensor(
                    indices[None], values, parameter.shape, check_invariants=True
                )
        optimizer.step()
        if step in recorded.steps:
            slots = {name: optimizer.state[parameter] for name, parameter in weights.items()}
            yield _by_name(
                {
                    "param": {name: _copy(w) for name, w in weights.items()},
                    "m": {name: _copy(slot["exp_avg"]) for name, slot in slots.items()},
                    "v": {name: _copy(slot["exp_avg_sq"]) for name, slot in slots.items()},
                }
            )


def _run_flwr(
    flwr: Any, make: Callable[..., Any], recorded: Recording
) -> Iterator[dict[str, np.ndarray]]:
    import flwr.server.strategy
    from flwr.common import Code, FitRes, Status, ndarrays_to_parameters

    weights = recorded.weights
    strategy = make(flwr, ndarrays_to_parameters(list(weights.values())))
    for step in range(1, recorded.steps[-1] + 1):
        # One client, whose weights have changed by minus the gradient.
        changed = [
            w - recorded.gradient(name, step)
            for name, w in zip(weights, strategy.current_weights, strict=True)
        ]
        answer = FitRes(Status(Code.OK, ""), ndarrays_to_parameters(changed), 1, {})
        strategy.aggregate_fit(step, [(None, answer)], [])
        if step in recorded.steps:
            # Flower's m is that of the change; the gradient's has the other sign.
            values = strategy.current_weights, [-m for m in strategy.m_t], strategy.v_t
            of_each = (dict(zip(weights, arrays, strict=True)) for arrays in values)
            yield _by_name(dict(zip(("param", "m", "v"), of_each, strict=True)))


def _copy(tensor: Any) -> np.ndarray:
    """The values of a torch tensor, which the next step overwrites."""
    return tensor.detach().numpy().copy()


def _by_name(state: dict[str, dict[str, Any]]) -> dict[str, np.ndarray]:
    return {
        f"{kind}_{name}": np.asarray(value)
        for kind, of_all in state.items()
        for name, value in of_all.items()
    }


# The settings that stand for an implementation in the table of differences.
IMPLEMENTATIONS = [
    "textbook_adam",
    "textbook_yogi",
    "tfa_yogi_default",
    "tfa_yogi_sparse",
    "tf215_legacy_adam_default",
    "keras3_adam_default",
    "keras3_adam_sparse",
    "optax_adam_lr1e-2_eps1e-6",
    "optax_yogi_lr1e-2",
    "torch_adam_lr1e-2_eps1e-6",
    "torch_adamw_wd1e-2",
    "torch_sparse_adam",
    "flwr_fedyogi",
    "flwr_fedadam",
    "torch_optimizer_yogi_default",
    "pytorch_optimizer_yogi_default",
]


def difference_table() -> list[str]:
    """How far the weights of each implementation, after 60 steps in float64, are from those of
    keras_yogi: with its defaults (and their learning rate and weight decay), and with the
    arguments of `support/recorded_runs.py`.
    """
    from support.recorded_runs import RECORDED_RUNS, RecordedRun

    lines = [
        "| recording | weights moved by up to | our defaults | our arguments for it |",
        "|---|---|---|---|",
    ]
    for case in RECORDED_RUNS:
        if case.recording not in IMPLEMENTATIONS:
            continue
        recording = Recording.load(f"{case.recording}__f64")
        theirs = recording.trajectory
        own = {name: v for name, v in case.arguments.items() if name == "weight_decay"}
        defaults = RecordedRun(case.recording, case.optimizer, case.learning_rate, own)
        start = {name: values[:1] for name, values in theirs.items()}
        others = [start, defaults.run(recording), case.run(recording)]
        figures = [_figure(_largest_at_the_end(theirs, other)) for other in others]
        lines.append(f"| `{case.recording}` | {' | '.join(figures)} |")
    return lines


def _largest_at_the_end(one: RecordedTrajectory, other: RecordedTrajectory) -> float:
    """The largest difference of a weight after the last step of each."""
    return max(np.abs(one[n][-1] - other[n][-1]).max() for n in one if n.startswith("param"))


def _figure(difference: float) -> str:
    return "rounding" if difference < 10 * RECORDED_TOLERANCE["float64"] else f"{difference:.2g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("differences", help="print the table of docs/variants.md")
    commands.add_parser("record", help="record anew").add_argument("folder", type=Path)
    chosen = parser.parse_args()
    if chosen.command == "differences":
        print("\n".join(difference_table()))
        return
    chosen.folder.mkdir(parents=True, exist_ok=True)
    for library, name in recordable():
        if installed(library):
            np.savez_compressed(chosen.folder / f"{name}.npz", **record(library, name).arrays)
            print(chosen.folder / f"{name}.npz")
        else:
            print(f"{name}: {library} is not installed")


if __name__ == "__main__":
    main()
