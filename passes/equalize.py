"""equalize: move the spread of activation channels into weights, at no cost at run time.

    norm * w -> X -> linears W      ->   norm * (w / s) -> X / s -> linears diag(s)·W
    act(g) * (H·Wu) -> X -> W       ->   act(g) * (H·Wu / s) -> X / s -> diag(s)·W
    attention(Q, K, H·Wv) -> X -> W ->   attention(Q, K, H·Wv / s) -> X / s -> diag(s)·W

Which activations are touched is the plan's decision ("planned") or every foldable one ("all").

| method | the scales s |
| --- | --- |
| lae, smoothquant, aweq | formulas of statistics: FPTQ's logarithmic ones, SmoothQuant's, AWEQ's |
| awq | AWQ's, the exponent searched for each X, with weights rounded |
| os+ | Outlier Suppression+ as in QQQ, its threshold searched, weights and activations rounded |
| aqas | lae, or smoothquant with one of nine alphas, searched with both rounded |
| smoothquant+ | SmoothQuant's, with one alpha for the whole model, searched with both rounded |

A search runs the layers that read X over calibration data and takes the scales with the least
error of their outputs. 1 is always tried: an edge that gains nothing is left alone. The
publications judge awq and os+ by the output of a whole block, and smoothquant+ by that of the
model; here it is always the layers that read X, for smoothquant+ the sum over all X of the relative
squared errors. aqas is named after AQAS, arXiv 2311.05161, from which it takes that weights and
activations are judged together.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler import ir
from qcompiler.analysis.foldable import FoldEdge, find_fold_edges, fold
from qcompiler.analysis.linears import find_linears
from qcompiler.calibration.statistics import Statistics
from qcompiler.errors import CalibrationError
from qcompiler.numerics import scale_search
from qcompiler.numerics.allocation import WeightFormat
from qcompiler.numerics.equalization import logarithmic, normalized, ranges, smoothquant
from qcompiler.numerics.scale_search import Candidate, Rounding, output_errors
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
Plan = Mapping[str, ActivationPlan]

_SEARCHED = ("awq", "os+", "aqas", "smoothquant+")


@dataclass(frozen=True)
class _Choice:
    """The scale of one edge, None where 1 is the best, and how it came about."""

    scale: Any | None
    how: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Equalize(Pass):
    """Fold per-channel equalization scales into the neighbouring weights."""

    name: ClassVar[str] = "equalize"
    numerics: ClassVar[Numerics] = Numerics.EXACT
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.CALIBRATED, Fact.PLANNED})

    method: Literal["lae", "smoothquant", "aweq", "awq", "os+", "aqas", "smoothquant+"] = "lae"
    alpha: float = 0.5
    """Of smoothquant."""
    select: Literal["planned", "all"] = "planned"
    edges: tuple[Kind, ...] = ("norm", "up-down", "v-o")
    normalize: bool = False
    bits: Literal[4, 8] = 4
    """Of a search, as the two below: the weights' format, which should be that of quantize-weights.
    A layer that `allocate-bits` has given a format is rounded to that one."""
    group_size: Literal[32, 64, 128, 256] = 128
    symmetric: bool = True
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
        if self.method in _SEARCHED and ctx.stream is None:
            raise CalibrationError(f"method '{self.method}' needs data; give --calib SRC")
        namer = ir.Namer(graph)
        statistics = ctx.statistics
        plan = dict(ctx.plan)
        remarks: list[Remark] = []
        changed = False
        edges = find_fold_edges(graph, linears, through_cache=self.through_cache)
        edges = [e for e in edges if self._wanted(e, plan) and e.name in statistics.tensors]
        open_edges = [e for e in edges if e.veto is None and e.kind in self.edges]
        choices = self._choices(graph, open_edges, ctx)
        for edge in edges:
            if edge.veto is not None or edge.kind not in self.edges:
                reason = edge.veto or f"the recipe leaves {edge.kind} edges alone"
                remarks += self._give_up(edge, reason, plan)
                continue
            choice = next(choices)
            if choice.scale is None:
                remarks += self._give_up(edge, choice.how, plan, choice.data)
                continue
            fold(edge, choice.scale, namer)
            statistics = statistics.scaled(edge.name, choice.scale)
            changed = True
            data = {"method": self.method, "edge": edge.kind, **choice.data}
            data["scale_max"] = float(choice.scale.max())
            message = f"equalized by {self.method} through {edge.kind}{choice.how}"
            remarks += [
                Remark(layer=r.name, applied=True, message=message, data=data) for r in edge.readers
            ]
        if self.method in _SEARCHED:
            ctx.tick(f"searching scales ({self.method})", len(open_edges), len(open_edges))
        if changed:
            ir.remove_dead(graph)
        return PassResult(
            graph=graph, changed=changed, statistics=statistics, plan=plan, remarks=tuple(remarks)
        )

    def _wanted(self, edge: FoldEdge, plan: Plan) -> bool:
        plans = [plan[reader.name] for reader in edge.readers if reader.name in plan]
        return bool(plans) and (self.select == "all" or any(p.equalize for p in plans))

    def _give_up(
        self,
        edge: FoldEdge,
        reason: str,
        plan: dict[str, ActivationPlan],
        more: Mapping[str, Any] | None = None,
    ) -> list[Remark]:
        """Layers planned for a static scale after equalization go per token instead."""
        remarks: list[Remark] = []
        for reader in edge.readers:
            message = f"not equalized: {reason}"
            data: dict[str, Any] = {"edge": edge.kind, **(more or {})}
            current = plan.get(reader.name)
            if current is not None and current.equalize:
                plan[reader.name] = replace(
                    current, granularity=Granularity.PER_TOKEN, equalize=False
                )
                message += "; activations per-token instead"
                data["activation"] = Granularity.PER_TOKEN.value
            remarks.append(Remark(layer=reader.name, applied=False, message=message, data=data))
        return remarks

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
        assert ctx.stream is not None  # checked by `run`
        # Folds leave activations of other edges as they are: the graph before them gives them all.
        values = ctx.stream(graph.copy(), [edge.name for edge in edges])
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
        # Layers that read one activation are planned alike; only heads are given no format.
        planned = [plan[reader.name] for reader in edge.readers if reader.name in plan]
        usual = WeightFormat(bits=self.bits, group_size=self.group_size, symmetric=self.symmetric)
        form = next((each.weight for each in planned if each.weight), usual)
        rounding = Rounding(
            bits=form.bits,
            group_size=form.group_size,
            symmetric=form.symmetric,
            activations="none" if self.method == "awq" else planned[0].granularity.value,
        )
        scales = [candidate.scale for candidate in candidates]
        return output_errors(x, _weights(edge), scales, rounding)

    def _choice(
        self, candidates: Sequence[Candidate], errors: Sequence[float], index: int
    ) -> _Choice:
        before, after = errors[0], errors[index]
        data = {"chosen": candidates[index].label, "error_before": before, "error_after": after}
        if index == 0:
            return _Choice(None, f"no scale gives less than its output error of {before:.4f}", data)
        how = f", {candidates[index].label}: output error {before:.4f} -> {after:.4f}"
        return _Choice(candidates[index].scale, how, data)

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


def _weights(edge: FoldEdge) -> list[Any]:
    """The weights of an edge's layers, float32 [K, N] each, shared ones once."""
    weights = {id(reader.weight): reader.weight for reader in edge.readers}.values()
    return [np.asarray(ir.array(weight), np.float32) for weight in weights]


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
