"""Expressions: what a graph computes from constants alone."""

from __future__ import annotations

import math
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx
import onnx_graphsurgeon as gs

from qcompiler import ir
from qcompiler.ir.order import topological

NARROW = frozenset({onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16})
"""Float types whose values float32 holds exactly."""

SMALL = 64 << 10
"""Bytes that a value may always have."""

_MOVES = {"Concat", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze"} | {
    "Transpose",
    "Unsqueeze",
}
"""Operators that put values in other places, and change none."""

_GROWS = {
    *("ConstantOfShape", "Expand", "EyeLike", "OneHot", "Pad", "Range", "Resize", "Tile"),
    *("AffineGrid", "AveragePool", "CenterCropPad", "Col2Im", "Conv", "ConvTranspose", "DFT"),
    *("BlackmanWindow", "HammingWindow", "HannWindow", "LpPool", "MaxPool", "MaxUnpool"),
    *("MelWeightMatrix", "RoiAlign", "STFT", "Upsample"),
}
"""Operators whose results may be of any size, however small their inputs are."""

_MOST_BYTES = 1 << 30
"""Of a value of which the size is not known, and could be this."""

_MOST_NODES = 1_000_000
"""Of all expressions of a graph together, those that several share counted for each."""

_QUANTIZES = {"DequantizeLinear", "QuantizeLinear", "DynamicQuantizeLinear"}
_RANDOM = {"Bernoulli", "Multinomial", "RandomNormalLike", "RandomUniformLike"}


@dataclass(frozen=True)
class Expression:
    """A tensor that is computed from constants alone."""

    root: gs.Variable
    nodes: tuple[gs.Node, ...]
    """In order; the last computes `root`."""
    leaves: tuple[gs.Constant, ...]

    @property
    def leaf_bytes(self) -> int:
        """Of all leaves, halves as the floats they may be cast to."""
        return sum((_size(e) or 0) * (1 + (ir.elem_type(e) in NARROW)) for e in self.leaves)

    def fits(self, size: int | None) -> bool:
        """Whether a value of so many bytes (None: not known) takes no more room than the leaves."""
        return size is None or size <= max(SMALL, self.leaf_bytes)

    @property
    def grows(self) -> bool:
        """Whether some value on the way is known to take more room than the leaves."""
        return any(not self.fits(size) for node in self.nodes for size in _sizes(node))

    @property
    def narrow(self) -> int | None:
        """The element type that holds the values as exactly as float32 does: that of the leaves,
        where they are only moved and cast. None where there is no such type."""
        if ir.elem_type(self.root) != onnx.TensorProto.FLOAT:
            return None
        if not all(node.op in _MOVES or is_widening(node) for node in self.nodes):
            return None
        kinds = {ir.stored_type(leaf) for leaf in self.leaves}
        floats = kinds & {onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, *NARROW}
        return next(iter(floats)) if len(floats) == 1 and floats <= NARROW else None


def is_widening(node: gs.Node) -> bool:
    """Whether a node casts 16-bit floats to float32."""
    if node.op != "Cast" or node.domain or ir.cast_type(node) != onnx.TensorProto.FLOAT:
        return False
    return ir.elem_type(node.inputs[0]) in NARROW


def find_expressions(graph: gs.Graph, but: Container[int] = ()) -> list[Expression]:
    """Every expression that something else reads, in graph order.

    `but`: ids of nodes that are to stay, and whatever depends on them.
    """
    order = topological(graph)
    place: dict[int, int] = {}
    bounds: dict[int, int] = {}
    for index, node in enumerate(order):
        if id(node) not in but and _is_computable(node, place) and _is_bounded(node, bounds):
            place[id(node)] = index
    roots = (
        output
        for node in order
        if id(node) in place
        for output in node.outputs
        if any(id(reader) not in place for reader in ir.consumers(output))
        and not ir.is_graph_output(graph, output)
    )
    found: list[Expression] = []
    nodes = 0
    for root in roots:
        found.append(_expression(root, order, place))
        nodes += len(found[-1].nodes)
        if nodes > _MOST_NODES:
            break
    return found


def _is_computable(node: gs.Node, known: Container[int]) -> bool:
    if (
        node.domain
        or node.op in _QUANTIZES | _RANDOM
        or not onnx.defs.has(node.op)
        or not node.inputs
    ):
        return False
    if any(isinstance(value, gs.Graph) for value in node.attrs.values()):
        return False
    if node.op in _GROWS and None in _sizes(node):
        return False
    return all(
        tensor.is_empty() or ir.is_constant(tensor) or id(ir.producer(tensor)) in known
        for tensor in node.inputs
    )


def _is_bounded(node: gs.Node, bounds: dict[int, int]) -> bool:
    """Whether what a computable node gives is known to be no more than `_MOST_BYTES`, or may be
    compared with its leaves; notes in `bounds` how many elements its outputs have at most.

    Products and broadcasts give at most as many elements as their inputs have multiplied, and
    others as many as these have together.
    """
    given = [_elements(tensor, bounds) for tensor in node.inputs if not tensor.is_empty()]
    most = max(sum(given), math.prod(max(1, count) for count in given))
    for output in node.outputs:
        size = _size(output)
        if size is None and most * _WIDEST > _MOST_BYTES:
            return False
        bounds[id(output)] = most if size is None else math.prod(output.shape)
    return True


_WIDEST = 8
"""Bytes of an element, at most."""


def _elements(tensor: Any, bounds: Mapping[int, int]) -> int:
    return math.prod(tensor.shape) if ir.is_constant(tensor) else bounds[id(tensor)]


def _sizes(node: gs.Node) -> Iterator[int | None]:
    return (_size(output) for output in node.outputs if not output.is_empty())


def _size(tensor: Any) -> int | None:
    """Bytes of a tensor's values in the type they are read in; None where that is not known."""
    kind, shape = ir.elem_type(tensor), tensor.shape
    if kind in (onnx.TensorProto.UNDEFINED, onnx.TensorProto.STRING) or shape is None:
        return None
    if not all(isinstance(size, int) for size in shape):
        return None
    return math.prod(shape) * onnx.helper.tensor_dtype_to_np_dtype(kind).itemsize


def _expression(root: Any, order: Sequence[gs.Node], place: dict[int, int]) -> Expression:
    found: dict[int, gs.Node] = {}
    leaves: dict[int, gs.Constant] = {}
    waiting = [root]
    while waiting:
        tensor = waiting.pop()
        node = ir.producer(tensor)
        if ir.is_constant(tensor):
            leaves[id(tensor)] = tensor
        elif node is not None and place[id(node)] not in found:
            found[place[id(node)]] = node
            waiting += [each for each in node.inputs if not each.is_empty()]
    return Expression(root, tuple(order[i] for i in sorted(found)), tuple(leaves.values()))
