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

_PEAK_OPS = frozenset({"Squeeze", "Slice", "Min", "ReduceMax", "Reshape", "Pad"})
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
    block: int
    """Channels that share a dynamic scale; 0 for a static per-tensor scale."""
    scale: gs.Constant | None

    def granularity(self, channels: int) -> Granularity:
        """What shares a scale, for a layer that reads `channels`: its K, as X may not tell them."""
        if self.scale is not None:
            return Granularity.PER_TENSOR
        return Granularity.PER_TOKEN if self.block >= channels else Granularity.PER_GROUP


def activation_qdq(tensor: Any) -> ActivationQdq | None:
    """The quantized activation a tensor is, if it is one in the form `insert_*` write."""
    node = ir.producer(tensor)
    if node is None:
        return None
    found = match(_STATIC, node)
    if isinstance(found, Match) and _clips_to_127(found):
        return ActivationQdq(found["x"], 0, found["s"])
    found = match(_DYNAMIC, node)
    if not isinstance(found, Match):
        return None
    quantize = found.node("quantize")
    x, block = found["x"], int(ir.attribute(quantize, "block_size", 0))
    if not block or not _reads(found["peak"], x) or quantize.inputs[1] is not found["s"]:
        return None
    return ActivationQdq(x, block, None)


def before_rounding(tensor: Any) -> Any:
    """The activation X that a quantized layer reads, before its Q/DQ and casts."""
    found = activation_qdq(tensor)
    x = tensor if found is None else found.x
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
    """Whether `peak` is the maximum of |x| (per row, or per group after padding and reshaping)."""
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
        return writer.dynamic(x, channels, channels)
    if granularity is Granularity.PER_GROUP:
        return writer.dynamic(x, channels, min(found.weight.form.group_size, channels))
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
        self._made: dict[tuple[int, int, float], gs.Variable] = {}

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
        key = (id(x), 0, scale)
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

    def dynamic(self, x: Any, channels: int, block: int) -> gs.Variable:
        """X [..., channels], of any rank, quantized with one computed scale for each `block`
        channels of a row."""
        key = (id(x), block, 0.0)
        if key not in self._made:
            self._made[key] = self._dynamic(x, channels, block)
        return self._made[key]

    def _dynamic(self, x: Any, channels: int, block: int) -> gs.Variable:
        name = str(x.name)
        groups = -(-channels // block)
        magnitude = self._node("Abs", name, [x], x.shape, np.float32)
        if groups > 1:
            magnitude = self._grouped(x, magnitude, channels, block)
        shape = _ending(x, groups)
        peak = self._peak(name, magnitude, shape, grouped=groups > 1)
        top = self._scalar(f"{name}_top", np.asarray(127.0, np.float32))
        raw = self._node("Div", name, [peak, top], shape, np.float32)
        zero = self._scalar(f"{name}_nothing", np.asarray(0.0, np.float32))
        one = self._scalar(f"{name}_one", np.asarray(1.0, np.float32))
        empty = self._node("Equal", name, [raw, zero], shape, np.bool_)
        s = self._node("Where", name, [empty, one, raw], shape, np.float32)
        blocked = {"axis": -1, "block_size": block}
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

    def _peak(
        self, name: str, magnitude: gs.Variable, shape: list[Any] | None, *, grouped: bool
    ) -> gs.Variable:
        """The maximum over the last axis, NaN where there is a NaN; `shape` is the result's, which
        has that axis unless `grouped`.

        ONNX Runtime's ReduceMax finds a NaN only where it comes first, but a sum always has it.
        """
        kept = [*shape, 1] if grouped and shape is not None else shape
        last = self._last_axis(name)
        largest = self._node("ReduceMax", name, [magnitude, last], kept, np.float32, keepdims=1)
        total = self._node("ReduceSum", name, [magnitude, last], kept, np.float32, keepdims=1)
        peak = self._node("Min", name, [largest, total], kept, np.float32)
        peak = self._first_of_last(name, peak, last, kept)
        return self._node("Squeeze", name, [peak, last], shape, np.float32) if grouped else peak

    def _last_axis(self, name: str) -> gs.Constant:
        return self._scalar(f"{name}_axes", np.asarray([-1], np.int64))

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

    def _grouped(self, x: Any, magnitude: gs.Variable, channels: int, block: int) -> gs.Variable:
        """|X| [..., channels] -> [..., groups, block], a short last group padded with zeros."""
        name, groups = str(x.name), -(-channels // block)
        if groups * block != channels:
            pads = self._scalar(
                f"{name}_pads", np.asarray([0, groups * block - channels], np.int64)
            )
            axis = self._scalar(f"{name}_pad_axes", np.asarray([-1], np.int64))
            magnitude = self._node(
                "Pad",
                name,
                [magnitude, pads, gs.Variable.empty(), axis],
                _ending(x, groups * block),
                np.float32,
            )
        rank = ir.tensor_rank(x)
        sizes = [None, None] if rank is None else [rank - 1, rank + 1]
        lead = self._node("Shape", name, [x], sizes[:1], np.int64, start=0, end=-1)
        tail = self._scalar(f"{name}_groups", np.asarray([groups, block], np.int64))
        target = self._node("Concat", name, [lead, tail], sizes[1:], np.int64, axis=0)
        shape = _ending(x, groups, block)
        return self._node("Reshape", name, [magnitude, target], shape, np.float32)


def _ending(x: Any, *sizes: int) -> list[Any] | None:
    """The leading dimensions of X, then `sizes`; None where its rank is not known."""
    return None if x.shape is None else [*list(x.shape)[:-1], *sizes]
