"""fuse-norm: decomposed normalizations become one node.

    w * (x * (1 / sqrt(mean(x^2) + eps)))           ->  SimplifiedLayerNormalization(x, w)
    (x - mean(x)) / sqrt(var(x) + eps) * w + b      ->  LayerNormalization(x, w, b)

The first is an operator of ONNX Runtime; `decompose-norm` spells it out again where no pass of the
target takes it. With `standard_only` only the second is made.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler import ir
from qcompiler.analysis.norms import LAYER_NORM, RMS_NORM, last_axis
from qcompiler.ir.matcher import Match, find
from qcompiler.passmanager import Fact, Numerics, Pass, PassContext, PassResult


@dataclass(frozen=True, kw_only=True)
class FuseNorm(Pass):
    """Recognise decomposed RMSNorm and LayerNorm and fuse each into one node."""

    name: ClassVar[str] = "fuse-norm"
    numerics: ClassVar[Numerics] = Numerics.EXACT
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.IMPORTED})

    standard_only: bool = False
    """Emit only operators of the ONNX standard."""

    def run(self, graph: gs.Graph, ctx: PassContext) -> PassResult:
        namer = ir.Namer(graph)
        changed = False
        for found in find(LAYER_NORM, graph):
            inputs = [found["x"], found["weight"], found["bias"]]
            if last_axis(found, "variance") and last_axis(found, "mean"):
                _replace(graph, found, "LayerNormalization", inputs, namer)
                changed = True
        for found in [] if self.standard_only else find(RMS_NORM, graph):
            inputs = [found["x"], found["weight"]]
            if last_axis(found, "variance") and found["x"].dtype == np.float32:
                _replace(graph, found, "SimplifiedLayerNormalization", inputs, namer)
                changed = True
        if changed:
            ir.remove_dead(graph)
        return PassResult(graph=graph, changed=changed)


def _replace(
    graph: gs.Graph, found: Match, op_type: str, inputs: list[Any], namer: ir.Namer
) -> None:
    root = found.root
    output = root.outputs[0]
    name = root.name
    root.inputs.clear()
    root.outputs.clear()
    root.name = namer(f"{name}_decomposed")
    attrs = {
        "axis": -1,
        "epsilon": float(found.array("epsilon").reshape(-1)[0]),
        "stash_type": 1,
    }
    ir.add_node(graph, op_type, name, inputs, [output], attrs=attrs)
