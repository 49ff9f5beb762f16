"""The elements of the small whole-number tensors that shapes are computed with.

Exporters spell a shape out in nodes (Shape, Gather, Unsqueeze, Concat, ..). Their elements are
numbers, or the names of sizes that are not known before a run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from qcompiler.ir.graph import attribute, elem_type, producer
from qcompiler.ir.tensors import array, is_constant

Size = int | str | None
"""A number, the name of one, or None for what nothing is known of."""

_FEW = 16
"""No shape has more elements."""

_WHOLE = frozenset({onnx.TensorProto.INT64, onnx.TensorProto.INT32, onnx.TensorProto.BOOL})

_MOVES = frozenset({"Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze"})
"""They keep the elements and their order."""


def _sum(a: Size, b: Size) -> Size:
    if a == 0 or b == 0:
        return b if a == 0 else a
    return a + b if isinstance(a, int) and isinstance(b, int) else None


def _difference(a: Size, b: Size) -> Size:
    if b == 0:
        return a
    return a - b if isinstance(a, int) and isinstance(b, int) else None


def _product(a: Size, b: Size) -> Size:
    if a == 1 or b == 1:
        return b if a == 1 else a
    return a * b if isinstance(a, int) and isinstance(b, int) else None


def _quotient(a: Size, b: Size) -> Size:
    if b == 1:
        return a
    whole = isinstance(a, int) and isinstance(b, int) and a >= 0 and b > 0
    return a // b if whole and isinstance(a, int) and isinstance(b, int) else None


def _equal(a: Size, b: Size) -> Size:
    if a is None or b is None:
        return None
    if a == b or (isinstance(a, int) and isinstance(b, int)):
        return int(a == b)
    negative = any(isinstance(each, int) and each < 0 for each in (a, b))
    return 0 if negative else None  # a name stands for a size


def _choice(condition: Size, a: Size, b: Size) -> Size:
    if a == b:
        return a
    return (a if condition else b) if isinstance(condition, int) else None


_ARITHMETIC: dict[str, Callable[..., Size]] = {
    "Add": _sum,
    "Sub": _difference,
    "Mul": _product,
    "Div": _quotient,
    "Equal": _equal,
    "Where": _choice,
}


@dataclass(frozen=True)
class Cut:
    """What a Slice takes of one axis."""

    axis: int
    start: Size
    end: Size
    step: Size

    def bounds(self) -> slice | None:
        """As Python has it, None where a number is not known."""
        start, end, step = self.start, self.end, self.step
        if isinstance(start, int) and isinstance(end, int) and isinstance(step, int) and step:
            return slice(start, end, step)
        return None


class Elements:
    """Tells the elements of tensors of a graph. `shape_of` gives the sizes of a tensor."""

    def __init__(self, shape_of: Callable[[Any], list[Size] | None]) -> None:
        self._shape_of = shape_of
        self._known: dict[int, list[Size] | None] = {}

    def of(self, tensor: Any) -> list[Size] | None:
        """The elements of a vector or scalar; None where it is not known how many there are, or
        they are many or no whole numbers."""
        if id(tensor) not in self._known:
            vector = tensor.shape is not None and len(tensor.shape) < 2
            fits = vector and elem_type(tensor) in _WHOLE
            self._known[id(tensor)] = self._computed(tensor) if fits else None
        return self._known[id(tensor)]

    def cuts(self, node: gs.Node) -> list[Cut] | None:
        """What a Slice takes, None where the axes are not known."""
        given = [None if tensor.is_empty() else tensor for tensor in node.inputs[1:]]
        given += [None] * (4 - len(given))
        known = [None if tensor is None else self.of(tensor) for tensor in given]
        starts, ends, axes, steps = known
        if starts is None or ends is None:
            return None
        axes = list(range(len(starts))) if given[2] is None else axes
        steps = [1] * len(starts) if given[3] is None else steps
        if axes is None or steps is None:
            return None
        rows = zip(axes, starts, ends, steps, strict=False)
        cuts = [Cut(axis, *rest) for axis, *rest in rows if isinstance(axis, int)]
        return cuts if len(cuts) == len(starts) else None

    def _computed(self, tensor: Any) -> list[Size] | None:
        if is_constant(tensor):
            return _numbers(tensor)
        node = producer(tensor)
        if node is None or node.domain:
            return None
        if node.op == "Shape":
            shape = self._shape_of(node.inputs[0])
            window = slice(attribute(node, "start", 0), attribute(node, "end"))
            return None if shape is None else shape[window]
        if node.op in _MOVES:
            tells = node.op == "Cast" and elem_type(tensor) == onnx.TensorProto.BOOL
            return None if tells else self.of(node.inputs[0])
        if node.op == "ConstantOfShape":
            return self._repeated(node)
        if node.op == "Slice":
            return self._sliced(node)
        given = [each for tensor in node.inputs if (each := self.of(tensor)) is not None]
        if len(given) < len(node.inputs):
            return None
        if node.op == "Concat":
            joined = [element for each in given for element in each]
            return joined if len(joined) <= _FEW else None
        if node.op == "Gather":
            return _picked(*given)
        return _calculated(node.op, given)

    def _repeated(self, node: gs.Node) -> list[Size] | None:
        shape, value = self.of(node.inputs[0]), attribute(node, "value")
        count = shape[0] if shape else 1
        filling = [0] if value is None else _numbers(value)
        if shape is None or len(shape) > 1 or not isinstance(count, int) or count > _FEW:
            return None
        return None if filling is None else [*filling] * count

    def _sliced(self, node: gs.Node) -> list[Size] | None:
        elements, cuts = self.of(node.inputs[0]), self.cuts(node)
        if elements is None or cuts is None or len(cuts) != 1:
            return None
        bounds = cuts[0].bounds()
        return None if bounds is None else elements[bounds]


def _picked(elements: list[Size], places: list[Size]) -> list[Size] | None:
    """What a Gather takes of a vector."""
    within = [at for at in places if isinstance(at, int) and -len(elements) <= at < len(elements)]
    return [elements[at] for at in within] if len(within) == len(places) else None


def _calculated(op: str, operands: Sequence[list[Size]]) -> list[Size] | None:
    count = max(map(len, operands), default=0)
    if op not in _ARITHMETIC or any(len(each) not in (1, count) for each in operands):
        return None
    spread = [each * count if len(each) == 1 else each for each in operands]
    return [_ARITHMETIC[op](*row) for row in zip(*spread, strict=True)]


def _numbers(tensor: gs.Constant) -> list[Size] | None:
    count = int(np.prod(tensor.shape, dtype=np.int64))
    few = count <= _FEW and elem_type(tensor) in _WHOLE
    return [int(value) for value in array(tensor).ravel()] if few else None
