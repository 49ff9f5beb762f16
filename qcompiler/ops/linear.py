"""``LinearW{bits}A8``, ``LinearT{bits}A8`` and their Static forms, each as an ONNX function.

The text below is the specification: what the op library computes is what these nodes compute, bit
for bit. It is also what an ONNX Runtime without the library runs. Everything that depends on
weights alone is folded when the session loads, so that an int8 matrix is left for MatMulInteger.
"""

from __future__ import annotations

import onnx

from qcompiler.ops._planes import (
    SIZES,
    codes_by_quad,
    grouped,
    matrix_attributes,
    matrix_inputs,
    weights_from_codes,
)
from qcompiler.ops._text import parse

# Dword c of a block is column c, its bytes are k .. k+3. From panels, strips, quads, columns, bytes
# to rows of k, in two steps because ONNX Runtime is fast at these two.
_CODES = """
    blocks_shape = Constant <value_ints = [0, 0, {bits}, 64]> ()
    blocks = Reshape (W, blocks_shape)
    {quads}
    columns_shape = Constant <value_ints = [0, 0, 8, 16, 4]> ()
    quads_by_column = Reshape (quads, columns_shape)
    quads_by_k = Transpose <perm = [0, 1, 2, 4, 3]> (quads_by_column)
    rows_by_panel = Transpose <perm = [1, 2, 3, 0, 4]> (quads_by_k)
    rows_padded = Flatten <axis = 3> (rows_by_panel)
    corner = Constant <value_ints = [0, 0]> ()
    k_n = Concat <axis = 0> (k_1d, n_1d)
    rows_of_codes = Slice (rows_padded, corner, k_n)
"""

# Codes [G, group_size, N], the last group made whole, and their bytes [G, 1, N]: these become 32
# bits wide, and are not spread over k for that.
_GROUPS = """
    groups_by_panel = Transpose <perm = [1, 0, 2]> (groups)
    groups_padded = Flatten <axis = 1> (groups_by_panel)
    axis_1 = Constant <value_ints = [1]> ()
    groups_by_column = Slice (groups_padded, axis_0, n_1d, axis_1)
    group_bytes = Unsqueeze (groups_by_column, axis_1)
    group_size = Constant <value_int : int = @group_size> ()
    group_size_1d = Unsqueeze (group_size, axis_0)
    group_count = Shape <start = 1, end = 2> (groups)
    k_whole = Mul (group_count, group_size_1d)
    k_missing = Sub (k_whole, k_1d)
    pads = Concat <axis = 0> (corner, k_missing, axis_0)
    rows_whole = Pad (rows_of_codes, pads)
    grouped_shape = Concat <axis = 0> (group_count, group_size_1d, n_1d)
    codes = Reshape (rows_whole, grouped_shape)
"""

_UNGROUPED = """
    w_whole_shape = Concat <axis = 0> (k_whole, n_1d)
    w_whole = Reshape (weights, w_whole_shape)
    w = Slice (w_whole, axis_0, k_1d, axis_0)
"""

# Rows are a matrix: with none, MatMulInteger of ONNX Runtime mistakes the shape of anything else.
# row_probe is 0 for a row of finite values and NaN for any other: added to the row's scale, it
# makes all of the row's results NaN, whatever its codes are.
_ROWS = """
    any_1d = Constant <value_ints = [-1]> ()
    rows_shape = Concat <axis = 0> (any_1d, k_1d)
    x_float = Cast <to = 1> (X)
    x = Reshape (x_float, rows_shape)
    row_axis = Constant <value_ints = [1]> ()
    nothing = Constant <value_float = 0.0> ()
    x_nothing = Mul (x, nothing)
    row_probe = ReduceSum <keepdims = 1> (x_nothing, row_axis)
"""

_DYNAMIC = """
    x_magnitudes = Abs (x)
    x_peaks = ReduceMax <keepdims = 1> (x_magnitudes, row_axis)
    x_steps = Constant <value_float = 127.0> ()
    x_raw_scales = Div (x_peaks, x_steps)
    x_is_zero = Equal (x_raw_scales, nothing)
    one_float = Constant <value_float = 1.0> ()
    x_scales = Where (x_is_zero, one_float, x_raw_scales)
"""

_STATIC = "x_scales = Identity (x_scale)\n"

# Positive and negative codes are multiplied apart, as rows of one matrix: of uint8 beyond 127 and
# int8, ONNX Runtime's MatMulInteger saturates where a CPU has AVX2 and no VNNI, and of two uint8 or
# two int8 it is slow. The bias is added by Sum: ONNX Runtime drops an Add of one 0, which makes -0
# of 0.
_PRODUCT = """
    x_quotients = Div (x, x_scales)
    x_rounded = Round (x_quotients)
    x_negated = Neg (x_rounded)
    x_both = Concat <axis = 0> (x_rounded, x_negated)
    code_max = Constant <value_float = 127.0> ()
    x_parts = Clip (x_both, nothing, code_max)
    x_bytes = Cast <to = 2> (x_parts)
    part_sums = MatMulInteger (x_bytes, w)
    row_count = Shape <start = 0, end = 1> (x)
    part_counts = Concat <axis = 0> (row_count, row_count)
    positive_sums, negative_sums = Split <axis = 0> (part_sums, part_counts)
    sums = Sub (positive_sums, negative_sums)
    sums_float = Cast <to = 1> (sums)
    y_by_column = Mul (sums_float, scales)
    row_scales = Add (x_scales, row_probe)
    y_by_row = Mul (y_by_column, row_scales)
    y_rows = Sum (y_by_row, bias)
    leading = Shape <start = 0, end = -1> (X)
    y_shape = Concat <axis = 0> (leading, n_1d)
    y_float = Reshape <allowzero = 1> (y_rows, y_shape)
    y = CastLike (y_float, X)
    sizes = Constant <value_ints : ints = @splits> ()
    Y0, Y1, Y2 = Split <axis = -1> (y, sizes)
"""


def linear_function(op_type: str, bits: int, *, levels: bool, static: bool) -> onnx.FunctionProto:
    """The function of one op type of the family; with `levels` codes number them."""
    scales = _STATIC if static else _DYNAMIC
    return parse(
        op_type,
        attributes=[*matrix_attributes(bits, levels=levels), "splits"],
        inputs=["X", *matrix_inputs(bits), "bias", *(["x_scale"] if static else [])],
        outputs=["Y0", "Y1", "Y2"],
        body=SIZES + _weights(bits, levels) + _ROWS + scales + _PRODUCT,
    )


def _weights(bits: int, levels: bool) -> str:
    """Nodes that make the int8 ``w`` [K, N] of the inputs that hold a matrix."""
    rows = _CODES.replace("{bits}", str(bits)).replace("{quads}", codes_by_quad(bits, 64))
    weights = weights_from_codes(bits, levels=levels)
    if grouped(bits):
        return rows + _GROUPS + weights + _UNGROUPED
    codes, w = "codes = Identity (rows_of_codes)\n", "w = Identity (weights)\n"
    return rows + codes + weights + w
