"""The ops of the ``ai.qcompiler`` domain, each defined by an ONNX function.

A model that uses an op carries its function, so any ONNX Runtime from 1.20 runs the model right
(from 1.24 with attention windows, 1.23 with attention sinks); where the op library is registered,
its kernels take over. `docs/ops.md` describes the ops.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial

import onnx

from qcompiler.numerics import planes
from qcompiler.ops._text import CONTRIB_DOMAIN, DOMAIN, ONNX_OPSET
from qcompiler.ops.activation import gelu_function, swiglu_function
from qcompiler.ops.attention import (
    HEAD_STEP,
    MOST_WINDOW,
    attention_function,
    multi_head_attention_function,
)
from qcompiler.ops.embedding import embedding_function
from qcompiler.ops.linear import linear_function
from qcompiler.ops.norm import norm_function

OPSET_VERSION = 1
"""Version of the domain, for a model's opset imports."""

LAYOUT = 2
"""The packed layout of the Linear and Embedding ops (`qcompiler.numerics.planes`)."""

FORMS: tuple[tuple[int, bool], ...] = (
    *((bits, False) for bits in planes.WIDTHS),
    *((bits, True) for bits in planes.TABLE_WIDTHS),
)
"""Forms of weights that there are Linear and Embedding ops for: bits, and whether codes number the
levels of a grid."""


def linear_op(bits: int, *, levels: bool = False, static: bool = False) -> str:
    """The op of a layer with weights of a form; `static`: with a constant activation scale."""
    return f"Linear{_letter(levels)}{bits}A8{'Static' if static else ''}"


def embedding_op(bits: int, *, levels: bool = False) -> str:
    """The op that looks rows up in a table of a form."""
    return f"Embedding{_letter(levels)}{bits}"


def _letter(levels: bool) -> str:
    return "T" if levels else "W"


def width_of(op_type: str) -> int | None:
    """Bits of the weights an op reads, None for ops without quantized weights."""
    found = re.match(r"(?:Linear|Embedding)[WT](\d+)", op_type)
    return None if found is None else int(found[1])


def is_static(op_type: str) -> bool:
    """Whether an op of a layer has a constant activation scale."""
    return op_type in {linear_op(bits, levels=levels, static=True) for bits, levels in FORMS}


def is_look_up(op_type: str) -> bool:
    """Whether an op looks up rows of a table."""
    return op_type in {embedding_op(bits, levels=levels) for bits, levels in FORMS}


_FUNCTIONS: dict[str, Callable[[str], onnx.FunctionProto]] = {
    **{
        linear_op(bits, levels=levels, static=static): partial(
            linear_function, bits=bits, levels=levels, static=static
        )
        for bits, levels in FORMS
        for static in (False, True)
    },
    **{
        embedding_op(bits, levels=levels): partial(embedding_function, bits=bits, levels=levels)
        for bits, levels in FORMS
    },
    "GroupQueryAttention": partial(attention_function, sink=False),
    "GroupQueryAttentionSink": partial(attention_function, sink=True),
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
    "FORMS",
    "HEAD_STEP",
    "LAYOUT",
    "MOST_WINDOW",
    "ONNX_OPSET",
    "OPSET_VERSION",
    "OP_TYPES",
    "embedding_op",
    "function",
    "is_look_up",
    "is_static",
    "linear_op",
    "width_of",
]
