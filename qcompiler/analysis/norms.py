"""Normalizations: as exporters spell them out, and where one keeps its weight and bias."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler import ir
from qcompiler.ir.matcher import Match, Op, const, either, op, var


def _power(x: Any) -> Any:
    """x squared, either way it is written."""
    return either(op("Pow", x, const(value=2.0)), op("Mul", x, x))


def _mean(x: Any, capture: str) -> Op:
    return op("ReduceMean", x, ..., capture=capture, attrs={"keepdims": {1, None}})


def _root(x: Any) -> Op:
    shifted = op("Add", _mean(_power(x), "variance"), const("epsilon", size=1), commutative=True)
    return op("Sqrt", shifted)


def _scaled(x: Any) -> Any:
    """x / sqrt(..), either way it is written."""
    return either(
        op("Mul", x, op("Reciprocal", _root(x)), commutative=True),
        op("Mul", x, op("Div", const(value=1.0), _root(x)), commutative=True),
        op("Div", x, _root(x)),
    )


_CENTERED = op("Sub", var("x"), _mean(var("x"), "mean"))

RMS_NORM = op("Mul", _scaled(var("x")), const("weight", rank=1), commutative=True)
"""w * (x / sqrt(mean(x^2) + eps)); check the axis with `last_axis(found, "variance")`."""

LAYER_NORM = op(
    "Add",
    op("Mul", _scaled(_CENTERED), const("weight", rank=1), commutative=True),
    const("bias", rank=1),
    commutative=True,
)
"""(x - mean(x)) / sqrt(var(x) + eps) * w + b; both "mean" and "variance" have an axis."""


def last_axis(found: Match, capture: str) -> bool:
    """Whether a captured reduction of `x` runs over its last axis alone."""
    node = found.node(capture)
    axes: Any = ir.attribute(node, "axes")
    if axes is None and len(node.inputs) > 1 and ir.is_constant(node.inputs[1]):
        axes = ir.array(node.inputs[1]).tolist()
    rank = ir.tensor_rank(found["x"])
    return list(axes or []) in ([-1], [] if rank is None else [rank - 1])


# operator -> input positions of its weight and, where it has one, its bias
_FUSED: dict[str, tuple[int, ...]] = {
    "LayerNormalization": (1, 2),
    "SimplifiedLayerNormalization": (1,),
    "RMSNormalization": (1,),
    "SkipLayerNormalization": (2, 3),
    "SkipSimplifiedLayerNormalization": (2,),
}


@dataclass(frozen=True)
class Scaling:
    """The node that scales the channels of a norm, X = norm(..) * w (+ b), and its constants."""

    node: gs.Node
    parameters: tuple[int, ...]
    """Where the node reads w, and b where there is one."""

    @property
    def weight(self) -> gs.Constant:
        """w, `channels` values."""
        return self.node.inputs[self.parameters[0]]

    @property
    def bias(self) -> gs.Constant | None:
        """b, `channels` values; None without one."""
        return self.node.inputs[self.parameters[1]] if len(self.parameters) > 1 else None


def scaling_of(x: Any, channels: int) -> Scaling | str | None:
    """What scales the channels of a norm's output X, or why nothing can be made of its weight.

    A norm spelled out is whatever multiplies by a vector. None for any other tensor.
    """
    node = ir.producer(x)
    if node is None or x is not node.outputs[0]:
        return None
    if node.op in _FUSED:
        given = [i for i in _FUSED[node.op] if i < len(node.inputs)]
        given = [i for i in given if not node.inputs[i].is_empty()]
        for position in given:
            if not ir.is_constant(node.inputs[position]):
                return f"the weight of '{node.name}' is computed"
            if not _is_vector(node.inputs[position], channels):
                return f"'{node.name}' normalizes several axes"
        return Scaling(node, tuple(given))
    if node.op != "Mul":
        return None
    for position in (0, 1):
        operand, other = node.inputs[position], node.inputs[1 - position]
        constant = ir.is_constant(operand) and not ir.is_constant(other)
        if constant and _is_vector(operand, channels):
            return Scaling(node, (position,))
    return None


def _is_vector(tensor: Any, size: int) -> bool:
    shape = tuple(tensor.shape)
    return bool(shape) and shape[-1] == size and int(np.prod(shape)) == size
