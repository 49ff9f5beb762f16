"""Where the rules of reverse mode are found: by domain and operator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import onnx

from qcompiler.autodiff.call import Call
from qcompiler.autodiff.terms import Term

Gradients: TypeAlias = Sequence[Term | None]
Formula: TypeAlias = Callable[[Call], Gradients]


@dataclass(frozen=True)
class Rule:
    """How the gradients at a node's outputs become those at its inputs."""

    formula: Formula
    """The gradient at each input; None, or nothing, where there can't be one."""
    broadcasts: bool
    """Whether gradients have the sizes of the output, and are to be summed over those broadcast."""


RULES: dict[tuple[str, str], Rule] = {}
"""By domain ("" is ONNX's own) and operator."""


def operator(node: onnx.NodeProto) -> tuple[str, str]:
    """The domain and operator of a node, as rules are registered."""
    return ("" if node.domain == "ai.onnx" else node.domain, node.op_type)


def rule(*ops: str, domain: str = "", broadcasts: bool = False) -> Callable[[Formula], Formula]:
    """Register the formula of some operators."""

    def register(formula: Formula) -> Formula:
        for op in ops:
            RULES[domain, op] = Rule(formula, broadcasts)
        return formula

    return register
