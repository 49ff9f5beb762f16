"""allocate-bits: choose the weight format of each layer by its effect on the model's output.

Layers that read the same activation form one unit. What a format would cost is the divergence at
the output that its errors cause there, to second order: gradients say what outputs of a layer and
which tokens count (`numerics.curvature`), second moments of the input what its channels do. Losses
are assumed to add up. The formats with the least total loss within the budget go into the plan,
which `quantize-weights` follows. The graph is not changed.

Where codes are rounded to nearest, errors count by the mean square of their channel. Where GPTQ is
to choose them, they count by what is left of that once other channels have made up for it
(`Moments.uncompensated`). Some inputs let GPTQ take away nearly everything, others next to nothing.

The sensitivity of a unit is what rounding it to nearest in the format `probe` costs. With
`sensitivity` "measured" it is not estimated: each unit in turn is rounded while the rest stays in
float, and all costs of a unit are brought into proportion. That takes longer, and is how models
with an operator that has no gradient are treated.

Int8 activations take no bits, but their error counts against a divergence. It is measured on
calibration data, in the same units as the weights' errors.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from qcompiler import ir
from qcompiler.analysis.curvatures import curvatures
from qcompiler.analysis.layers import Layer, find_layers, is_head
from qcompiler.errors import CalibrationError, GradientError, RecipeError
from qcompiler.formats import Granularity, LayerPlan, WeightFormat
from qcompiler.numerics.activation_choice import TOKENS, activation_loss
from qcompiler.numerics.allocation import allocate
from qcompiler.numerics.curvature import Curvature, weighed
from qcompiler.numerics.divergence import divergence
from qcompiler.numerics.gptq import moments
from qcompiler.numerics.parallel import mapped
from qcompiler.numerics.rounding import quantize_weight
from qcompiler.numerics.scale_search import judged_columns, sampled
from qcompiler.passmanager import Fact, Numerics, Pass, PassContext, PassResult
from qcompiler.remarks import Planned

_FORMATS = (
    "int4 g256 sym",
    "int4 g128 sym",
    "int4 g128 asym",
    "int4 g64 sym",
    "int4 g64 asym",
    "int4 g32 sym",
    "int4 g32 asym",
    "int8 sym",
)

_log = logging.getLogger(__name__)

_COLUMNS = 256  # of a weight, evenly spaced, that tell the formats apart
_SAMPLES = 8  # that gradients are taken of


@dataclass(frozen=True)
class _Unit:
    layers: tuple[Layer, ...]

    @property
    def name(self) -> str:
        return self.layers[0].name

    @property
    def x(self) -> str:
        """The activation that all of them read."""
        return str(self.layers[0].x.name)

    def weights(self) -> Iterator[tuple[str, Any]]:
        """Names and float32 values [K, N]."""
        for layer in self.layers:
            yield str(layer.weight.name), np.asarray(layer.matrix(), np.float32)


@dataclass(frozen=True, kw_only=True)
class AllocateBits(Pass):
    """Choose weight formats for a size or for a divergence."""

    name: ClassVar[str] = "allocate-bits"
    numerics: ClassVar[Numerics] = Numerics.EXACT
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.CANONICAL, Fact.PLANNED})
    forbids: ClassVar[frozenset[Fact]] = frozenset({Fact.WEIGHTS_QUANTIZED})

    budget: float = 0.0
    """Bits a weight of the linear layers (what groups and columns have counts); 0: no limit."""
    max_kl: float = 0.0
    """Estimated divergence at the output; 0: no limit. The smallest model within it is taken."""
    formats: tuple[str, ...] = _FORMATS
    sensitivity: Literal["gradients", "measured"] = "gradients"
    """How the divergence that a unit causes is found."""
    probe: str = "int4 g128 sym"
    """The format that a unit is rounded to, to tell its sensitivity."""
    rounding: Literal["nearest", "gptq"] = "nearest"
    """How codes are chosen afterwards; gptaq is like gptq."""

    def __post_init__(self) -> None:
        for text in (*self.formats, self.probe):
            WeightFormat.parse(text)
        if self.budget < 0.0 or self.max_kl < 0.0:
            raise ValueError("a budget and a divergence are positive, or 0 for none")
        if not self.formats or len(set(self.formats)) != len(self.formats):
            raise ValueError("formats must be given, each once")

    def may_plan(self) -> Sequence[LayerPlan]:
        return [LayerPlan(weight=WeightFormat.parse(text)) for text in self.formats]

    def without_data(self) -> None:
        return None

    def run(self, graph: gs.Graph, ctx: PassContext) -> PassResult:
        units = _units(graph, ctx)
        if not units:
            return PassResult(graph=graph, changed=False)
        formats = [WeightFormat.parse(text) for text in self.formats]
        known = _known(graph, units, ctx) if self.sensitivity == "gradients" else {}
        judged = self._judged(graph, units, ctx, known)
        costs = np.array(list(mapped(self._errors, judged)))
        factor = np.ones((len(units), 1))
        if not known:
            measured = np.array(self._measured(graph, units, ctx))
            factor = measured[:, None] / np.maximum(costs[:, :1], 1e-300)
        sensitivity, costs = (factor * costs[:, :1])[:, 0], factor * costs[:, 1:]
        if self.max_kl:
            costs += factor * np.array(_activation_losses(graph, units, ctx, known))[:, None]
        sizes = np.array(
            [[sum(f.nbytes(*each.shape) for each in u.layers) for f in formats] for u in units]
        )
        weights = sum(
            rows * columns for u in units for rows, columns in (x.shape for x in u.layers)
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
        remarks: list[Planned] = []
        ranks = np.argsort(np.argsort(-sensitivity, kind="stable"), kind="stable")
        for index, (unit, form) in enumerate(zip(units, chosen, strict=True)):
            for layer in unit.layers:
                weight = formats[form]
                plan[layer.name] = replace(plan[layer.name], weight=weight)
                message = f"{weight}: divergence {sensitivity[index]:.2e} as {self.probe}"
                remarks.append(
                    Planned(
                        layer=layer.name,
                        message=message,
                        shape=layer.shape,
                        weight=weight,
                        sensitivity=float(sensitivity[index]),
                        sensitivity_rank=int(ranks[index]) + 1,
                        unit=tuple(each.name for each in unit.layers),
                    )
                )
        return PassResult(graph=graph, changed=False, plan=plan, remarks=tuple(remarks))

    def _measured(self, graph: gs.Graph, units: list[_Unit], ctx: PassContext) -> list[float]:
        """Divergence at the first output when one unit alone is rounded, for each unit."""
        form = WeightFormat.parse(self.probe)

        def variants() -> Iterator[Mapping[str, Any]]:
            yield {}
            for index, unit in enumerate(units):
                ctx.tick("measuring sensitivities", index, len(units))
                yield {
                    name: _rounded(values, form).dequantize().astype(ir.array(layer.weight).dtype)
                    for layer, (name, values) in zip(unit.layers, unit.weights(), strict=True)
                }
            ctx.tick("measuring sensitivities", len(units), len(units))

        names = [str(layer.weight.name) for unit in units for layer in unit.layers]
        runs = ctx.data.probe(graph, str(graph.outputs[0].name), names, variants())
        reference = next(runs)
        found = [divergence(reference, values) for values in runs]
        for unit, value in zip(units, found, strict=True):
            if not np.isfinite(value):
                raise CalibrationError(
                    f"the output is not finite when '{unit.name}' is rounded; exclude it"
                )
        return found

    def _judged(
        self,
        graph: gs.Graph,
        units: list[_Unit],
        ctx: PassContext,
        known: Mapping[str, Curvature],
    ) -> Iterator[tuple[_Unit, list[_Judge]]]:
        """Each unit with what errors of its layers cost."""
        inputs = ctx.data.stream(graph, [unit.x for unit in units])
        for index, (unit, values) in enumerate(zip(units, inputs, strict=True)):
            ctx.tick("measuring moments", index, len(units))
            try:
                if known:
                    judges = [self._judge(each, values, known[each.name]) for each in unit.layers]
                else:  # the same for all of them
                    judges = [self._judge(unit.layers[0], values, None)] * len(unit.layers)
            except ValueError as error:
                raise CalibrationError(f"layer '{unit.name}': {error}") from None
            yield unit, judges
        ctx.tick("measuring moments", len(units), len(units))

    def _judge(self, layer: Layer, values: Sequence[Any], known: Curvature | None) -> _Judge:
        if known is None:
            given = moments(map(layer.rows, values))
            scale, outputs = 1.0, None
        else:
            # Gradients are of some of the feeds.
            given = moments(map(weighed, map(layer.rows, values), known.tokens))
            scale, outputs = known.scale / 2, known.outputs
        nearest = self.rounding == "nearest"
        weight = np.diagonal(given.hessian) if nearest else given.uncompensated()
        per_token = scale / max(given.tokens, 1)
        return _Judge(given.hessian * per_token, weight * per_token, outputs)

    def _errors(self, given: tuple[_Unit, list[_Judge]]) -> list[float]:
        """What rounding costs in the unit's outputs: as tried, then in each of `formats`."""
        unit, judges = given
        tried, formats = WeightFormat.parse(self.probe), list(map(WeightFormat.parse, self.formats))
        totals = np.zeros(1 + len(formats))
        for (_, values), judge in zip(unit.weights(), judges, strict=True):
            part = judged_columns(values, _COLUMNS)
            counts = np.ones(values.shape[1]) if judge.outputs is None else judge.outputs
            (outputs,) = judged_columns(counts[None], _COLUMNS)
            errors = {f: _rounded(part, f).dequantize() - part for f in {tried, *formats}}
            energies = [judge.tried(errors[tried], outputs)]
            energies += [judge.expected(errors[form], outputs) for form in formats]
            totals += np.array(energies) * (values.shape[1] / part.shape[1])
        return [float(each) for each in totals]


