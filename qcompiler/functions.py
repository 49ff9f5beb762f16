"""The local functions of a model, inlined, and what they come to: counted before, not after.

Functions that call each other twice, forty deep, are a small file and 2^40 nodes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import onnx
from onnx import inliner

from qcompiler import ops
from qcompiler.errors import ModelError
from qcompiler.protos import nodes_below

MOST_NODES = 500_000
"""Nodes that a model may have once its functions are inlined; each takes some ten kilobytes."""

_Key = tuple[str, str, str]
"""Domain, name and overload."""


def require_bounded(model: onnx.ModelProto) -> None:
    """ModelError for two functions of one name, for one that calls itself, by way of others or not,
    and where they come to more than MOST_NODES when inlined.
    """
    if not model.functions:
        return
    calls: dict[_Key, Counter[_Key]] = {}
    for each in model.functions:
        key = (each.domain, each.name, each.overload)
        if key in calls:
            raise ModelError(f"two functions are named '{each.name}'")
        calls[key] = Counter(map(_key, nodes_below(each.node)))
    sizes = _sizes(calls)
    inside = Counter(map(_key, nodes_below(model.graph.node)))
    shares = {key: count * sizes.get(key, 1) for key, count in inside.items()}
    if sum(shares.values()) > MOST_NODES:
        most = max((key for key in shares if key in sizes), key=shares.__getitem__, default=None)
        if most is not None:
            raise _too_many(most, shares[most])


def _key(node: onnx.NodeProto) -> _Key:
    return (node.domain, node.op_type, node.overload)


def _sizes(calls: Mapping[_Key, Counter[_Key]]) -> dict[_Key, int]:
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
                    raise _too_many(key, sizes[key])
                waiting.pop()
            elif key in opened:
                raise ModelError(
                    f"function '{key[1]}' calls itself, which ONNX does not allow: a Loop would do"
                )
            else:
                opened.add(key)
                waiting += ahead
    return sizes


def _too_many(key: _Key, count: int) -> ModelError:
    return ModelError(
        f"function '{key[1]}' and what it calls come to {count:,} nodes when inlined, "
        f"more than {MOST_NODES:,}: a Loop can stand in place of calls that repeat"
    )


def inlined(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its functions inlined.

    ONNX's inliner passes over functions of another opset than the model. Where their operators are
    the same in both, that is mended; ModelError for a call of one where they are not.
    """
    version = next((each.version for each in model.opset_import if not each.domain), None)
    others = [f for f in model.functions if version is not None and _own_opsets(f, version)]
    if others and version is not None:
        source, model = model, onnx.ModelProto()
        model.CopyFrom(source)
        for function in model.functions:
            for entry in _own_opsets(function, version):
                if _is_same(function, entry.version, version):
                    entry.version = version
    model = inliner.inline_local_functions(model)
    called = set(map(_key, nodes_below(model.graph.node))) if others else set()
    for each in others:
        if each.domain != ops.DOMAIN and (each.domain, each.name, each.overload) in called:
            raise ModelError(
                f"function '{each.name}' is of another opset than the model, whose operators "
                "differ; export the model with one opset"
            )
    return model


def _own_opsets(function: onnx.FunctionProto, version: int) -> list[onnx.OperatorSetIdProto]:
    """Where a function says that its opset is another one."""
    return [e for e in function.opset_import if not e.domain and e.version != version]


def _is_same(function: onnx.FunctionProto, own: int, other: int) -> bool:
    """Whether the operators of a function are the same in two opsets."""
    used = {node.op_type for node in nodes_below(function.node) if not node.domain}
    return all(_since(op_type, own) == _since(op_type, other) for op_type in used)


def _since(op_type: str, version: int) -> int | None:
    """The version of an operator in an opset."""
    try:
        return int(onnx.defs.get_schema(op_type, version, "").since_version)
    except onnx.defs.SchemaError:
        return None
