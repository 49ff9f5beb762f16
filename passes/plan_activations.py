"""plan-activations: decide for every linear layer how its input becomes int8.

Policy `fptq` follows the layer-wise ranges of FPTQ (arXiv 2308.15987), v = max |X|:

    v <= v0        per-tensor, static scale
    v0 < v < v1    logarithmic equalization, then per-tensor, static scale
    v >= v1        per-token, dynamic scale

The graph is not changed; the decisions travel in the context.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import onnx_graphsurgeon as gs

from qcompiler.analysis.linears import Linear, find_linears
from qcompiler.errors import CalibrationError
from qcompiler.passmanager import (
    ActivationPlan,
    Fact,
    Granularity,
    Numerics,
    Pass,
    PassContext,
    PassResult,
    Remark,
    excluding_pattern,
)


@dataclass(frozen=True, kw_only=True)
class PlanActivations(Pass):
    """Choose static, per-token or per-group int8 activations layer by layer."""

    name: ClassVar[str] = "plan-activations"
    numerics: ClassVar[Numerics] = Numerics.EXACT
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.CANONICAL})
    provides: ClassVar[frozenset[Fact]] = frozenset({Fact.PLANNED})

    policy: Literal["fptq", "per-token", "per-group", "per-tensor", "none"] = "per-token"
    v0: float = 15.0
    v1: float = 150.0

    def run(self, graph: gs.Graph, ctx: PassContext) -> PassResult:
        linears, others = find_linears(graph)
        plan: dict[str, ActivationPlan] = {}
        remarks = [Remark(layer=o.name, applied=False, message=o.reason) for o in others]
        for linear in linears:
            hit = excluding_pattern(ctx, linear.name)
            if hit is not None:
                reason = f"excluded by pattern '{hit}'"
                remarks.append(
                    Remark(layer=linear.name, applied=False, message=reason, data=_size(linear))
                )
                continue
            peak = self._peak(linear.name, linear.x.name, ctx)
            chosen = self._choose(peak)
            plan[linear.name] = chosen
            how = chosen.granularity.value + (", equalized" if chosen.equalize else "")
            remarks.append(
                Remark(
                    layer=linear.name,
                    applied=True,
                    message=f"activations {how}",
                    data=_size(linear)
                    | {"activation": chosen.granularity.value, "input_absmax": peak},
                )
            )
        return PassResult(graph=graph, changed=False, plan=plan, remarks=tuple(remarks))

    def _peak(self, layer: str, tensor: str, ctx: PassContext) -> float | None:
        if ctx.statistics is not None and tensor in ctx.statistics.tensors:
            return float(ctx.statistics.tensors[tensor].absmax.max())
        if self.policy in ("fptq", "per-tensor"):
            raise CalibrationError(
                f"policy '{self.policy}' needs the range of the input of '{layer}'; "
                "put 'calibrate' before 'plan-activations'"
            )
        return None

    def _choose(self, peak: float | None) -> ActivationPlan:
        if self.policy != "fptq":
            return ActivationPlan(granularity=Granularity(self.policy))
        if peak is None or peak >= self.v1:
            return ActivationPlan(granularity=Granularity.PER_TOKEN)
        return ActivationPlan(granularity=Granularity.PER_TENSOR, equalize=peak > self.v0)


def _size(linear: Linear) -> dict[str, Any]:
    return {"kind": "linear", "K": linear.shape[0], "N": linear.shape[1]}
