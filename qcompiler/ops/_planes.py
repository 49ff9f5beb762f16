"""Pieces of function bodies that read packed weights (`qcompiler.numerics.planes`)."""

from __future__ import annotations

from qcompiler.numerics.planes import planes


def grouped(bits: int) -> bool:
    """Whether codes of so many bits have groups."""
    return bits < 8


def matrix_attributes(bits: int, *, levels: bool) -> list[str]:
    """The attributes that describe a matrix; with `levels` its codes number them."""
    group_size = ["group_size"] if grouped(bits) else []
    return ["K", "N", *group_size, *(["levels", "zero"] if levels else []), "layout"]


def matrix_inputs(bits: int) -> list[str]:
    """The inputs that hold a matrix."""
    return ["W", *(["groups"] if grouped(bits) else []), "scales"]


SIZES = """
    k = Constant <value_int : int = @K> ()
    n = Constant <value_int : int = @N> ()
    axis_0 = Constant <value_ints = [0]> ()
    k_1d = Unsqueeze (k, axis_0)
    n_1d = Unsqueeze (n, axis_0)
"""
"""K and N as scalars and as one-element vectors."""


def codes_by_quad(bits: int, width: int) -> str:
    """Nodes that make ``quads`` from ``blocks``, both uint8: of every strip all codes, in order.

    blocks [A, strips, bits, width] -> quads [A, strips, 8, width], where `width` counts the bytes
    taken of a block: codes of 4 k for each column.
    """
    if not grouped(bits):
        return "quads = Identity (blocks)\n"
    low, *high = planes(bits)
    text = f"""
    planes_axis = Constant <value_ints = [2]> ()
    field_axis = Constant <value_ints = [3]> ()
    quads_shape = Constant <value_ints = [0, 0, 8, {width}]> ()
    {_plane("low", low, 0, low)}
    """
    if not high:
        return text + "quads = Identity (low_codes)\n"
    return f"""{text}
    {_plane("high", high[0], low, bits)}
    low_bits = Constant <value = uint8 {{{low}}}> ()
    high_codes_up = BitShift <direction = "LEFT"> (high_codes, low_bits)
    quads = BitwiseOr (low_codes, high_codes_up)
"""


def _plane(name: str, width: int, start: int, end: int) -> str:
    """Nodes that make the `width` bits of each code that blocks `start` .. `end` - 1 hold."""
    shifts = list(range(0, 8, width))
    return f"""
    {name}_start = Constant <value_ints = [{start}]> ()
    {name}_end = Constant <value_ints = [{end}]> ()
    {name}_blocks = Slice (blocks, {name}_start, {name}_end, planes_axis)
    {name}_bytes = Unsqueeze ({name}_blocks, field_axis)
    {name}_shifts = Constant <value = uint8[{len(shifts)}, 1] {{{", ".join(map(str, shifts))}}}> ()
    {name}_shifted = BitShift <direction = "RIGHT"> ({name}_bytes, {name}_shifts)
    {name}_mask = Constant <value = uint8 {{{(1 << width) - 1}}}> ()
    {name}_fields = BitwiseAnd ({name}_shifted, {name}_mask)
    {name}_codes = Reshape ({name}_fields, quads_shape)
"""


_NUMBERS = """
    numbers = Cast <to = 6> (codes)
    zero_points = Cast <to = 6> (zero_bytes)
"""

# Numbers of levels: wide as indices, bytes again as levels.
_LEVELS = """
    levels_long = Constant <value_ints : ints = @levels> ()
    levels = Cast <to = 2> (levels_long)
    level_numbers = Cast <to = 6> (codes)
    level_bytes = Gather <axis = 0> (levels, level_numbers)
    numbers = Cast <to = 6> (level_bytes)
    first_zero_long = Constant <value_int : int = @zero> ()
    first_zero = Cast <to = 6> (first_zero_long)
    zeros_above = Cast <to = 6> (zero_bytes)
    zero_points = Add (zeros_above, first_zero)
"""


def weights_from_codes(bits: int, *, levels: bool) -> str:
    """Nodes that make the int8 ``weights`` from ``codes`` and ``group_bytes``, all of one shape.

    `group_bytes` has the byte of each code's group, or broadcasts to that, and is not read for 8
    bits. With `levels`, the node's attribute of this name says what codes stand for. ONNX casts
    integers to narrower ones modulo 256.
    """
    if not grouped(bits):
        return "weights = Cast <to = 3> (codes)\n"
    return f"""
    zero_mask = Constant <value = uint8 {{{(1 << bits) - 1}}}> ()
    zero_bytes = BitwiseAnd (group_bytes, zero_mask)
    multiple_shift = Constant <value = uint8 {{{bits}}}> ()
    multiple_bytes = BitShift <direction = "RIGHT"> (group_bytes, multiple_shift)
    {_LEVELS if levels else _NUMBERS}
    multiples_less_1 = Cast <to = 6> (multiple_bytes)
    one_value = Constant <value = int32 {{1}}> ()
    multiples = Add (multiples_less_1, one_value)
    centered = Sub (numbers, zero_points)
    products = Mul (centered, multiples)
    weights = Cast <to = 3> (products)
"""
