"""Normalizations as exporters spell them out."""

from __future__ import annotations

from typing import Any

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