@dataclass(frozen=True)
class _Judge:
    """What errors of weights [K, n] cost in the outputs, a token."""

    hessian: NDArray[Any]
    """[K, K]."""
    weight: NDArray[Any]
    """[K]: what the channels count."""
    outputs: NDArray[Any] | None
    """[N]: what the outputs count; None: all alike."""

    def tried(self, error: NDArray[Any], outputs: NDArray[Any]) -> float:
        """Of errors as they are."""
        return float(np.sum((self.hessian @ error) * error, axis=0) @ outputs)

    def expected(self, error: NDArray[Any], outputs: NDArray[Any]) -> float:
        """Of errors that are yet to be made up for."""
        return float(self.weight @ np.square(error, dtype=np.float64) @ outputs)


def _known(graph: gs.Graph, units: list[_Unit], ctx: PassContext) -> Mapping[str, Curvature]:
    """What outputs [N] of each layer count, and which tokens; nothing without gradients."""
    layers = [layer for unit in units for layer in unit.layers]
    try:
        return dict(curvatures(graph, layers, ctx, _SAMPLES))
    except GradientError as error:
        _log.warning("%s: each unit is rounded by itself to measure its sensitivity", error)
        return {}


def _rounded(values: Any, form: WeightFormat) -> Any:
    return quantize_weight(values, form, search="mse")


