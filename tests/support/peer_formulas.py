"""What each recorded implementation computes: the one reference, with its peculiarities.

Independent of keras_yogi. It explains every recording, so that where keras_yogi differs from one
on purpose, the test can show what the difference consists of.
"""

from dataclasses import dataclass

import numpy as np

from support.recordings import MANIFEST, RecordedTrajectory, Recording
from support.reference import Reference


@dataclass(frozen=True)
class PeerFormula:
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
    # How far the t of the bias correction is ahead of the number of steps.
    steps_ahead: int = 0

    @classmethod
    def of(cls, recording: str) -> "PeerFormula":
        return cls(**MANIFEST[recording]["formula"])

    def reference(self, weights: np.ndarray) -> "PeerReference":
        reference = PeerReference(
            weights,
            self.algorithm,
            0.0,
            self.beta_1,
            self.beta_2,
            self.epsilon,
            self.epsilon_hat,
            "none" if self.bias_correction == "none" else "both",
            self.amsgrad,
            self.v0,
            self.activation,
            self.l1,
            self.l2,
            frozen=self.bias_correction == "first step",
            steps_ahead=self.steps_ahead,
            powers_of=(
                self.beta_1 if self.beta_1_of_powers is None else self.beta_1_of_powers,
                self.beta_2 if self.beta_2_of_powers is None else self.beta_2_of_powers,
            ),
        )
        reference.slots["momentum"] = reference.slots["momentum"] + self.m0
        return reference


@dataclass
class PeerReference(Reference):
    """The reference, with a bias correction that is rounded, stands still or is ahead."""

    frozen: bool = False  # at the first step
    steps_ahead: int = 0
    powers_of: tuple[float, float] = (0.0, 0.0)

    def corrections(self) -> tuple[float, float]:
        if self.bias_correction == "none":
            return super().corrections()
        step = 1 if self.frozen else self.step + self.steps_ahead
        return 1.0 - self.powers_of[0] ** step, 1.0 - self.powers_of[1] ** step


def peer_trajectory(formula: PeerFormula, recording: Recording) -> RecordedTrajectory:
    """The formula's run over the recording's gradients and learning rates."""
    kinds = {"weights": "param", "momentum": "m", "velocity": "v", "velocity_hat": "vhat"}
    if not formula.m_slot:
        del kinds["momentum"]
    references = {name: formula.reference(w) for name, w in recording.weights.items()}

    def state() -> dict[str, np.ndarray]:
        return {
            f"{kinds[slot]}_{name}": value
            for name, reference in references.items()
            for slot, value in reference.state().items()
            if slot in kinds
        }

    states = [state()]
    for step in range(1, recording.steps[-1] + 1):
        for name, reference in references.items():
            _take_step(formula, recording, reference, name, step)
        if step in recording.steps:
            states.append(state())
    return {name: np.stack([values[name] for values in states]) for name in states[0]}


def _take_step(
    formula: PeerFormula, recording: Recording, reference: PeerReference, name: str, step: int
) -> None:
    g, squares, named = _gradient(formula, recording, name, step)
    before = reference.state()
    reference.learning_rate = recording.learning_rates[step - 1]
    reference.weights = before["weights"] * (1.0 - reference.learning_rate * formula.weight_decay)
    reference.update(g, squares)
    staying = {
        "momentum decays": ("velocity",),
        "untouched rows stay": ("velocity", "momentum"),
    }.get(formula.rows)
    if staying:
        reference.weights = np.where(named, reference.weights, before["weights"])
        for slot in staying:
            reference.slots[slot] = np.where(named, reference.slots[slot], before[slot])


def _gradient(
    formula: PeerFormula, recording: Recording, variable: str, step: int
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
