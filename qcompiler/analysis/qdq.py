"""The Q/DQ language between passes: how quantized weights and activations are written and read.

Weight [K, N]:  DequantizeLinear(codes, scales[, zero_points], axis=0, block_size)
4-bit table:    Gather of such a weight transposed, or of the same [N, K] with axis=1
Activation:     DequantizeLinear(QuantizeLinear(X, s), s), s computed from X;
                where s is constant, Clip(.., -127 s, 127 s) of that
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from qcompiler import ir
from qcompiler.analysis.linears import Linear, find_linears, looked_up
from qcompiler.errors import RecipeError
from qcompiler.ir.matcher import Match, const, match, op, var
from qcompiler.ir.order import topological
from qcompiler.numerics.rounding import QuantizedWeight
from qcompiler.passmanager import Granularity

_MIDDLE: dict[int, int] = {
    onnx.TensorProto.INT4: 8,
    onnx.TensorProto.UINT4: 0,
    onnx.TensorProto.INT8: 128,
    onnx.TensorProto.UINT8: 0,
}
_FOUR_BIT: tuple[int, ...] = (onnx.TensorProto.INT4, onnx.TensorProto.UINT4)

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
class WeightDq:
    """A quantized weight in the graph: codes [K, N] behind one DequantizeLinear."""

    node: gs.Node
    codes: gs.Constant
    scales: gs.Constant
    zero_points: gs.Constant | None
    group_size: int

    @property
    def bits(self) -> int:
        """4 or 8."""
        return 4 if ir.elem_type(self.codes) in _FOUR_BIT else 8

    @property
    def symmetric(self) -> bool:
        """Whether every group's zero point is the middle code."""
        return self.zero_points is None

    @property
    def shape(self) -> tuple[int, int]:
        """(K, N)."""
        rows, columns = self.codes.shape
        return int(rows), int(columns)

    def load(self) -> QuantizedWeight:
        """The weight as unsigned codes, float16 scales and zero points."""
        codes = ir.array(self.codes)
        middle = _MIDDLE[ir.elem_type(self.codes)]
        unsigned = (codes.astype(np.int16) + middle).astype(np.uint8)
        zeros = None
        if self.zero_points is not None:
            zeros = (ir.array(self.zero_points).astype(np.int16) + middle).astype(np.uint8)
        scales = ir.array(self.scales).astype(np.float16)
        return QuantizedWeight(unsigned, scales, zeros, self.bits, self.group_size)


@dataclass(frozen=True)
class ActivationQdq:
    """A quantized activation: X behind QuantizeLinear and DequantizeLinear."""

    x: Any
    granularity: Granularity
    block: int
    """Channels that share a dynamic scale; 0 for a static per-tensor scale."""
    scale: gs.Constant | None


def weight_dq(tensor: Any, axis: int = 0) -> WeightDq | None:
    """The quantized weight a tensor is, if it is one in the form `insert_weight_dq` writes.

    With `axis` 1, one that is stored transposed.
    """
    node = ir.producer(tensor, "DequantizeLinear")
    if node is None or node.attrs.get("axis", 1) != axis or not node.attrs.get("block_size", 0):
        return None
    codes, scales = node.inputs[0], node.inputs[1]
    zeros = node.inputs[2] if len(node.inputs) > 2 and not node.inputs[2].is_empty() else None
    given = [codes, scales] + ([] if zeros is None else [zeros])
    if not all(map(ir.is_constant, given)) or len(codes.shape) != 2:
        return None
    if ir.elem_type(codes) not in _MIDDLE:
        return None
    unsigned = _MIDDLE[ir.elem_type(codes)] == 0
    if unsigned == (zeros is None):  # unsigned codes without a zero point start at 0: not ours
        return None
    return WeightDq(node, codes, scales, zeros, int(ir.attribute(node, "block_size")))


