"""fold-norm: the weights of a norm move into the linear layers that read it.

    norm(..) * w -> X -> linears W           ->   norm(..) * 1 -> X -> diag(w)·W
    norm(..) * w + b -> X -> linears W, c    ->   norm(..) * 1 + 0 -> X -> diag(w)·W, c + b·W
    norm(..) * w + b -> X -> linears W       ->   norm(..) * 1 + b/w -> X -> diag(w)·W

This works for fused and for decomposed norms, whatever multiplies by a vector. The bias b moves
where every reader has a bias to add it to. `rotate` needs it, because a rotation of the residual
stream commutes with a norm only if the norm scales no channel. X changes, so it comes before
`calibrate`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler import ir
from qcompiler.analysis.foldable import FoldEdge, find_fold_edges
from qcompiler.analysis.layers import find_layers
from qcompiler.passmanager import Fact, Numerics, Pass, PassContext, PassResult
from qcompiler.remarks import Folded


@dataclass(frozen=True, kw_only=True)
class FoldNorm(Pass):
    """Fold the weights of norms into the linear layers behind them."""

    name: ClassVar[str] = "fold-norm"
    numerics: ClassVar[Numerics] = Numerics.EXACT
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.CANONICAL})
    forbids: ClassVar[frozenset[Fact]] = frozenset({Fact.CALIBRATED, Fact.WEIGHTS_QUANTIZED})

    subtracting_mean: bool = True
    """Also norms that subtract the mean. `rotate` leaves their residual stream as it is, so nothing
    spreads the outliers that the fold puts into the weights."""

    def run(self, graph: gs.Graph, ctx: PassContext) -> PassResult:
        layers, _ = find_layers(graph)
        namer = ir.Namer(graph)
        remarks: list[Folded] = []
        changed = False
        for edge in find_fold_edges(graph, layers):
            if edge.kind != "norm":
                continue
            reason = edge.veto
            if reason is None and not self.subtracting_mean and _subtracts_mean(edge):
                reason = "it subtracts the mean, and the recipe leaves such norms alone"
            if reason is None:
                weight, bias = _parameters(edge)
                stays = bias is not None and bias.any() and not _takes_bias(edge)
                if np.all(weight == 1.0) and (stays or bias is None or not bias.any()):
                    continue
                if stays and np.any(weight == 0.0):
                    reason = "its bias has to stay, and its weight has zeros"
            if reason is not None:
                message = f"norm not folded: {reason}"
                remarks += [
                    Folded(layer=r.name, applied=False, message=message) for r in edge.readers
                ]
                continue
            message = _fold(edge, namer)
            remarks += [Folded(layer=r.name, message=message) for r in edge.readers]
            changed = True
        if changed:
            ir.remove_dead(graph)
        return PassResult(graph=graph, changed=changed, remarks=tuple(remarks))


def _subtracts_mean(edge: FoldEdge) -> bool:
    return edge.absorbers[0].node.op in ("LayerNormalization", "SkipLayerNormalization")


def _parameters(edge: FoldEdge) -> tuple[Any, Any | None]:
    """The norm's weight and bias as float64, in the shape they are stored in."""
    stored = [ir.array(a.node.inputs[a.input]).astype(np.float64) for a in edge.absorbers]
    return stored[0], stored[1] if len(stored) > 1 else None


def _takes_bias(edge: FoldEdge) -> bool:
    return all(reader.bias_place is not None for reader in edge.readers)


def _fold(edge: FoldEdge, namer: ir.Namer) -> str:
    """Move weight and bias; returns what was done."""
    weight, bias = _parameters(edge)
    message = "norm folded"
    if bias is not None and bias.any():
        if _takes_bias(edge):
            _shift_readers(edge, bias.reshape(-1), namer)
            bias = np.zeros_like(bias)
            message = "norm and its bias folded"
        else:
            bias = bias / weight
            message = "norm folded, but for its bias: not every layer behind it has one"
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


def _shift_readers(edge: FoldEdge, bias: Any, namer: ir.Namer) -> None:
    """Add what the norm's bias gives behind each reader, b·W, to the reader's own bias."""
    for reader in edge.readers:
        place = reader.bias_place
        if place is None:
            continue
        node, position = place
        old = node.inputs[position]
        values = ir.array(old)
        shift = bias @ np.asarray(reader.matrix(), np.float64)
        moved = (values.astype(np.float64) + shift).astype(values.dtype)
        node.inputs[position] = ir.constant(namer(f"{old.name}_shifted"), moved)
