"""Graphs with all that lies below them, in both forms a model has."""

from __future__ import annotations

from collections.abc import Iterator

import onnx
import onnx_graphsurgeon as gs


def graphs(graph: gs.Graph) -> list[gs.Graph]:
    """A graph and all its subgraphs, itself first."""
    return [graph, *graph.subgraphs(recursive=True)]


def proto_graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The same of a message."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from proto_graphs(attribute.g)


def proto_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Every node of a message, each before those in its subgraphs."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from proto_nodes(attribute.g)