def _activation_losses(
    graph: gs.Graph, units: list[_Unit], ctx: PassContext, known: Mapping[str, Curvature]
) -> list[float]:
    """What rounding each unit's input costs in its outputs, where each row has its own scale."""
    dynamic = [unit for unit in units if ctx.plan[unit.name].activation is Granularity.PER_TOKEN]
    found: dict[str, float] = {}
    inputs = ctx.data.stream(graph, [unit.x for unit in dynamic])
    for index, (unit, values) in enumerate(zip(dynamic, inputs, strict=True)):
        ctx.tick("measuring activations", index, len(dynamic))
        x = sampled(values, TOKENS)
        if not np.isfinite(x).all():
            raise CalibrationError(
                f"layer '{unit.name}': its input is not finite on the calibration data"
            )
        if not len(x):
            continue
        for layer, (_, weight) in zip(unit.layers, unit.weights(), strict=True):
            scale = known[layer.name].scale / 2 if layer.name in known else 1.0
            loss = scale * activation_loss(x, [weight])
            found[unit.name] = found.get(unit.name, 0.0) + loss
    ctx.tick("measuring activations", len(dynamic), len(dynamic))
    return [found.get(unit.name, 0.0) for unit in units]


def _units(graph: gs.Graph, ctx: PassContext) -> list[_Unit]:
    """Planned layers that share an input, heads and shared weights apart."""
    groups: dict[int, list[Layer]] = {}
    for layer in find_layers(graph)[0]:
        planned = ctx.plan.get(layer.name)
        shared = len(ir.consumers(layer.weight)) > 1
        if planned and planned.weight and not shared and not is_head(graph, layer):
            groups.setdefault(id(layer.x), []).append(layer)
    return [_Unit(tuple(layers)) for layers in groups.values()]
