"""The order of nodes, and which of them are needed; chains of any length, without recursion."""

from __future__ import annotations

import heapq
from collections.abc import Container, Mapping
from graphlib import TopologicalSorter
from typing import Any

import onnx_graphsurgeon as gs

from qcompiler.errors import PassError
from qcompiler.ir.walk import bodies, graphs


def outer_reads(node: gs.Node) -> list[Any]:
    """The tensors a node reads: its inputs, and whatever its subgraphs read from outside.

    Not to be changed: it may be the node's own list.
    """
    inner = bodies(node) if node.attrs else ()
    if not inner:
        return node.inputs
    read: list[Any] = list(node.inputs)
    for subgraph in inner:
        for each in subgraph.nodes:
            read += each.inputs
        read += subgraph.outputs
    return read


def topological(graph: gs.Graph) -> list[gs.Node]:
    """The nodes so that each follows what it reads; ties keep the order of `graph.nodes`.

    Raises PassError, naming a node, if the graph has a cycle.
    """
    nodes = list(graph.nodes)
    if _is_sorted(graph):
        return nodes
    made = {id(out): position for position, node in enumerate(nodes) for out in node.outputs}
    readers: list[list[int]] = [[] for _ in nodes]
    waiting = [0] * len(nodes)
    for position, node in enumerate(nodes):
        before = {made[id(tensor)] for tensor in outer_reads(node) if id(tensor) in made}
        waiting[position] = len(before)
        for other in before:
            readers[other].append(position)
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
        done = {id(node) for node in order}
        raise _cycle(next(node for node in nodes if id(node) not in done))
    return order


def _is_sorted(graph: gs.Graph) -> bool:
    """Whether no node reads what it or a later one computes."""
    made: set[int] = set()
    missed: set[int] = set()
    for node in graph.nodes:
        for tensor in outer_reads(node) if node.attrs else node.inputs:
            if id(tensor) not in made:
                missed.add(id(tensor))
        made.update([id(tensor) for tensor in node.outputs])
    return missed.isdisjoint(made)


def _cycle(node: gs.Node) -> PassError:
    return PassError(f"node '{node.name}' ({node.op}) lies on or behind a cycle")


def needed(graph: gs.Graph) -> set[int]:
    """Ids of the nodes of a graph, bodies apart, that its outputs need."""
    own = {id(node) for node in graph.nodes}
    found: set[int] = set()
    seen: set[int] = set()
    waiting: list[Any] = list(graph.outputs)
    while waiting:
        tensor = waiting.pop()
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        for node in tensor.inputs:
            if id(node) in own and id(node) not in found:
                found.add(id(node))
                waiting += outer_reads(node) if node.attrs else node.inputs
    return found


def sort_nodes(graph: gs.Graph) -> None:
    """Put the nodes of a graph and its bodies in the order of their distance from the inputs.

    Ties keep their order, but that what a node reads and is listed behind it moves before it.
    PassError, naming a node, if the graph has a cycle.
    """
    for each in graphs(graph):
        nodes, levels = _levels(each)
        levels_in_order = [levels[id(node)] for node in nodes]
        places = sorted(range(len(nodes)), key=levels_in_order.__getitem__)
        each.nodes = [nodes[place] for place in places]


def sort_functions(graph: gs.Graph) -> None:
    """Put local functions in the order of their distance from those that call none; ties stay.

    graphsurgeon recurses without end here where the graph has bodies.
    """
    functions: list[Any] = graph.functions
    known = {each.unique_id: each for each in functions}
    places = {key: place for place, key in enumerate(known)}
    sorter: TopologicalSorter[Any] = TopologicalSorter()
    for key, function in known.items():
        nodes = (node for each in graphs(function) for node in each.nodes)
        sorter.add(key, *{(node.domain, node.op) for node in nodes} & known.keys())
    sorter.prepare()
    graph.functions = []
    while sorter.is_active():
        ready = sorted(sorter.get_ready(), key=places.__getitem__)
        graph.functions += [known[key] for key in ready]
        sorter.done(*ready)


def _levels(graph: gs.Graph) -> tuple[list[Any], dict[int, int]]:
    """The nodes, each behind what it reads, and by id the steps from the inputs to each."""
    own = {id(node) for node in graph.nodes}
    levels: dict[int, int] = {}
    order: list[Any] = []
    opened: set[int] = set()
    for first in graph.nodes:
        waiting: list[Any] = [first]
        while waiting:
            node = waiting[-1]
            if id(node) in levels:
                waiting.pop()
                continue
            steps, ahead = _makers(node, own, levels)
            if not ahead:
                levels[id(node)] = steps + 1
                order.append(node)
                waiting.pop()
            elif id(node) in opened:
                raise _cycle(node)
            else:
                opened.add(id(node))
                waiting += reversed(ahead)
    return order, levels


def _makers(node: gs.Node, own: Container[int], levels: Mapping[int, int]) -> tuple[int, list[Any]]:
    """The highest level among what computes the inputs of a node, and what of it has none yet."""
    highest = -1
    ahead: list[Any] = []
    for tensor in outer_reads(node) if node.attrs else node.inputs:
        for maker in tensor.inputs:
            level = levels.get(id(maker))
            if level is None:
                if id(maker) in own:
                    ahead.append(maker)
            elif level > highest:
                highest = level
    return highest, ahead
