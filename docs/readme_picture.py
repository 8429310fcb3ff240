"""Draws the README's picture, docs/bfloat16.png, from docs/results/half_precision.json.

    python docs/readme_picture.py

Needs NumPy and matplotlib. The figures are those that
`python examples/half_precision.py --results docs/results` has written.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

DOCS = Path(__file__).parent
TASK, LEARNING_RATE = "fine-tuning", "0.0001"
# A broad line below a thin dashed one: both are visible where they coincide.
LINES: dict[str, dict[str, Any]] = {  # Okabe and Ito's colours
    "Keras": {"label": "keras.optimizers.Adam, bfloat16", "color": "#D55E00", "linewidth": 2.5},
    "float32": {"label": "float32", "color": "#56B4E9", "linewidth": 7.0},
    "residual": {
        "label": "keras_yogi.Adam, bfloat16",
        "color": "black",
        "linewidth": 2.0,
        "linestyle": (0, (4, 3)),
    },
}


def draw(results: dict[str, Any]) -> Figure:
    contenders = results["tasks"][TASK][LEARNING_RATE]
    picture = Figure(figsize=(8.0, 3.2), layout="constrained")
    axes = picture.subplots()
    for name, line in LINES.items():
        axes.plot(results["steps"], np.mean(contenders[name]["losses"], axis=0), **line)
    axes.set(xlabel="steps", ylabel="validation loss, nats a byte")
    axes.grid(alpha=0.3, linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, handlelength=4, loc=(0.5, 0.5))
    return picture


if __name__ == "__main__":
    found = json.loads((DOCS / "results" / "half_precision.json").read_text(encoding="utf-8"))
    draw(found).savefig(DOCS / "bfloat16.png", dpi=120)
