"""fold-norm: the weights of a norm move into the linear layers that read it.

    norm(..) * w -> X -> linears W           ->   norm(..) * 1 -> X -> diag(w)·W
    norm(..) * w + b -> X -> linears W, c    ->   norm(..) * 1 + 0 -> X -> diag(w)·W, c + b·W

This works for fused and for decomposed norms, whatever multiplies by a vector. A layer without a
bias c gets one where there is a b. `rotate` needs it, because a rotation of the residual
stream commutes with a norm only if the norm scales no channel. X changes, so it comes before
`calibrate`.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler import ir
from qcompiler.analysis.foldable import FoldEdge, find_fold_edges
from qcompiler.analysis.layers import Layer, find_layers, with_bias
from qcompiler.analysis.residual import find_streams
from qcompiler.analysis.rows import origin
from qcompiler.passmanager import Fact, Numerics, Pass, PassContext, PassResult
from qcompiler.remarks import Folded


@dataclass(frozen=True, kw_only=True)
class FoldNorm(Pass):
    """Fold the weights of norms into the linear layers behind them."""

    name: ClassVar[str] = "fold-norm"
    numerics: ClassVar[Numerics] = Numerics.EXACT
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.CANONICAL})
    forbids: ClassVar[frozenset[Fact]] = frozenset({Fact.CALIBRATED, Fact.WEIGHTS_QUANTIZED})

    rotated_only: bool = False
    """Only norms of residual streams that `rotate` can turn. In others nothing spreads the outliers
    that the fold puts into the weights."""

    def run(self, graph: gs.Graph, ctx: PassContext) -> PassResult:
        layers, _ = find_layers(graph)
        edges = [edge for edge in find_fold_edges(graph, layers) if edge.kind == "norm"]
        reasons = [edge.veto or _lacking(edge) for edge in edges]
        if self.rotated_only:
            possible = {
                id(edge.absorbers[0].node)
                for edge, reason in zip(edges, reasons, strict=True)
                if reason is None
            }
            turned = _turned(graph, layers, possible)
            reasons = [
                reason or turned.get(id(edge.absorbers[0].node), "it reads no residual stream")
                for edge, reason in zip(edges, reasons, strict=True)
            ]
        namer = ir.Namer(graph)
        remarks: list[Folded] = []
        changed = False
        for edge, reason in zip(edges, reasons, strict=True):
            if reason is None and _is_folded(edge):
                continue
            message = f"norm not folded: {reason}" if reason else _fold(graph, edge, namer)
            remarks += [
                Folded(layer=r.name, applied=reason is None, message=message) for r in edge.readers
            ]
            changed |= reason is None
        if changed:
            ir.remove_dead(graph)
        return PassResult(graph=graph, changed=changed, remarks=tuple(remarks))


def _turned(
    graph: gs.Graph, layers: Sequence[Layer], possible: Container[int]
) -> dict[int, str | None]:
    """By norm of a residual stream: why that can't be rotated even if `possible` are folded."""
    found: dict[int, str | None] = {}
    for stream in find_streams(graph, layers, possible):
        reason = stream.veto and f"its residual stream can't be rotated: {stream.veto}"
        found |= {id(norm.node): reason for norm in stream.norms}
    return found


def _is_folded(edge: FoldEdge) -> bool:
    """Whether there is nothing to move."""
    weight, bias = _parameters(edge)
    return bool(np.all(weight == 1.0)) and (bias is None or not bias.any())


def _lacking(edge: FoldEdge) -> str | None:
    """Why a norm that could be folded otherwise can't be."""
    bias = _parameters(edge)[1]
    same = all(origin(reader.x, unchanged=True) is edge.x for reader in edge.readers)
    if bias is not None and bias.any() and not same:
        return "layers read sums or multiples of its rows, where its bias would be another"
    return None


def _parameters(edge: FoldEdge) -> tuple[Any, Any | None]:
    """The norm's weight and bias as float64, in the shape they are stored in."""
    stored = [ir.array(a.node.inputs[a.input]).astype(np.float64) for a in edge.absorbers]
    return stored[0], stored[1] if len(stored) > 1 else None


def _fold(graph: gs.Graph, edge: FoldEdge, namer: ir.Namer) -> str:
    """Move weight and bias; returns what was done."""
    weight, bias = _parameters(edge)
    message = "norm folded"
    if bias is not None and bias.any():
        for reader in edge.readers:
            _shift(with_bias(graph, reader, namer), bias.reshape(-1), namer)
        bias = np.zeros_like(bias)
        message = "norm and its bias folded"
    scaled: dict[int, gs.Constant] = {}
    for reader in edge.readers:
        old = reader.weight
        if id(old) not in scaled:
            values = reader.matrix()
            # The norm multiplied in the weight's type or wider: float32 loses nothing.
            product = np.asarray(values, np.float32) * weight.reshape(-1, 1).astype(np.float32)
            scaled[id(old)] = ir.constant(namer(f"{old.name}_scaled"), product.astype(values.dtype))
        reader.put(scaled[id(old)])
    for absorber, values in zip(edge.absorbers, (np.ones_like(weight), bias), strict=False):
        old = absorber.node.inputs[absorber.input]
        made = np.asarray(values).astype(ir.array(old).dtype)
        absorber.node.inputs[absorber.input] = ir.constant(namer(f"{old.name}_folded"), made)
    return message


def _shift(reader: Layer, bias: Any, namer: ir.Namer) -> None:
    """Add what the norm's bias gives behind a reader, b·W, to the reader's own bias."""
    assert reader.bias_place is not None  # `with_bias` has seen to it
    node, position = reader.bias_place
    old = node.inputs[position]
    values = ir.array(old)
    shift = bias @ np.asarray(reader.matrix(), np.float64)
    moved = (values.astype(np.float64) + shift).astype(values.dtype)
    node.inputs[position] = ir.constant(namer(f"{old.name}_shifted"), moved)
