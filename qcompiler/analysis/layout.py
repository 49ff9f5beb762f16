"""Which column of V each channel of an attention output averages, found by moving column numbers
through the very operators that move the columns."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from qcompiler import ir

MOVES = frozenset({"Reshape", "Transpose", "Unsqueeze", "Squeeze", "Expand"})
"""Operators that move elements and keep all of them."""

PICKS = frozenset({"Slice", "Gather", "Split"})
"""Operators that cut parts out."""

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


@dataclass(frozen=True)
class Heads:
    """How an operator that is attention as a whole cuts its queries and its values into heads."""

    queries: int
    values: int

    def apart(self, index: Index) -> Index | None:
        """[B, heads, T, d] for the heads of queries, of V [B, its heads, T, d] or [B, T, ..]."""
        if self.queries % self.values or index.ndim not in (3, 4):
            return None
        if index.ndim == 3:
            if index.shape[-1] % self.values:
                return None
            index = index.reshape(*index.shape[:2], self.values, -1).transpose(0, 2, 1, 3)
        return np.repeat(index, self.queries // self.values, 1)


def _side_by_side(index: Index) -> Index:
    """[B, T, heads · d] of [B, heads, T, d]."""
    batch, heads, rows, size = index.shape
    return index.transpose(0, 2, 1, 3).reshape(batch, rows, heads * size)


def value_columns(
    before: Sequence[Any],
    after: Sequence[Any],
    values: Any,
    columns: int,
    heads: Heads | None = None,
) -> ValueColumns | None:
    """For each channel of the result the column of V [..., columns] it comes from.

    `before` are the tensors from V to the attention product, `after` those from the product to its
    readers, each in order and behind its producer: one of MOVES or PICKS, or a Concat behind a
    cache, whose columns are those of V. `values` is V, which may hold more than the product reads.
    `heads`: of a product that cuts V into heads by itself; what it reads and gives is then either
    [B, heads, T, d] or [B, T, heads · d].
    None where a shape is not known, or a channel has no column of its own.
    """
    sizes: dict[str, int] = {}
    while before and _keeps_columns(before[0], columns):
        values, before = before[0], before[1:]
    if values.shape is None:
        return None
    lead = [_size(dim, sizes) for dim in values.shape[:-1]]
    known = [size for size in lead if size is not None]
    if len(known) != len(lead) or math.prod(known) * columns > _MOST:
        return None
    index = _through(before, np.broadcast_to(np.arange(columns), (*known, columns)), sizes)
    flat = heads is not None and index is not None and index.ndim == 3
    if index is not None and heads is not None:
        index = heads.apart(index)
    # P [.., query, key] · V [.., key, head]: every query sees all keys, so they must agree.
    if index is None or index.ndim < 3 or not (index == index[..., :1, :]).all():
        return None
    queries = _queries(after, 3 if flat else index.ndim, sizes) or index.shape[-2]
    index = np.repeat(index[..., :1, :], queries, -2)

    def given(lanes: Index) -> Index | None:
        return _through(after, _side_by_side(lanes) if flat else lanes, sizes)

    found = given(index)
    if found is None:
        return None
    rows = found.reshape(-1, found.shape[-1])
    if not (rows == rows[0]).all():
        return None
    return ValueColumns(rows[0].copy(), _head(given, index.shape, rows.shape[-1]))


def _keeps_columns(tensor: Any, columns: int) -> bool:
    """Whether a Reshape made a tensor that changed nothing but the dimensions before the last."""
    reshaped = ir.producer(tensor, "Reshape") is not None
    return reshaped and bool(tensor.shape) and tensor.shape[-1] == columns


def _queries(after: Sequence[Any], rank: int, sizes: dict[str, int]) -> int | None:
    """How many rows the product has; behind a cache there are fewer queries than keys."""
    first = ir.producer(after[0]) if after else None
    shape = None if first is None else first.inputs[0].shape
    return _size(shape[-2], sizes) if shape is not None and len(shape) == rank else None


def _head(
    given: Callable[[Index], Index | None], product: tuple[int, ...], channels: int
) -> int | None:
    """The size of a head in the product [.., query, head], if channels keep heads together.

    `given`: what the nodes behind the product make of it.
    """
    head = product[-1]
    lanes = np.arange(int(np.prod(product[:-1])) * head).reshape(product)
    moved = given(lanes)
    if moved is None or channels % head:
        return None
    runs = moved.reshape(-1, head)
    in_order = (runs == runs[:, :1] + np.arange(head)).all() and (runs[:, 0] % head == 0).all()
    return head if in_order else None


def _through(tensors: Sequence[Any], index: Index, sizes: dict[str, int]) -> Index | None:
    """What a chain of nodes that move elements makes of an index; `tensors` are their outputs."""
    moved: Index | None = index
    for tensor in tensors:
        node = ir.producer(tensor)
        if moved is None or node is None:
            return None
        moved = _picked(node, tensor, moved) if node.op in PICKS else _moved(node, moved, sizes)
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
        if node.op in ("Unsqueeze", "Squeeze"):
            if len(node.inputs) < 2 or not ir.is_constant(node.inputs[1]):
                return None
            axes = tuple(map(int, ir.array(node.inputs[1]).ravel()))
            change = np.expand_dims if node.op == "Unsqueeze" else np.squeeze
            return np.asarray(change(index, axes))
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


def picked(node: gs.Node, output: Any, shape: Sequence[Any]) -> tuple[int, NDArray[Any]] | None:
    """The axis along which one of PICKS cuts its output out of `shape`, and which places it takes.

    Places are an array [n], or [] where the axis vanishes. None where that does not show.
    """
    if node.op == "Slice":
        given = list(node.inputs[1:5])
        if len(given) < 3 or not all(map(ir.is_constant, given)):
            return None
        starts, ends, axes, *steps = (ir.array(each).ravel().tolist() for each in given)
        axis, cut = axes[0], slice(starts[0], ends[0], steps[0][0] if steps else 1)
        size = _fixed(shape, axis)
        return None if size is None or len(axes) != 1 else (axis % len(shape), np.arange(size)[cut])
    if node.op == "Gather":
        axis = int(ir.attribute(node, "axis", 0))
        size = _fixed(shape, axis)
        if size is None or not ir.is_constant(node.inputs[1]):
            return None
        places = ir.array(node.inputs[1])
        known = places.ndim < 2 and bool(((places >= -size) & (places < size)).all())
        return (axis % len(shape), places % size) if known else None
    axis = int(ir.attribute(node, "axis", 0))
    size = _fixed(shape, axis)
    sizes = None if size is None else _part_sizes(node, size)
    if sizes is None:
        return None
    at = next(i for i, each in enumerate(node.outputs) if each is output)
    start = sum(sizes[:at])
    return axis % len(shape), np.arange(start, start + sizes[at])


def _fixed(shape: Sequence[Any], axis: int) -> int | None:
    """The size of an axis where it is a number, and not beyond what V may have."""
    size = shape[axis] if -len(shape) <= axis < len(shape) else None
    return int(size) if isinstance(size, int | np.integer) and 0 <= size <= _MOST else None


def _part_sizes(split: gs.Node, total: int) -> list[int] | None:
    """The sizes of what a Split makes of an axis of size `total`, None where they don't show."""
    given = ir.given(split.inputs, 1)
    if given is not None:
        if not ir.is_constant(given):
            return None
        sizes = [int(size) for size in ir.array(given)]
    else:
        each = -(-total // len(split.outputs))
        sizes = [each] * (total // each) + [total % each] * (total % each > 0)
    return sizes if sum(sizes) == total and len(sizes) == len(split.outputs) else None


def _picked(node: gs.Node, output: Any, index: Index) -> Index | None:
    """What one of PICKS makes of the column numbers."""
    found = picked(node, output, index.shape)
    return None if found is None else np.take(index, found[1], axis=found[0])


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
