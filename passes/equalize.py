"""equalize: move the spread of activation channels into weights, at no cost at run time.

    norm * w -> X -> linears W      ->   norm * (w / s) -> X / s -> linears diag(s)·W
    act(g) * (H·Wu) -> X -> W       ->   act(g) * (H·Wu / s) -> X / s -> diag(s)·W
    attention(Q, K, H·Wv) -> X -> W ->   attention(Q, K, H·Wv / s) -> X / s -> diag(s)·W

The scales s are FPTQ's logarithmic ones ("lae") or SmoothQuant's. Which activations are touched
is the plan's decision ("planned") or every foldable one ("all").
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler import ir
from qcompiler.analysis.foldable import FoldEdge, find_fold_edges, fold
from qcompiler.analysis.linears import find_linears
from qcompiler.errors import CalibrationError
from qcompiler.numerics.equalization import logarithmic, normalized, smoothquant
from qcompiler.passmanager import (
    ActivationPlan,
    Fact,
    Granularity,
    Numerics,
    Pass,
    PassContext,
    PassResult,
    Remark,
)

Kind = Literal["norm", "up-down", "v-o"]


@dataclass(frozen=True, kw_only=True)
class Equalize(Pass):
    """Fold per-channel equalization scales into the neighbouring weights."""

    name: ClassVar[str] = "equalize"
    numerics: ClassVar[Numerics] = Numerics.EXACT
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.CALIBRATED, Fact.PLANNED})

    method: Literal["lae", "smoothquant"] = "lae"
    alpha: float = 0.5
    select: Literal["planned", "all"] = "planned"
    edges: tuple[Kind, ...] = ("norm", "up-down", "v-o")
    normalize: bool = False
    through_cache: bool = False
    """Also fold where it rescales the values of a KV cache; `present.*.value` outputs change."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.alpha <= 1.0:
            raise ValueError(f"alpha must lie in 0 .. 1, not {self.alpha}")

    def run(self, graph: gs.Graph, ctx: PassContext) -> PassResult:
        linears, _ = find_linears(graph)
        if not linears:
            return PassResult(graph=graph, changed=False)
        if ctx.statistics is None:
            raise CalibrationError("'equalize' needs statistics; put 'calibrate' before it")
        namer = ir.Namer(graph)
        statistics = ctx.statistics
        plan = dict(ctx.plan)
        remarks: list[Remark] = []
        changed = False
        edges = find_fold_edges(graph, linears, through_cache=self.through_cache)
        for edge in edges:
            if not self._wanted(edge, plan) or edge.name not in statistics.tensors:
                continue
            if edge.veto is not None or edge.kind not in self.edges:
                reason = edge.veto or f"the recipe leaves {edge.kind} edges alone"
                remarks += self._give_up(edge, reason, plan)
                continue
            scale = self._scale(edge, statistics.tensors[edge.name].absmax)
            fold(edge, scale, namer)
            statistics = statistics.scaled(edge.name, scale)
            changed = True
            data = {"method": self.method, "edge": edge.kind, "scale_max": float(scale.max())}
            message = f"equalized by {self.method} through {edge.kind}"
            remarks += [
                Remark(layer=r.name, applied=True, message=message, data=data) for r in edge.readers
            ]
        if changed:
            ir.remove_dead(graph)
        return PassResult(
            graph=graph, changed=changed, statistics=statistics, plan=plan, remarks=tuple(remarks)
        )

    def _wanted(self, edge: FoldEdge, plan: dict[str, ActivationPlan]) -> bool:
        plans = [plan[reader.name] for reader in edge.readers if reader.name in plan]
        return bool(plans) and (self.select == "all" or any(p.equalize for p in plans))

    def _give_up(
        self, edge: FoldEdge, reason: str, plan: dict[str, ActivationPlan]
    ) -> list[Remark]:
        """Layers planned for a static scale after equalization go per token instead."""
        remarks: list[Remark] = []
        for reader in edge.readers:
            message = f"not equalized: {reason}"
            data: dict[str, Any] = {"edge": edge.kind}
            current = plan.get(reader.name)
            if current is not None and current.equalize:
                plan[reader.name] = ActivationPlan(granularity=Granularity.PER_TOKEN)
                message += "; activations per-token instead"
                data["activation"] = Granularity.PER_TOKEN.value
            remarks.append(Remark(layer=reader.name, applied=False, message=message, data=data))
        return remarks

    def _scale(self, edge: FoldEdge, absmax: Any) -> Any:
        peak = _tied(absmax, edge)
        if self.method == "lae":
            scale = logarithmic(peak)
        else:
            weights = {id(r.weight): r.weight for r in edge.readers}.values()
            reach = np.max(
                [np.abs(np.asarray(ir.array(w), np.float32)).max(axis=1) for w in weights], axis=0
            )
            scale = smoothquant(peak, _tied(reach, edge), self.alpha)
        return normalized(scale) if self.normalize else scale


def _tied(values: Any, edge: FoldEdge) -> Any:
    """Per-channel maxima, equal over channels that must share a scale."""
    if edge.ties is None:
        return values
    peaks = np.zeros(int(edge.ties.max()) + 1, np.float32)
    np.maximum.at(peaks, edge.ties, values)
    return peaks[edge.ties]
