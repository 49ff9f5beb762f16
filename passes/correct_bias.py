"""correct-bias: biases make up for what rounding adds to the mean of a layer's output.

    MatMul(X̂, Ŵ) [+ b]  ->  MatMul(X̂, Ŵ) + (b + E[XW] - E[X̂Ŵ])

E[XW] is the float model's (`record-outputs`); X̂ comes from the Q/DQ graph with all layers before it
corrected. The correction follows from three quarters of the calibration samples. It is kept where
it lowers the layer's output error on the last quarter, and otherwise the layer stays as it is.

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
from qcompiler.analysis.qdq import weight_dq
from qcompiler.errors import CalibrationError
from qcompiler.ir.order import topological
from qcompiler.numerics.bias import Correction, correction, means
from qcompiler.passmanager import Fact, Numerics, Pass, PassContext, PassResult, Remark


@dataclass(frozen=True)
class _Layer:
    """A quantized layer, and the Add behind it that takes the correction."""

    node: gs.Node
    add: gs.Node
    made: bool
    """Whether the Add is new, and goes again where it is not needed."""


@dataclass(frozen=True, kw_only=True)
class CorrectBias(Pass):
    """Correct the mean output of quantized layers by their biases."""

    name: ClassVar[str] = "correct-bias"
    numerics: ClassVar[Numerics] = Numerics.LOSSY
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.QDQ, Fact.OUTPUTS_RECORDED})

    def run(self, graph: gs.Graph, ctx: PassContext) -> PassResult:
        outputs = {} if ctx.statistics is None else ctx.statistics.outputs
        namer = ir.Namer(graph)
        groups: dict[str, list[_Layer]] = {}
        for node in topological(graph):
            if node.op == "MatMul" and node.name in outputs and weight_dq(node.inputs[1]):
                layer = _with_bias(graph, node, namer)
                groups.setdefault(str(node.inputs[0].name), []).append(layer)
        if not groups:
            return PassResult(graph=graph, changed=False)
        if ctx.stream is None:
            raise CalibrationError("no calibration data; give --calib SRC")
        remarks: list[Remark] = []
        # The stream runs the nodes as they are now: Adds are made before, and dropped after.
        for index, (layers, values) in enumerate(
            zip(groups.values(), ctx.stream(graph, list(groups)), strict=True)
        ):
            ctx.tick("correcting biases", index, len(groups))
            try:
                mean = means(values)
            except ValueError as error:
                raise CalibrationError(f"layer '{layers[0].node.name}': {error}") from None
            for layer in layers:
                weight = weight_dq(layer.node.inputs[1])
                assert weight is not None  # checked above
                actual = mean.through(weight.load().dequantize())
                found = correction(outputs[layer.node.name], actual)
                if found.helps:
                    _shift(layer, found, namer)
                remarks.append(_remark(layer, found))
        ctx.tick("correcting biases", len(groups), len(groups))
        changed = {remark.layer for remark in remarks if remark.applied}
        for layers in groups.values():
            for layer in layers:
                if layer.made and layer.node.name not in changed:
                    _drop(layer)
        ir.remove_dead(graph)
        return PassResult(graph=graph, changed=bool(changed), remarks=tuple(remarks))


def _with_bias(graph: gs.Graph, node: gs.Node, namer: ir.Namer) -> _Layer:
    """A layer with the bias it has, or a new one of zeros."""
    add = bias_of(graph, node)
    if add is not None:
        return _Layer(node, add, made=False)
    output = node.outputs[0]
    product = gs.Variable(namer(f"{output.name}_product"), output.dtype, output.shape)
    node.outputs = [product]
    size = int(node.inputs[1].shape[-1])
    zeros = ir.constant(namer(f"{node.name}_bias"), np.zeros(size, np.float32))
    made = ir.add_node(graph, "Add", namer(f"{node.name}/Bias"), [product, zeros], [output])
    return _Layer(node, made, made=True)


def _drop(layer: _Layer) -> None:
    output = layer.add.outputs[0]
    layer.add.inputs.clear()
    layer.add.outputs.clear()
    layer.node.outputs = [output]


def _shift(layer: _Layer, found: Correction, namer: ir.Namer) -> None:
    old: Any = next(t for t in layer.add.inputs if ir.is_constant(t))
    values = ir.array(old)
    shifted = (values.astype(np.float32) + found.shift).astype(values.dtype)
    name = str(old.name) if layer.made else namer(f"{old.name}_corrected")
    ir.rewire_input(layer.add, old, ir.constant(name, shifted))


def _remark(layer: _Layer, found: Correction) -> Remark:
    name = str(layer.node.name)
    data = {"mean_error_before": found.before, "mean_error_after": found.after}
    errors = f"error of the mean output, held out: {found.before:.4f} -> {found.after:.4f}"
    if found.helps:
        what = "new bias" if layer.made else "bias corrected"
        return Remark(layer=name, applied=True, message=f"{what}, {errors}", data=data)
    message = f"bias not corrected, {errors}"
    return Remark(layer=name, applied=False, message=message, data=data)
