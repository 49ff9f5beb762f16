"""plan-activations: decide for every linear layer how its input becomes int8.

Policy `fptq` follows the layer-wise ranges of FPTQ (arXiv 2308.15987), v = max |X|:

    v <= v0        per-tensor, static scale
    v0 < v < v1    logarithmic equalization, then per-tensor, static scale
    v >= v1        per-token, dynamic scale

Policy `measured` compares what rounding the input does to the output on calibration data, for one
static scale, one a token and one a group of channels (`qcompiler.numerics.activation_choice`). Each
costs more at run time than the one before; the first whose relative error is within `tolerance` is
taken, and where none is, the more exact of the two dynamic ones. Layers that read one activation
are judged by the one that suffers most, and planned alike: they share its Q/DQ, and a node.

The graph is not changed; the decisions travel in the context.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import onnx_graphsurgeon as gs

from qcompiler import ir
from qcompiler.analysis.linears import Linear, by_input, find_linears
from qcompiler.calibration.statistics import Statistics
from qcompiler.errors import CalibrationError
from qcompiler.numerics.activation_choice import activation_errors, cheapest
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
    require_matches,
)

Policy = Literal["fptq", "measured", "per-token", "per-group", "per-tensor", "none"]


@dataclass(frozen=True, kw_only=True)
class PlanActivations(Pass):
    """Choose static, per-token or per-group int8 activations layer by layer."""

    name: ClassVar[str] = "plan-activations"
    numerics: ClassVar[Numerics] = Numerics.EXACT
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.CANONICAL})
    provides: ClassVar[frozenset[Fact]] = frozenset({Fact.PLANNED})

    policy: Policy = "per-token"
    v0: float = 15.0
    v1: float = 150.0
    """Of fptq, both."""
    tolerance: float = 0.03
    """Of measured: the error a cheaper granularity may leave, relative to what outputs vary by."""
    group_size: Literal[32, 64, 128, 256] = 64
    """Of measured: channels of a group, as quantize-weights has them. A layer that `allocate-bits`
    has given a format has the groups of that one."""

    def __post_init__(self) -> None:
        if not self.tolerance >= 0.0:
            raise ValueError(f"tolerance must not be negative, as {self.tolerance} is")

    def run(self, graph: gs.Graph, ctx: PassContext) -> PassResult:
        require_matches(ctx, [node.name for node in graph.nodes])
        linears, others = find_linears(graph)
        plan: dict[str, ActivationPlan] = {}
        remarks = [Remark(layer=o.name, applied=False, message=o.reason) for o in others]
        statistics = ctx.statistics
        errors: Mapping[str, Mapping[str, float]] = {}
        if self.policy == "measured":
            wanted = [each for each in linears if excluding_pattern(ctx, each.name) is None]
            errors = self._measure(graph, wanted, ctx)
            statistics = self._with_ranges(graph, wanted, errors, ctx)
        for linear in linears:
            hit = excluding_pattern(ctx, linear.name)
            if hit is not None:
                reason = f"excluded by pattern '{hit}'"
                remarks.append(
                    Remark(layer=linear.name, applied=False, message=reason, data=_size(linear))
                )
                continue
            peak = self._peak(linear.name, linear.x.name, statistics)
            found = errors.get(linear.name)
            chosen = self._choose(peak, found)
            if linear.name in ctx.plan:
                chosen = replace(chosen, weight=ctx.plan[linear.name].weight)
            plan[linear.name] = chosen
            how = chosen.granularity.value + (", equalized" if chosen.equalize else "")
            data = _size(linear)
            data |= {"activation": chosen.granularity.value, "input_absmax": peak}
            if found is not None:
                how += ": output error " + ", ".join(f"{e:.4f} {g}" for g, e in found.items())
                data["activation_errors"] = dict(found)
            elif self.policy == "measured":
                how += ": its output is constant on the calibration data"
            message = f"activations {how}"
            remarks.append(Remark(layer=linear.name, applied=True, message=message, data=data))
        return PassResult(
            graph=graph, changed=False, statistics=statistics, plan=plan, remarks=tuple(remarks)
        )

    def _measure(
        self, graph: gs.Graph, linears: Sequence[Linear], ctx: PassContext
    ) -> dict[str, Mapping[str, float]]:
        """The errors of each granularity by layer; a layer that nothing reaches has none."""
        if ctx.stream is None:
            raise CalibrationError("policy 'measured' needs data; give --calib SRC")
        by_name = {linear.name: linear for linear in linears}
        groups = by_input(graph, by_name)
        errors: dict[str, Mapping[str, float]] = {}
        for index, (names, values) in enumerate(
            zip(groups.values(), ctx.stream(graph, list(groups)), strict=True)
        ):
            ctx.tick("measuring activations", index, len(groups))
            forms = [ctx.plan[name].weight for name in names if name in ctx.plan]
            sizes = [form.group_size for form in forms if form is not None]
            weights = {id(w): w for w in (by_name[name].weight for name in names)}.values()
            try:
                found = activation_errors(
                    values, [ir.array(w) for w in weights], min(sizes, default=self.group_size)
                )
            except ValueError as error:
                raise CalibrationError(f"layer '{names[0]}': {error}") from None
            if found is not None:
                errors |= dict.fromkeys(names, found)
        ctx.tick("measuring activations", len(groups), len(groups))
        return errors

    def _with_ranges(
        self,
        graph: gs.Graph,
        linears: Sequence[Linear],
        errors: Mapping[str, Mapping[str, float]],
        ctx: PassContext,
    ) -> Statistics | None:
        """The statistics with the ranges that static scales need, over all calibration data."""
        known = {} if ctx.statistics is None else ctx.statistics.tensors
        static = [
            str(each.x.name)
            for each in linears
            if self._choose(None, errors.get(each.name)).granularity is Granularity.PER_TENSOR
        ]
        lacking = [name for name in dict.fromkeys(static) if name not in known]
        if not lacking:
            return ctx.statistics
        if ctx.observe is None:
            raise CalibrationError("policy 'measured' needs data; give --calib SRC")
        observed = ctx.observe(graph, lacking)
        if ctx.statistics is None:
            return observed
        return replace(ctx.statistics, tensors={**known, **observed.tensors})

    def _peak(self, layer: str, tensor: str, statistics: Statistics | None) -> float | None:
        if statistics is not None and tensor in statistics.tensors:
            return float(statistics.tensors[tensor].absmax.max())
        if self.policy in ("fptq", "per-tensor"):
            raise CalibrationError(
                f"policy '{self.policy}' needs the range of the input of '{layer}'; "
                "put 'calibrate' before 'plan-activations'"
            )
        return None

    def _choose(self, peak: float | None, errors: Mapping[str, float] | None) -> ActivationPlan:
        if self.policy == "measured":
            if errors is None:
                return ActivationPlan(granularity=Granularity.PER_TOKEN)
            return ActivationPlan(granularity=Granularity(cheapest(errors, self.tolerance)))
        if self.policy != "fptq":
            return ActivationPlan(granularity=Granularity(self.policy))
        if peak is None or peak >= self.v1:
            return ActivationPlan(granularity=Granularity.PER_TOKEN)
        return ActivationPlan(granularity=Granularity.PER_TENSOR, equalize=peak > self.v0)


def _size(linear: Linear) -> dict[str, Any]:
    return {"kind": "linear", "K": linear.shape[0], "N": linear.shape[1]}
