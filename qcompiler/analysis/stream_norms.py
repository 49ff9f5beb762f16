"""Norms that read a residual stream: LayerNorm, RMS norm, alone or of a sum that they compute."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import onnx_graphsurgeon as gs

from qcompiler import ir
from qcompiler.analysis.layers import Layer
from qcompiler.analysis.norms import RMS_NORM, last_axis
from qcompiler.ir.matcher import find

SUM = 3
"""The output of the norms of a sum that is the sum."""


@dataclass(frozen=True)
class _Norm:
    """How an operator lays out a norm: inputs by position."""

    weight: int
    bias: int | None = None
    terms: tuple[int, ...] = (0,)
    """What it adds before; more than one for the fused operators."""

    @property
    def centers(self) -> bool:
        """Whether it subtracts the mean; those that do have a bias."""
        return self.bias is not None


_NORMS = {
    "SimplifiedLayerNormalization": _Norm(1),
    "RMSNormalization": _Norm(1),
    "LayerNormalization": _Norm(1, bias=2),
    "SkipSimplifiedLayerNormalization": _Norm(2, terms=(0, 1, 3)),
    "SkipLayerNormalization": _Norm(2, bias=3, terms=(0, 1, 4)),
}


@dataclass(frozen=True)
class StreamNorm:
    """A norm that reads the stream."""

    node: gs.Node
    """The node that multiplies by the weight."""
    input: int
    """Where it reads the weight."""
    x: Any
    """What it normalizes: a sum of the stream, or in a fused norm its first term."""
    bias_input: int | None = None
    """Where it reads its bias, if it has one."""
    centers: bool = False
    """Whether it subtracts the mean."""
    readers: tuple[Layer, ...] = ()

    @property
    def bias(self) -> gs.Constant | None:
        """The bias [channels], None without one."""
        return None if self.bias_input is None else self.node.inputs[self.bias_input]

    @property
    def weight(self) -> gs.Constant:
        """The weight [channels]."""
        return self.node.inputs[self.input]

    @property
    def output(self) -> Any:
        """What readers of the norm see."""
        return self.node.outputs[0]


def find_norms(graph: gs.Graph) -> tuple[list[StreamNorm], set[int]]:
    """Norms over the last axis, and the nodes that spelled-out RMS norms are made of."""
    norms: list[StreamNorm] = []
    for node in graph.nodes:
        kind = _NORMS.get(node.op)
        axis, rank = ir.attribute(node, "axis", -1), ir.tensor_rank(node.inputs[0])
        if kind is None or (axis != -1 and (rank is None or axis != rank - 1)):
            continue
        given = kind.bias is not None and ir.given(node.inputs, kind.bias) is not None
        bias = kind.bias if given else None
        norms.append(StreamNorm(node, kind.weight, node.inputs[0], bias, kind.centers))
    inside: set[int] = set()
    for found in find(RMS_NORM, graph):
        position = next((i for i in (0, 1) if found.root.inputs[i] is found["weight"]), None)
        if position is not None and last_axis(found, "variance") and not ir.is_constant(found["x"]):
            norms.append(StreamNorm(found.root, position, found["x"]))
            inside |= {id(node) for node in found.nodes}
    return norms, inside


def is_norm(node: gs.Node) -> bool:
    """Whether a node by itself is a norm."""
    return node.op in _NORMS


def is_norm_of_sum(node: gs.Node) -> bool:
    """Whether a node is a norm of a sum that it computes itself."""
    return is_norm(node) and len(_NORMS[node.op].terms) > 1


def summed(node: gs.Node) -> tuple[list[int], list[Any]] | None:
    """The positions of the terms an addition adds, and the sum where it is given out."""
    if node.op == "Add" and not node.domain:
        return [0, 1], list(node.outputs)
    if not is_norm_of_sum(node):
        return None
    terms = [i for i in _NORMS[node.op].terms if ir.given(node.inputs, i) is not None]
    return terms, [t for t in node.outputs[SUM : SUM + 1] if not t.is_empty()]
