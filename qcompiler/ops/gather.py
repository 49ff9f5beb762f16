"""``GatherW8`` as an ONNX function: rows of an embedding table kept in packed 8-bit form.

It reads the very tensors a ``MatMulW8A8`` output head uses, so a tied table is stored once. The
body gathers first and dequantizes the few rows it got.
"""

from __future__ import annotations

import onnx

from qcompiler.ops._text import SIZES, parse

# An id outside -N .. N-1 is sent past the last panel, where Gather refuses it.
_BODY = """
    ids_long = Cast <to = 7> (ids)
    zero = Constant <value_int = 0> ()
    ids_negative = Less (ids_long, zero)
    ids_from_end = Add (ids_long, n)
    ids_wrapped = Where (ids_negative, ids_from_end, ids_long)
    ids_low = Less (ids_wrapped, zero)
    ids_high = GreaterOrEqual (ids_wrapped, n)
    ids_wrong = Or (ids_low, ids_high)
    panel = Constant <value_int = 16> ()
    n_past = Add (n, panel)
    columns = Where (ids_wrong, n_past, ids_wrapped)
    last = Constant <value_ints = [-1]> ()
    columns_last = Unsqueeze (columns, last)
    panel_of = Div (columns_last, panel)
    panel_start = Mul (panel_of, panel)
    lane_of = Sub (columns_last, panel_start)

    four = Constant <value_int = 4> ()
    k_up = Add (k, four)
    k_up_1 = Sub (k_up, one)
    blocks = Div (k_up_1, four)
    block_numbers = Range (zero, blocks, one)
    panel_blocks = Mul (panel_of, blocks)
    block_of = Add (panel_blocks, block_numbers)
    block_start = Mul (block_of, panel)
    quad_of = Add (block_start, lane_of)
    quad_shape = Constant <value_ints = [-1, 4]> ()
    all_quads = Reshape (W, quad_shape)
    quads = Gather <axis = 0> (all_quads, quad_of)
    ids_shape = Shape (ids)
    row_length = Mul (blocks, four)
    row_length_1d = Unsqueeze (row_length, axis_0)
    rows_shape = Concat <axis = 0> (ids_shape, row_length_1d)
    rows_padded = Reshape <allowzero = 1> (quads, rows_shape)
    codes = Slice (rows_padded, start_0, k_1d, last)
    codes_float = Cast <to = 1> (codes)

    k_groups_up = Add (k, group)
    k_groups_up_1 = Sub (k_groups_up, one)
    groups = Div (k_groups_up_1, group)
    ks = Range (zero, k, one)
    group_of_k = Div (ks, group)
    panel_groups = Mul (panel_of, groups)
    group_of = Add (panel_groups, group_of_k)
    group_start = Mul (group_of, panel)
    scale_of = Add (group_start, lane_of)
    all_scales = Reshape (scales, last)
    scales_half = Gather <axis = 0> (all_scales, scale_of)
    scales_float = Cast <to = 1> (scales_half)
    all_zero_points = Reshape (zero_points, last)
    zero_point_count = Size (zero_points)
    zero_point_of = Mod (scale_of, zero_point_count)
    zero_points_byte = Gather <axis = 0> (all_zero_points, zero_point_of)
    zero_points_float = Cast <to = 1> (zero_points_byte)
    centered = Sub (codes_float, zero_points_float)
    Y = Mul (centered, scales_float)
"""


def gather_function(op_type: str) -> onnx.FunctionProto:
    """The function of ``GatherW8``."""
    return parse(
        op_type,
        attributes=["K", "N", "group_size", "layout"],
        inputs=["ids", "W", "scales", "zero_points"],
        outputs=["Y"],
        body=SIZES + _BODY,
    )
