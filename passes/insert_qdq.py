"""insert-qdq: state how the input of each quantized layer becomes int8.

MatMul(X, Wq)  ->  MatMul(DequantizeLinear(QuantizeLinear(X, s), s), Wq)

per-tensor   s constant, from calibration; then a Clip to ±127·s
per-token    s = max|row| / 127, computed
per-group    s = max|group| / 127, computed, groups as the weight's
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_graphsurgeon as gs

from qcompiler import ir
from qcompiler.analysis.qdq import ActivationWriter, WeightDq, weight_dq
from qcompiler.errors import CalibrationError
from qcompiler.passmanager import (
    Fact,
    Granularity,
    Numerics,
    Pass,
    PassContext,
    PassResult,
    Remark,
)

_SMALLEST = 1e-30  # a calibrated range of exactly zero still needs a scale


@dataclass(frozen=True, kw_only=True)
class InsertQdq(Pass):
    """Insert activation Q/DQ before every layer with quantized weights, as planned."""

    name: ClassVar[str] = "insert-qdq"
    numerics: ClassVar[Numerics] = Numerics.LOSSY
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.WEIGHTS_QUANTIZED, Fact.PLANNED})
    provides: ClassVar[frozenset[Fact]] = frozenset({Fact.QDQ})

    def run(self, graph: gs.Graph, ctx: PassContext) -> PassResult:
        writer = ActivationWriter(graph)
        remarks: list[Remark] = []
        changed = False
        for node in list(graph.nodes):
            plan = ctx.plan.get(node.name)
            if node.op != "MatMul" or plan is None or plan.granularity is Granularity.NONE:
                continue
            weight = weight_dq(node.inputs[1])
            if weight is None:
                continue
            try:
                node.inputs[0] = self._quantized(writer, node, weight, plan.granularity, ctx)
            except ValueError as error:
                remarks.append(Remark(layer=node.name, applied=False, message=str(error)))
                continue
            changed = True
        if changed:
            ir.remove_dead(graph)
        return PassResult(graph=graph, changed=changed, remarks=tuple(remarks))

    def _quantized(
        self,
        writer: ActivationWriter,
        node: gs.Node,
        weight: WeightDq,
        granularity: Granularity,
        ctx: PassContext,
    ) -> gs.Variable:
        x = node.inputs[0]
        channels = weight.shape[0]
        if granularity is Granularity.PER_TOKEN:
            return writer.dynamic(x, channels, channels)
        if granularity is Granularity.PER_GROUP:
            return writer.dynamic(x, channels, min(weight.group_size, channels))
        source = x
        cast = ir.producer(x, "Cast")
        if cast is not None and ctx.statistics and x.name not in ctx.statistics.tensors:
            source = cast.inputs[0]
        if ctx.statistics is None or source.name not in ctx.statistics.tensors:
            raise CalibrationError(f"no calibrated range for the input of '{node.name}'")
        peak = float(ctx.statistics.tensors[source.name].absmax.max())
        return writer.static(x, max(peak, _SMALLEST) / 127.0)
