"""Which column of V each channel of an attention output averages, found by moving column numbers
through the very operators that move the columns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from qcompiler import ir

_SIZES = (2, 3, 5, 7, 11, 13)
"""Stand for symbolic dimensions, each its own, so that no two are taken for one another."""

_MOST = 1 << 27
"""Elements of V, at most: each has a number of 64 bits."""

Index = NDArray[np.int64]


@dataclass(frozen=True)
class ValueColumns:
    """Where the channels of an attention output come from."""

    columns: Index
    """[channels]: for each channel the column of V it averages."""
    head: int | None
    """Channels of a head, where each head is a run of channels, in the order it had in the product;
    None where heads are not kept together."""


def value_columns(
    before: Sequence[gs.Node], after: Sequence[gs.Node], values: Any, columns: int
) -> ValueColumns | None:
    """For each channel of the result the column of V [..., columns] it comes from.

    `before` are the nodes from V to the attention product, `after` those from the product to its
    readers, each in order: Reshape, Transpose, Unsqueeze, Expand, and Concat behind a cache, whose
    columns are those of V. `values` is V. None where a shape is not known, a channel has no column
    of its own, or a column no channel.
    """
    sizes: dict[str, int] = {}
    if values.shape is None:
        return None
    lead = [_size(dim, sizes) for dim in values.shape[:-1]]
    known = [size for size in lead if size is not None]
    if len(known) != len(lead) or math.prod(known) * columns > _MOST:
        return None
    index = _through(before, np.broadcast_to(np.arange(columns), (*known, columns)), sizes)
    # P [.., query, key] · V [.., key, head]: every query sees all keys, so they must agree.
    if index is None or index.ndim < 3 or not (index == index[..., :1, :]).all():
        return None
    queries = _queries(after, index.ndim, sizes) or index.shape[-2]
    index = np.repeat(index[..., :1, :], queries, -2)
    found = _through(after, index, sizes)
    if found is None:
        return None
    rows = found.reshape(-1, found.shape[-1])
    if not (rows == rows[0]).all() or np.unique(rows[0]).size != columns:
        return None
    return ValueColumns(rows[0].copy(), _head(after, index.shape, sizes, rows.shape[-1]))


def _queries(after: Sequence[gs.Node], rank: int, sizes: dict[str, int]) -> int | None:
    """How many rows the product has; behind a cache there are fewer queries than keys."""
    shape = after[0].inputs[0].shape if after else None
    return _size(shape[-2], sizes) if shape is not None and len(shape) == rank else None


def _head(
    after: Sequence[gs.Node], product: tuple[int, ...], sizes: dict[str, int], channels: int
) -> int | None:
    """The size of a head in the product [.., query, head], if channels keep heads together."""
    head = product[-1]
    lanes = np.arange(int(np.prod(product[:-1])) * head).reshape(product)
    moved = _through(after, lanes, sizes)
    if moved is None or channels % head:
        return None
    runs = moved.reshape(-1, head)
    in_order = (runs == runs[:, :1] + np.arange(head)).all() and (runs[:, 0] % head == 0).all()
    return head if in_order else None


def _through(nodes: Sequence[gs.Node], index: Index, sizes: dict[str, int]) -> Index | None:
    """What a chain of nodes that move elements makes of an index."""
    moved: Index | None = index
    for node in nodes:
        moved = None if moved is None else _moved(node, moved, sizes)
    return moved


def _size(dim: Any, sizes: dict[str, int]) -> int | None:
    if isinstance(dim, str) and dim and dim not in sizes and len(sizes) < len(_SIZES):
        sizes[dim] = _SIZES[len(sizes)]
    return sizes.get(dim) if isinstance(dim, str) else dim


def _moved(node: gs.Node, index: Index, sizes: dict[str, int]) -> Index | None:
    """What a node that moves elements makes of the column numbers; None if it can't be told."""
    try:
        if node.op == "Transpose":
            order = ir.attribute(node, "perm", list(range(index.ndim))[::-1])
            return index.transpose(order)
        if node.op == "Unsqueeze":
            axes = ir.array(node.inputs[1]) if ir.is_constant(node.inputs[1]) else None
            return None if axes is None else np.expand_dims(index, tuple(map(int, axes.ravel())))
        if node.op == "Concat":
            return _longer(node, index, sizes)
        target = _target(node, index, sizes)
        if target is None:
            return None
        if node.op == "Expand":
            return np.broadcast_to(index, np.broadcast_shapes(index.shape, tuple(target)))
        return index.reshape(target)
    except ValueError:  # the shapes don't fit: an inferred dimension was not what it seemed
        return None


def _longer(node: gs.Node, index: Index, sizes: dict[str, int]) -> Index | None:
    """What a Concat along an axis on which all numbers agree makes of them."""
    axis, shape = int(ir.attribute(node, "axis")), node.outputs[0].shape
    first = index.take([0], axis)
    size = None if shape is None else _size(shape[axis], sizes)
    return None if size is None or not (index == first).all() else np.repeat(first, size, axis)


def _target(node: gs.Node, index: Index, sizes: dict[str, int]) -> list[int] | None:
    """The shape a Reshape or Expand gives, at most one dimension left open as -1."""
    if ir.is_constant(node.inputs[1]):
        wanted = [int(dim) for dim in ir.array(node.inputs[1]).ravel()]
        if node.op == "Reshape" and not ir.attribute(node, "allowzero", 0):
            return [index.shape[i] if dim == 0 else dim for i, dim in enumerate(wanted)]
        return wanted
    shape = node.outputs[0].shape
    if shape is None:
        return None
    known = [sizes.get(dim) if isinstance(dim, str) else dim for dim in shape]
    if known.count(None) > 1 or (node.op == "Expand" and None in known):
        return None
    return [-1 if dim is None else int(dim) for dim in known]
