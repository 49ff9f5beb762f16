"""The ops of the ``ai.qcompiler`` domain, each defined by an ONNX function.

A model that uses an op carries its function, so any ONNX Runtime from 1.20 runs the model right;
where the op library is registered, its kernels take over. `docs/ops.md` describes the ops.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial

import onnx

from qcompiler.numerics import planes
from qcompiler.ops._text import CONTRIB_DOMAIN, DOMAIN, ONNX_OPSET
from qcompiler.ops.activation import gelu_function, swiglu_function
from qcompiler.ops.attention import HEAD_STEP, attention_function, multi_head_attention_function
from qcompiler.ops.embedding import embedding_function
from qcompiler.ops.linear import linear_function
from qcompiler.ops.norm import norm_function

OPSET_VERSION = 1
"""Version of the domain, for a model's opset imports."""

LAYOUT = 2
"""The packed layout of the Linear and Embedding ops (`qcompiler.numerics.planes`)."""

WIDTHS = planes.WIDTHS
"""Bits of the weights that there are Linear and Embedding ops for."""


def linear_op(bits: int, *, static: bool = False) -> str:
    """The op of a layer with weights of `bits` bits; `static`: with a constant activation scale."""
    return f"LinearW{bits}A8{'Static' if static else ''}"


def embedding_op(bits: int) -> str:
    """The op that looks rows up in a table of `bits` bits."""
    return f"EmbeddingW{bits}"


def width_of(op_type: str) -> int | None:
    """Bits of the weights an op reads, None for ops without quantized weights."""
    found = re.match(r"(?:Linear|Embedding)W(\d+)", op_type)
    return None if found is None else int(found[1])


def is_static(op_type: str) -> bool:
    """Whether an op of a layer has a constant activation scale."""
    return op_type in {linear_op(bits, static=True) for bits in WIDTHS}


def is_look_up(op_type: str) -> bool:
    """Whether an op looks up rows of a table."""
    return op_type in {embedding_op(bits) for bits in WIDTHS}


_FUNCTIONS: dict[str, Callable[[str], onnx.FunctionProto]] = {
    **{
        linear_op(bits, static=static): partial(linear_function, bits=bits, static=static)
        for bits in WIDTHS
        for static in (False, True)
    },
    **{embedding_op(bits): partial(embedding_function, bits=bits) for bits in WIDTHS},
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
    "HEAD_STEP",
    "LAYOUT",
    "ONNX_OPSET",
    "OPSET_VERSION",
    "OP_TYPES",
    "WIDTHS",
    "embedding_op",
    "function",
    "is_look_up",
    "is_static",
    "linear_op",
    "width_of",
]
