"""calibrate: statistics of the input of every linear layer, from calibration data.

The graph is not changed; the driver runs a copy extended with reductions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_graphsurgeon as gs

from qcompiler.analysis.layers import find_layers
from qcompiler.passmanager import Fact, Numerics, Pass, PassContext, PassResult


@dataclass(frozen=True, kw_only=True)
class Calibrate(Pass):
    """Collect min x_k, max x_k and E[x_k²] of every activation a linear layer reads."""

    name: ClassVar[str] = "calibrate"
    numerics: ClassVar[Numerics] = Numerics.EXACT
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.CANONICAL})
    provides: ClassVar[frozenset[Fact]] = frozenset({Fact.CALIBRATED})

    def without_data(self) -> None:
        return None

    def run(self, graph: gs.Graph, ctx: PassContext) -> PassResult:
        layers, _ = find_layers(graph)
        names = list(dict.fromkeys(str(layer.x.name) for layer in layers))
        if not names:
            return PassResult(graph=graph, changed=False)
        return PassResult(graph=graph, changed=False, statistics=ctx.data.observe(graph, names))
