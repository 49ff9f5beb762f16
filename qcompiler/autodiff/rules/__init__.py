"""The rules of reverse mode, one file a family of operators; importing them registers them."""

from qcompiler.autodiff.rules import convolutions, elementwise, moves, norms, products, sums
from qcompiler.autodiff.rules.registry import RULES, Rule, operator

__all__ = [
    "RULES",
    "Rule",
    "convolutions",
    "elementwise",
    "moves",
    "norms",
    "operator",
    "products",
    "sums",
]
