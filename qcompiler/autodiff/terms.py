"""Formulas written into a model: terms are its tensors, and what is computed of them joins it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from qcompiler.ops import CONTRIB_DOMAIN

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


class Builder:
    """Collects nodes and constants under names that a model has not."""

    def __init__(self, taken: Iterable[str]) -> None:
        self._taken = set(taken)
        self._count = 0
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[TensorProto] = []

    def name(self, base: str) -> str:
        """A name that nothing has."""
        while True:
            self._count += 1
            name = f"{base}.{self._count}"
            if name not in self._taken:
                return name

    def node(
        self,
        op: str,
        inputs: Sequence[Term | None],
        *,
        outputs: int = 1,
        domain: str = "",
        **attrs: Any,
    ) -> list[Term]:
        """Add a node; its outputs. None stands for an input that is left out."""
        names = [self.name(f"d/{op}") for _ in range(outputs)]
        given = ["" if each is None else each.name for each in inputs]
        self.nodes.append(helper.make_node(op, given, names, domain=domain, **attrs))
        return [Term(self, name) for name in names]

    def constant(self, values: Any, dtype: Any) -> Term:
        """A constant; equal ones are one."""
        array = np.asarray(values, dtype)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            name = self._constants[key] = self.name("d/constant")
            self.initializers.append(numpy_helper.from_array(array, name))
        return Term(self, self._constants[key])

    def ints(self, *values: int) -> Term:
        """Integers as a vector, such as axes or sizes."""
        return self.constant(values, np.int64)


@dataclass(frozen=True)
class Term:
    """A tensor of the model: operators compute in float32 unless both sides are integers."""

    to: Builder
    name: str

    def op(self, op: str, *others: Term | None, **attrs: Any) -> Term:
        """The first output of an operator whose first input this is."""
        return self.to.node(op, [self, *others], **attrs)[0]

    def __add__(self, other: Term | float) -> Term:
        return self.op("Add", self._term(other))

    def __sub__(self, other: Term | float) -> Term:
        return self.op("Sub", self._term(other))

    def __mul__(self, other: Term | float) -> Term:
        return self.op("Mul", self._term(other))

    def __truediv__(self, other: Term | float) -> Term:
        return self.op("Div", self._term(other))

    def __radd__(self, other: float) -> Term:
        return self._term(other) + self

    def __rsub__(self, other: float) -> Term:
        return self._term(other) - self

    def __rmul__(self, other: float) -> Term:
        return self._term(other) * self

    def __rtruediv__(self, other: float) -> Term:
        return self._term(other) / self

    def __neg__(self) -> Term:
        return self.op("Neg")

    def _term(self, other: Term | float) -> Term:
        return other if isinstance(other, Term) else self.to.constant(other, np.float32)

    def power(self, exponent: Term | float) -> Term:
        """Each element to the power of `exponent`."""
        return self.op("Pow", self._term(exponent))

    def cast(self, kind: int) -> Term:
        """The same values in an ONNX element type."""
        return self.op("Cast", to=kind)

    def where(self, yes: Term | float, no: Term | float) -> Term:
        """`yes` where this is true, `no` elsewhere."""
        return self.op("Where", self._term(yes), self._term(no))

    def shape(self) -> Term:
        """The sizes, as a vector."""
        return self.op("Shape")

    def reshape(self, *sizes: int) -> Term:
        """The same values under other sizes: 0 keeps one, -1 takes what is left."""
        return self.op("Reshape", self.to.ints(*sizes))

    def like(self, other: Term) -> Term:
        """The same values under the sizes of another tensor."""
        return self.op("Reshape", other.shape(), allowzero=1)

    def transpose(self, *perm: int) -> Term:
        """The axes in another order."""
        return self.op("Transpose", perm=perm)

    def matmul(self, other: Term, *, left: bool = False, right: bool = False) -> Term:
        """The product of the last two axes, either factor transposed first.

        ONNX Runtime's own operator: a Transpose of a weight would be a second copy of it.
        """
        attrs = {"transA": int(left), "transB": int(right)}
        return self.op("FusedMatMul", other, domain=CONTRIB_DOMAIN, **attrs)

    def sum(self, *axes: int) -> Term:
        """Summed over axes, which stay with size 1."""
        return self.op("ReduceSum", self.to.ints(*axes), keepdims=1)

    def mean(self, *axes: int) -> Term:
        """The mean over axes, which stay with size 1."""
        return self.op("ReduceMean", self.to.ints(*axes), keepdims=1)

    def split(self, axis: int, *sizes: int) -> list[Term]:
        """Cut along an axis into pieces of these sizes."""
        return self.to.node("Split", [self, self.to.ints(*sizes)], outputs=len(sizes), axis=axis)

    def zeros(self) -> Term:
        """Zeros of the same sizes, in float32."""
        return self.shape().op("ConstantOfShape")


def concat(terms: Sequence[Term], axis: int) -> Term:
    """Tensors one after the other along an axis."""
    return terms[0].to.node("Concat", terms, axis=axis)[0]
