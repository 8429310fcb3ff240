"""Files of one backend that another goes on from.

    python -m support.file_exchange save FOLDER    trains, saves, and trains on
    python -m support.file_exchange load FOLDER    loads what was saved there, and trains on

Several pairs are done one after the other. Each writes the states that it comes through:
FOLDER/NAME.WHEN.npz.
"""

import sys
from pathlib import Path

import keras
import numpy as np

import keras_yogi
from support.backend import ON_TENSORFLOW
from support.cases import CASES, OPTIONS
from support.models import fit_sine, model_state, sine, sine_model

EXCHANGED = {
    "amsgrad": (CASES["amsgrad"], "schedule"),
    "yogi, skip_nonfinite": (CASES["yogi, tanh"], "skip_nonfinite"),
    "warm yogi": (CASES["yogi"], "plain"),
}


def write(model: keras.Model, folder: Path, name: str, when: str) -> None:
    np.savez(folder / f"{name}.{when}.npz", *model_state(model))


def read(folder: Path, name: str, when: str) -> list[np.ndarray]:
    with np.load(folder / f"{name}.{when}.npz") as arrays:
        return list(arrays.values())


def save(folder: Path) -> None:
    for name, (case, option) in EXCHANGED.items():
        # No other backend can be told to be fused; the file has to load there.
        fused = {"fused": True} if ON_TENSORFLOW else {}
        model = sine_model(case.optimizer(**OPTIONS[option], **fused))
        if name.startswith("warm"):
            keras_yogi.warm_start(model, *sine(), batch_size=16)
        fit_sine(model, infinite="skip_nonfinite" in name)
        model.save(folder / f"{name}.keras")
        write(model, folder, name, "saved")
        fit_sine(model)
        write(model, folder, name, "trained on")


def load(folder: Path) -> None:
    for name in EXCHANGED:
        model = keras.models.load_model(folder / f"{name}.keras")
        write(model, folder, name, "loaded")
        fit_sine(model)
        write(model, folder, name, "loaded and trained on")


if __name__ == "__main__":
    for job, of_job in zip(sys.argv[1::2], sys.argv[2::2], strict=True):
        {"save": save, "load": load}[job](Path(of_job))
