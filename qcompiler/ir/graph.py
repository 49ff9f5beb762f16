"""Small questions and edits every pass needs, with graphsurgeon's sharp edges filed off.

Tensors and nodes are unhashable and compare loosely there, so identity is used throughout.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.exporters.onnx_exporter import dtype_to_onnx
from onnx_graphsurgeon.ir.tensor import LazyValues

from qcompiler.ir import interface


def producer(tensor: Any, op: str | None = None) -> gs.Node | None:
    """The node that computes a tensor, if there is one (and it has operator `op`)."""
    if not tensor.inputs:
        return None
    node = tensor.inputs[0]
    return node if op is None or node.op == op else None


def consumers(tensor: Any) -> list[gs.Node]:
    """The nodes that read a tensor, each once, in order."""
    seen: dict[int, gs.Node] = {id(node): node for node in tensor.outputs}
    return list(seen.values())


def reads_values(node: gs.Node) -> bool:
    """Whether a node reads more of its inputs than their sizes, which no fold or rotation moves."""
    return bool(node.domain) or node.op not in ("Shape", "Size")


def value_readers(tensor: Any) -> list[gs.Node]:
    """The `consumers` of a tensor that read its values."""
    return [node for node in consumers(tensor) if reads_values(node)]


def is_graph_output(graph: gs.Graph, tensor: Any) -> bool:
    """Whether a tensor is an output of the graph."""
    return any(tensor is output for output in graph.outputs)


def replace_uses(graph: gs.Graph, old: Any, new: Any) -> None:
    """Make every reader of `old` read `new` instead (graph outputs too)."""
    for node in consumers(old):
        rewire_input(node, old, new)
    for index, output in enumerate(graph.outputs):
        if output is old:
            # The interface keeps its name: the new tensor takes it over.
            old.name, new.name = f"{old.name}__replaced", old.name
            new.dtype, new.shape = new.dtype or old.dtype, new.shape or old.shape
            interface.hand_over(old, new)
            graph.outputs[index] = new


def rewire_input(node: gs.Node, old: Any, new: Any) -> None:
    """Make one node read `new` wherever it reads `old`."""
    for index in range(len(node.inputs)):
        if node.inputs[index] is old:
            node.inputs[index] = new


def elem_type(tensor: Any) -> int:
    """ONNX element type of a tensor (TensorProto.UNDEFINED where it is not known)."""
    if isinstance(tensor, gs.Constant):
        values = tensor._values
        if isinstance(values, LazyValues):
            return int(values.tensor.data_type)
        return int(onnx.helper.np_dtype_to_tensor_dtype(np.asarray(values).dtype))
    return onnx.TensorProto.UNDEFINED if tensor.dtype is None else int(dtype_to_onnx(tensor.dtype))


def cast_type(node: gs.Node) -> int:
    """ONNX element type that a Cast gives."""
    to: Any = node.attrs["to"]
    return int(to) if isinstance(to, int) else int(dtype_to_onnx(np.dtype(to)))


def tensor_rank(tensor: Any) -> int | None:
    """Number of dimensions, None where shape inference found none."""
    return None if tensor.shape is None else len(tensor.shape)


def remove_dead(graph: gs.Graph) -> None:
    """Drop nodes and initializers nothing reads; graph inputs and outputs stay."""
    graph.cleanup(remove_unused_node_outputs=False, remove_unused_graph_inputs=False)
    graph.toposort()


def attribute(node: gs.Node, name: str, default: Any = None) -> Any:
    """An attribute of a node, `default` where it is not set."""
    attrs: Any = node.attrs
    return attrs.get(name, default)


def add_node(
    graph: gs.Graph,
    op: str,
    name: str,
    inputs: Sequence[Any],
    outputs: Sequence[Any],
    *,
    attrs: Mapping[str, Any] | None = None,
    domain: str | None = None,
) -> gs.Node:
    """Append a node to a graph; `remove_dead` later puts it where it belongs."""
    nodes: Any = graph.nodes
    extra = {} if domain is None else {"domain": domain}
    made = gs.Node(op, name, dict(attrs or {}), inputs=list(inputs), outputs=list(outputs), **extra)
    nodes.append(made)
    return made


class Namer:
    """Fresh, readable names: `base`, `base_1`, ... never one already in the graph."""

    def __init__(self, graph: gs.Graph) -> None:
        self._taken = set(graph.tensors().keys()) | {node.name for node in graph.nodes}
        for subgraph in graph.subgraphs(recursive=True):
            self._taken |= set(subgraph.tensors().keys())
            self._taken |= {node.name for node in subgraph.nodes}

    def __call__(self, base: str) -> str:
        name, suffix = base, 0
        while name in self._taken:
            suffix += 1
            name = f"{base}_{suffix}"
        self._taken.add(name)
        return name
