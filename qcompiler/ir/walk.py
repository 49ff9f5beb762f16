"""Graphs with all that lies below them, in both forms a model has."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import onnx
import onnx_graphsurgeon as gs


def graphs(graph: gs.Graph) -> list[gs.Graph]:
    """A graph and all its subgraphs, itself first."""
    found = [graph]
    for node in graph.nodes:
        if node.attrs:
            found += bodies(node)
    return found


def bodies(node: gs.Node) -> list[gs.Graph]:
    """All graphs that lie below a node: few nodes have any."""
    for value in node.attrs.values():
        if isinstance(value, gs.Graph):
            return list(node.subgraphs(recursive=True))
    return []


def tensors_of(graph: gs.Graph) -> dict[str, Any]:
    """What a graph and its nodes name, bodies apart, by name; in the order of the nodes.

    As `gs.Graph.tensors` has it: of several of one name the last.
    """
    inputs: list[Any] = graph.inputs
    outputs: list[Any] = graph.outputs
    found: dict[str, Any] = {tensor.name: tensor for tensor in inputs}
    for node in graph.nodes:
        for tensor in node.inputs:
            found[tensor.name] = tensor
        for tensor in node.outputs:
            found[tensor.name] = tensor
    for tensor in outputs:
        found[tensor.name] = tensor
    found.pop("", None)
    return found


def proto_graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The same of a message."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute or ():
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from proto_graphs(attribute.g)
