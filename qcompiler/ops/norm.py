"""``AddRMSNormalization`` and ``AddLayerNormalization``: a residual and the norm behind it."""

from __future__ import annotations

import onnx

from qcompiler.ops._text import parse

_RMS = """
    sum = Add (X, skip)
    squares = Mul (sum, sum)
    last = Constant <value_ints = [-1]> ()
    mean = ReduceMean <keepdims = 1> (squares, last)
    small = Constant <value_float : float = @epsilon> ()
    shifted = Add (mean, small)
    root = Sqrt (shifted)
    scaled = Div (sum, root)
    Y = Mul (scaled, weight)
"""

_LAYER = """
    sum = Add (X, skip)
    Y = LayerNormalization <axis = -1, epsilon : float = @epsilon> (sum, weight, bias)
"""


def norm_function(op_type: str, *, centers: bool) -> onnx.FunctionProto:
    """The function of one op type: layer norm where it `centers`, else RMS norm."""
    return parse(
        op_type,
        attributes=["epsilon"],
        inputs=["X", "skip", "weight", *(["bias"] if centers else [])],
        outputs=["Y", "sum"],
        body=_LAYER if centers else _RMS,
    )
