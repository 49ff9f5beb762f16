"""``SwiGLU``, ``Gelu`` and ``GeluTanh``: the activations of MLPs, as ONNX functions."""

from __future__ import annotations

import onnx

from qcompiler.ops._text import parse

_BODY = """
    share = Sigmoid (gate)
    open = Mul (gate, share)
    Y = Mul (open, up)
"""


def swiglu_function(op_type: str) -> onnx.FunctionProto:
    """The function of ``SwiGLU``."""
    return parse(op_type, attributes=[], inputs=["gate", "up"], outputs=["Y"], body=_BODY)


def gelu_function(op_type: str, *, by_tanh: bool) -> onnx.FunctionProto:
    """The function of ``Gelu``, or of its approximation by tanh."""
    how = "tanh" if by_tanh else "none"
    body = f'Y = Gelu <approximate = "{how}"> (X)'
    return parse(op_type, attributes=[], inputs=["X"], outputs=["Y"], body=body)
