"""Weights in float16 and bfloat16, and the digits that these dtypes cannot hold.

In bfloat16, 1 − 0.001 is 1: a weight kept in bfloat16 alone would never move. A float32 weight w is
therefore stored in two parts of 16 bits:

    w = variable + residual

The variable is w rounded to half precision; the model computes with it. The residual is stored as
an int16, in parts of 2⁻¹⁶ of the variable's last binary digit. It lies between −½ and ½ of that
digit:

    residual = ± stored · ulp(variable) / 2¹⁶            (± is the variable's sign)

In bfloat16 the stored number is the low 16 bits of w, and the sum is exactly w. In float16 the sum
is exactly w for |w| ≥ 2⁻¹⁷; below, it is w rounded to a multiple of 2⁻⁴⁰.

The residual is relative to the variable. So a residual that is out of date moves a weight by at
most half a unit in the variable's last place: a variable that was set from outside keeps its value.

All of this is computed with integers: a compiler may remove the casts float32 → bfloat16 → float32,
and the residual would be zero.
"""

from typing import Any

import keras
from keras import ops

Tensor = Any
HALF = ("float16", "bfloat16")
RESIDUAL = "residual"
"""The name of the residual's slot."""

if keras.config.backend() == "tensorflow":
    import tensorflow as tf

    def _bitcast(x: Tensor, dtype: str) -> Tensor:
        return tf.bitcast(x, dtype)

elif keras.config.backend() == "jax":
    import jax

    def _bitcast(x: Tensor, dtype: str) -> Tensor:
        return jax.lax.bitcast_convert_type(x, dtype)

else:

    def _bitcast(x: Tensor, dtype: str) -> Tensor:
        import torch

        return x.view(getattr(torch, dtype))


def is_half(dtype: Any) -> bool:
    """Whether a dtype is float16 or bfloat16."""
    return keras.backend.standardize_dtype(dtype) in HALF


def compute_dtype(dtype: Any) -> str:
    """The dtype in which variables of this dtype are updated.

    Half precision holds neither 1 − β₂ = 0.001 next to 1 nor ε = 1e-8. float64 stays float64.
    """
    return "float32" if is_half(dtype) else keras.backend.standardize_dtype(dtype)


def slot_dtype(name: str, dtype: Any) -> str:
    """The dtype of the slot of this name, for a variable of this dtype."""
    return "int16" if name == RESIDUAL else compute_dtype(dtype)


def join(variable: Tensor, stored: Tensor) -> Tensor:
    """The float32 weights.

    Args:
        variable: in float16 or bfloat16.
        stored: the residual as it is stored, in int16.
    """
    bits, stored = _int32(_bitcast(variable, "int16")), _int32(stored)
    if keras.backend.standardize_dtype(variable.dtype) == "bfloat16":
        # A residual that is out of date must not turn zero or infinity into NaN.
        magnitude = _and(bits, 0x7FFF)
        has_residual = ops.logical_and(magnitude > 0, magnitude < 0x7F80)
        low = ops.where(has_residual, stored, ops.zeros_like(stored))
        return _bitcast(_left(bits, 16) + low, "float32")
    # With a residual that is out of date the sum must still round to the variable. Below a power of
    # two digits are half as wide; ties round to even, and float32 keeps multiples of 8 parts.
    is_power = _and(bits, 1023) == 0
    most = ops.where(_and(bits, 1) == 0, _int32(0x8000), _int32(0x7FF8))
    least = ops.where(is_power, _int32(-0x4000), -most)
    within = ops.where(stored < least, least, ops.where(stored > most, most, stored))
    magnitude = ops.cast(
        _in_parts(bits) + ops.where(_exponent(bits) > 1, within, stored), "float32"
    )
    weights = _signed(magnitude * _part(bits), bits)
    return ops.where(_exponent(bits) == 31, ops.cast(variable, "float32"), weights)


def split(weights: Tensor, dtype: Any) -> tuple[Tensor, Tensor]:
    """The reverse of `join`: splits weights into the two stored parts.

    Args:
        weights: in float32.
        dtype: the variable's dtype: float16 or bfloat16.

    Returns:
        The variable's value, and the residual in int16.
    """
    if keras.backend.standardize_dtype(dtype) == "bfloat16":
        nan = ops.isnan(weights)
        bits = ops.where(nan, ops.full_like(_bits(weights), 0x7FC00000), _bits(weights))
        # Ties round up: to even, a residual could be 2¹⁵, which int16 cannot hold.
        top = _right(bits + 0x8000, 16)
        low = bits - _left(top, 16)
        return _bitcast(ops.cast(top, "int16"), "bfloat16"), ops.cast(low, "int16")
    variable = ops.cast(weights, "float16")
    bits = _int32(_bitcast(variable, "int16"))
    finite = _exponent(bits) < 31
    magnitude = ops.where(finite, _signed(weights, bits), ops.zeros_like(weights))
    low = ops.cast(ops.round(magnitude / _part(bits)), "int32") - _in_parts(bits)
    low = ops.where(finite, ops.clip(low, -0x8000, 0x7FFF), ops.zeros_like(low))
    return variable, ops.cast(low, "int16")


def residual(variable: Tensor, stored: Tensor) -> Tensor:
    """The float32 difference between the weights and the variable."""
    return join(variable, stored) - ops.cast(variable, "float32")


def read(variable: Any, slot: Any = None) -> Tensor:
    """The full weights in the dtype of the computation.

    Args:
        variable: a model variable, or its value.
        slot: its residual, or None if it keeps none.
    """
    value = ops.convert_to_tensor(variable)
    if slot is not None:
        return join(value, ops.convert_to_tensor(slot))
    return ops.cast(value, compute_dtype(value.dtype))


def write(variable: Any, slot: Any, weights: Tensor) -> None:
    """The reverse of `read`: stores weights in a model variable and its residual, if any."""
    if slot is not None:
        weights, stored = split(weights, variable.dtype)
        slot.assign(stored)
    variable.assign(ops.cast(weights, variable.dtype))


def _bits(weights: Tensor) -> Tensor:
    return _bitcast(weights, "int32")


def _int32(x: Tensor) -> Tensor:
    return ops.cast(x, "int32") if ops.is_tensor(x) else ops.convert_to_tensor(x, "int32")


# Keras may make floats of Python's whole numbers: JAX does if `floatx` is "bfloat16".


def _and(bits: Tensor, mask: int) -> Tensor:
    return ops.bitwise_and(bits, _int32(mask))


def _left(bits: Tensor, places: int) -> Tensor:
    return ops.left_shift(bits, _int32(places))


def _right(bits: Tensor, places: int) -> Tensor:
    return ops.right_shift(bits, _int32(places))


# float16 from its bits. A part is 2⁻¹⁶ of a value's last binary digit.


def _exponent(bits: Tensor) -> Tensor:
    """The exponent field: 0 below 2⁻¹⁴, 31 for infinity and NaN."""
    return _and(_right(bits, 10), 31)


def _in_parts(bits: Tensor) -> Tensor:
    """A value's magnitude as a whole number of parts."""
    digits = _and(bits, 1023)
    return _left(ops.where(_exponent(bits) > 0, digits + 1024, digits), 16)


def _signed(x: Tensor, bits: Tensor) -> Tensor:
    """`x`, negated where the value of `bits` is negative."""
    return ops.where(bits < 0, -x, x)


def _part(bits: Tensor) -> Tensor:
    """The size of one part in float32: a power of two, made from its exponent field."""
    exponent = ops.where(_exponent(bits) > 1, _exponent(bits), ops.ones_like(bits))
    return _bitcast(_left(exponent + 86, 23), "float32")
