"""What the local functions of a model come to when they are inlined: counted before, not after.

Functions that call each other twice, forty deep, are a small file and 2^40 nodes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

import onnx

from qcompiler.errors import ModelError

MOST_NODES = 500_000
"""Nodes that a model may have once its functions are inlined; each takes some ten kilobytes."""

_Key = tuple[str, str, str]
"""Domain, name and overload."""


def nodes_below(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """Nodes, each before those in its subgraphs."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from nodes_below(attribute.g.node)
            for graph in attribute.graphs:
                yield from nodes_below(graph.node)


def require_bounded(model: onnx.ModelProto, where: str) -> None:
    """ModelError where functions call themselves, or come to more than MOST_NODES when inlined.

    `where`: what the message begins with.
    """
    if not model.functions:
        return
    calls = {
        (each.domain, each.name, each.overload): Counter(map(_key, nodes_below(each.node)))
        for each in model.functions
    }
    sizes = _sizes(calls, where)
    inside = Counter(map(_key, nodes_below(model.graph.node)))
    shares = {key: count * sizes.get(key, 1) for key, count in inside.items()}
    if sum(shares.values()) > MOST_NODES:
        most = max((key for key in shares if key in sizes), key=shares.__getitem__, default=None)
        if most is not None:
            raise _too_many(most, shares[most], where)


def _key(node: onnx.NodeProto) -> _Key:
    return (node.domain, node.op_type, node.overload)


def _sizes(calls: Mapping[_Key, Counter[_Key]], where: str) -> dict[_Key, int]:
    """The nodes of each function with all that it calls inlined."""
    sizes: dict[_Key, int] = {}
    opened: set[_Key] = set()
    for first in calls:
        waiting = [first]
        while waiting:
            key = waiting[-1]
            ahead = [each for each in calls[key] if each in calls and each not in sizes]
            if key in sizes:
                waiting.pop()
            elif not ahead:
                sizes[key] = sum(n * sizes.get(each, 1) for each, n in calls[key].items())
                if sizes[key] > MOST_NODES:
                    raise _too_many(key, sizes[key], where)
                waiting.pop()
            elif key in opened:
                raise ModelError(
                    f"{where}: function '{key[1]}' calls itself, which ONNX does not allow; "
                    "export the model with a Loop instead"
                )
            else:
                opened.add(key)
                waiting += ahead
    return sizes


def _too_many(key: _Key, count: int, where: str) -> ModelError:
    return ModelError(
        f"{where}: function '{key[1]}' and what it calls come to {count:,} nodes when inlined, "
        f"more than {MOST_NODES:,}; export the model with a Loop in place of calls that repeat"
    )
