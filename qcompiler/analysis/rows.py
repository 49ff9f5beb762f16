"""Nodes that choose, move or add up rows and leave the last axis as it is: what holds for the
channels of one tensor then holds for those of the other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler import ir


def moved_rows(node: gs.Node) -> tuple[list[int], list[Any]] | None:
    """The positions of what a node takes rows of, and the results with these; None where it does
    something else, or that can't be told."""
    if node.domain or node.op not in _POSITIONS or not node.inputs:
        return None
    positions = _POSITIONS[node.op](node)
    outputs: list[Any] = list(node.outputs)
    widths = [_width(node.inputs[at]) for at in positions] + [_width(each) for each in outputs]
    if not positions or None in widths or len(set(widths)) != 1:
        return None
    return positions, outputs


def readers_of_rows(tensor: Any) -> Iterator[tuple[gs.Node, Any]]:
    """The nodes that read the values of a tensor or some of its rows, with what they read."""
    waiting = [tensor]
    while waiting:
        each = waiting.pop()
        for node in ir.value_readers(each):
            found = moved_rows(node)
            if found is None or len(found[0]) != 1 or node.inputs[found[0][0]] is not each:
                yield node, each
            else:
                waiting += found[1]


_CHANGES = ("ReduceSum", "Mul", "ScatterND", "ScatterElements")
"""Operators that make other rows of rows: sums, multiples, and zeros where there were none."""


def origin(tensor: Any, *, unchanged: bool = False) -> Any:
    """The tensor whose rows these are, or sums or multiples of them unless they must be
    `unchanged`; itself where they are no others'."""
    node = ir.producer(tensor)
    while node is not None:
        found = moved_rows(node)
        if found is None or len(found[0]) != 1 or (unchanged and node.op in _CHANGES):
            break
        tensor = node.inputs[found[0][0]]
        node = ir.producer(tensor)
    return tensor


_FILLS = ("Expand", "Reshape", "Cast")
"""Operators that make zeros of zeros."""


def is_zeros(tensor: Any) -> bool:
    """Whether a tensor is known to be zeros, whatever its shape."""
    node = ir.producer(tensor)
    while node is not None and node.op in _FILLS and not node.domain:
        tensor = node.inputs[0]
        node = ir.producer(tensor)
    if node is not None and node.op == "ConstantOfShape" and not node.domain:
        tensor = ir.attribute(node, "value")
    return tensor is None or (ir.is_constant(tensor) and not np.any(ir.array(tensor)))


def _width(tensor: Any) -> int | None:
    """Elements along the last axis; None where that is not known."""
    size = tensor.shape[-1] if tensor.shape else None
    return size if isinstance(size, int) else None


def _first(node: gs.Node) -> list[int]:
    """Where equal sizes of the last axis are all it takes."""
    return [] if ir.is_constant(node.inputs[0]) else [0]


def _beside_last(node: gs.Node) -> list[int]:
    """Of nodes that work along one axis."""
    rank = ir.tensor_rank(node.inputs[0])
    axis = ir.attribute(node, "axis", 0)
    if rank is None or axis in (-1, rank - 1):
        return []
    return list(range(len(node.inputs))) if node.op == "Concat" else _first(node)


def _taken(node: gs.Node) -> list[int]:
    """Of nodes that read at places."""
    return _first(node) if _in_rows(node) else []


def _put(node: gs.Node) -> list[int]:
    """Of nodes that write at places, or add there: rows among other rows, or among zeros."""
    target, _, rows = node.inputs
    adds = ir.attribute(node, "reduction", "none") in ("none", "add")
    if not adds or ir.is_constant(rows) or not _in_rows(node):
        return []
    return [2] if is_zeros(target) else [0, 2]


def _in_rows(node: gs.Node) -> bool:
    """Whether the places that a node reads or writes at are whole rows."""
    rank, places = ir.tensor_rank(node.inputs[0]), node.inputs[1]
    if rank is None:
        return False
    if node.op in ("GatherElements", "ScatterElements"):
        expand = ir.producer(places, "Expand")  # to the same place in every channel
        spread = expand is not None and not expand.domain and _width(expand.inputs[0]) == 1
        return spread and ir.attribute(node, "axis", 0) not in (-1, rank - 1)
    axes = _width(places)
    return axes is not None and ir.attribute(node, "batch_dims", 0) + axes < rank


def _beside_last_of(node: gs.Node) -> list[int]:
    """Of nodes that read their axes: none is the last."""
    rank = ir.tensor_rank(node.outputs[0] if node.op == "Unsqueeze" else node.inputs[0])
    if rank is None or len(node.inputs) < 2 or not ir.is_constant(node.inputs[1]):
        return []
    axes = ir.array(node.inputs[1]).reshape(-1).tolist()
    return _first(node) if axes and not {-1, rank - 1}.intersection(axes) else []


def _times_a_number(node: gs.Node) -> list[int]:
    """Of a product of rows by one computed number each."""
    narrow = [at for at in (0, 1) if _width(node.inputs[at]) == 1]
    if len(narrow) != 1 or any(ir.is_constant(each) for each in node.inputs):
        return []
    return [1 - narrow[0]]


_POSITIONS = {
    "Reshape": _first,
    "Expand": _first,
    "Gather": _beside_last,
    "Split": _beside_last,
    "Concat": _beside_last,
    "Squeeze": _beside_last_of,
    "Unsqueeze": _beside_last_of,
    "ReduceSum": _beside_last_of,
    "Mul": _times_a_number,
    "GatherND": _taken,
    "GatherElements": _taken,
    "ScatterND": _put,
    "ScatterElements": _put,
}
