"""``GroupQueryAttention`` and ``MultiHeadAttention``, as ONNX functions.

The first is a decoder's attention over its key/value cache. Its body is ONNX Runtime's operator of
the same name, in the one form the kernel knows: queries, keys and values in one tensor, rotary
embedding with halves apart, causal, no window. The second is an encoder's: all rows see all keys
but what a mask takes away.
"""

from __future__ import annotations

import onnx

from qcompiler.ops._text import CONTRIB_DOMAIN, parse

HEAD_STEP = 16
"""The kernels take heads whose channels are a multiple of this."""

_BODY = """
    Y, present_key, present_value = com.microsoft.GroupQueryAttention <
        num_heads : int = @num_heads, kv_num_heads : int = @kv_num_heads, scale : float = @scale,
        do_rotary = 1
    > (X, , , past_key, past_value, seqlens_k, total_sequence_length, cos_cache, sin_cache)
"""


_MULTI_HEAD_BODY = """
    kept = Constant <value_ints = [0, 0]> ()
    heads = Constant <value_int : int = @num_heads> ()
    axis_0 = Constant <value_ints = [0]> ()
    heads_1d = Unsqueeze (heads, axis_0)
    rest = Constant <value_ints = [-1]> ()
    by_head = Concat <axis = 0> (kept, heads_1d, rest)
    q_split = Reshape (Q, by_head)
    k_split = Reshape (K, by_head)
    v_split = Reshape (V, by_head)
    q = Transpose <perm = [0, 2, 1, 3]> (q_split)
    k = Transpose <perm = [0, 2, 3, 1]> (k_split)
    v = Transpose <perm = [0, 2, 1, 3]> (v_split)
    factor = Constant <value_float : float = @scale> ()
    q_scaled = Mul (q, factor)
    scores = MatMul (q_scaled, k)
    masked = Add (scores, mask)
    weights = Softmax <axis = -1> (masked)
    not_a_number = IsNaN (weights)
    drops = Constant <value_int : int = @nan_is_zero> ()
    drops_bool = Cast <to = 9> (drops)
    dropped = And (not_a_number, drops_bool)
    nothing = Constant <value = float {0}> ()
    kept_weights = Where (dropped, nothing, weights)
    y = MatMul (kept_weights, v)
    y_rows = Transpose <perm = [0, 2, 1, 3]> (y)
    joined = Constant <value_ints = [0, 0, -1]> ()
    Y = Reshape (y_rows, joined)
"""


def attention_function(op_type: str) -> onnx.FunctionProto:
    """The function of ``GroupQueryAttention``."""
    return parse(
        op_type,
        attributes=["num_heads", "kv_num_heads", "scale"],
        inputs=[
            *("X", "past_key", "past_value", "seqlens_k", "total_sequence_length"),
            *("cos_cache", "sin_cache"),
        ],
        outputs=["Y", "present_key", "present_value"],
        body=_BODY,
        domains={CONTRIB_DOMAIN: 1},
    )


def multi_head_attention_function(op_type: str) -> onnx.FunctionProto:
    """The function of ``MultiHeadAttention``."""
    return parse(
        op_type,
        attributes=["num_heads", "scale", "nan_is_zero"],
        inputs=["Q", "K", "V", "mask"],
        outputs=["Y"],
        body=_MULTI_HEAD_BODY,
    )
