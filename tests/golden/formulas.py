"""What each implementation computes, in float64 NumPy: the formula with its peculiarities.

Independent of keras_yogi. It explains every recording, so that where keras_yogi differs from one
on purpose, the test can show what the difference consists of.
"""

from dataclasses import dataclass

import numpy as np
from golden.recordings import MANIFEST, Recording, Trajectory


@dataclass(frozen=True)
class Formula:
    """The hyperparameters, after the implementation's own roundings, and where it stands apart."""

    algorithm: str  # "adam" or "yogi"
    beta_1: float
    beta_2: float
    epsilon: float
    epsilon_hat: bool  # ε is added to √v before the bias correction
    m0: float = 0.0
    v0: float = 0.0
    m_slot: bool = True  # False: nothing is stored for m, because β₁ = 0
    amsgrad: bool = False
    activation: str = "sign"
    l1: float = 0.0
    l2: float = 0.0
    weight_decay: float = 0.0
    clipnorm: float | None = None
    # β₁ and β₂ as they enter the powers of the bias correction; None: as they are.
    beta_1_of_powers: float | None = None
    beta_2_of_powers: float | None = None
    # A gradient given by rows: "exact", the same as the dense gradient; "squares summed", v
    # receives Σg² of a repeated row, not (Σg)²; "momentum decays", rows that are not named keep v
    # and their weights; "untouched rows stay", they keep m too.
    rows: str = "exact"
    # "step", by 1 − βᵗ; "first step", by 1 − β for ever; "none".
    bias_correction: str = "step"

    @classmethod
    def of(cls, recording: str) -> "Formula":
        return cls(**MANIFEST[recording]["formula"])

    def corrections(self, step: int) -> tuple[float, float]:
        """1 − β₁ᵗ and 1 − β₂ᵗ, or what stands in their place."""
        if self.bias_correction == "none":
            return 1.0, 1.0
        step = 1 if self.bias_correction == "first step" else step
        beta_1 = self.beta_1 if self.beta_1_of_powers is None else self.beta_1_of_powers
        beta_2 = self.beta_2 if self.beta_2_of_powers is None else self.beta_2_of_powers
        return 1.0 - beta_1**step, 1.0 - beta_2**step


def trajectory(formula: Formula, recording: Recording) -> Trajectory:
    """The formula's run over the recording's gradients and learning rates."""
    state = {}
    for variable, weights in recording.weights.items():
        w = np.asarray(weights, "float64")
        m, v = np.full_like(w, formula.m0), np.full_like(w, formula.v0)
        state[variable] = (w, m, v, np.zeros_like(w))
    snapshots = [state]
    for step in range(1, recording.steps[-1] + 1):
        state = {
            variable: _step(formula, recording, variable, step, *values)
            for variable, values in state.items()
        }
        if step in recording.steps:
            snapshots.append(state)
    kept = {"param": 0, "m": 1, "v": 2, "vhat": 3}
    if not formula.m_slot:
        del kept["m"]
    if not formula.amsgrad:
        del kept["vhat"]
    return {
        f"{kind}_{variable}": np.stack([snapshot[variable][place] for snapshot in snapshots])
        for kind, place in kept.items()
        for variable in state
    }


def _step(
    formula: Formula,
    recording: Recording,
    variable: str,
    step: int,
    w: np.ndarray,
    m: np.ndarray,
    v: np.ndarray,
    vhat: np.ndarray,
) -> tuple[np.ndarray, ...]:
    g, squares, named = _gradient(formula, recording, variable, step)
    rate = recording.learning_rates[step - 1]
    correction_1, correction_2 = formula.corrections(step)

    decayed = w * (1.0 - rate * formula.weight_decay)
    new_m = formula.beta_1 * m + (1.0 - formula.beta_1) * g
    if formula.algorithm == "adam":
        new_v = formula.beta_2 * v + (1.0 - formula.beta_2) * squares
    else:
        towards = {"sign": np.sign, "tanh": lambda gap: np.tanh(10.0 * gap)}[formula.activation]
        new_v = v + (1.0 - formula.beta_2) * towards(squares - v) * squares
    new_vhat = np.maximum(vhat, new_v) if formula.amsgrad else new_v

    if formula.epsilon_hat:
        root = (np.sqrt(new_vhat) + formula.epsilon) / np.sqrt(correction_2)
    else:
        root = np.sqrt(new_vhat / correction_2) + formula.epsilon
    rate_per_weight = rate / correction_1 / root
    new_w = decayed - rate_per_weight * new_m
    if formula.l1 or formula.l2:
        shrunk = np.maximum(np.abs(new_w) - rate_per_weight * formula.l1, 0.0)
        new_w = np.sign(new_w) * shrunk / (1.0 + rate_per_weight * formula.l2)

    if formula.rows in ("momentum decays", "untouched rows stay"):
        new_w, new_v = np.where(named, new_w, w), np.where(named, new_v, v)
    if formula.rows == "untouched rows stay":
        new_m = np.where(named, new_m, m)
    return new_w, new_m, new_v, new_vhat


def _gradient(
    formula: Formula, recording: Recording, variable: str, step: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The gradient, what v receives as its square, and which rows are named in it."""
    g = recording.gradient(variable, step).astype("float64")
    if formula.clipnorm is not None:
        g = g * formula.clipnorm / max(np.linalg.norm(g), formula.clipnorm)
    squares, named = g**2, np.ones_like(g, bool)
    rows = recording.rows(variable, step)
    if rows is not None:
        indices, values = rows
        named = np.isin(np.arange(len(g)), indices)[:, None]
        if formula.rows == "squares summed":
            squares = np.zeros_like(g)
            np.add.at(squares, indices, np.asarray(values, "float64") ** 2)
    return g, squares, named
