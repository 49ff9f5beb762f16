"""compensate: codes of W + a bᵀ take the place of those of W, for layers whose errors add up.

    MatMul(X, Ŵ)  ->  MatMul(X, Q(W + a bᵀ))

a and b are chosen so that the layer's output comes closer to X·W, W being its float weight
(`numerics.compensation`). Scales and zero points stay: at run time nothing is added. X comes from
the graph with all layers before it compensated. They are fitted on three quarters of the
calibration samples, and kept where they lower the error on the last quarter.

Which layers: those whose names match `layers`, or the down projections, which read the product of
an activation and a layer. Of these the first and the last, as the publication has it. Experts are
left out, and so are layers whose codes have been chosen from data already.

Source: ABQ-LLM, arXiv 2408.08554, which learns a and b together with scales and ranges. The closed
form and the check on held-out samples are ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import onnx_graphsurgeon as gs

from qcompiler import ir
from qcompiler.analysis.experts import routed_rows
from qcompiler.analysis.foldable import find_fold_edges
from qcompiler.analysis.layers import find_layers
from qcompiler.analysis.qdq import Counterpart, find_counterparts, replace_weight
from qcompiler.analysis.rounded import described
from qcompiler.errors import CalibrationError
from qcompiler.numerics.compensation import compensated
from qcompiler.numerics.gptq import Moments, moments, output_errors
from qcompiler.numerics.holdout import split
from qcompiler.passmanager import Fact, Numerics, Pass, PassContext, PassResult
from qcompiler.patterns import matches, require_pattern
from qcompiler.remarks import Remark


@dataclass(frozen=True, kw_only=True)
class Compensate(Pass):
    """Round the weights of some layers once more, moved by a matrix of rank 1."""

    name: ClassVar[str] = "compensate"
    numerics: ClassVar[Numerics] = Numerics.LOSSY
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.PLANNED, Fact.WEIGHTS_QUANTIZED})
    reads_reference: ClassVar[bool] = True

    layers: str = ""
    """A regular expression that names of layers match; without one, the down projections."""
    first: int = 2
    """How many of these from the front."""
    last: int = 4
    """How many of these from the end."""

    def __post_init__(self) -> None:
        require_pattern(self.layers)
        if self.first < 0 or self.last < 0:
            raise ValueError("numbers of layers must not be negative")

    def without_data(self) -> None:
        return None

    def run(self, graph: gs.Graph, ctx: PassContext) -> PassResult:
        known = find_counterparts(graph, ctx.reference)
        assert ctx.reference is not None  # `find_counterparts` has seen to it
        remarks: list[Remark] = []
        open_layers: list[Counterpart] = []
        for each in self._chosen(known, ctx.reference):
            reason = _unfit(each, ctx)
            if reason is None:
                open_layers.append(each)
            else:
                remarks.append(_left(each, reason))
        changed = False
        for index, (each, fitted, held_out) in enumerate(_moments(graph, open_layers, ctx)):
            ctx.tick("compensating", index, len(open_layers))
            remark = _compensate(each, fitted, held_out, ctx)
            changed = changed or remark.applied
            remarks.append(remark)
        if open_layers:
            ctx.tick("compensating", len(open_layers), len(open_layers))
        return PassResult(graph=graph, changed=changed, remarks=tuple(remarks))

    def _chosen(self, known: Sequence[Counterpart], reference: gs.Graph) -> list[Counterpart]:
        """The first and the last of those that the options mean, in order."""
        if self.layers:
            meant = [each for each in known if matches(self.layers, each.name)]
        else:
            edges = find_fold_edges(reference, find_layers(reference)[0])
            down = {r.name for edge in edges if edge.kind == "up-down" for r in edge.readers}
            meant = [each for each in known if each.name in down]
        meant = [each for each in meant if routed_rows(each.source.x) is None]
        behind = max(self.first, len(meant) - self.last)
        return meant[: self.first] + meant[behind:]


def _unfit(each: Counterpart, ctx: PassContext) -> str | None:
    """Why a layer can't have other codes; None where it can."""
    plan = ctx.plan.get(each.name)
    if plan is None or plan.weight is None:
        return "it was not planned"
    if any(len(ir.consumers(shared)) > 1 for shared in (each.layer.weight, each.weight.codes)):
        return "other nodes read the same weight"
    return None


def _moments(
    graph: gs.Graph, layers: Sequence[Counterpart], ctx: PassContext
) -> Iterator[tuple[Counterpart, Moments, Moments]]:
    """Layers in order, with the moments of what each reads: to fit by, and to judge by."""
    groups: dict[str, list[Counterpart]] = {}
    for each in layers:
        groups.setdefault(str(each.layer.x.name), []).append(each)
    if not groups:
        return
    streams = ctx.data.stream(graph, list(groups))
    for group, values in zip(groups.values(), streams, strict=True):
        try:
            fitted, held_out = (moments(part) for part in split(values))
        except ValueError as error:
            raise CalibrationError(f"layer '{group[0].name}': {error}") from None
        for each in group:
            yield each, fitted, held_out


def _compensate(each: Counterpart, fitted: Moments, held_out: Moments, ctx: PassContext) -> Remark:
    """Give a layer the better codes, if there are any."""
    weight, old = each.source.matrix(), each.weight.load(ctx.plan[each.name].weight)
    try:
        new = compensated(weight, old, fitted)
    except ValueError as reason:
        return _left(each, str(reason))
    before, after = output_errors(weight, [old, new], held_out)
    if not after < before:
        return _left(each, f"output error, held out: {before:.4f} -> {after:.4f}")
    replace_weight(each.weight, new)
    return described(each.name, new, weight, kind="linear").improved("compensated", before, after)


def _left(each: Counterpart, reason: str) -> Remark:
    return Remark(layer=each.name, applied=False, message=f"not compensated: {reason}")
