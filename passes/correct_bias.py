"""correct-bias: change biases so that rounding does not shift the mean of a layer's output.

    MatMul(X̂, Ŵ) [+ b]  ->  MatMul(X̂, Ŵ) + (b + E[XW] - E[X̂Ŵ])

E[XW] is the float model's. X̂ comes from the Q/DQ graph with all layers before it corrected. Both
graphs run over the calibration data side by side. The correction is computed from three quarters of
the samples. It is kept where it lowers the layer's output error on the last quarter. Otherwise the
layer stays as it is.

Source: Nagel et al., arXiv 1906.04721, as used by AWEQ, arXiv 2311.01305. Checking it on held-out
data is ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler import ir
from qcompiler.analysis.layers import Layer, with_bias
from qcompiler.analysis.qdq import Counterpart, find_counterparts
from qcompiler.errors import CalibrationError
from qcompiler.numerics.bias import Correction, NoTokensError, correction, means
from qcompiler.passmanager import Fact, Numerics, Pass, PassContext, PassResult
from qcompiler.remarks import Adjusted


@dataclass(frozen=True)
class _Corrected:
    """A quantized layer, and the bias behind it that takes the correction."""

    found: Counterpart
    layer: Layer
    """The layer with the bias."""
    made: bool
    """Whether the bias is new, and is removed where it is not needed."""

    @property
    def name(self) -> str:
        """The layer's name."""
        return self.layer.name


@dataclass(frozen=True, kw_only=True)
class CorrectBias(Pass):
    """Correct the mean output of quantized layers by their biases."""

    name: ClassVar[str] = "correct-bias"
    numerics: ClassVar[Numerics] = Numerics.LOSSY
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.QDQ})
    reads_reference: ClassVar[bool] = True

    def without_data(self) -> None:
        return None

    def run(self, graph: gs.Graph, ctx: PassContext) -> PassResult:
        found = find_counterparts(graph, ctx.reference)
        if not found or ctx.reference is None:
            return PassResult(graph=graph, changed=False)
        namer = ir.Namer(graph)
        groups: dict[str, list[_Corrected]] = {}
        for counterpart in found:
            corrected = _with_bias(graph, counterpart, namer)
            groups.setdefault(str(counterpart.layer.x.name), []).append(corrected)
        sources = [str(group[0].found.source.x.name) for group in groups.values()]
        remarks: list[Adjusted] = []
        # The stream runs the nodes as they are now: Adds are made before, and dropped after.
        streams = ctx.data.stream(graph, list(groups)), ctx.data.stream(ctx.reference, sources)
        for index, (group, actual, expected) in enumerate(
            zip(groups.values(), *streams, strict=True)
        ):
            ctx.tick("correcting biases", index, len(groups))
            try:
                there, here = means(expected), means(actual)
            except NoTokensError as reason:
                message = f"bias not corrected: {reason}"
                remarks += [
                    Adjusted(layer=each.name, applied=False, message=message) for each in group
                ]
                continue
            except ValueError as error:
                raise CalibrationError(f"layer '{group[0].name}': {error}") from None
            for each in group:
                weight = each.found.source.matrix()
                rounded = each.found.weight.load().dequantize()
                change = correction(there.through(weight), here.through(rounded))
                if change.helps:
                    _shift(each, change, namer)
                remarks.append(_remark(each, change))
        ctx.tick("correcting biases", len(groups), len(groups))
        changed = {remark.layer for remark in remarks if remark.applied}
        for group in groups.values():
            for each in group:
                if each.made and each.name not in changed:
                    _drop(each)
        ir.remove_dead(graph)
        return PassResult(graph=graph, changed=bool(changed), remarks=tuple(remarks))


def _with_bias(graph: gs.Graph, found: Counterpart, namer: ir.Namer) -> _Corrected:
    """A layer with the bias it has, or a new one of zeros."""
    made = found.layer.bias_place is None
    return _Corrected(found, with_bias(graph, found.layer, namer), made=made)


def _drop(corrected: _Corrected) -> None:
    add = corrected.layer.bias_node
    assert add is not None  # it was made
    output = add.outputs[0]
    add.inputs.clear()
    add.outputs.clear()
    corrected.layer.node.outputs = [output]


def _shift(corrected: _Corrected, change: Correction, namer: ir.Namer) -> None:
    place = corrected.layer.bias_place
    assert place is not None  # `_with_bias` has seen to it
    node, position = place
    old = node.inputs[position]
    values = ir.array(old)
    shifted = (values.astype(np.float32) + change.shift).astype(values.dtype)
    name = str(old.name) if corrected.made else namer(f"{old.name}_corrected")
    node.inputs[position] = ir.constant(name, shifted)


def _remark(corrected: _Corrected, change: Correction) -> Adjusted:
    errors = f"error of the mean output, held out: {change.before:.4f} -> {change.after:.4f}"
    what = "bias not corrected"
    if change.helps:
        what = "new bias" if corrected.made else "bias corrected"
    return Adjusted(
        layer=corrected.name,
        applied=change.helps,
        message=f"{what}, {errors}",
        error_before=change.before,
        error_after=change.after,
    )
