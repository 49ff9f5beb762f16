"""Bodies of If, Loop and Scan as graphs of their own, and back in their places.

Whatever a body reads of the graphs around it becomes an input of it, and constants are its own, so
that passes can do with it what they do with any graph.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import onnx_graphsurgeon as gs

from qcompiler.ir.graph import Namer, consumers, names_below, rewire_input
from qcompiler.ir.order import outer_reads
from qcompiler.ir.tensors import is_constant
from qcompiler.ir.walk import graphs, tensors_of


@dataclass(frozen=True)
class Body:
    """A subgraph, taken out of its node."""

    place: gs.Graph
    graph: gs.Graph
    """Its own inputs first, then what it reads from around it, by the same names."""
    around: dict[str, Any]
    """The tensors of the graphs around it that it reads, by name."""
    shared: dict[str, gs.Constant]
    """The constants that it has in common with the graphs around it, by name."""
    fresh: Namer
    """Of the graph around it, without what only the body names."""

    def put_back(self, graph: gs.Graph) -> None:
        """Put `graph`, which passes have made of it, into its place.

        Names that they gave, and that are taken in the graph around it, change.
        """
        for tensor in tensors_of(graph).values():
            kept = self.shared.get(tensor.name)
            if kept is not None and is_constant(tensor) and tensor._values is kept._values:
                _replace(graph, tensor, kept)
        own = len(self.place.inputs)
        given: list[Any] = list(graph.inputs)
        for tensor in given[own:]:
            _replace(graph, tensor, self.around[tensor.name])
        graph.inputs = given[:own]
        ends = [*self.place.inputs, *graph.outputs, *self.around.values(), *self.shared.values()]
        _rename(graph, {id(tensor) for tensor in ends}, self.fresh)
        self.place.nodes, self.place.outputs = graph.nodes, graph.outputs
        self.fresh.take(names_below(self.place))


def bodies_of(graph: gs.Graph) -> Iterator[tuple[gs.Node, str]]:
    """The nodes of a graph that hold bodies, and the attributes they lie in."""
    for node in list(graph.nodes):
        for name, value in node.attrs.items():
            if isinstance(value, gs.Graph):
                yield node, name


def holds_matrices(body: Any) -> bool:
    """Whether a body, or what lies below it, reads a constant with more than one axis."""
    return any(
        is_constant(tensor) and len(tensor.shape) > 1
        for each in graphs(body)
        for node in each.nodes
        for tensor in node.inputs
    )


def reads_around(place: gs.Graph) -> list[Any]:
    """What a subgraph reads of the graphs around it, each tensor once, in order."""
    own: set[int] = set()
    for each in graphs(place):
        own |= {id(tensor) for tensor in each.inputs}
        own |= {id(tensor) for node in each.nodes for tensor in node.outputs}
    read = [tensor for node in place.nodes for tensor in outer_reads(node)]
    found = {
        id(tensor): tensor
        for tensor in (*read, *place.outputs)
        if id(tensor) not in own and not tensor.is_empty()
    }
    return list(found.values())


def lift(place: gs.Graph, outside: gs.Graph, fresh: Namer) -> Body:
    """Take a subgraph out; until `put_back`, the graph around it can't be used.

    `fresh`: of that graph; one for all of its bodies, which then need not be walked for each.
    """
    around: dict[str, Any] = {}
    shared: dict[str, gs.Constant] = {}
    given: list[Any] = []
    tensors: list[Any] = [*place.inputs, *place.outputs]
    ends = {str(tensor.name) for tensor in tensors}
    fresh.give_up((Counter(names_below(place)) - Counter(ends)).elements())
    inside = {id(node) for each in graphs(place) for node in each.nodes}
    for tensor in reads_around(place):
        if not is_constant(tensor):
            own: Any = gs.Variable(tensor.name, tensor.dtype, tensor.shape)
            around[tensor.name] = tensor
            given.append(own)
        elif all(id(node) in inside for node in consumers(tensor)):
            continue
        else:
            own = gs.Constant(tensor.name, tensor._values)
            shared[tensor.name] = tensor
        _replace(place, tensor, own)
    graph = gs.Graph(
        nodes=place.nodes,
        inputs=[*place.inputs, *given],
        outputs=place.outputs,
        name=place.name,
        opset=outside.opset,
        import_domains=outside.import_domains,
        functions=outside.functions,
        ir_version=outside.ir_version,
    )
    return Body(place, graph, around, shared, fresh)


def _replace(graph: gs.Graph, old: Any, new: Any) -> None:
    """Make whatever reads `old` in a graph or below it read `new`."""
    for each in graphs(graph):
        for node in each.nodes:
            rewire_input(node, old, new)
        each.outputs = [new if output is old else output for output in each.outputs]


def _rename(graph: gs.Graph, but: set[int], fresh: Namer) -> None:
    """Give tensors and nodes names that are free."""
    for each in graphs(graph):
        for tensor in tensors_of(each).values():
            if id(tensor) not in but:
                but.add(id(tensor))
                tensor.name = fresh(tensor.name)
        for node in each.nodes:
            node.name = fresh(node.name) if node.name else node.name
