"""``EmbeddingW{bits}`` and ``EmbeddingT{bits}`` as ONNX functions: rows of a packed table.

They read the very tensors an output head's Linear uses, so a tied table is stored once. The bodies
gather first and expand the few rows they got.
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

# An id outside -N .. N-1 is refused by the Gather of scales; Mod counts negative ones from the end.
_CODES = """
    ids_long = Cast <to = 7> (ids)
    any_1d = Constant <value_ints = [-1]> ()
    ids_flat = Reshape (ids_long, any_1d)
    scales_of_rows = Gather <axis = 0> (scales, ids_flat)
    columns = Mod (ids_flat, n)
    panel = Constant <value_int = 16> ()
    panels = Div (columns, panel)
    lanes = Mod (columns, panel)

    zero = Constant <value_int = 0> ()
    one = Constant <value_int = 1> ()
    strip = Constant <value_int = 32> ()
    k_up = Add (k, strip)
    k_up_1 = Sub (k_up, one)
    strips = Div (k_up_1, strip)
    strip_blocks = Constant <value_int = {bits}> ()
    block_count = Mul (strips, strip_blocks)
    block_numbers_flat = Range (zero, block_count, one)
    block_shape = Constant <value_ints = [-1, {bits}]> ()
    block_numbers = Reshape (block_numbers_flat, block_shape)
    dword_axes = Constant <value_ints = [1, 2]> ()
    panels_3d = Unsqueeze (panels, dword_axes)
    lanes_3d = Unsqueeze (lanes, dword_axes)
    first_blocks = Mul (panels_3d, block_count)
    blocks_of = Add (first_blocks, block_numbers)
    first_dwords = Mul (blocks_of, panel)
    dwords_of = Add (first_dwords, lanes_3d)
    dword_shape = Constant <value_ints = [-1, 4]> ()
    dwords = Reshape (W, dword_shape)
    blocks = Gather <axis = 0> (dwords, dwords_of)
    {quads}
    count_1d = Shape (ids_flat)
    k_padded = Mul (strips, strip)
    k_padded_1d = Unsqueeze (k_padded, axis_0)
    rows_shape = Concat <axis = 0> (count_1d, k_padded_1d)
    codes_padded = Reshape <allowzero = 1> (quads, rows_shape)
    last = Constant <value_ints = [1]> ()
    codes = Slice (codes_padded, axis_0, k_1d, last)
"""

_GROUPS = """
    group_size = Constant <value_int : int = @group_size> ()
    ks = Range (zero, k, one)
    group_of_k = Div (ks, group_size)
    group_count = Shape <start = 1, end = 2> (groups)
    panels_2d = Unsqueeze (panels, last)
    lanes_2d = Unsqueeze (lanes, last)
    first_groups = Mul (panels_2d, group_count)
    groups_of = Add (first_groups, group_of_k)
    first_bytes = Mul (groups_of, panel)
    bytes_of = Add (first_bytes, lanes_2d)
    all_groups = Reshape (groups, any_1d)
    group_bytes = Gather <axis = 0> (all_groups, bytes_of)
"""

_ROWS = """
    w = Cast <to = 1> (weights)
    scales_2d = Unsqueeze (scales_of_rows, last)
    rows = Mul (w, scales_2d)
    ids_shape = Shape (ids)
    y_shape = Concat <axis = 0> (ids_shape, k_1d)
    Y = Reshape <allowzero = 1> (rows, y_shape)
"""


def embedding_function(op_type: str, bits: int, *, levels: bool) -> onnx.FunctionProto:
    """The function of one op type of the family; with `levels` codes number them."""
    codes = _CODES.replace("{bits}", str(bits)).replace("{quads}", codes_by_quad(bits, 4))
    if grouped(bits):
        codes += _GROUPS
    return parse(
        op_type,
        attributes=matrix_attributes(bits, levels=levels),
        inputs=["ids", *matrix_inputs(bits)],
        outputs=["Y"],
        body=SIZES + codes + weights_from_codes(bits, levels=levels) + _ROWS,
    )
