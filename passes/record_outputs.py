"""record-outputs: the mean output of every linear layer, for `correct-bias` to compare with.

The graph is not changed. Put it before the first pass that quantizes. Means are of X · W without
the bias, over all calibration samples but the last quarter, and over that quarter.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import onnx_graphsurgeon as gs

from qcompiler import ir
from qcompiler.analysis.linears import Linear, find_linears
from qcompiler.calibration.statistics import Statistics
from qcompiler.errors import CalibrationError
from qcompiler.ir.order import topological
from qcompiler.numerics.bias import Means, means
from qcompiler.passmanager import Fact, Numerics, Pass, PassContext, PassResult


@dataclass(frozen=True, kw_only=True)
class RecordOutputs(Pass):
    """Keep what the layers of the float model compute on average."""

    name: ClassVar[str] = "record-outputs"
    numerics: ClassVar[Numerics] = Numerics.EXACT
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.CANONICAL})
    provides: ClassVar[frozenset[Fact]] = frozenset({Fact.OUTPUTS_RECORDED})

    def run(self, graph: gs.Graph, ctx: PassContext) -> PassResult:
        linears = {linear.name: linear for linear in find_linears(graph)[0]}
        if not linears:
            return PassResult(graph=graph, changed=False)
        if ctx.stream is None:
            raise CalibrationError("no calibration data; give --calib SRC")
        groups: dict[str, list[Linear]] = {}
        for node in topological(graph):
            if node.name in linears:
                groups.setdefault(str(node.inputs[0].name), []).append(linears[node.name])
        outputs: dict[str, Means] = {}
        for index, (group, values) in enumerate(
            zip(groups.values(), ctx.stream(graph, list(groups)), strict=True)
        ):
            ctx.tick("recording outputs", index, len(groups))
            try:
                mean = means(values)
            except ValueError as error:
                raise CalibrationError(f"layer '{group[0].name}': {error}") from None
            for linear in group:
                outputs[linear.name] = mean.through(ir.array(linear.weight))
        ctx.tick("recording outputs", len(groups), len(groups))
        statistics = replace(ctx.statistics or Statistics(), outputs=outputs)
        return PassResult(graph=graph, changed=False, statistics=statistics)
