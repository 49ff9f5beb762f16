"""equalize: move the spread of activation channels into weights, at no cost at run time.

    norm * w -> X -> linears W      ->   norm * (w / s) -> X / s -> linears diag(s)·W
    act(g) * (H·Wu) -> X -> W       ->   act(g) * (H·Wu / s) -> X / s -> diag(s)·W
    attention(Q, K, H·Wv) -> X -> W ->   attention(Q, K, H·Wv / s) -> X / s -> diag(s)·W

Which activations are equalized: those the plan names ("planned"), or every foldable one ("all").

| method | the scales s |
| --- | --- |
| lae, smoothquant, aweq | formulas of statistics: FPTQ's logarithmic ones, SmoothQuant's, AWEQ's |
| awq | AWQ's, the exponent searched for each X, with weights rounded |
| os+ | Outlier Suppression+ as in QQQ, its threshold searched, weights and activations rounded |
| aqas | lae, or smoothquant with one of nine alphas, searched with both rounded |
| smoothquant+ | SmoothQuant's, with one alpha for the whole model, searched with both rounded |

A search runs the layers that read X over calibration data, rounded as planned, and takes the scales
with the least error of their outputs; `search` says how ranges of weights are found meanwhile.
Scales of 1 are always tried, and an edge that gains nothing is left alone. The publications judge
awq and os+ by the output of a whole block, and smoothquant+ by that of the model. Here it is always
the layers that read X, and for smoothquant+ the sum over all X of the relative squared errors. aqas
is named after AQAS, arXiv 2311.05161, which also judges weights and activations together.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler import ir
from qcompiler.analysis.foldable import FoldEdge, find_fold_edges, fold
from qcompiler.analysis.layers import find_layers
from qcompiler.calibration.statistics import Statistics
from qcompiler.errors import CalibrationError
from qcompiler.formats import Granularity, LayerPlan
from qcompiler.numerics import scale_search
from qcompiler.numerics.equalization import logarithmic, normalized, ranges, smoothquant
from qcompiler.numerics.rounding import Search
from qcompiler.numerics.scale_search import Candidate, Rounding, output_errors
from qcompiler.passmanager import Fact, Numerics, Pass, PassContext, PassResult
from qcompiler.remarks import Equalized

Kind = Literal["norm", "up-down", "v-o"]
Plan = Mapping[str, LayerPlan]

_SEARCHED = ("awq", "os+", "aqas", "smoothquant+")
_SPREAD = 2
"""Tokens computed for each that judges scales."""


@dataclass(frozen=True)
class _Choice:
    """The scale of one edge, None where 1 is the best, and how it came about."""

    scale: Any | None
    how: str = ""
    chosen: str | None = None
    errors: tuple[float | None, float | None] = (None, None)
    """Of the outputs, before and after."""


@dataclass(frozen=True, kw_only=True)
class Equalize(Pass):
    """Fold per-channel equalization scales into the neighbouring weights."""

    name: ClassVar[str] = "equalize"
    numerics: ClassVar[Numerics] = Numerics.EXACT
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.CALIBRATED, Fact.PLANNED})
    forbids: ClassVar[frozenset[Fact]] = frozenset({Fact.WEIGHTS_QUANTIZED})

    method: Literal["lae", "smoothquant", "aweq", "awq", "os+", "aqas", "smoothquant+"] = "lae"
    alpha: float = 0.5
    """Of smoothquant."""
    select: Literal["planned", "all"] = "planned"
    edges: tuple[Kind, ...] = ("norm", "up-down", "v-o")
    folded: bool = True
    """Also behind norms that weigh all channels alike: their weights are folded, and where that is
    for a rotation, no channel stands out."""
    search: Search = "none"
    """Of methods that try scales: how the ranges of weights are found when they are rounded, as in
    `quantize-weights`."""
    normalize: bool = False
    through_cache: bool = False
    """Also fold where it rescales the values of a KV cache; `present.*.value` outputs change."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.alpha <= 1.0:
            raise ValueError(f"alpha must lie in 0 .. 1, not {self.alpha}")

    def without_data(self) -> None:
        return None

    def run(self, graph: gs.Graph, ctx: PassContext) -> PassResult:
        layers, _ = find_layers(graph)
        if not layers:
            return PassResult(graph=graph, changed=False)
        if ctx.statistics is None:
            raise CalibrationError("'equalize' needs statistics; put 'calibrate' before it")
        namer = ir.Namer(graph)
        statistics = ctx.statistics
        plan = dict(ctx.plan)
        remarks: list[Equalized] = []
        changed = False
        edges = find_fold_edges(graph, layers, through_cache=self.through_cache)
        seen = [self._measured(e, statistics) for e in edges if self._wanted(e, plan)]
        edges = [edge for edge in seen if edge is not None]
        edges = [self._left_alone(edge) for edge in edges]
        open_edges = [edge for edge in edges if edge.veto is None]
        choices = self._choices(graph, open_edges, ctx)
        for edge in edges:
            if edge.veto is not None:
                remarks += self._give_up(edge, edge.veto, plan)
                continue
            choice = next(choices)
            if choice.scale is None:
                remarks += self._give_up(edge, choice.how, plan, choice)
                continue
            fold(edge, choice.scale, namer)
            for name in {str(reader.x.name) for reader in edge.readers}:
                statistics = statistics.scaled(name, choice.scale)
            changed = True
            message = f"equalized by {self.method} through {edge.kind}{choice.how}"
            told = self._remark(edge, message, choice)
            told = replace(told, applied=True, scale_max=float(choice.scale.max()))
            remarks += [replace(told, layer=reader.name) for reader in edge.readers]
        if self.method in _SEARCHED:
            ctx.tick(f"searching scales ({self.method})", len(open_edges), len(open_edges))
        if changed:
            ir.remove_dead(graph)
        return PassResult(
            graph=graph, changed=changed, statistics=statistics, plan=plan, remarks=tuple(remarks)
        )

    def _measured(self, edge: FoldEdge, statistics: Statistics) -> FoldEdge | None:
        """An edge that calibration has seen, vetoed where it has not seen all that is read of it;
        None where it has seen nothing."""
        read = {edge.name, *(str(reader.x.name) for reader in edge.readers)}
        if read.isdisjoint(statistics.tensors):
            return None
        if edge.veto is not None or read <= statistics.tensors.keys():
            return edge
        return replace(edge, veto="calibration has not seen all of the activation")

    def _left_alone(self, edge: FoldEdge) -> FoldEdge:
        """An edge, vetoed where the recipe leaves it alone."""
        if edge.veto is None and edge.kind not in self.edges:
            return replace(edge, veto=f"the recipe leaves {edge.kind} edges alone")
        if edge.veto is None and edge.kind == "norm" and not self.folded and _is_folded(edge):
            return replace(edge, veto="its norm weighs all channels alike")
        return edge

    def _wanted(self, edge: FoldEdge, plan: Plan) -> bool:
        plans = [plan[reader.name] for reader in edge.readers if reader.name in plan]
        return bool(plans) and (self.select == "all" or any(p.equalize for p in plans))

    def _give_up(
        self,
        edge: FoldEdge,
        reason: str,
        plan: dict[str, LayerPlan],
        choice: _Choice | None = None,
    ) -> list[Equalized]:
        """Layers planned for a static scale after equalization go per token instead."""
        remarks: list[Equalized] = []
        told = self._remark(edge, f"not equalized: {reason}", choice)
        for reader in edge.readers:
            remark = replace(told, layer=reader.name)
            current = plan.get(reader.name)
            if current is not None and current.equalize:
                instead = Granularity.PER_TOKEN
                plan[reader.name] = replace(current, activation=instead, equalize=False)
                message = f"{remark.message}; activations {instead.value} instead"
                remark = replace(remark, message=message, activation=instead)
            remarks.append(remark)
        return remarks

    def _remark(self, edge: FoldEdge, message: str, choice: _Choice | None) -> Equalized:
        """On an edge, for its readers to be named, as long as nothing has been done."""
        chosen = choice or _Choice(None)
        return Equalized(
            layer=edge.name,
            applied=False,
            message=message,
            method=self.method,
            edge=edge.kind,
            chosen=chosen.chosen,
            error_before=chosen.errors[0],
            error_after=chosen.errors[1],
        )

    def _choices(
        self, graph: gs.Graph, edges: Sequence[FoldEdge], ctx: PassContext
    ) -> Iterator[_Choice]:
        """The choice for each edge in turn, made when the edges before it are folded."""
        assert ctx.statistics is not None  # checked by `run`
        if self.method not in _SEARCHED:
            for edge in edges:
                yield _Choice(self._formula(edge, ctx.statistics))
            return
        inputs = self._inputs(graph, edges, ctx)
        if self.method == "smoothquant+":
            yield from self._shared(edges, inputs, ctx.statistics, ctx.plan)
            return
        for edge, x in zip(edges, inputs, strict=True):
            candidates = self._candidates(edge, x, ctx.statistics)
            errors = self._errors(edge, x, candidates, ctx.plan)
            yield self._choice(candidates, errors, scale_search.best(candidates, errors))

    def _inputs(
        self, graph: gs.Graph, edges: Sequence[FoldEdge], ctx: PassContext
    ) -> Iterator[Any]:
        """A sample of each edge's X in turn, unscaled."""
        # Folds leave activations of other edges as they are: the graph before them gives them all.
        assert ctx.statistics is not None  # checked by `run`
        seen = [ctx.statistics.tensors[edge.name].tokens for edge in edges]
        share = min(1.0, _SPREAD * scale_search.TOKENS / max(min(seen, default=1), 1))
        values = ctx.data.stream(ir.copied(graph), [edge.name for edge in edges], share)
        for index in range(len(edges)):
            ctx.tick(f"searching scales ({self.method})", index, len(edges))
            yield scale_search.sampled(next(values))

    def _formula(self, edge: FoldEdge, statistics: Statistics) -> Any:
        found = statistics.tensors[edge.name]
        peak = _tied(found.absmax, edge)
        if self.method == "lae":
            scale = logarithmic(peak)
        elif self.method == "aweq":
            spread = _tied(found.maximum, edge) + _tied(-found.minimum, edge)
            low = np.min([w.min(axis=1) for w in _weights(edge)], axis=0)
            high = np.max([w.max(axis=1) for w in _weights(edge)], axis=0)
            scale = ranges(spread, _tied(high, edge) + _tied(-low, edge))
        else:
            scale = smoothquant(peak, _reach(edge), self.alpha)
        return normalized(scale) if self.normalize else scale

    def _candidates(self, edge: FoldEdge, x: Any, statistics: Statistics) -> list[Candidate]:
        peak = _tied(statistics.tensors[edge.name].absmax, edge)
        found: Iterable[Candidate]
        if self.method == "awq":
            mean = np.abs(x).mean(axis=0, dtype=np.float64)
            found = scale_search.activation_aware_scales(_tied(mean, edge))
        elif self.method == "os+":
            found = scale_search.outlier_suppressing_scales(peak)
        else:
            found = scale_search.joint_scales(peak, _reach(edge))
        return self._normalized(found)

    def _normalized(self, candidates: Iterable[Candidate]) -> list[Candidate]:
        if not self.normalize:
            return list(candidates)
        return [replace(each, scale=normalized(each.scale)) for each in candidates]

    def _errors(
        self, edge: FoldEdge, x: Any, candidates: Sequence[Candidate], plan: Plan
    ) -> list[float]:
        # Layers that read one activation are planned alike.
        planned = [plan[reader.name] for reader in edge.readers if reader.name in plan]
        forms = [each.weight for each in planned if each.weight is not None]
        rounding = Rounding(
            weights=next(iter(forms), None),
            search=self.search,
            activations=Granularity.NONE if self.method == "awq" else planned[0].activation,
        )
        scales = [candidate.scale for candidate in candidates]
        return output_errors(x, _weights(edge), scales, rounding)

    def _choice(
        self, candidates: Sequence[Candidate], errors: Sequence[float], index: int
    ) -> _Choice:
        before, after = errors[0], errors[index]
        label, errors = candidates[index].label, (before, after)
        if index == 0:
            how = f"no scale gives less than its output error of {before:.4f}"
            return _Choice(None, how, label, errors)
        how = f", {label}: output error {before:.4f} -> {after:.4f}"
        return _Choice(candidates[index].scale, how, label, errors)

    def _shared(
        self,
        edges: Sequence[FoldEdge],
        inputs: Iterable[Any],
        statistics: Statistics,
        plan: Plan,
    ) -> Iterator[_Choice]:
        """The choices of smoothquant+: the alpha with the least sum of squared errors, or 1."""
        alphas = scale_search.ALPHAS
        errors: list[list[float]] = []

        def candidates(edge: FoldEdge) -> list[Candidate]:
            peak, reach = _tied(statistics.tensors[edge.name].absmax, edge), _reach(edge)
            tried = [Candidate(f"alpha={a:g}", smoothquant(peak, reach, a)) for a in alphas]
            return self._normalized([scale_search.unscaled(len(peak)), *tried])

        for edge, x in zip(edges, inputs, strict=True):
            errors.append(self._errors(edge, x, candidates(edge), plan))
        if not edges:
            return
        total = np.square(errors).sum(axis=0)
        index = int(np.argmin(total))
        for edge, found in zip(edges, errors, strict=True):
            yield self._choice(candidates(edge), found, index)


def _is_folded(edge: FoldEdge) -> bool:
    """Whether what absorbs is a norm's weight and bias of which nothing is left."""
    weight = edge.absorbers[0].node.inputs[edge.absorbers[0].input]
    return ir.is_constant(weight) and np.ptp(ir.array(weight)) == 0


def _weights(edge: FoldEdge) -> list[Any]:
    """The weights of an edge's layers, float32 [K, N] each, shared ones once."""
    readers = {id(reader.weight): reader for reader in edge.readers}.values()
    return [np.asarray(reader.matrix(), np.float32) for reader in readers]


def _reach(edge: FoldEdge) -> Any:
    """max |W_k| [K] over the weights that read channel k, equal over tied channels."""
    return _tied(np.max([np.abs(w).max(axis=1) for w in _weights(edge)], axis=0), edge)


def _tied(values: Any, edge: FoldEdge) -> Any:
    """Per-channel maxima, equal over channels that must share a scale."""
    if edge.ties is None:
        return values
    peaks = np.full(int(edge.ties.max()) + 1, -np.inf, np.float32)
    np.maximum.at(peaks, edge.ties, values)
    return peaks[edge.ties]
