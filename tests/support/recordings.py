"""The recorded runs of golden/, and how two of them are compared."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from support.processes import TESTS

FOLDER = TESTS / "golden"
MANIFEST: dict[str, dict[str, Any]] = json.loads((FOLDER / "manifest.json").read_text("utf-8"))

# "param_kernel", "m_kernel", "v_kernel", …: the values before the first step and after each of the
# recorded steps, stacked.
RecordedTrajectory = dict[str, np.ndarray]


@dataclass(frozen=True)
class Recording:
    """The inputs and the outcome of one run: fixed gradients, 60 steps, five of them recorded."""

    name: str
    arrays: Mapping[str, np.ndarray]

    @classmethod
    def load(cls, name: str, folder: Path = FOLDER) -> "Recording":
        with np.load(folder / f"{name}.npz") as arrays:
            return cls(name, dict(arrays))

    @property
    def dtype(self) -> str:
        return MANIFEST[self.name]["dtype"]

    @property
    def steps(self) -> list[int]:
        """The numbers of the recorded steps, from 1."""
        return self.arrays["steps"].tolist()

    @property
    def learning_rates(self) -> np.ndarray:
        """What the implementation really used at each step."""
        return self.arrays["lr"]

    @cached_property
    def weights(self) -> dict[str, np.ndarray]:
        """Each variable's initial value."""
        return {k.removeprefix("init_"): v for k, v in self.arrays.items() if k.startswith("init_")}

    def rows(self, variable: str, step: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Row numbers (with repetitions) and their gradients at a step; None for a dense one."""
        if f"idx_{variable}" not in self.arrays:
            return None
        return (
            self.arrays[f"idx_{variable}"][step - 1],
            self.arrays[f"val_{variable}"][step - 1],
        )

    def gradient(self, variable: str, step: int) -> np.ndarray:
        """The dense gradient at a step; the pieces of a repeated row are summed."""
        rows = self.rows(variable, step)
        if rows is None:
            return self.arrays[f"grad_{variable}"][step - 1]
        gradient = np.zeros_like(self.weights[variable])
        np.add.at(gradient, *rows)
        return gradient

    @cached_property
    def trajectory(self) -> RecordedTrajectory:
        """What the implementation computed. Its slots start where `formula` says they do."""
        formula = MANIFEST[self.name]["formula"]
        start = {"m": formula.get("m0", 0.0), "v": formula.get("v0", 0.0), "vhat": 0.0}
        return {
            f"{kind}_{variable}": np.concatenate(
                [[np.full_like(weights, start[kind]) if kind in start else weights], values]
            )
            for variable, weights in self.weights.items()
            for kind in ("param", "m", "v", "vhat")
            if (values := self.arrays.get(f"{kind}_{variable}")) is not None
        }


# Of each coordinate's largest value over the run. The two runs round what they store 120 times by
# at most half an ulp: 1.3e-14 and 7e-6. Reached: 4e-15 and 4.5e-6.
RECORDED_TOLERANCE = {"float64": 1e-13, "float32": 1e-5}


def differences(ours: RecordedTrajectory, theirs: RecordedTrajectory) -> dict[str, float]:
    """For "param", "m", … of `theirs`: the largest difference over all steps and coordinates, as
    a share of the largest absolute value that the coordinate takes in `theirs`.

    Relative to each single value it would be misleading: a weight that passes through zero, or a
    momentum that has decayed, has lost its leading digits to cancellation in any implementation.
    """
    largest: dict[str, float] = {}
    for name, values in theirs.items():
        difference = np.abs(ours[name].astype("float64") - values)
        scale = np.broadcast_to(np.abs(values).max(axis=0), difference.shape)
        # Where theirs never leaves zero, ours must not either.
        relative = np.divide(difference, scale, out=np.full(scale.shape, np.inf), where=scale > 0)
        kind = name.split("_")[0]
        share = float(np.where(difference == 0, 0.0, relative).max())
        largest[kind] = max(largest.get(kind, 0.0), share)
    return largest
