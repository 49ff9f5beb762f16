"""``SwiGLU``: the gate of an MLP, as an ONNX function."""

from __future__ import annotations

import onnx

from qcompiler.ops._text import parse

_BODY = """
    share = Sigmoid (gate)
    open = Mul (gate, share)
    Y = Mul (open, up)
"""


def gate_function(op_type: str) -> onnx.FunctionProto:
    """The function of ``SwiGLU``."""
    return parse(op_type, attributes=[], inputs=["gate", "up"], outputs=["Y"], body=_BODY)
