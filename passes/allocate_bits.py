"""allocate-bits: choose the weight format of each layer by its effect on the model's output.

Layers that read the same activation form one unit. Each unit in turn is rounded to `probe` while
the rest stays in float. The divergence this causes at the output is its sensitivity. What another
format would cost is estimated from the errors of the weights, and losses are assumed to add up. The
formats with the least total loss within the budget go into the plan, which `quantize-weights`
follows. The graph is not changed.

Where codes are rounded to nearest, errors count by the mean square of their channel. Where GPTQ is
to choose them, they count by what is left of that once other channels have made up for it
(`Moments.uncompensated`), and those of the unit that was tried, which was rounded to nearest, by
all second moments. Some inputs let GPTQ take away nearly everything, others next to nothing.

Int8 activations take no bits, but their error counts against a divergence. It is measured on
calibration data, in the same units as the weights' errors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from qcompiler import ir
from qcompiler.analysis.layers import Layer, find_layers, is_head
from qcompiler.errors import CalibrationError, RecipeError
from qcompiler.formats import Granularity, LayerPlan, WeightFormat
from qcompiler.numerics.activation_choice import TOKENS, activation_loss
from qcompiler.numerics.allocation import allocate
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

_COLUMNS = 256  # of a weight, evenly spaced, that tell the formats apart


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
    probe: str = "int4 g128 sym"
    """The format that a unit is rounded to, to measure its sensitivity."""
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
        sensitivity = self._sensitivity(graph, units, ctx)
        errors = np.array(list(mapped(self._errors, self._judged(graph, units, ctx))))
        # Relative to the error of the format that was tried.
        scale = np.array(sensitivity)[:, None] / errors[:, :1]
        costs = scale * errors[:, 1:]
        if self.max_kl:
            costs += scale * np.array(_activation_losses(graph, units, ctx))[:, None]
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
        ranks = np.argsort(np.argsort(-np.array(sensitivity), kind="stable"), kind="stable")
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
                        sensitivity=sensitivity[index],
                        sensitivity_rank=int(ranks[index]) + 1,
                        unit=tuple(each.name for each in unit.layers),
                    )
                )
        return PassResult(graph=graph, changed=False, plan=plan, remarks=tuple(remarks))

    def _sensitivity(self, graph: gs.Graph, units: list[_Unit], ctx: PassContext) -> list[float]:
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
        self, graph: gs.Graph, units: list[_Unit], ctx: PassContext
    ) -> Iterator[tuple[_Unit, _Judge]]:
        """Each unit with what its errors weigh."""
        if self.rounding == "nearest":
            known = ctx.statistics.tensors if ctx.statistics is not None else {}
            for unit in units:
                found = known.get(unit.x)
                yield unit, _Judge(None, None if found is None else found.mean_square)
            return
        inputs = ctx.data.stream(graph, [unit.x for unit in units])
        for index, (unit, values) in enumerate(zip(units, inputs, strict=True)):
            ctx.tick("measuring moments", index, len(units))
            try:
                given = moments(map(unit.layers[0].rows, values))
                judge = _Judge(given.hessian / given.tokens, given.uncompensated() / given.tokens)
            except ValueError as error:
                raise CalibrationError(f"layer '{unit.name}': {error}") from None
            yield unit, judge
        ctx.tick("measuring moments", len(units), len(units))

    def _errors(self, given: tuple[_Unit, _Judge]) -> list[float]:
        """What rounding leaves in the unit's outputs: as tried, then in each of `formats`."""
        unit, judge = given
        tried, formats = WeightFormat.parse(self.probe), list(map(WeightFormat.parse, self.formats))
        totals = np.zeros(1 + len(formats))
        for _, values in unit.weights():
            part = judged_columns(values, _COLUMNS)
            errors = {f: _rounded(part, f).dequantize() - part for f in {tried, *formats}}
            energies = [judge.tried(errors[tried]), *(judge.expected(errors[f]) for f in formats)]
            totals += np.array(energies) * (values.shape[1] / part.shape[1])
        return [max(totals[0], 1e-300), *totals[1:]]


@dataclass(frozen=True)
class _Judge:
    """What errors of weights [K, n] are in the outputs: their energy for a token."""

    hessian: NDArray[Any] | None
    """[K, K]; None: only what channels count is known."""
    weight: NDArray[Any] | None
    """[K]: what the channels count; None: all alike."""

    def tried(self, error: NDArray[Any]) -> float:
        """Of errors as they are."""
        if self.hessian is None:
            return self.expected(error)
        return float(np.sum((self.hessian @ error) * error))

    def expected(self, error: NDArray[Any]) -> float:
        """Of errors that are yet to be made up for."""
        squares = np.square(error, dtype=np.float64)
        return float(np.sum(squares if self.weight is None else squares * self.weight[:, None]))


def _rounded(values: Any, form: WeightFormat) -> Any:
    return quantize_weight(values, form, search="mse")


def _activation_losses(graph: gs.Graph, units: list[_Unit], ctx: PassContext) -> list[float]:
    """What rounding each unit's input adds to its outputs, where each row has its own scale."""
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
        if len(x):
            found[unit.name] = activation_loss(x, [weight for _, weight in unit.weights()])
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
