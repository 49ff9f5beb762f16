"""allocate-bits: give each layer the weight format that its effect on the model's output deserves.

Layers that read the same activation are one unit. Each unit in turn is rounded to `probe` while the
rest stays in float: the divergence at the output is its sensitivity. What another format would
cost is estimated from the errors of the weights, channels weighted by their mean square; losses
are taken to add up. The formats with the least loss within the budget go into the plan, which
`quantize-weights` follows. The graph is not changed.

Int8 activations take no bits, but their error counts: it is measured on calibration data, in the
units of the weights' errors. With each format goes the cheapest of `activations` at run time that
leaves a unit no more than `tolerance` above the least loss. So finer scales are paid for where
activations are what hurts, in sensitive layers and behind weights of 8 bits, and only there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from qcompiler import ir
from qcompiler.analysis.linears import Linear, find_linears, is_head
from qcompiler.errors import CalibrationError, RecipeError
from qcompiler.numerics.activation_choice import TOKENS, activation_losses
from qcompiler.numerics.allocation import WeightFormat, allocate
from qcompiler.numerics.divergence import divergence
from qcompiler.numerics.parallel import mapped
from qcompiler.numerics.rounding import quantize_weight
from qcompiler.numerics.scale_search import judged_columns, sampled
from qcompiler.passmanager import (
    Fact,
    Granularity,
    Numerics,
    Pass,
    PassContext,
    PassResult,
    Remark,
)

_FORMATS = (
    "int4 g256 sym",
    "int4 g128 sym",
    "int4 g128 asym",
    "int4 g64 sym",
    "int4 g64 asym",
    "int4 g32 sym",
    "int4 g32 asym",
    "int8 g128 sym",
)

_DYNAMIC = (Granularity.PER_TOKEN, Granularity.PER_GROUP)  # the cheaper first
_COLUMNS = 256  # of a weight, evenly spaced, that tell the formats apart


@dataclass(frozen=True)
class _Unit:
    linears: tuple[Linear, ...]

    @property
    def name(self) -> str:
        return self.linears[0].name

    def weights(self) -> Iterator[tuple[str, Any]]:
        """Names and float32 values [K, N]."""
        for linear in self.linears:
            yield str(linear.weight.name), np.asarray(ir.array(linear.weight), np.float32)


@dataclass(frozen=True, kw_only=True)
class AllocateBits(Pass):
    """Choose weight formats, and activations to go with them, for a size or for a divergence."""

    name: ClassVar[str] = "allocate-bits"
    numerics: ClassVar[Numerics] = Numerics.EXACT
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.CANONICAL, Fact.PLANNED})

    budget: float = 0.0
    """Bits a weight of the linear layers (scales and zero points count); 0: no limit."""
    max_kl: float = 0.0
    """Divergence at the output, as estimated; 0: no limit. The smallest model within it."""
    formats: tuple[str, ...] = _FORMATS
    activations: tuple[Literal["per-token", "per-group"], ...] = ("per-token", "per-group")
    """What layers with dynamic scales may get; none: everything stays as planned."""
    tolerance: float = 0.1
    """The share of a unit's loss that cheaper activations may add."""
    probe: str = "int4 g128 sym"
    min_channels: int = 32

    def __post_init__(self) -> None:
        for text in (*self.formats, self.probe):
            WeightFormat.parse(text)
        if self.budget < 0.0 or self.max_kl < 0.0:
            raise ValueError("a budget and a divergence are positive, or 0 for none")
        if not self.tolerance >= 0.0:
            raise ValueError(f"tolerance must not be negative, as {self.tolerance} is")
        if not self.formats or len(set(self.formats)) != len(self.formats):
            raise ValueError("formats must be given, each once")

    def run(self, graph: gs.Graph, ctx: PassContext) -> PassResult:
        units = _units(graph, ctx, self.min_channels)
        if not units:
            return PassResult(graph=graph, changed=False)
        formats = [WeightFormat.parse(text) for text in self.formats]
        sensitivity = self._sensitivity(graph, units, ctx)
        errors = np.array(list(mapped(lambda unit: self._errors(unit, formats, ctx), units)))
        # Relative to the error of the format that was tried.
        scale = np.array(sensitivity)[:, None] / errors[:, :1]
        costs = scale * errors[:, 1:]
        activations: list[list[Granularity]] = []
        for index, found in enumerate(self._activation_losses(graph, units, formats, ctx)):
            added, names = self._cheapest(costs[index], scale[index, 0], found, formats)
            costs[index] = added
            activations.append(names)
        sizes = np.array(
            [[sum(f.nbytes(*each.shape) for each in u.linears) for f in formats] for u in units]
        )
        weights = sum(
            rows * columns for u in units for rows, columns in (x.shape for x in u.linears)
        )
        budget = self.budget * weights / 8 if self.budget else None
        try:
            chosen = allocate(costs, sizes, budget=budget, most=self.max_kl or None)
        except ValueError:
            least = float(sizes.min(axis=1).sum()) * 8 / weights
            raise RecipeError(
                f"no formats meet the limits: the smallest take {least:.3f} bits a weight, the "
                f"best are off by {costs.min(axis=1).sum():.2g}; raise --budget or --max-kl"
            ) from None
        plan = dict(ctx.plan)
        remarks: list[Remark] = []
        ranks = np.argsort(np.argsort(-np.array(sensitivity), kind="stable"), kind="stable")
        for index, (unit, form) in enumerate(zip(units, chosen, strict=True)):
            for linear in unit.linears:
                planned = replace(plan[linear.name], weight=formats[form])
                message = f"{formats[form]}: divergence {sensitivity[index]:.2e} as {self.probe}"
                data = {
                    "sensitivity": sensitivity[index],
                    "sensitivity_rank": int(ranks[index]) + 1,
                    "format": str(formats[form]),
                    "unit": [each.name for each in unit.linears],
                }
                if activations[index]:
                    granularity = activations[index][form]
                    planned = replace(planned, granularity=granularity)
                    message += f", activations {granularity.value}"
                    data["activation"] = granularity.value
                plan[linear.name] = planned
                remarks.append(Remark(layer=linear.name, applied=True, message=message, data=data))
        return PassResult(graph=graph, changed=False, plan=plan, remarks=tuple(remarks))

    def _activation_losses(
        self, graph: gs.Graph, units: list[_Unit], formats: list[WeightFormat], ctx: PassContext
    ) -> list[dict[tuple[str, int], float]]:
        """What rounding each unit's input adds to its outputs; {} where the plan decides."""
        open_units = [
            unit
            for unit in units
            if self.activations and ctx.plan[unit.name].granularity in _DYNAMIC
        ]
        if not open_units:
            return [{} for _ in units]
        if ctx.stream is None:
            raise CalibrationError("'allocate-bits' needs data; give --calib SRC")
        sizes = [form.group_size for form in formats]
        found: dict[str, dict[tuple[str, int], float]] = {}
        inputs = ctx.stream(graph, [str(unit.linears[0].x.name) for unit in open_units])
        for index, (unit, values) in enumerate(zip(open_units, inputs, strict=True)):
            ctx.tick("measuring activations", index, len(open_units))
            x = sampled(values, TOKENS)
            if not np.isfinite(x).all():
                raise CalibrationError(
                    f"layer '{unit.name}': its input is not finite on the calibration data"
                )
            if len(x):
                weights = [weight for _, weight in unit.weights()]
                found[unit.name] = activation_losses(x, weights, sizes)
        ctx.tick("measuring activations", len(open_units), len(open_units))
        return [found.get(unit.name, {}) for unit in units]

    def _cheapest(
        self,
        costs: NDArray[Any],
        scale: float,
        losses: dict[tuple[str, int], float],
        formats: list[WeightFormat],
    ) -> tuple[NDArray[Any], list[Granularity]]:
        """The costs of each format with the activations that go with it, and those."""
        if not losses:
            return costs, []
        allowed = [each for each in _DYNAMIC if each.value in self.activations]
        totals = np.array(
            [
                [cost + scale * losses[each.value, form.group_size] for each in allowed]
                for cost, form in zip(costs, formats, strict=True)
            ]
        )
        good = totals <= (1.0 + self.tolerance) * totals.min(axis=1, keepdims=True)
        chosen = good.argmax(axis=1)
        return totals[np.arange(len(formats)), chosen], [allowed[each] for each in chosen]

    def _sensitivity(self, graph: gs.Graph, units: list[_Unit], ctx: PassContext) -> list[float]:
        """Divergence at the first output when one unit alone is rounded, for each unit."""
        if ctx.probe is None:
            raise CalibrationError("'allocate-bits' needs data; give --calib SRC")
        form = WeightFormat.parse(self.probe)

        def variants() -> Iterator[Mapping[str, Any]]:
            yield {}
            for index, unit in enumerate(units):
                ctx.tick("measuring sensitivities", index, len(units))
                yield {
                    name: _rounded(values, form).dequantize().astype(ir.array(linear.weight).dtype)
                    for linear, (name, values) in zip(unit.linears, unit.weights(), strict=True)
                }
            ctx.tick("measuring sensitivities", len(units), len(units))

        names = [str(linear.weight.name) for unit in units for linear in unit.linears]
        runs = ctx.probe(graph, str(graph.outputs[0].name), names, variants())
        reference = next(runs)
        found = [divergence(reference, values) for values in runs]
        for unit, value in zip(units, found, strict=True):
            if not np.isfinite(value):
                raise CalibrationError(
                    f"the output is not finite when '{unit.name}' is rounded; exclude it"
                )
        return found

    def _errors(self, unit: _Unit, formats: list[WeightFormat], ctx: PassContext) -> list[float]:
        """Squared errors of the unit's weights: of the format tried, then of each of `formats`."""
        statistics = ctx.statistics.tensors if ctx.statistics is not None else {}
        x = str(unit.linears[0].x.name)
        weight: Any = 1.0
        if x in statistics:
            weight = statistics[x].mean_square[:, None].astype(np.float64)
        tried = WeightFormat.parse(self.probe)
        totals = dict.fromkeys((tried, *formats), 0.0)
        for _, values in unit.weights():
            part = judged_columns(values, _COLUMNS)
            share = values.shape[1] / part.shape[1]
            for form in totals:
                error = _rounded(part, form).dequantize() - part
                squares = np.square(error, dtype=np.float64) * weight
                totals[form] += share * float(np.sum(squares))
        return [max(totals[tried], 1e-300), *(totals[form] for form in formats)]


def _rounded(values: Any, form: WeightFormat) -> Any:
    return quantize_weight(
        values,
        bits=form.bits,
        group_size=form.group_size,
        symmetric=form.symmetric,
        search="mse",
    )


def _units(graph: gs.Graph, ctx: PassContext, min_channels: int) -> list[_Unit]:
    """Planned layers that share an input, heads and shared weights apart."""
    groups: dict[int, list[Linear]] = {}
    for linear in find_linears(graph)[0]:
        shared = len(ir.consumers(linear.weight)) > 1
        if linear.name not in ctx.plan or shared or is_head(graph, linear.output):
            continue
        if linear.shape[0] >= min_channels:
            groups.setdefault(id(linear.x), []).append(linear)
    return [_Unit(tuple(linears)) for linears in groups.values()]
