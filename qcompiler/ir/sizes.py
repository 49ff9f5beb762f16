"""Sizes that shape inference leaves open, settled by what the nodes say of them.

ONNX's inference names a size it can't tell, and the name stands for one number wherever it occurs.
So a node that ties two sizes together settles one of them everywhere:

    MatMul(X [.., k], W [64, n])                      k is 64
    Reshape(X [batch, s, 384], [batch, s, -1, 32])    12 heads: what both sides have cancels
    Add(X [batch, s, 64], Y [batch, s, 64])           the sum has these sizes too

Nothing is guessed: what is settled holds in every run that ends well, on data that is not empty.
Names that the model itself gives are left alone, for exporters use them loosely.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence, Set
from typing import Any

import onnx_graphsurgeon as gs

from qcompiler.ir.elements import Cut, Elements, Size
from qcompiler.ir.graph import attribute
from qcompiler.ir.order import topological
from qcompiler.ir.tensors import is_constant
from qcompiler.ir.walk import tensors_of

_BROADCASTS = (
    *("Add", "Sub", "Mul", "Div", "Pow", "Mod", "Min", "Max", "Sum", "Mean", "PRelu", "Where"),
    *("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "And", "Or", "Xor"),
)
_TO_THE_END = 2**31 - 1
"""From here on, the end of a Slice stands for the end of the axis."""


def settle_sizes(graph: gs.Graph, declared: Set[str]) -> None:
    """State the sizes that the nodes settle, of tensors between the inputs and the outputs.

    `declared`: the names that inference did not make up.
    """
    settler = _Settler(graph, declared)
    nodes = [node for node in topological(graph) if not node.domain]
    for node in nodes:
        if node.op in ("MatMul", "Gemm"):
            settler.contract(node)
    rules: dict[str, Callable[[gs.Node], None]] = {
        "Concat": settler.join,
        "MatMul": settler.multiply,
        "Reshape": settler.reshape,
        "Expand": settler.expand,
        "Slice": settler.cut,
        "Range": settler.count,
        "ConstantOfShape": settler.fill,
        **dict.fromkeys(("ScatterND", "ScatterElements"), settler.replace),
        **dict.fromkeys(_BROADCASTS, settler.combine),
    }
    for node in nodes:
        if node.op in rules:
            rules[node.op](node)
        settler.note(node)
    settler.write()


class _Settler:
    """What the names of sizes stand for, by rules that each look at one node."""

    def __init__(self, graph: gs.Graph, declared: Set[str]) -> None:
        self._graph, self._declared = graph, declared
        self._fixed = {id(tensor) for tensor in [*graph.inputs, *graph.outputs]}
        self._meaning: dict[str, int | str] = {}
        self._caps: dict[str, Size] = {}
        """Names of the lesser of some size and a number: that size."""
        self._elements = Elements(self._shape)

    def note(self, node: gs.Node) -> None:
        """Remember the elements of what a node gives: in order, for a chain may be long."""
        for output in node.outputs:
            self._elements.of(output)

    def write(self) -> None:
        """Put what was found into the graph."""
        for tensor in tensors_of(self._graph).values():
            if is_constant(tensor) or id(tensor) in self._fixed or not tensor.shape:
                continue
            shape = [dim if (size := self._resolved(dim)) is None else size for dim in tensor.shape]
            if shape != list(tensor.shape):
                tensor.shape = shape

    def _resolved(self, size: Size) -> Size:
        while isinstance(size, str) and size in self._meaning:
            size = self._meaning[size]
        return None if size == "" else size

    def _shape(self, tensor: Any) -> list[Size] | None:
        return None if tensor.shape is None else [self._resolved(dim) for dim in tensor.shape]

    def _values(self, tensor: Any) -> list[Size] | None:
        found = self._elements.of(tensor)
        return None if found is None else [self._resolved(each) for each in found]

    def _same(self, one: Size, other: Size) -> None:
        """Both are one number: a name that inference made up stands for the other."""
        one, other = self._resolved(one), self._resolved(other)
        if one is None or other is None or one == other:
            return
        for name, meaning in ((one, other), (other, one)):
            if isinstance(name, str) and name not in self._declared:
                self._meaning[name] = meaning
                return

    def _state(self, tensor: Any, sizes: Sequence[Size]) -> None:
        """A tensor has these sizes, as far as they are known."""
        if id(tensor) in self._fixed:
            return
        sizes = [None if isinstance(size, int) and size < 0 else size for size in sizes]
        shape = [None] * len(sizes) if tensor.shape is None else list(tensor.shape)
        if len(shape) != len(sizes):
            return
        for old, new in zip(shape, sizes, strict=True):
            self._same(old, new)
        tensor.shape = [
            old if self._resolved(old) is not None else new
            for old, new in zip(shape, sizes, strict=True)
        ]

    def contract(self, node: gs.Node) -> None:
        """The axis that a product sums over has one size in both factors."""
        x, w = (self._shape(tensor) for tensor in node.inputs[:2])
        if x and w:
            columns = -1 if attribute(node, "transB", 0) or len(w) == 1 else -2
            self._same(x[0 if attribute(node, "transA", 0) else -1], w[columns])

    def multiply(self, node: gs.Node) -> None:
        """MatMul [.., m, k] by [.., k, n]."""
        x, w = (self._shape(tensor) for tensor in node.inputs[:2])
        if x and w and min(len(x), len(w)) > 1:
            lead = self._broadcast([x[:-2], w[:-2]])
            self._state(node.outputs[0], [*lead, x[-2], w[-1]])

    def combine(self, node: gs.Node) -> None:
        """Element by element, operands broadcast."""
        shapes = [each for t in node.inputs if (each := self._shape(t)) is not None]
        if len(shapes) == len(node.inputs):
            self._state(node.outputs[0], self._broadcast(shapes))

    def join(self, node: gs.Node) -> None:
        """Concat: along its axis the sizes add up, along the others they are the same."""
        shapes = [each for t in node.inputs if (each := self._shape(t))]
        if len(shapes) < len(node.inputs) or len({len(shape) for shape in shapes}) > 1:
            return
        sizes: list[Size] = [self._common(set(row)) for row in zip(*shapes, strict=True)]
        axis: int = attribute(node, "axis")
        if not -len(sizes) <= axis < len(sizes):
            return
        along = [shape[axis] for shape in shapes]
        numbers = [size for size in along if isinstance(size, int)]
        sizes[axis] = sum(numbers) if len(numbers) == len(along) else None
        self._state(node.outputs[0], sizes)

    def expand(self, node: gs.Node) -> None:
        """Expand broadcasts with a shape."""
        shape, target = self._shape(node.inputs[0]), self._values(node.inputs[1])
        if shape is not None and target is not None:
            self._state(node.outputs[0], self._broadcast([shape, target]))

    def _broadcast(self, shapes: Sequence[list[Size]]) -> list[Size]:
        rank = max(map(len, shapes))
        aligned = [[*[1] * (rank - len(shape)), *shape] for shape in shapes]
        return [self._common(set(sizes)) for sizes in zip(*aligned, strict=True)]

    def _common(self, sizes: set[Size]) -> Size:
        """What operands of these sizes have together."""
        others = sizes - {1}
        # min(s, 512) fits s only where it is s.
        capped = {name for name in others if self._caps.get(str(name)) in others - {name}}
        others -= capped if capped != others else set()
        number = next((size for size in others if isinstance(size, int)), None)
        if number is not None or None in others or len(others) > 1:
            return number
        return next(iter(others), 1)

    def reshape(self, node: gs.Node) -> None:
        """The sizes asked for; one may be left for the rest."""
        shape, target = self._shape(node.inputs[0]), self._values(node.inputs[1])
        if target is None:
            return
        kept = shape or []
        keeps = not attribute(node, "allowzero", 0)
        sizes = [
            (kept[axis] if axis < len(kept) else None) if size == 0 and keeps else size
            for axis, size in enumerate(target)
        ]
        if -1 in sizes:
            rest = sizes.index(-1)
            sizes[rest] = _share(shape, sizes[:rest] + sizes[rest + 1 :])
        self._state(node.outputs[0], sizes)

    def cut(self, node: gs.Node) -> None:
        """Slice: axes that are not cut keep their sizes."""
        shape, cuts = self._shape(node.inputs[0]), self._elements.cuts(node)
        output = node.outputs[0]
        if shape is None or cuts is None or (output.shape and len(output.shape) != len(shape)):
            return
        sizes = list(shape)
        for each in cuts:
            if not -len(shape) <= each.axis < len(shape):
                return
            old = shape[each.axis]
            end = self._resolved(each.end)
            sizes[each.axis] = _left(old, Cut(each.axis, each.start, end, each.step))
            name = self._resolved(output.shape[each.axis]) if output.shape else None
            from_start = (each.start, each.step) == (0, 1) and isinstance(old, int)
            if from_start and isinstance(end, str) and isinstance(name, str):
                self._caps[name] = end
        self._state(output, sizes)

    def count(self, node: gs.Node) -> None:
        """Range: as many as its limit says, where it counts from 0 by 1."""
        start, limit, step = (self._values(tensor) for tensor in node.inputs)
        if start == [0] and step == [1] and limit is not None:
            size = limit[0]
            self._state(node.outputs[0], [max(size, 0) if isinstance(size, int) else size])

    def fill(self, node: gs.Node) -> None:
        """ConstantOfShape: the shape asked for."""
        if (sizes := self._values(node.inputs[0])) is not None:
            self._state(node.outputs[0], sizes)

    def replace(self, node: gs.Node) -> None:
        """ScatterND and ScatterElements: as large as what they replace parts of."""
        if (shape := self._shape(node.inputs[0])) is not None:
            self._state(node.outputs[0], shape)


def _share(shape: list[Size] | None, others: list[Size]) -> Size:
    """What is left for one axis beside `others`, None where it can't be told."""
    if shape is None or None in shape or None in others:
        return None
    above, below = Counter(shape), Counter(others)
    top, bottom = above - below, below - above
    names = [each for each in top.elements() if isinstance(each, str)]
    number = _product_of(top)
    divisor = _product_of(bottom)
    if divisor < 1 or number % divisor or any(isinstance(each, str) for each in bottom):
        return None
    if not names:
        return number // divisor
    return names[0] if len(names) == 1 and number == divisor else None


def _product_of(sizes: Counter[Size]) -> int:
    product = 1
    for size in sizes.elements():
        product *= size if isinstance(size, int) else 1
    return product


def _left(size: Size, cut: Cut) -> Size:
    """What a cut leaves of an axis, None where it can't be told."""
    whole = cut.end == size or (isinstance(cut.end, int) and cut.end >= _TO_THE_END)
    if (cut.start, cut.step) == (0, 1) and whole:
        return size
    bounds = cut.bounds()
    if bounds is None or not isinstance(size, int):
        return None
    return len(range(*bounds.indices(size)))