@dataclass(frozen=True)
class TableDq:
    """A table of which a Gather looks up dequantized rows."""

    dequantized: WeightDq
    transposed: bool
    """Whether the Gather reads it behind a Transpose, as it does where a head has the same."""

    def load(self) -> QuantizedWeight:
        """The weight [K, N] whose columns are the table's rows."""
        stored = self.dequantized.load()
        if self.transposed:
            return stored
        zeros = None if stored.zero_points is None else stored.zero_points.T
        return replace(stored, codes=stored.codes.T, scales=stored.scales.T, zero_points=zeros)


def table_dq(gather: gs.Node) -> TableDq | None:
    """The quantized table that a Gather of rows reads, if it is dequantized before the look-up."""
    source = looked_up(gather)
    if source is None:
        return None
    tensor, transposed = source
    found = weight_dq(tensor, axis=0 if transposed else 1)
    return None if found is None else TableDq(found, transposed)


@dataclass(frozen=True)
class QuantizedLayer:
    """A layer with a quantized weight, and what it was in the float graph."""

    node: gs.Node
    weight: WeightDq
    source: Linear


def find_quantized(graph: gs.Graph, reference: gs.Graph | None) -> list[QuantizedLayer]:
    """The quantized layers in order that go by the name of a layer of the float graph `reference`.

    RecipeError where there is no float graph, or it knows none of them.
    """
    if reference is None:
        raise RecipeError("no float graph to compare with; run it in one pipeline with what rounds")
    floats = {linear.name: linear for linear in find_linears(reference)[0]}
    nodes = [node for node in topological(graph) if node.op == "MatMul" and not node.domain]
    found = [(node, weight) for node in nodes if (weight := weight_dq(node.inputs[1]))]
    known = [
        QuantizedLayer(node, weight, floats[node.name])
        for node, weight in found
        if node.name in floats
    ]
    if found and not known:
        raise RecipeError(
            f"'{found[0][0].name}' was quantized before this pipeline began; run all of it from "
            "the float model on"
        )
    return known


def activation_qdq(tensor: Any) -> ActivationQdq | None:
    """The quantized activation a tensor is, if it is one in the form `insert_*` write."""
    node = ir.producer(tensor)
    if node is None:
        return None
    found = match(_STATIC, node)
    if isinstance(found, Match) and _clips_to_127(found):
        return ActivationQdq(found["x"], Granularity.PER_TENSOR, 0, found["s"])
    found = match(_DYNAMIC, node)
    if not isinstance(found, Match):
        return None
    quantize = found.node("quantize")
    x, block = found["x"], int(ir.attribute(quantize, "block_size", 0))
    if not block or not _reads(found["peak"], x) or quantize.inputs[1] is not found["s"]:
        return None
    channels = x.shape[-1] if x.shape else None
    whole = isinstance(channels, int) and block >= channels
    return ActivationQdq(x, Granularity.PER_TOKEN if whole else Granularity.PER_GROUP, block, None)


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
    node = ir.producer(peak, "ReduceMax")
    while node is not None and node.op in ("ReduceMax", "Reshape", "Pad"):
        node = ir.producer(node.inputs[0])
    return node is not None and node.op == "Abs" and node.inputs[0] is x


def insert_weight_dq(
    graph: gs.Graph, weight: QuantizedWeight, base: str, namer: ir.Namer
) -> gs.Variable:
    """Add a quantized weight to the graph; returns its dequantized tensor, float32 [K, N]."""
    constants = weight_constants(weight, base, namer)
    return insert_dq(graph, constants, weight.group_size, base, namer)


def insert_dq(
    graph: gs.Graph,
    constants: list[gs.Constant],
    group_size: int,
    base: str,
    namer: ir.Namer,
    axis: int = 0,
) -> gs.Variable:
    """Add the DequantizeLinear of the constants of a weight, which lie along `axis`."""
    shape = list(constants[0].shape)
    output = gs.Variable(namer(f"{base}_dq"), np.dtype(np.float32), shape)
    ir.add_node(
        graph,
        "DequantizeLinear",
        namer(f"{base}_DequantizeLinear"),
        constants,
        [output],
        attrs={"axis": axis, "block_size": group_size},
    )
    return output


