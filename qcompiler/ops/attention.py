"""``GroupQueryAttention``: a decoder's attention over its key/value cache, as an ONNX function.

The body is ONNX Runtime's operator of the same name, in the one form the kernel knows: queries,
keys and values in one tensor, rotary embedding with halves apart, causal, no window.
"""

from __future__ import annotations

import onnx

from qcompiler.ops._text import parse

MICROSOFT = "com.microsoft"

_BODY = """
    Y, present_key, present_value = com.microsoft.GroupQueryAttention <
        num_heads : int = @num_heads, kv_num_heads : int = @kv_num_heads, scale : float = @scale,
        do_rotary = 1
    > (X, , , past_key, past_value, seqlens_k, total_sequence_length, cos_cache, sin_cache)
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
        domains={MICROSOFT: 1},
    )
