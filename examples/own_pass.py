"""A pass of your own, outside the tree: python examples/own_pass.py [MODEL.onnx]

`keep-sensitive` leaves those layers in float whose weights rounding would hurt most: it rounds each
weight on trial, as planned, and takes the layer out of the plan where too little signal is left.
Without MODEL a small model is made, one of its layers with heavy-tailed weights.

In a program that has registered the pass, recipes know it too: put a `[[pass]]` named
"keep-sensitive" behind "plan-weights" in mine.toml and call
`qcompiler.compile(model, recipe="mine.toml")`.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import numpy_helper

from qcompiler import ir
from qcompiler.analysis.layers import find_layers
from qcompiler.errors import QcError
from qcompiler.instruments import VerifyInstrument
from qcompiler.ir.io import import_proto
from qcompiler.numerics.rounding import quantize_weight, sqnr_db
from qcompiler.passes import register
from qcompiler.passmanager import (
    Fact,
    Numerics,
    Pass,
    PassContext,
    PassManager,
    PassResult,
)
from qcompiler.recipe import parse_pipeline
from qcompiler.remarks import LeftAlone

PIPELINE = (
    "import,canonicalize,plan-weights{group_size=32},keep-sensitive{min_db=19.5},"
    "plan-activations,quantize-weights,insert-qdq"
)


@register
@dataclass(frozen=True, kw_only=True)
class KeepSensitive(Pass):
    """Leave layers in float that would keep fewer than `min_db` of signal-to-noise."""

    name: ClassVar[str] = "keep-sensitive"
    numerics: ClassVar[Numerics] = Numerics.EXACT
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.CANONICAL, Fact.WEIGHTS_PLANNED})

    min_db: float = 15.0

    def run(self, graph: gs.Graph, ctx: PassContext) -> PassResult:
        plan = dict(ctx.plan)
        remarks: list[LeftAlone] = []
        for layer in find_layers(graph)[0]:
            form = plan[layer.name].weight if layer.name in plan else None
            if form is None:
                continue
            weight = np.asarray(layer.matrix(), np.float32)
            kept = sqnr_db(weight, quantize_weight(weight, form).dequantize())
            if kept >= self.min_db:
                continue
            del plan[layer.name]
            message = f"{form} keeps {kept:.1f} dB of {self.min_db:.1f} dB wanted: left in float"
            remarks.append(LeftAlone(layer=layer.name, message=message, kind="linear"))
        return PassResult(graph=graph, changed=False, plan=plan, remarks=tuple(remarks))


def tiny_model() -> onnx.ModelProto:
    """Three layers, the middle one with heavy-tailed weights."""
    model = onnx.parser.parse_model("""
        <ir_version: 10, opset_import: ["" : 21]>
        tiny (float[N, 64] x) => (float[N, 16] y) {
            [first] a = MatMul(x, w1)
            [heavy] b = MatMul(a, w2)
            c = Relu(b)
            [last] y = MatMul(c, w3)
        }
    """)
    random = np.random.default_rng(0)
    weights = {
        "w1": random.uniform(-1, 1, (64, 64)),
        "w2": random.standard_t(2, (64, 64)),
        "w3": random.uniform(-1, 1, (64, 16)),
    }
    for name, values in weights.items():
        model.graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), name))
    return model


def main() -> None:
    graph = ir.read_model(Path(sys.argv[1])) if len(sys.argv) > 1 else import_proto(tiny_model())
    manager = PassManager(parse_pipeline(PIPELINE), [VerifyInstrument()])
    manager.run(graph, PassContext())
    for record in manager.history:
        print(
            f"{record.name}: {'changed the graph' if record.changed else 'no change to the graph'}"
        )
        for remark in record.remarks:
            print(f"  {'+' if remark.applied else '-'} {remark.layer}: {remark.message}")


if __name__ == "__main__":
    try:
        main()
    except QcError as error:
        sys.exit(f"error: {error}")
