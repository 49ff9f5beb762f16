"""The Q/DQ language between passes: how quantized activations are written and read.

DequantizeLinear(QuantizeLinear(X, s), s), s computed from X;
where s is constant, Clip(.., -127 s, 127 s) of that

A NaN in X makes its row NaN, through the scale, where that is computed. Codes can't hold one: with
a constant scale, the form that all runtimes know, it becomes a number.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from qcompiler import ir
from qcompiler.analysis.qdq import QuantizedLayer, quantized_layers
from qcompiler.calibration.statistics import Statistics
from qcompiler.errors import CalibrationError
from qcompiler.formats import Granularity, LayerPlan
from qcompiler.ir.matcher import Match, const, match, op, var

_INT8 = int(onnx.TensorProto.INT8)

_PEAK_OPS = frozenset({"Slice", "Min", "ReduceMax"})
"""Between |x| and the peak that a dynamic scale is made from."""

_SMALLEST = 1e-30  # a calibrated range of exactly zero still needs a scale

_DYNAMIC_SCALE = op(
    "Where",
    op("Equal", op("Div", var("peak"), const(value=127.0)), const(value=0.0)),
    const(value=1.0),
    op("Div", var("peak"), const(value=127.0)),
    capture="s",
)
_DYNAMIC = op(
    "DequantizeLinear",
    op("QuantizeLinear", var("x"), _DYNAMIC_SCALE, capture="quantize"),
    var("s"),
    capture="dequantize",
)
_STATIC = op(
    "Clip",
    op(
        "DequantizeLinear",
        op("QuantizeLinear", var("x"), const("s", size=1), const("zero", value=0.0)),
        const("s", size=1),
        const("zero"),
    ),
    const("low", size=1),
    const("high", size=1),
)


@dataclass(frozen=True)
class ActivationQdq:
    """A quantized activation: X behind QuantizeLinear and DequantizeLinear."""

    x: Any
    scale: gs.Constant | None
    """Of a static scale; None: each row has its own."""

    @property
    def granularity(self) -> Granularity:
        """What shares a scale."""
        return Granularity.PER_TOKEN if self.scale is None else Granularity.PER_TENSOR


def activation_qdq(layer: QuantizedLayer) -> ActivationQdq | None:
    """What a layer reads, if it is in the form that `insert_activations` writes."""
    node = ir.producer(layer.layer.x)
    if node is None:
        return None
    found = match(_STATIC, node)
    if isinstance(found, Match) and _clips_to_127(found):
        return ActivationQdq(found["x"], found["s"])
    found = match(_DYNAMIC, node)
    if not isinstance(found, Match):
        return None
    quantize, x = found.node("quantize"), found["x"]
    whole = int(ir.attribute(quantize, "block_size", 0)) >= layer.weight.shape[0]
    if not whole or not _reads(found["peak"], x) or quantize.inputs[1] is not found["s"]:
        return None
    return ActivationQdq(x, None)


def before_rounding(layer: QuantizedLayer) -> Any:
    """The activation X that a quantized layer reads, before its Q/DQ and casts."""
    found = activation_qdq(layer)
    x = layer.layer.x if found is None else found.x
    while (cast := ir.producer(x, "Cast")) is not None:
        x = cast.inputs[0]
    return x


def _clips_to_127(found: Match) -> bool:
    """Whether a static activation is int8 in [-127, 127], so that its clip takes -128 only."""
    top = 127.0 * found.array("s").item()
    bounds = [found.array("low").item(), found.array("high").item()]
    int8 = ir.elem_type(found["zero"]) == onnx.TensorProto.INT8
    return int8 and bool(np.allclose(bounds, [-top, top], rtol=1e-6, atol=0.0))


def _reads(peak: Any, x: Any) -> bool:
    """Whether `peak` is the maximum of |x| of each row."""
    node = ir.producer(peak)
    while node is not None and node.op in _PEAK_OPS:
        node = ir.producer(node.inputs[0])
    return node is not None and node.op == "Abs" and node.inputs[0] is x


def insert_activations(
    graph: gs.Graph, plan: Mapping[str, LayerPlan], statistics: Statistics | None
) -> bool:
    """Put activation Q/DQ before every layer with quantized weights, as planned.

    Whether the graph changed. CalibrationError where a static scale has no calibrated range.
    """
    writer = ActivationWriter(graph)
    changed = False
    for found in quantized_layers(graph):
        planned = plan.get(found.name)
        if planned is None or planned.activation is Granularity.NONE:
            continue
        found.layer.read(_quantized(writer, found, planned.activation, statistics))
        changed = True
    if changed:
        ir.remove_dead(graph)
    return changed


def _quantized(
    writer: ActivationWriter,
    found: QuantizedLayer,
    granularity: Granularity,
    statistics: Statistics | None,
) -> gs.Variable:
    x, channels = found.layer.x, found.weight.shape[0]
    if granularity is Granularity.PER_TOKEN:
        return writer.dynamic(x, channels)
    known = {} if statistics is None else statistics.tensors
    source = x
    cast = ir.producer(x, "Cast")
    if cast is not None and x.name not in known:
        source = cast.inputs[0]
    if source.name not in known:
        raise CalibrationError(f"no calibrated range for the input of '{found.name}'")
    peak = float(known[source.name].absmax.max())
    return writer.static(x, max(peak, _SMALLEST) / 127.0)


class ActivationWriter:
    """Adds activation Q/DQ to a graph, one chain for all readers that want the same."""

    def __init__(self, graph: gs.Graph) -> None:
        self._graph = graph
        self._namer = ir.Namer(graph)
        self._made: dict[tuple[int, float], gs.Variable] = {}

    def _node(
        self, op_type: str, base: str, inputs: list[Any], shape: Any, dtype: Any, **attrs: Any
    ) -> gs.Variable:
        output = gs.Variable(self._namer(f"{base}_{op_type}"), np.dtype(dtype), shape)
        name = self._namer(f"{base}/{op_type}")
        ir.add_node(self._graph, op_type, name, inputs, [output], attrs=attrs)
        return output

    def _scalar(self, base: str, value: NDArray[Any]) -> gs.Constant:
        return ir.constant(self._namer(base), value)

    def static(self, x: Any, scale: float) -> gs.Variable:
        """X quantized with one constant scale, clipped to ±127 steps."""
        key = (id(x), scale)
        if key not in self._made:
            name = str(x.name)
            top = np.float32(127.0) * np.float32(scale)
            low, high = (
                self._scalar(f"{name}_low", np.asarray(-top, np.float32)),
                self._scalar(f"{name}_high", np.asarray(top, np.float32)),
            )
            s = self._scalar(f"{name}_scale", np.asarray(scale, np.float32))
            zero = self._scalar(f"{name}_zero", np.asarray(0, np.int8))
            codes = self._node("QuantizeLinear", name, [x, s, zero], x.shape, np.int8)
            steps = self._node("DequantizeLinear", name, [codes, s, zero], x.shape, np.float32)
            # The clip takes code -128 away. It comes last because ONNX Runtime (1.31 too) fuses a
            # static DequantizeLinear next to a MatMul by a blocked 8-bit one into
            # MatMulIntegerToFloat, which ignores the blocks and gives wrong numbers.
            self._made[key] = self._node("Clip", name, [steps, low, high], x.shape, np.float32)
        return self._made[key]

    def dynamic(self, x: Any, channels: int) -> gs.Variable:
        """X [..., channels], of any rank, quantized with one computed scale for each row."""
        key = (id(x), 0.0)
        if key not in self._made:
            self._made[key] = self._dynamic(x, channels)
        return self._made[key]

    def _dynamic(self, x: Any, channels: int) -> gs.Variable:
        name = str(x.name)
        shape = None if x.shape is None else [*list(x.shape)[:-1], 1]
        peak = self._peak(name, x, shape)
        top = self._scalar(f"{name}_top", np.asarray(127.0, np.float32))
        raw = self._node("Div", name, [peak, top], shape, np.float32)
        zero = self._scalar(f"{name}_nothing", np.asarray(0.0, np.float32))
        one = self._scalar(f"{name}_one", np.asarray(1.0, np.float32))
        empty = self._node("Equal", name, [raw, zero], shape, np.bool_)
        s = self._node("Where", name, [empty, one, raw], shape, np.float32)
        blocked = {"axis": -1, "block_size": channels}
        codes = self._node(
            "QuantizeLinear",
            name,
            [x, s],
            x.shape,
            np.int8,
            output_dtype=_INT8,
            **blocked,
        )
        return self._node("DequantizeLinear", name, [codes, s], x.shape, np.float32, **blocked)

    def _peak(self, name: str, x: Any, shape: list[Any] | None) -> gs.Variable:
        """The maximum of |x| over the last axis, which stays; NaN where there is a NaN.

        ONNX Runtime's ReduceMax finds a NaN only where it comes first, but a sum always has it.
        """
        magnitude = self._node("Abs", name, [x], x.shape, np.float32)
        last = self._scalar(f"{name}_axes", np.asarray([-1], np.int64))
        largest = self._node("ReduceMax", name, [magnitude, last], shape, np.float32, keepdims=1)
        total = self._node("ReduceSum", name, [magnitude, last], shape, np.float32, keepdims=1)
        peak = self._node("Min", name, [largest, total], shape, np.float32)
        return self._first_of_last(name, peak, last, shape)

    def _first_of_last(
        self, name: str, reduced: gs.Variable, last: gs.Constant, shape: list[Any] | None
    ) -> gs.Variable:
        """What was reduced over its last axis, to one element there.

        Where there are no rows, ONNX Runtime's reductions keep the axis whole.
        """
        bounds = [
            self._scalar(f"{name}_{which}", np.asarray([at], np.int64))
            for which, at in (("first", 0), ("second", 1))
        ]
        return self._node("Slice", name, [reduced, *bounds, last], shape, np.float32)
