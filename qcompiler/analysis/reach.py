"""Which outputs of a model its quantized layers reach, and what tells the quality of the others."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import onnx
import onnx_graphsurgeon as gs

from qcompiler import ir
from qcompiler.ir.order import outer_reads, topological
from qcompiler.ir.walk import bodies

FLOATS = frozenset({onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE})
"""Floating-point types that numpy has too."""


@dataclass(frozen=True)
class Reach:
    """What of a model quantized layers change."""

    outputs: frozenset[str]
    """Outputs that depend on a quantized layer."""
    before: Mapping[str, tuple[str, ...]]
    """By output of these that is not known to be a tensor of floats: the last tensors of floats
    that it is made from, and that depend on a quantized layer too."""


def reach(graph: gs.Graph, names: Collection[str]) -> Reach:
    """What the nodes called `names` reach, those in subgraphs included.

    Where one of them is not in the graph, everything counts as reached.
    """
    nodes = topological(graph)
    inside = {id(node): _names(node) for node in nodes}
    everything = not set(names) <= set().union(*inside.values())
    changed: set[int] = set()
    for node in nodes:
        reads = any(id(tensor) in changed for tensor in outer_reads(node))
        if everything or reads or not inside[id(node)].isdisjoint(names):
            changed |= {id(tensor) for tensor in node.outputs}
    outputs: list[Any] = [tensor for tensor in graph.outputs if id(tensor) in changed]
    return Reach(
        frozenset(str(tensor.name) for tensor in outputs),
        {
            str(tensor.name): _floats_before(tensor, changed)
            for tensor in outputs
            if not _is_floats(tensor)
        },
    )


def _names(node: gs.Node) -> set[str]:
    """The name of a node, and those in its subgraphs."""
    inner = (each for graph in bodies(node) for each in graph.nodes)
    return {str(node.name), *(str(each.name) for each in inner)}


def _floats_before(tensor: Any, changed: Collection[int]) -> tuple[str, ...]:
    """The nearest tensors of floats among `changed` that a tensor is computed from."""
    found: dict[str, None] = {}
    waiting, seen = [tensor], {id(tensor)}
    while waiting:
        node = ir.producer(waiting.pop())
        for each in () if node is None else outer_reads(node):
            if id(each) not in changed or id(each) in seen:
                continue
            seen.add(id(each))
            if _is_floats(each):
                found[str(each.name)] = None
            else:
                waiting.append(each)
    return tuple(found)


def _is_floats(tensor: Any) -> bool:
    """Whether a tensor is known to be one of floats, and no sequence of such."""
    return ir.elem_type(tensor) in FLOATS and tensor.type == "tensor_type"
