"""``MatMulW4A8``, ``MatMulW8A8`` and their ``Static`` forms, each as an ONNX function.

The text below is the specification: what the op library computes is what these nodes compute. It
is also what an ONNX Runtime without the library runs; everything that depends on weights alone is
folded when the session loads.
"""

from __future__ import annotations

import onnx

from qcompiler.ops._text import parse, unpack_weights

_STATIC = """
    one_shape = Constant <value_ints = [-1, 1]> ()
    x_scale_2d = Reshape (x_scale, one_shape)
    x_quotients = Div (x_rows, x_scale_2d)
    x_rounded = Round (x_quotients)
    x_codes = Clip (x_rounded, code_min, code_max)
    x_scaled = Mul (x_codes, x_scale_2d)
    x_dequantized = Add (x_scaled, row_probe)
"""

# Blocks are padded with zeros to a whole number, quantized and cut back: plain ops, because blocked
# QuantizeLinear came late to ONNX Runtime.
_DYNAMIC = """
    block = Constant <value_int : int = @activation_block> ()
    blocks_up = Add (k, block)
    blocks_up_1 = Sub (blocks_up, one)
    blocks = Div (blocks_up_1, block)
    k_padded = Mul (blocks, block)
    pad_length = Sub (k_padded, k)
    pad_length_1d = Unsqueeze (pad_length, axis_0)
    pad_zeros = Constant <value_ints = [0, 0, 0]> ()
    pads = Concat <axis = 0> (pad_zeros, pad_length_1d)
    zero_float = Constant <value_float = 0.0> ()
    x_padded = Pad (x_rows, pads, zero_float)
    any_1d = Constant <value_ints = [-1]> ()
    blocks_1d = Unsqueeze (blocks, axis_0)
    block_1d = Unsqueeze (block, axis_0)
    blocked_shape = Concat <axis = 0> (any_1d, blocks_1d, block_1d)
    x_blocks = Reshape (x_padded, blocked_shape)
    x_magnitudes = Abs (x_blocks)
    axis_2 = Constant <value_ints = [2]> ()
    x_peaks = ReduceMax <keepdims = 1> (x_magnitudes, axis_2)
    levels = Constant <value_float = 127.0> ()
    x_raw_scales = Div (x_peaks, levels)
    x_is_zero = Equal (x_raw_scales, zero_float)
    one_float = Constant <value_float = 1.0> ()
    x_scales = Where (x_is_zero, one_float, x_raw_scales)
    x_quotients = Div (x_blocks, x_scales)
    x_rounded = Round (x_quotients)
    x_codes = Clip (x_rounded, code_min, code_max)
    x_scaled = Mul (x_codes, x_scales)
    k_padded_1d = Unsqueeze (k_padded, axis_0)
    padded_shape = Concat <axis = 0> (any_1d, k_padded_1d)
    x_scaled_rows = Reshape (x_scaled, padded_shape)
    axis_1 = Constant <value_ints = [1]> ()
    x_cut = Slice (x_scaled_rows, start_0, k_1d, axis_1)
    x_dequantized = Add (x_cut, row_probe)
"""

_ROWS = """
    row_any = Constant <value_ints = [-1]> ()
    row_shape = Concat <axis = 0> (row_any, k_1d)
    x_float = Cast <to = 1> (X)
    x_rows = Reshape (x_float, row_shape)
    code_min = Constant <value_float = -127.0> ()
    code_max = Constant <value_float = 127.0> ()
    nothing = Constant <value_float = 0.0> ()
    probe_axis = Constant <value_ints = [1]> ()
    x_nothing = Mul (x_rows, nothing)
    row_probe = ReduceSum <keepdims = 1> (x_nothing, probe_axis)
"""

_TAIL = """
    products = MatMul (x_dequantized, w_dequantized)
    y_rows = Add (products, bias)
    leading = Shape <start = 0, end = -1> (X)
    y_shape = Concat <axis = 0> (leading, n_1d)
    y_float = Reshape <allowzero = 1> (y_rows, y_shape)
    y = CastLike (y_float, X)
    sizes = Constant <value_ints : ints = @splits> ()
    Y0, Y1, Y2 = Split <axis = -1> (y, sizes)
"""


def matmul_function(op_type: str, bits: int, *, static: bool) -> onnx.FunctionProto:
    """The function of one op type of the family.

    `row_probe` is 0 for a row of finite values and NaN for any other: it carries a non-finite value
    of a row to all outputs of that row, also where quantization would hide it.
    """
    attributes = ["K", "N", "splits", "group_size"]
    inputs = ["X", "W", "scales", "zero_points", "bias"]
    if static:
        inputs.append("x_scale")
    else:
        attributes.append("activation_block")
    return parse(
        op_type,
        attributes=[*attributes, "layout"],
        inputs=inputs,
        outputs=["Y0", "Y1", "Y2"],
        body=unpack_weights(bits) + _ROWS + (_STATIC if static else _DYNAMIC) + _TAIL,
    )
