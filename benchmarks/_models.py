"""Models that several benchmarks train."""

from typing import Any

import keras
from keras import layers


def attention_block(x: Any, width: int, heads: int) -> Any:
    y = layers.MultiHeadAttention(heads, width // heads)(x, x)
    x = layers.LayerNormalization()(layers.Add()([x, y]))
    y = layers.Dense(width)(layers.Dense(2 * width, activation="relu")(x))
    return layers.LayerNormalization()(layers.Add()([x, y]))


def transformer(
    blocks: int = 2, width: int = 64, heads: int = 4, words: int = 1000, length: int = 32
) -> keras.Model:
    """One number of each text of `length` words."""
    text = keras.Input((length,), dtype="int32")
    x = layers.Embedding(words, width)(text)
    for _ in range(blocks):
        x = attention_block(x, width, heads)
    return keras.Model(text, layers.Dense(1)(layers.GlobalAveragePooling1D()(x)))
