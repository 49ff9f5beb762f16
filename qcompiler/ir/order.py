"""A stable topological order that leaves the graph as it is."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import Any

import onnx_graphsurgeon as gs

from qcompiler.errors import PassError


def outer_reads(node: gs.Node) -> Iterator[Any]:
    """The tensors a node reads: its inputs, and whatever its subgraphs read from outside."""
    yield from node.inputs
    for subgraph in node.subgraphs(recursive=True):
        for inner in subgraph.nodes:
            yield from inner.inputs
        yield from subgraph.outputs


def topological(graph: gs.Graph) -> list[gs.Node]:
    """The nodes so that each follows what it reads; ties keep the order of `graph.nodes`.

    Raises PassError, naming a node, if the graph has a cycle.
    """
    nodes = list(graph.nodes)
    index = {id(node): position for position, node in enumerate(nodes)}
    made = {id(out): position for position, node in enumerate(nodes) for out in node.outputs}
    readers: list[set[int]] = [set() for _ in nodes]
    waiting = [0] * len(nodes)
    for position, node in enumerate(nodes):
        before = {made[id(tensor)] for tensor in outer_reads(node) if id(tensor) in made}
        waiting[position] = len(before)
        for other in before:
            readers[other].add(position)
    ready = [position for position in range(len(nodes)) if waiting[position] == 0]
    heapq.heapify(ready)
    order: list[gs.Node] = []
    while ready:
        position = heapq.heappop(ready)
        order.append(nodes[position])
        for reader in readers[position]:
            waiting[reader] -= 1
            if waiting[reader] == 0:
                heapq.heappush(ready, reader)
    if len(order) < len(nodes):
        done = {index[id(node)] for node in order}
        stuck = next(node for position, node in enumerate(nodes) if position not in done)
        raise PassError(f"node '{stuck.name}' ({stuck.op}) lies on or behind a cycle")
    return order
