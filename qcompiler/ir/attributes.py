"""Attributes that graphsurgeon does not hold or can't write, carried around its import and export.

It drops the rarer types (types, lists of tensors or graphs), takes every string for UTF-8, and
can't write an empty list, whose element type Python does not show.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Generator, Iterable, Iterator
from typing import Any

import onnx
import onnx_graphsurgeon as gs
from onnx import AttributeProto

from qcompiler.ir import interface

_HELD = frozenset(
    {
        AttributeProto.FLOAT,
        AttributeProto.INT,
        AttributeProto.STRING,
        AttributeProto.TENSOR,
        AttributeProto.GRAPH,
        AttributeProto.FLOATS,
        AttributeProto.INTS,
        AttributeProto.STRINGS,
    }
)


class EmptyList(list[Any]):
    """An empty list attribute that knows its ONNX type."""

    def __init__(self, proto: AttributeProto) -> None:
        super().__init__()
        self.proto = proto


class OpaqueAttribute:
    """An attribute that no pass reads: written as it was read."""

    def __init__(self, proto: AttributeProto) -> None:
        self.proto = proto

    def __str__(self) -> str:
        kind = AttributeProto.AttributeType.Name(self.proto.type).lower()
        return f"{kind}:{hashlib.sha256(self.proto.SerializeToString()).hexdigest()[:8]}"


_KEPT = (EmptyList, OpaqueAttribute)


def import_graph(model: onnx.ModelProto) -> gs.Graph:
    """graphsurgeon's graph of a model, with every attribute; the model is left as it is."""
    if all(_held(attribute) for node in _protos(model) for attribute in node.attribute):
        return interface.import_graph(model)
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    kept = [_take_out(node) for node in _protos(bare)]
    graph = interface.import_graph(bare)
    for node, values in zip(_nodes(graph), kept, strict=True):
        node.attrs.update(values)
    return graph


def export_graph(graph: gs.Graph) -> onnx.ModelProto:
    """The model of a graph, with every attribute."""
    with _set_aside(graph) as kept:
        model = interface.export_graph(graph)
    if kept:
        for node, proto in zip(_nodes(graph), _protos(model), strict=True):
            proto.attribute.extend(v.proto for v in node.attrs.values() if isinstance(v, _KEPT))
    return model


def _held(attribute: AttributeProto) -> bool:
    """Whether graphsurgeon reads and writes an attribute as it is."""
    if attribute.ref_attr_name:
        return True
    if attribute.type not in _HELD:
        return False
    if attribute.type in (AttributeProto.FLOATS, AttributeProto.INTS, AttributeProto.STRINGS):
        return _is_text(attribute.strings) and not _is_empty(attribute)
    return _is_text([attribute.s])


def _is_empty(attribute: AttributeProto) -> bool:
    return not (attribute.ints or attribute.floats or attribute.strings)


def _is_text(values: Iterable[bytes]) -> bool:
    try:
        for value in values:
            value.decode()
    except UnicodeDecodeError:
        return False
    return True


def _take_out(node: onnx.NodeProto) -> dict[str, EmptyList | OpaqueAttribute]:
    taken: dict[str, EmptyList | OpaqueAttribute] = {}
    for attribute in [each for each in node.attribute if not _held(each)]:
        proto = AttributeProto()
        proto.CopyFrom(attribute)
        is_list = proto.type in _HELD and proto.type != AttributeProto.STRING
        kind = EmptyList if is_list and _is_empty(proto) else OpaqueAttribute
        taken[proto.name] = kind(proto)
        node.attribute.remove(attribute)
    return taken


@contextlib.contextmanager
def _set_aside(graph: gs.Graph) -> Generator[bool, None, None]:
    """The graph without the attributes that graphsurgeon can't write, for as long as it lasts.

    Gives whether there are any.
    """
    saved: list[tuple[Any, Any]] = []
    try:
        for node in list(_nodes(graph)):
            if node.attrs and any(isinstance(value, _KEPT) for value in node.attrs.values()):
                saved.append((node, node.attrs))
                node.attrs = {k: v for k, v in node.attrs.items() if not isinstance(v, _KEPT)}
        yield bool(saved)
    finally:
        for node, attrs in saved:
            node.attrs = attrs


def _protos(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Every node, those of subgraphs behind theirs, then those of functions."""

    def walk(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
        for node in nodes:
            if not node.attribute:
                yield node
                continue
            # Listed first: the caller may take attributes out of the node it is given.
            inner = [each.g.node for each in node.attribute if each.type == AttributeProto.GRAPH]
            yield node
            for body in inner:
                yield from walk(body)

    yield from walk(model.graph.node)
    for function in model.functions:
        yield from walk(function.node)


def _nodes(graph: gs.Graph) -> Iterator[Any]:
    """The nodes of a graph in the same order."""

    def walk(nodes: Iterable[Any]) -> Iterator[Any]:
        for node in nodes:
            yield node
            for value in node.attrs.values() if node.attrs else ():
                if isinstance(value, gs.Graph):
                    yield from walk(value.nodes)

    yield from walk(graph.nodes)
    for function in graph.functions:
        yield from walk(function.nodes)
