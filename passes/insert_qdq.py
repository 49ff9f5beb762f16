"""insert-qdq: state how the input of each quantized layer becomes int8.

MatMul(X, Wq)  ->  MatMul(DequantizeLinear(QuantizeLinear(X, s), s), Wq)

per-tensor   s constant, from calibration; then a Clip to ±127·s
per-token    s = max|row| / 127, computed
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_graphsurgeon as gs

from qcompiler.analysis.activation_qdq import insert_activations
from qcompiler.passmanager import Fact, Numerics, Pass, PassContext, PassResult


@dataclass(frozen=True, kw_only=True)
class InsertQdq(Pass):
    """Insert activation Q/DQ before every layer with quantized weights, as planned."""

    name: ClassVar[str] = "insert-qdq"
    numerics: ClassVar[Numerics] = Numerics.LOSSY
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.WEIGHTS_QUANTIZED, Fact.PLANNED})
    provides: ClassVar[frozenset[Fact]] = frozenset({Fact.QDQ})
    forbids: ClassVar[frozenset[Fact]] = frozenset({Fact.QDQ})

    def run(self, graph: gs.Graph, ctx: PassContext) -> PassResult:
        changed = insert_activations(graph, ctx.plan, ctx.statistics)
        return PassResult(graph=graph, changed=changed)
