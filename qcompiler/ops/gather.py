"""``GatherW4`` and ``GatherW8`` as ONNX functions: rows of an embedding table in packed form.

They read the very tensors an output head's MatMul uses, so a tied table is stored once. The bodies
gather first and dequantize the few rows they got.
"""

from __future__ import annotations

import onnx

from qcompiler.formats import depth
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

    depth = Constant <value_int = {depth}> ()
    k_up = Add (k, depth)
    k_up_1 = Sub (k_up, one)
    blocks = Div (k_up_1, depth)
    block_numbers = Range (zero, blocks, one)
    panel_blocks = Mul (panel_of, blocks)
    block_of = Add (panel_blocks, block_numbers)
    block_start = Mul (block_of, panel)
    quad_of = Add (block_start, lane_of)
    quad_shape = Constant <value_ints = [-1, 4]> ()
    all_quads = Reshape (W, quad_shape)
    quads = Gather <axis = 0> (all_quads, quad_of)
    {unpack}
    ids_shape = Shape (ids)
    row_length = Mul (blocks, depth)
    row_length_1d = Unsqueeze (row_length, axis_0)
    rows_shape = Concat <axis = 0> (ids_shape, row_length_1d)
    rows_padded = Reshape <allowzero = 1> ({codes}, rows_shape)
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


# By width, what gives codes in order of k and their name: of 4 bits the low nibbles of a block,
# then the high ones.
_UNPACK = {
    4: (
        """
    low_bits = Constant <value = uint8 {15}> ()
    four_bits = Constant <value = uint8 {4}> ()
    low = BitwiseAnd (quads, low_bits)
    high = BitShift <direction = "RIGHT"> (quads, four_bits)
    row_codes = Concat <axis = -1> (low, high)
""",
        "row_codes",
    ),
    8: ("", "quads"),
}


def gather_function(op_type: str, bits: int) -> onnx.FunctionProto:
    """The function of one op type of the family."""
    unpack, codes = _UNPACK[bits]
    body = _BODY.replace("{depth}", str(depth(bits)))
    body = body.replace("{unpack}", unpack).replace("{codes}", codes)
    return parse(
        op_type,
        attributes=["K", "N", "group_size", "layout"],
        inputs=["ids", "W", "scales", "zero_points"],
        outputs=["Y"],
        body=SIZES + body,
    )