def weight_constants(
    weight: QuantizedWeight, base: str, namer: Callable[[str], str]
) -> list[gs.Constant]:
    """Codes, scales (float32) and, where asymmetric, zero points as Q/DQ initializers."""
    import ml_dtypes  # noqa: PLC0415  (slow to import, needed here only)

    symmetric = weight.zero_points is None
    if weight.bits == 4:
        dtype: Any = ml_dtypes.int4 if symmetric else ml_dtypes.uint4
    else:
        dtype = np.int8 if symmetric else np.uint8
    codes = weight.codes
    if symmetric:
        codes = (codes.astype(np.int16) - (1 << (weight.bits - 1))).astype(np.int8)
    suffix = f"q{weight.bits}"
    constants = [
        ir.constant(namer(f"{base}_{suffix}"), codes.astype(dtype)),
        ir.constant(namer(f"{base}_scale"), weight.scales.astype(np.float32)),
    ]
    if weight.zero_points is not None:
        constants.append(ir.constant(namer(f"{base}_zero"), weight.zero_points.astype(dtype)))
    return constants


def replace_weight(old: WeightDq, weight: QuantizedWeight) -> None:
    """Put other codes and scales of the same form behind the DequantizeLinear of a weight."""
    constants = weight_constants(weight, str(old.codes.name), str)
    for index, new in enumerate(constants):
        # Their old readers are this one node: the names are free again.
        old.node.inputs[index] = ir.constant(str(old.node.inputs[index].name), ir.array(new))


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
        """X [..., channels] quantized with one computed scale for each `block` channels of a row.

        ValueError where the rank of X is not known.
        """
        key = (id(x), block, 0.0)
        if key not in self._made:
            if x.shape is None:
                raise ValueError(f"the rank of activation '{x.name}' is not known")
            self._made[key] = self._dynamic(x, channels, block)
        return self._made[key]

    def _dynamic(self, x: Any, channels: int, block: int) -> gs.Variable:
        name, lead = str(x.name), list(x.shape)[:-1]
        groups = -(-channels // block)
        magnitude = self._node("Abs", name, [x], x.shape, np.float32)
        if groups > 1:
            magnitude = self._grouped(name, magnitude, lead, channels, block)
        axes = self._scalar(f"{name}_axes", np.asarray([-1], np.int64))
        keep = int(groups == 1)
        shape = [*lead, groups]
        peak = self._node("ReduceMax", name, [magnitude, axes], shape, np.float32, keepdims=keep)
        top = self._scalar(f"{name}_top", np.asarray(127.0, np.float32))
        raw = self._node("Div", name, [peak, top], shape, np.float32)
        zero = self._scalar(f"{name}_nothing", np.asarray(0.0, np.float32))
        one = self._scalar(f"{name}_one", np.asarray(1.0, np.float32))
        empty = self._node("Equal", name, [raw, zero], shape, np.bool_)
        s = self._node("Where", name, [empty, one, raw], shape, np.float32)
        blocked = {"axis": len(lead), "block_size": block}
        codes = self._node(
            "QuantizeLinear",
            name,
            [x, s],
            x.shape,
            np.int8,
            output_dtype=int(onnx.TensorProto.INT8),
            **blocked,
        )
        return self._node("DequantizeLinear", name, [codes, s], x.shape, np.float32, **blocked)

    def _grouped(
        self, name: str, magnitude: gs.Variable, lead: list[Any], channels: int, block: int
    ) -> gs.Variable:
        """[..., channels] -> [..., groups, block], a short last group padded with zeros."""
        groups = -(-channels // block)
        if groups * block != channels:
            pads = [0] * (2 * (len(lead) + 1))
            pads[-1] = groups * block - channels
            padding = self._scalar(f"{name}_pads", np.asarray(pads, np.int64))
            magnitude = self._node(
                "Pad", name, [magnitude, padding], [*lead, groups * block], np.float32
            )
        target = self._scalar(
            f"{name}_groups", np.asarray([0] * len(lead) + [groups, block], np.int64)
        )
        return self._node("Reshape", name, [magnitude, target], [*lead, groups, block], np.float32)
