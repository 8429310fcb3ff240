"""Summaries as tf.summary.scalar, histogram and text would write them, each of many tags.

A call of tf.summary.scalar costs 0.1 ms, and an optimizer has thousands of scalars.
"""

import importlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from keras_yogi.statistics.collector import FIGURES, Sample

BUCKETS = 30  # of a histogram: tf.summary.histogram's default
HISTOGRAMS = {
    "effective_lr": "log₁₀ of the effective learning rate η / (√v̂ + ε)",
    "root_velocity": "log₁₀ of √v̂",
    "update": "log₁₀ of the size of the last update",
}
"""The terms of each weight that have histograms, with their descriptions."""
LAYOUT_FIGURES = (
    *("effective_lr_median", "effective_lr_max"),
    *("update_to_weight_ratio", "epsilon_share"),
)
"""The figures that have a card for each layer."""


def scalars(figures: Mapping[str, float], tag: str) -> list[tuple[str, str, float]]:
    """Rows for `summary`: a tag in which the figure's name stands for {}, description, value."""
    rate = FIGURES["learning_rate"]  # with several optimizers, learning_rate_<name>
    return [(tag.format(name), FIGURES.get(name, rate), value) for name, value in figures.items()]


def histograms(samples: Mapping[str, Sample]) -> list[tuple[str, str, np.ndarray]]:
    """Rows for `summary`: how often the terms in HISTOGRAMS have which size in each layer."""
    columns: dict[tuple[str, str], list[tuple[np.ndarray, np.ndarray]]] = {}
    for name, (terms, multiplicity) in samples.items():
        for term in HISTOGRAMS.keys() & terms.keys():
            with np.errstate(divide="ignore"):
                logarithms = np.log10(np.abs(terms[term].astype("float64")))
            columns.setdefault((term, layer_of(name)), []).append((logarithms, multiplicity))
    rows = []
    for (term, layer), parts in sorted(columns.items()):
        values, multiplicity = map(np.concatenate, zip(*parts, strict=True))
        tag = f"optimizer_log10_{term}/{layer}"
        rows.append((tag, HISTOGRAMS[term], buckets(values, multiplicity)))
    return rows


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


def summary(plugin: str, rows: Iterable[tuple[str, str, Any]]) -> Any:
    """A tf.Summary of tags, descriptions and values for a plugin: scalar, histogram or text."""
    from tensorboard.compat.proto import summary_pb2, tensor_pb2, types_pb2  # type: ignore[import-untyped]
    from tensorboard.util.tensor_util import make_tensor_proto  # type: ignore[import-untyped]

    metadata = importlib.import_module(f"tensorboard.plugins.{plugin}.metadata")
    found, number = summary_pb2.Summary(), tensor_pb2.TensorProto(dtype=types_pb2.DT_FLOAT)
    number.tensor_shape.SetInParent()
    for tag, description, value in rows:
        about = metadata.create_summary_metadata(None, description)
        added = found.value.add(tag=tag, metadata=about)
        if plugin == "scalar":  # make_tensor_proto takes 0.05 ms
            added.tensor.CopyFrom(number)
            added.tensor.float_val.append(value)
        else:
            added.tensor.CopyFrom(make_tensor_proto(value))
    return found


def layout(names: Iterable[str]) -> Any:
    """A tf.Summary for the page of custom scalars: for every figure, one card a layer, with a line
    for each of its variables.
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
