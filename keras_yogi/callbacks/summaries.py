"""Records of TensorBoard summaries, as tf.summary.scalar, histogram and text would write them.

One call of tf.summary.scalar costs 0.1 ms. Here a record holds thousands, and is made once; a step
fills in the numbers.
"""

import re
from collections.abc import Sequence

import numpy as np

from keras_yogi.callbacks.event_file import varint

BUCKETS = 30
"""Of a histogram: tf.summary.histogram's default."""


class Scalars:
    """A scalar for each of some tags.

    The record is laid out once, so that the four bytes of each number are the last of its value;
    protocol buffers leave the order of fields free.
    """

    def __init__(self, tags: Sequence[str]) -> None:
        from tensorboard.compat.proto import summary_pb2, tensor_pb2, types_pb2  # type: ignore[import-untyped]
        from tensorboard.plugins.scalar import metadata  # type: ignore[import-untyped]

        # A tensor that holds one float, which is its last field.
        number = tensor_pb2.TensorProto(dtype=types_pb2.DT_FLOAT, float_val=[0.0])
        number.tensor_shape.SetInParent()
        about = metadata.create_summary_metadata(None, None)
        record, ends = bytearray(), []
        for tag in tags:
            value = summary_pb2.Summary.Value(tag=tag, metadata=about).SerializeToString()
            value += summary_pb2.Summary.Value(tensor=number).SerializeToString()
            record += _FIELD_OF_VALUES + varint(len(value)) + value
            ends.append(len(record))
        self._record = np.frombuffer(record, "uint8")
        self._places = np.array(ends, "int64")[:, None] + np.arange(-4, 0)

    def serialized(self, values: np.ndarray) -> bytes:
        """The record, given one value a tag."""
        numbers = values.astype("<f4")
        self._record[self._places] = numbers.view("uint8").reshape(-1, 4)
        return self._record.tobytes()


_FIELD_OF_VALUES = b"\x0a"
"""Of tf.Summary: field 1, of a length that follows."""


def histograms(of_tags: dict[str, tuple[np.ndarray, np.ndarray]]) -> bytes:
    """A record of histograms.

    Args:
        of_tags: for each tag values, and how often each of them counts. Values that are not finite
            are left out.
    """
    from tensorboard.compat.proto import summary_pb2
    from tensorboard.plugins.histogram import metadata  # type: ignore[import-untyped]
    from tensorboard.util import tensor_util  # type: ignore[import-untyped]

    summary = summary_pb2.Summary()
    for tag, (values, weights) in of_tags.items():
        finite = np.isfinite(values)
        counts, edges = np.histogram(values[finite], BUCKETS, weights=weights[finite])
        buckets = np.stack([edges[:-1], edges[1:], counts], axis=1) if finite.any() else None
        summary.value.add(
            tag=tag,
            metadata=metadata.create_summary_metadata(None, None),
            tensor=tensor_util.make_tensor_proto(
                np.zeros((BUCKETS, 3)) if buckets is None else buckets, dtype="float64"
            ),
        )
    return summary.SerializeToString()


def text(tag: str, markdown: str) -> bytes:
    """A record of one text."""
    from tensorboard.compat.proto import summary_pb2
    from tensorboard.plugins.text import metadata  # type: ignore[import-untyped]
    from tensorboard.util import tensor_util

    summary = summary_pb2.Summary()
    summary.value.add(
        tag=tag,
        metadata=metadata.create_summary_metadata(None, None),
        tensor=tensor_util.make_tensor_proto(markdown, dtype="string"),
    )
    return summary.SerializeToString()


def cards(layers: Sequence[str], figures: Sequence[str]) -> bytes:
    """A layout for TensorBoard's page of custom scalars: for every figure one card a layer, with a
    line for each of its variables.
    """
    from tensorboard.plugins.custom_scalar import layout_pb2, summary  # type: ignore[import-untyped]

    layout = layout_pb2.Layout()
    for figure in figures:
        category = layout.category.add(title=figure)
        for layer in layers:
            chart = category.chart.add(title=layer)
            chart.multiline.tag.append(f"optimizer_layers/{re.escape(layer)}/[^/]+/{figure}$")
    return summary.pb(layout).SerializeToString()
