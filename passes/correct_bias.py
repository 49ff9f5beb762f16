"""correct-bias: biases make up for what rounding adds to the mean of a layer's output.

    MatMul(X̂, Ŵ) [+ b]  ->  MatMul(X̂, Ŵ) + (b + E[XW] - E[X̂Ŵ])

E[XW] is the float model's; X̂ comes from the Q/DQ graph with all layers before it corrected. Both
graphs run over the calibration data side by side. The correction follows from three quarters of the
samples. It is kept where it lowers the layer's output error on the last quarter, and otherwise the
layer stays as it is.

Source: Nagel et al., arXiv 1906.04721, as AWEQ, arXiv 2311.01305, uses it; judging it on held-out
data is ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler import ir
from qcompiler.analysis.linears import bias_of
from qcompiler.analysis.qdq import QuantizedLayer, find_quantized
from qcompiler.errors import CalibrationError
from qcompiler.numerics.bias import Correction, correction, means
from qcompiler.passmanager import Fact, Numerics, Pass, PassContext, PassResult, Remark


@dataclass(frozen=True)
class _Corrected:
    """A quantized layer, and the Add behind it that takes the correction."""

    layer: QuantizedLayer
    add: gs.Node
    made: bool
    """Whether the Add is new, and goes again where it is not needed."""

    @property
    def name(self) -> str:
        """The layer's name."""
        return str(self.layer.node.name)


@dataclass(frozen=True, kw_only=True)
class CorrectBias(Pass):
    """Correct the mean output of quantized layers by their biases."""

    name: ClassVar[str] = "correct-bias"
    numerics: ClassVar[Numerics] = Numerics.LOSSY
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.QDQ})
    reads_reference: ClassVar[bool] = True

    def run(self, graph: gs.Graph, ctx: PassContext) -> PassResult:
        found = find_quantized(graph, ctx.reference)
        if not found:
            return PassResult(graph=graph, changed=False)
        if ctx.stream is None or ctx.reference is None:
            raise CalibrationError("no calibration data; give --calib SRC")
        namer = ir.Namer(graph)
        groups: dict[str, list[_Corrected]] = {}
        for layer in found:
            corrected = _with_bias(graph, layer, namer)
            groups.setdefault(str(layer.node.inputs[0].name), []).append(corrected)
        sources = [str(group[0].layer.source.x.name) for group in groups.values()]
        remarks: list[Remark] = []
        # The stream runs the nodes as they are now: Adds are made before, and dropped after.
        streams = ctx.stream(graph, list(groups)), ctx.stream(ctx.reference, sources)
        for index, (group, actual, expected) in enumerate(
            zip(groups.values(), *streams, strict=True)
        ):
            ctx.tick("correcting biases", index, len(groups))
            try:
                there, here = means(expected), means(actual)
            except ValueError as error:
                raise CalibrationError(f"layer '{group[0].name}': {error}") from None
            for each in group:
                weight = ir.array(each.layer.source.weight)
                rounded = each.layer.weight.load().dequantize()
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


def _with_bias(graph: gs.Graph, layer: QuantizedLayer, namer: ir.Namer) -> _Corrected:
    """A layer with the bias it has, or a new one of zeros."""
    node = layer.node
    add = bias_of(graph, node)
    if add is not None:
        return _Corrected(layer, add, made=False)
    output = node.outputs[0]
    product = gs.Variable(namer(f"{output.name}_product"), output.dtype, output.shape)
    node.outputs = [product]
    zeros = ir.constant(namer(f"{node.name}_bias"), np.zeros(layer.weight.shape[1], np.float32))
    made = ir.add_node(graph, "Add", namer(f"{node.name}/Bias"), [product, zeros], [output])
    return _Corrected(layer, made, made=True)


def _drop(corrected: _Corrected) -> None:
    output = corrected.add.outputs[0]
    corrected.add.inputs.clear()
    corrected.add.outputs.clear()
    corrected.layer.node.outputs = [output]


def _shift(corrected: _Corrected, change: Correction, namer: ir.Namer) -> None:
    old: Any = next(t for t in corrected.add.inputs if ir.is_constant(t))
    values = ir.array(old)
    shifted = (values.astype(np.float32) + change.shift).astype(values.dtype)
    name = str(old.name) if corrected.made else namer(f"{old.name}_corrected")
    ir.rewire_input(corrected.add, old, ir.constant(name, shifted))


def _remark(corrected: _Corrected, change: Correction) -> Remark:
    data = {"mean_error_before": change.before, "mean_error_after": change.after}
    errors = f"error of the mean output, held out: {change.before:.4f} -> {change.after:.4f}"
    what = "bias not corrected"
    if change.helps:
        what = "new bias" if corrected.made else "bias corrected"
    return Remark(
        layer=corrected.name, applied=change.helps, message=f"{what}, {errors}", data=data
    )
