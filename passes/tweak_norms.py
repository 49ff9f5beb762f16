"""tweak-norms: refit the weights of norms to compensate rounding errors of the layers behind them.

    norm(..) * w (+ b) -> X̂ -> linears Ŵ   ->   norm(..) * (w ∘ a) (+ b) -> linears Ŵ

The factors a bring the layers' outputs as close as possible to X̂·W ("own"), or to the X·W of the
float model ("float"). They are the solution of a least-squares problem with a ridge that holds them
near 1 (`numerics.norm_tweak` derives it). X̂ comes from the Q/DQ graph with all earlier norms
tweaked. The factors are fitted on three quarters of the calibration samples, and kept where they
lower the error on the last quarter. Otherwise the norm stays as it is. So does a norm that anything
but quantized layers reads.

Rounding of the activations between norm and layers is left out of the fit, and static scales stay
as they were calibrated.

Source: after Norm Tweaking, arXiv 2309.02784. The closed form and the check on held-out samples are
ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler import ir
from qcompiler.analysis.activation_qdq import before_rounding
from qcompiler.analysis.norms import Scaling, scaling_of
from qcompiler.analysis.qdq import Counterpart, find_counterparts
from qcompiler.errors import CalibrationError
from qcompiler.numerics.norm_tweak import Tweak, scaled, tweak
from qcompiler.passmanager import Fact, Numerics, Pass, PassContext, PassResult
from qcompiler.remarks import Adjusted


@dataclass(frozen=True)
class _Norm:
    """A norm's output that nothing but quantized layers reads."""

    x: Any
    scaling: Scaling
    readers: tuple[Counterpart, ...]

    @property
    def bias(self) -> Any | None:
        """The part [K] of X that the weight does not scale, None where there is none."""
        if self.scaling.bias is None:
            return None
        values = ir.array(self.scaling.bias).astype(np.float32).reshape(-1)
        return values if values.any() else None


@dataclass(frozen=True, kw_only=True)
class TweakNorms(Pass):
    """Refit the weights of norms before quantized layers, in closed form."""

    name: ClassVar[str] = "tweak-norms"
    numerics: ClassVar[Numerics] = Numerics.LOSSY
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.QDQ})
    reads_reference: ClassVar[bool] = True

    target: Literal["own", "float"] = "own"
    """What the layers should give: what their float weights give on the same input, or what they
    give in the float model."""
    ridge: float = 0.01
    """How strongly the factors are held at 1, as a share of the mean curvature of the error."""

    def __post_init__(self) -> None:
        if not self.ridge > 0.0:
            raise ValueError(f"ridge must be positive, not {self.ridge}")

    def without_data(self) -> None:
        return None

    def run(self, graph: gs.Graph, ctx: PassContext) -> PassResult:
        norms, remarks = _find_norms(graph, find_counterparts(graph, ctx.reference))
        if not norms:
            return PassResult(graph=graph, changed=False, remarks=tuple(remarks))
        namer = ir.Namer(graph)
        changed = False
        values = ctx.data.stream(graph, [str(norm.x.name) for norm in norms])
        for index, (norm, inputs, references) in enumerate(
            zip(norms, values, self._references(norms, ctx), strict=True)
        ):
            ctx.tick("tweaking norms", index, len(norms))
            layers = [(r.source.matrix(), r.weight.load()) for r in norm.readers]
            try:
                found = tweak(inputs, references, layers, bias=norm.bias, ridge=self.ridge)
            except ValueError as error:
                name = norm.scaling.node.name
                raise CalibrationError(f"norm '{name}': {error}") from None
            if found.helps:
                _apply(norm, found, inputs, namer)
                changed = True
            remarks += _remarks(norm, found)
        ctx.tick("tweaking norms", len(norms), len(norms))
        return PassResult(graph=graph, changed=changed, remarks=tuple(remarks))

    def _references(
        self, norms: Sequence[_Norm], ctx: PassContext
    ) -> Iterable[Sequence[Any] | None]:
        """The float model's X of each norm in turn, where it is aimed at."""
        if self.target == "own" or ctx.reference is None:
            return [None] * len(norms)
        return ctx.data.stream(
            ctx.reference, [str(norm.readers[0].source.x.name) for norm in norms]
        )


def _find_norms(
    graph: gs.Graph, layers: Sequence[Counterpart]
) -> tuple[list[_Norm], list[Adjusted]]:
    """Norms that can be tweaked, in order; of the others, why not."""
    groups: dict[int, list[Counterpart]] = {}
    for layer in layers:
        groups.setdefault(id(before_rounding(layer)), []).append(layer)
    norms: list[_Norm] = []
    remarks: list[Adjusted] = []
    for group in groups.values():
        x = before_rounding(group[0])
        scaling = scaling_of(x, group[0].weight.shape[0])
        if scaling is None:
            continue
        reason = scaling if isinstance(scaling, str) else _other_use(graph, x, group)
        if isinstance(scaling, str) or reason is not None:
            message = f"norm not tweaked: {reason}"
            remarks += [
                Adjusted(layer=each.layer.name, applied=False, message=message) for each in group
            ]
        else:
            norms.append(_Norm(x, scaling, tuple(group)))
    return norms, remarks


def _other_use(graph: gs.Graph, x: Any, readers: Sequence[Counterpart]) -> str | None:
    """Who else reads a norm's output, on the way to its layers too."""
    own = {id(reader.layer.node) for reader in readers}
    between = [x]
    waiting = [reader.layer.x for reader in readers]
    while waiting:
        tensor = waiting.pop()
        node = ir.producer(tensor)
        if tensor is not x and node is not None and id(node) not in own:
            own.add(id(node))
            between += node.outputs
            waiting += node.inputs
    for tensor in between:
        if ir.is_graph_output(graph, tensor):
            return f"'{tensor.name}' is an output of the model"
        for node in ir.consumers(tensor):
            if id(node) not in own and node.op != "Shape":
                return f"{node.op} '{node.name}' reads it, too"
    return None


def _apply(norm: _Norm, found: Tweak, values: Sequence[Any], namer: ir.Namer) -> None:
    """Give the norm a weight of its own, and the nodes ahead the output it has with it."""
    old = norm.scaling.weight
    weight = ir.array(old)
    tweaked = (weight.astype(np.float32) * found.factors).astype(weight.dtype)
    made = ir.constant(namer(f"{old.name}_tweaked"), tweaked)
    norm.scaling.node.inputs[norm.scaling.parameters[0]] = made
    for each in values:
        each[...] = scaled(each, found.factors, norm.bias)


def _remarks(norm: _Norm, found: Tweak) -> list[Adjusted]:
    name = str(norm.scaling.node.name)
    errors = f"error of the layers behind, held out: {found.before:.4f} -> {found.after:.4f}"
    message = f"norm '{name}' {'tweaked' if found.helps else 'not tweaked'}, {errors}"
    return [
        Adjusted(
            layer=reader.layer.name,
            applied=found.helps,
            message=message,
            norm=name,
            error_before=found.before,
            error_after=found.after,
        )
        for reader in norm.readers
    ]
