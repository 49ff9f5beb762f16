"""plan-activations: decide for every linear layer how its input becomes int8.

Policy `fptq` follows the layer-wise ranges of FPTQ (arXiv 2308.15987), v = max |X|:

    v <= v0        per-tensor, static scale
    v0 < v < v1    logarithmic equalization, then per-tensor, static scale
    v >= v1        per-token, dynamic scale

Policy `measured` measures on calibration data how much rounding the input changes the output, with
one static scale and with one scale a token (`qcompiler.numerics.activation_choice`). The static
one costs less at run time, and is taken where its relative error is within `tolerance`. Layers that
read one activation are planned alike, by the largest of their errors, because they share its Q/DQ
and may share a node.

An input that never changes on the calibration data, or never occurs, gives no range for a static
scale, whatever the policy: its layers get a scale per token.

The graph is not changed; the decisions travel in the context.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.analysis.layers import Layer, by_input, find_layers
from qcompiler.calibration.statistics import Statistics
from qcompiler.errors import CalibrationError
from qcompiler.formats import Granularity, LayerPlan
from qcompiler.numerics.activation_choice import activation_errors, cheapest
from qcompiler.passmanager import Fact, Numerics, Pass, PassContext, PassResult
from qcompiler.remarks import Planned, Remark

Policy = Literal["fptq", "measured", "per-token", "per-tensor", "none"]
Errors = Mapping[Granularity, float]


@dataclass(frozen=True, kw_only=True)
class PlanActivations(Pass):
    """Choose static or per-token int8 activations layer by layer."""

    name: ClassVar[str] = "plan-activations"
    numerics: ClassVar[Numerics] = Numerics.EXACT
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.CANONICAL, Fact.WEIGHTS_PLANNED})
    provides: ClassVar[frozenset[Fact]] = frozenset({Fact.PLANNED})

    policy: Policy = "per-token"
    v0: float = 15.0
    v1: float = 150.0
    """Both of `fptq`."""
    tolerance: float = 0.03
    """Of `measured`: the output error that a static scale may leave, relative to how much the
    outputs vary."""

    def __post_init__(self) -> None:
        if not self.tolerance >= 0.0:
            raise ValueError(f"tolerance must not be negative, as {self.tolerance} is")

    def without_data(self) -> PlanActivations:
        ranged = self.policy in ("fptq", "measured", "per-tensor")
        return replace(self, policy="per-token") if ranged else self

    def run(self, graph: gs.Graph, ctx: PassContext) -> PassResult:
        layers = [layer for layer in find_layers(graph)[0] if layer.name in ctx.plan]
        plan = dict(ctx.plan)
        remarks: list[Remark] = []
        statistics = ctx.statistics
        errors: Mapping[str, Errors] = {}
        if self.policy == "measured":
            errors = self._measure(graph, layers, ctx)
            statistics = self._with_ranges(graph, layers, errors, ctx)
        for layer in layers:
            peak = self._peak(layer, statistics)
            found = errors.get(layer.name)
            chosen = self._choose(peak, found)
            still = chosen.activation is Granularity.PER_TENSOR and _still(layer, statistics)
            if still:
                chosen = LayerPlan(activation=Granularity.PER_TOKEN)
            plan[layer.name] = replace(chosen, weight=ctx.plan[layer.name].weight)
            how = chosen.activation.value + (", equalized" if chosen.equalize else "")
            if still:
                how += ": the calibration data gives its input no range"
            elif found is not None:
                how += ": output error " + ", ".join(f"{e:.4f} {g.value}" for g, e in found.items())
            elif self.policy == "measured":
                how += ": its output is constant on the calibration data"
            remarks.append(
                Planned(
                    layer=layer.name,
                    message=f"activations {how}",
                    shape=layer.shape,
                    activation=chosen.activation,
                    input_absmax=peak,
                    activation_errors=found,
                )
            )
        return PassResult(
            graph=graph, changed=False, statistics=statistics, plan=plan, remarks=tuple(remarks)
        )

    def _measure(
        self, graph: gs.Graph, layers: Sequence[Layer], ctx: PassContext
    ) -> dict[str, Errors]:
        """The errors of each granularity by layer; a layer that nothing reaches has none."""
        by_name = {layer.name: layer for layer in layers}
        groups = by_input(graph, by_name)
        errors: dict[str, Errors] = {}
        for index, (names, values) in enumerate(
            zip(groups.values(), ctx.data.stream(graph, list(groups)), strict=True)
        ):
            ctx.tick("measuring activations", index, len(groups))
            readers = {id(layer.weight): layer for layer in map(by_name.__getitem__, names)}
            weights = [np.asarray(layer.matrix()) for layer in readers.values()]
            try:
                found = activation_errors(values, weights)
            except ValueError as error:
                raise CalibrationError(f"layer '{names[0]}': {error}") from None
            if found is not None:
                errors |= dict.fromkeys(names, found)
        ctx.tick("measuring activations", len(groups), len(groups))
        return errors

    def _with_ranges(
        self,
        graph: gs.Graph,
        layers: Sequence[Layer],
        errors: Mapping[str, Errors],
        ctx: PassContext,
    ) -> Statistics | None:
        """The statistics with the ranges that static scales need, over all calibration data."""
        known = {} if ctx.statistics is None else ctx.statistics.tensors
        static = [
            str(each.x.name)
            for each in layers
            if self._choose(None, errors.get(each.name)).activation is Granularity.PER_TENSOR
        ]
        lacking = [name for name in dict.fromkeys(static) if name not in known]
        if not lacking:
            return ctx.statistics
        observed = ctx.data.observe(graph, lacking)
        if ctx.statistics is None:
            return observed
        return replace(ctx.statistics, tensors={**known, **observed.tensors})

    def _peak(self, layer: Layer, statistics: Statistics | None) -> float | None:
        if statistics is not None and layer.x.name in statistics.tensors:
            return float(statistics.tensors[layer.x.name].absmax.max())
        if statistics is None and self.policy in ("fptq", "per-tensor"):
            raise CalibrationError(
                f"policy '{self.policy}' needs the range of the input of '{layer.name}'; "
                "put 'calibrate' before 'plan-activations'"
            )
        return None

    def _choose(self, peak: float | None, errors: Errors | None) -> LayerPlan:
        if self.policy == "measured":
            if errors is None:
                return LayerPlan(activation=Granularity.PER_TOKEN)
            return LayerPlan(activation=cheapest(errors, self.tolerance))
        if self.policy != "fptq":
            return LayerPlan(activation=Granularity(self.policy))
        if peak is None or peak >= self.v1:
            return LayerPlan(activation=Granularity.PER_TOKEN)
        return LayerPlan(activation=Granularity.PER_TENSOR, equalize=peak > self.v0)


def _still(layer: Layer, statistics: Statistics | None) -> bool:
    """Whether calibration data gives a layer's input no range."""
    if statistics is None:
        return False
    found = statistics.tensors.get(str(layer.x.name))
    return found is None or found.still
