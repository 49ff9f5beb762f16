"""A node as rules and expansions see it: inputs and outputs as terms, and what is known of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx
from onnx import helper

from qcompiler.autodiff.kinds import Kinds, Sizes
from qcompiler.autodiff.terms import FLOAT, Builder, Term
from qcompiler.errors import GradientError


@dataclass(frozen=True)
class Call:
    """A node, and the builder that formulas about it go to."""

    node: onnx.NodeProto
    to: Builder
    kinds: Kinds
    gradients: Sequence[Term | None] = field(default=())
    """Of rules: the gradient at each output, None where there is none."""

    def has(self, index: int) -> bool:
        """Whether an input is given."""
        return index < len(self.node.input) and bool(self.node.input[index])

    def raw(self, index: int) -> Term:
        """An input as it is."""
        return Term(self.to, self.node.input[index])

    def x(self, index: int = 0) -> Term:
        """An input in float32."""
        return self._float(self.node.input[index])

    def y(self, index: int = 0) -> Term:
        """An output in float32."""
        return self._float(self.node.output[index])

    def _float(self, name: str) -> Term:
        term = Term(self.to, name)
        return term if self.kinds.elem(name) == FLOAT else term.cast(FLOAT)

    def g(self, index: int = 0) -> Term:
        """The gradient at an output, zeros where there is none."""
        found = self.gradients[index] if index < len(self.gradients) else None
        return Term(self.to, self.node.output[index]).zeros() if found is None else found

    def sizes(self, index: int) -> Sizes:
        """The sizes of an input. GradientError if its rank is not known."""
        sizes = self.kinds.sizes(self.node.input[index])
        if sizes is None:
            raise self.refusal(f"the rank of '{self.node.input[index]}' is not known")
        return sizes

    def size(self, index: int, axis: int) -> int:
        """One size of an input. GradientError if it is not known."""
        size = self.sizes(index)[axis]
        if not isinstance(size, int):
            raise self.refusal(f"size {axis} of '{self.node.input[index]}' is not known")
        return size

    def attr(self, name: str, default: Any = None) -> Any:
        """An attribute, `default` where it is not set."""
        return self.attrs.get(name, default)

    @property
    def attrs(self) -> Mapping[str, Any]:
        """The attributes that are set."""
        return {each.name: helper.get_attribute_value(each) for each in self.node.attribute}

    def again(self, first: Term) -> Term:
        """The same operator over something else in place of its first input."""
        others = [self.raw(i) if self.has(i) else None for i in range(1, len(self.node.input))]
        return self.to.node(self.node.op_type, [first, *others], **self.attrs)[0]

    def refusal(self, why: str) -> GradientError:
        """An error that names operator and node."""
        return GradientError(
            f"no gradient through {self.node.op_type} '{self.node.name or self.node.output[0]}': "
            f"{why}"
        )
