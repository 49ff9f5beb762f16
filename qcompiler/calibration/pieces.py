"""A whole model, a piece after the other: the weights of one piece at a time are in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from qcompiler import ir
from qcompiler.analysis.layers import layer_of
from qcompiler.calibration.stream import stream
from qcompiler.errors import ModelError
from qcompiler.ir.order import topological

Array = np.ndarray[Any, Any]

PIECE = 192 << 20
"""Bytes of constants that are not cut further: small models stay whole."""

_FLOATS = frozenset({onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE})


def main_output(graph: gs.Graph) -> str:
    """The first output of floats, one with elements if there is one; ModelError without any.

    Outputs whose type the model does not say count as floats.
    """
    may_be = _FLOATS | {onnx.TensorProto.UNDEFINED}
    outputs: list[Any] = graph.outputs
    floats = [each for each in outputs if ir.elem_type(each) in may_be]
    if not floats:
        raise ModelError("the model has no output of floats")
    chosen: Any = next((each for each in floats if 0 not in (each.shape or ())), floats[0])
    return str(chosen.name)


def evaluate(graph: gs.Graph, output: str, feeds: Sequence[Mapping[str, Array]]) -> list[Array]:
    """The values of `output`, one array a feed. CalibrationError if the data does not fit."""
    given: list[Any] = graph.inputs
    inputs = {str(each.name): each for each in given}
    taken = [
        {name: _as_taken(value, inputs[name]) for name, value in feed.items() if name in inputs}
        for feed in feeds
    ]
    values: Sequence[Array] = []
    for values in stream(graph, [*_cuts(graph), output], taken):  # noqa: B007  (the last counts)
        pass
    return list(values)


def _as_taken(value: Array, tensor: Any) -> Array:
    """A float in the type the graph takes."""
    wanted = ir.elem_type(tensor)
    if wanted in _FLOATS and value.dtype in (np.float16, np.float32):
        return value.astype(onnx.helper.tensor_dtype_to_np_dtype(wanted), copy=False)
    return value


def _cuts(graph: gs.Graph) -> list[str]:
    """Inputs of products by a weight, so far apart that each piece has about `PIECE` of them."""
    computed = {id(tensor) for node in graph.nodes for tensor in node.outputs}
    cuts: list[str] = []
    size = 0
    for node in topological(graph):
        weights = [ir.nbytes(each) for each in node.inputs if ir.is_constant(each)]
        size += sum(weights)
        layer = layer_of(graph, node)
        if size > PIECE and layer is not None and id(layer.x) in computed:
            cuts.append(str(layer.x.name))
            size = sum(weights)
    return list(dict.fromkeys(cuts))
