"""Small questions and edits every pass needs, with graphsurgeon's sharp edges filed off.

Tensors and nodes are unhashable and compare loosely there, so identity is used throughout.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.exporters.onnx_exporter import dtype_to_onnx
from onnx_graphsurgeon.ir.tensor import LazyValues

from qcompiler.ir import interface
from qcompiler.ir.order import needed, sort_functions, sort_nodes
from qcompiler.ir.walk import graphs, tensors_of


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
    if new is not old:
        _move_readers(old, new)
    for index, output in enumerate(graph.outputs):
        if output is old:
            # The interface keeps its name: the new tensor takes it over.
            old.name, new.name = f"{old.name}__replaced", old.name
            new.dtype, new.shape = new.dtype or old.dtype, new.shape or old.shape
            interface.hand_over(old, new)
            graph.outputs[index] = new


def _move_readers(old: Any, new: Any) -> None:
    """All readers at once: one by one, each would be looked for among those that are left."""
    moved: list[gs.Node] = []
    for node in consumers(old):
        inputs: Any = node.inputs
        for index, tensor in enumerate(inputs):
            if tensor is old:
                list.__setitem__(inputs, index, new)
                moved.append(node)
    _refill(old.outputs, [])
    _refill(new.outputs, [*new.outputs, *moved])


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
    """Drop nodes and initializers nothing reads, and sort the others; inputs and outputs stay."""
    functions: list[Any] = graph.functions
    for function in functions:
        function.cleanup(recurse_functions=False)
        function.toposort(mode="nodes")
    for each in graphs(graph)[::-1]:  # what only a node reads that is dead inside a body goes too
        tensors: list[Any] = each.inputs
        for tensor in tensors:
            tensor.inputs.clear()
        live = needed(each)
        remove_nodes(each, [node for node in each.nodes if id(node) not in live])
    sort_nodes(graph)
    sort_functions(graph)


def remove_nodes(graph: gs.Graph, nodes: Sequence[gs.Node]) -> None:
    """Take nodes out of a graph, all at once.

    `node.inputs.clear()` looks for the node among all readers of each tensor.
    """
    if not nodes:
        return
    gone = {id(node) for node in nodes}
    touched = {id(t): t for node in nodes for t in (*node.inputs, *node.outputs)}
    for tensor in touched.values():
        for ends in (tensor.inputs, tensor.outputs):
            _refill(ends, [node for node in ends if id(node) not in gone])
    for node in nodes:
        _refill(node.inputs, [])
        _refill(node.outputs, [])
    graph.nodes = [node for node in graph.nodes if id(node) not in gone]


def _refill(ends: Any, items: list[Any]) -> None:
    """Set a list of graphsurgeon's, without the other side, which is the caller's to set."""
    list.__setitem__(ends, slice(None), items)


def attribute(node: gs.Node, name: str, default: Any = None) -> Any:
    """An attribute of a node, `default` where it is not set."""
    attrs: Any = node.attrs
    return attrs.get(name, default)


def given(ends: Sequence[Any], place: int) -> Any | None:
    """An input or output of a node, None where it has none there."""
    return None if len(ends) <= place or ends[place].is_empty() else ends[place]


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
    """Fresh, readable names: `base`, `base_1`, ... never one already in the graph.

    Which these are is looked up when the first is asked for: few graphs need any.
    """

    def __init__(self, graph: gs.Graph) -> None:
        self._graph = graph
        self._taken: Counter[str] | None = None

    def __call__(self, base: str) -> str:
        taken = self._counted()
        name, suffix = base, 0
        while taken[name]:
            suffix += 1
            name = f"{base}_{suffix}"
        taken[name] += 1
        return name

    def give_up(self, names: Iterable[str]) -> None:
        """Some names are not used any more, each as often as it is given."""
        self._counted().subtract(names)

    def take(self, names: Iterable[str]) -> None:
        """Some names are used."""
        self._counted().update(names)

    def _counted(self) -> Counter[str]:
        if self._taken is None:
            self._taken = Counter(names_below(self._graph))
        return self._taken


def names_below(graph: gs.Graph) -> list[str]:
    """The names of tensors and nodes in a graph and its bodies, once for each of these graphs."""
    names: list[str] = []
    for each in graphs(graph):
        names += tensors_of(each)
        names += [node.name for node in each.nodes if node.name]
    return names
