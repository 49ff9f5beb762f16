"""Pieces that the function bodies share, in ONNX's text syntax."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx
import onnx.parser

DOMAIN = "ai.qcompiler"
CONTRIB_DOMAIN = "com.microsoft"
"""Of ONNX Runtime's own operators."""
ONNX_OPSET = 21

SIZES = """
    k = Constant <value_int : int = @K> ()
    n = Constant <value_int : int = @N> ()
    group = Constant <value_int : int = @group_size> ()
    one = Constant <value_int = 1> ()
    start_0 = Constant <value_ints = [0]> ()
    axis_0 = Constant <value_ints = [0]> ()
    k_1d = Unsqueeze (k, axis_0)
    n_1d = Unsqueeze (n, axis_0)
"""
"""K and N as scalars and as one-element vectors, and small constants."""

# Codes in order k, column: dword c of a block is column c, its bytes are k .. k+3.
_QUADS = {
    4: """
    low_bits = Constant <value = uint8 {15}> ()
    four = Constant <value = uint8 {4}> ()
    low = BitwiseAnd (W, low_bits)
    high = BitShift <direction = "RIGHT"> (W, four)
    quad_shape = Constant <value_ints = [0, 0, 16, 1, 4]> ()
    low_quads = Reshape (low, quad_shape)
    high_quads = Reshape (high, quad_shape)
    quads = Concat <axis = 3> (low_quads, high_quads)
""",
    8: """
    quad_shape = Constant <value_ints = [0, 0, 16, 1, 4]> ()
    quads = Reshape (W, quad_shape)
""",
}

# Groups are spread over k by an index, so that the last one may be short.
_DEQUANTIZE = """
    by_k = Transpose <perm = [1, 3, 4, 0, 2]> (quads)
    panel = Constant <value_int = 16> ()
    n_up = Add (n, panel)
    n_up_1 = Sub (n_up, one)
    panels = Div (n_up_1, panel)
    n_padded = Mul (panels, panel)
    n_padded_1d = Unsqueeze (n_padded, axis_0)
    any_rows = Constant <value_ints = [-1]> ()
    matrix_shape = Concat <axis = 0> (any_rows, n_padded_1d)
    codes_padded = Reshape (by_k, matrix_shape)
    corner = Constant <value_ints = [0, 0]> ()
    k_n = Concat <axis = 0> (k_1d, n_1d)
    both_axes = Constant <value_ints = [0, 1]> ()
    codes = Slice (codes_padded, corner, k_n, both_axes)
    codes_float = Cast <to = 1> (codes)
    group_shape = Shape (scales)
    zero_points_all = Expand (zero_points, group_shape)
    zero_points_by_group = Transpose <perm = [1, 0, 2]> (zero_points_all)
    zero_points_matrix = Reshape (zero_points_by_group, matrix_shape)
    zero_points_float = Cast <to = 1> (zero_points_matrix)
    scales_by_group = Transpose <perm = [1, 0, 2]> (scales)
    scales_matrix = Reshape (scales_by_group, matrix_shape)
    scales_float = Cast <to = 1> (scales_matrix)
    last_axis = Constant <value_ints = [1]> ()
    zero_points_cut = Slice (zero_points_float, start_0, n_1d, last_axis)
    scales_cut = Slice (scales_float, start_0, n_1d, last_axis)
    first_k = Constant <value_int = 0> ()
    ks = Range (first_k, k, one)
    group_of_k = Div (ks, group)
    zero_points_k = Gather <axis = 0> (zero_points_cut, group_of_k)
    scales_k = Gather <axis = 0> (scales_cut, group_of_k)
    centered = Sub (codes_float, zero_points_k)
    w_dequantized = Mul (centered, scales_k)
"""


def unpack_weights(bits: int) -> str:
    """Nodes that make ``w_dequantized``, float [K, N], from W, scales and zero_points."""
    return SIZES + _QUADS[bits] + _DEQUANTIZE


def parse(
    op_type: str,
    *,
    attributes: Sequence[str],
    inputs: Sequence[str],
    outputs: Sequence[str],
    body: str,
    domains: Mapping[str, int] = {},
) -> onnx.FunctionProto:
    """A function of our domain from its body's text; `domains` are those it uses beside ONNX's."""
    imports = ", ".join(
        f'"{each}" : {at}' for each, at in ({"": ONNX_OPSET} | dict(domains)).items()
    )
    names = f"<{', '.join(attributes)}>" if attributes else ""
    signature = f"{op_type} {names} ({', '.join(inputs)})"
    return onnx.parser.parse_function(
        f'<opset_import : [{imports}], domain : "{DOMAIN}">\n'
        f"{signature} => ({', '.join(outputs)}) {{{body}}}"
    )
