"""The ops of the ``ai.qcompiler`` domain, each defined by an ONNX function.

A model that uses an op carries its function, so any ONNX Runtime from 1.20 runs the model right;
where the op library is registered, its kernels take over. `docs/ops.md` describes the ops.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import onnx

from qcompiler.ops._text import CONTRIB_DOMAIN, DOMAIN, ONNX_OPSET
from qcompiler.ops.activation import gelu_function, swiglu_function
from qcompiler.ops.attention import attention_function, multi_head_attention_function
from qcompiler.ops.gather import gather_function
from qcompiler.ops.matmul import matmul_function
from qcompiler.ops.norm import norm_function

OPSET_VERSION = 1
"""Version of the domain, for a model's opset imports."""

LAYOUT = 1
"""The packed layout this version writes and reads."""

_FUNCTIONS: dict[str, Callable[[str], onnx.FunctionProto]] = {
    "MatMulW4A8": partial(matmul_function, bits=4, static=False),
    "MatMulW4A8Static": partial(matmul_function, bits=4, static=True),
    "MatMulW8A8": partial(matmul_function, bits=8, static=False),
    "MatMulW8A8Static": partial(matmul_function, bits=8, static=True),
    "GatherW4": partial(gather_function, bits=4),
    "GatherW8": partial(gather_function, bits=8),
    "GroupQueryAttention": attention_function,
    "MultiHeadAttention": multi_head_attention_function,
    "SwiGLU": swiglu_function,
    "Gelu": partial(gelu_function, by_tanh=False),
    "GeluTanh": partial(gelu_function, by_tanh=True),
    "AddRMSNormalization": partial(norm_function, centers=False),
    "AddLayerNormalization": partial(norm_function, centers=True),
}

OP_TYPES: tuple[str, ...] = tuple(_FUNCTIONS)


def function(op_type: str) -> onnx.FunctionProto:
    """A new copy of the function that defines `op_type`.

    Raises ValueError for an op type that is not in `OP_TYPES`.
    """
    if op_type not in _FUNCTIONS:
        raise ValueError(f"no op {DOMAIN}::{op_type}; the ops are {', '.join(OP_TYPES)}")
    return _FUNCTIONS[op_type](op_type)


__all__ = [
    "CONTRIB_DOMAIN",
    "DOMAIN",
    "LAYOUT",
    "ONNX_OPSET",
    "OPSET_VERSION",
    "OP_TYPES",
    "function",
]
