"""Summaries, as tf.summary.scalar, histogram and text would write them: one for many tags.

A call of tf.summary.scalar costs 0.1 ms, and an optimizer has thousands of scalars.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from keras_yogi.statistics.collector import FIGURES, Sample

BUCKETS = 30
"""Of a histogram: tf.summary.histogram's default."""

HISTOGRAMS = {
    "effective_lr": "log₁₀ of the effective learning rate η / (√v̂ + ε)",
    "root_velocity": "log₁₀ of √v̂",
    "update": "log₁₀ of the size of the last update",
}
"""The terms of each weight that have histograms, with their descriptions."""

LAYOUT_FIGURES = (
    "effective_lr_median",
    "effective_lr_max",
    "update_to_weight_ratio",
    "epsilon_share",
)
"""The figures that have a card for each layer."""


def model_scalars(model: Mapping[str, float]) -> Any:
    """A summary of the model's figures."""
    from tensorboard.plugins.scalar import metadata  # type: ignore[import-untyped]

    rate = FIGURES["learning_rate"]  # of several optimizers, each has one
    rows = [(f"optimizer/{name}", FIGURES.get(name, rate), v) for name, v in model.items()]
    return _summary(rows, metadata, "float32")


def variable_scalars(variables: Mapping[str, Mapping[str, float]]) -> Any:
    """A summary of the figures of every variable."""
    from tensorboard.plugins.scalar import metadata

    rows = [
        (f"optimizer_{figure}/{name}", FIGURES[figure], value)
        for name, figures in variables.items()
        for figure, value in figures.items()
    ]
    return _summary(rows, metadata, "float32")


def histograms(samples: Mapping[str, Sample]) -> Any:
    """A summary of the terms in HISTOGRAMS, whose variables' weights are counted by layer."""
    from tensorboard.plugins.histogram import metadata  # type: ignore[import-untyped]

    values: dict[tuple[str, str], list[tuple[np.ndarray, np.ndarray]]] = {}
    for name, (terms, multiplicity) in samples.items():
        for term in HISTOGRAMS.keys() & terms.keys():
            with np.errstate(divide="ignore"):
                logarithms = np.log10(np.abs(terms[term].astype("float64")))
            values.setdefault((term, layer_of(name)), []).append((logarithms, multiplicity))
    rows = [
        (
            f"optimizer_log10_{term}/{layer}",
            HISTOGRAMS[term],
            buckets(*map(np.concatenate, zip(*v, strict=True))),
        )
        for (term, layer), v in sorted(values.items())
    ]
    return _summary(rows, metadata, "float64")


def buckets(values: np.ndarray, multiplicity: np.ndarray) -> np.ndarray:
    """Rows of left edge, right edge and count; values that are not finite are left out."""
    finite = np.isfinite(values)
    values, multiplicity = values[finite].astype("float64"), multiplicity[finite]
    if not len(values):
        return np.zeros((BUCKETS, 3))
    low, high = values.min(), values.max()
    least = 1e-9 * max(abs(low), abs(high), 1e-300)
    if high - low < least:  # too near to each other for edges between them
        low, high = low - 1e3 * least, high + 1e3 * least
    counts, edges = np.histogram(values, BUCKETS, (low, high), weights=multiplicity)
    return np.stack([edges[:-1], edges[1:], counts], axis=1)


def text(tag: str, markdown: str) -> Any:
    """A summary of one text."""
    from tensorboard.plugins.text import metadata  # type: ignore[import-untyped]

    return _summary([(tag, "about the optimizer", markdown)], metadata, "string")


def layout(names: Iterable[str]) -> Any:
    """A layout for the page of custom scalars: for every figure, one card a layer, with a line for
    each of its variables.
    """
    from tensorboard.plugins.custom_scalar import layout_pb2, summary  # type: ignore[import-untyped]

    pages = layout_pb2.Layout()
    for figure in LAYOUT_FIGURES:
        category = pages.category.add(title=figure)
        for layer in dict.fromkeys(map(layer_of, names)):
            chart = category.chart.add(title=layer)
            chart.multiline.tag.append(f"optimizer_{figure}/{re.escape(layer)}(/[^/]+)?$")
    return summary.pb(pages)


def layer_of(name: str) -> str:
    """The layer that a variable of this name belongs to."""
    return name.rpartition("/")[0] or name


def _summary(rows: Iterable[tuple[str, str, Any]], metadata: Any, dtype: str) -> Any:
    from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped]
    from tensorboard.util.tensor_util import make_tensor_proto  # type: ignore[import-untyped]

    summary = Summary()
    for tag, description, value in rows:
        about = metadata.create_summary_metadata(None, description)
        summary.value.add(tag=tag, metadata=about, tensor=make_tensor_proto(value, dtype))
    return summary
