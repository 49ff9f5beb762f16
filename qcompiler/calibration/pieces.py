"""A whole model, a piece after the other: the weights of one piece at a time are in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from qcompiler import ir
from qcompiler.analysis.layers import layer_of
from qcompiler.analysis.reach import FLOATS
from qcompiler.calibration.stream import stream_together
from qcompiler.ir.order import topological

Array = np.ndarray[Any, Any]

PIECE = 192 << 20
"""Bytes of constants that are not cut further: small models stay whole."""


def evaluate(
    graph: gs.Graph, names: Sequence[str], feeds: Sequence[Mapping[str, Array]]
) -> dict[str, Sequence[Array]]:
    """The values of tensors, one array a feed. CalibrationError if the data does not fit."""
    given: list[Any] = graph.inputs
    inputs = {str(each.name): each for each in given}
    taken = [
        {name: _as_taken(value, inputs[name]) for name, value in feed.items() if name in inputs}
        for feed in feeds
    ]
    stored = ir.tensors_of(graph)
    constants = {name: stored[name] for name in names if ir.is_constant(stored.get(name))}
    computed = [name for name in names if name not in constants]
    groups = [*((cut,) for cut in _cuts(graph)), tuple(computed)]
    values: tuple[Sequence[Array], ...] = ()
    for values in stream_together(graph, groups, taken):  # noqa: B007  (the last counts)
        pass
    found = dict(zip(computed, values, strict=True))
    return found | {name: [ir.array(each)] * len(feeds) for name, each in constants.items()}


def _as_taken(value: Array, tensor: Any) -> Array:
    """A float in the type the graph takes."""
    wanted = ir.elem_type(tensor)
    if wanted in FLOATS and value.dtype in (np.float16, np.float32):
        return value.astype(onnx.helper.tensor_dtype_to_np_dtype(wanted), copy=False)
    return value


def _cuts(graph: gs.Graph) -> list[str]:
    """Inputs of products by a weight, so far apart that each piece has about `PIECE` of them."""
    constants = (each for node in graph.nodes for each in node.inputs if ir.is_constant(each))
    if sum(map(ir.nbytes, constants)) <= PIECE:
        return []
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
