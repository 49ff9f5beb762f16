"""``GroupQueryAttention`` and ``MultiHeadAttention``, as ONNX functions.

The first is a decoder's attention over its key/value cache. Its body is ONNX Runtime's operator of
the same name, in the form the kernel knows: queries, keys and values in one tensor, rotary
embedding with halves apart, causal. ``GroupQueryAttentionSink`` has attention sinks too, which
ONNX Runtime 1.20 does not know. The third is an encoder's: all rows see all keys but what a mask
takes away.
"""

from __future__ import annotations

import onnx

from qcompiler.ops._text import CONTRIB_DOMAIN, parse

HEAD_STEP = 16
"""The kernels take heads whose channels are a multiple of this."""
MOST_WINDOW = (1 << 31) - 1
"""The largest window of ``GroupQueryAttention``."""

_BODY = """
    Y, present_key, present_value = com.microsoft.GroupQueryAttention <
        num_heads : int = @num_heads, kv_num_heads : int = @kv_num_heads, scale : float = @scale,
        local_window_size : int = @window, softcap : float = @softcap, do_rotary = 1
    > (X, , , past_key, past_value, seqlens_k, total_sequence_length, cos_cache, sin_cache{more})
"""


# Sizes are stated where ONNX would infer -1: it means nothing where there are no tokens or no keys.
_MULTI_HEAD_BODY = """
    heads = Constant <value_int : int = @num_heads> ()
    axis_0 = Constant <value_ints = [0]> ()
    heads_1d = Unsqueeze (heads, axis_0)
    width = Shape <start = 2> (Q)
    channels = Div (width, heads_1d)
    q_tokens = Shape <end = 2> (Q)
    k_tokens = Shape <end = 2> (K)
    q_by_head = Concat <axis = 0> (q_tokens, heads_1d, channels)
    k_by_head = Concat <axis = 0> (k_tokens, heads_1d, channels)
    q_split = Reshape <allowzero = 1> (Q, q_by_head)
    k_split = Reshape <allowzero = 1> (K, k_by_head)
    v_split = Reshape <allowzero = 1> (V, k_by_head)
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
    q_shape = Shape (Q)
    Y = Reshape <allowzero = 1> (y_rows, q_shape)
"""


def attention_function(op_type: str, *, sink: bool) -> onnx.FunctionProto:
    """The function of ``GroupQueryAttention``, or with a `sink` ``GroupQueryAttentionSink``."""
    return parse(
        op_type,
        attributes=["num_heads", "kv_num_heads", "scale", "window", "softcap"],
        inputs=[
            *("X", "past_key", "past_value", "seqlens_k", "total_sequence_length"),
            *("cos_cache", "sin_cache", *(["head_sink"] if sink else [])),
        ],
        outputs=["Y", "present_key", "present_value"],
        body=_BODY.format(more=", , , head_sink" if sink else ""),
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
