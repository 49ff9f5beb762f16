"""lower-ort-contrib: quantized layers become ONNX Runtime's own MatMulNBits, for apps that can
load no library.

    MatMul([DQ(Q](X[))], DQ(W))  ->  com.microsoft.MatMulNBits(X, B, scales[, zeros])

accuracy_level 4 makes ORT quantize the activations itself, per row and block, so activation Q/DQ is
removed. A table tied to the head reads the head's packed bytes through a Reshape. A table of 2 or 4
bits is stored as such bytes too, and its rows are unpacked after the look-up.

Q/DQ holds 2 bits in a type of 4: the plan tells them, else they stay 4.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from qcompiler import ir, ops
from qcompiler.analysis.activation_qdq import activation_qdq
from qcompiler.analysis.qdq import (
    QuantizedLayer,
    TableDq,
    TableRows,
    quantized_layers,
    table_dq,
    table_rows,
)
from qcompiler.formats import Granularity, WeightFormat
from qcompiler.numerics.nbits import in_blocks, narrowed, pack
from qcompiler.numerics.rounding import QuantizedWeight
from qcompiler.passmanager import Fact, Numerics, Pass, PassContext, PassResult
from qcompiler.remarks import LeftAlone, Lowered, Remark

_Packed = dict[int, tuple[list[gs.Constant], QuantizedWeight]]
"""Inputs of MatMulNBits, and the weight they were packed from, by the codes in the graph."""


@dataclass(frozen=True, kw_only=True)
class LowerOrtContrib(Pass):
    """Replace quantized layers by MatMulNBits with int8 activations (accuracy_level 4)."""

    name: ClassVar[str] = "lower-ort-contrib"
    numerics: ClassVar[Numerics] = Numerics.LOSSY
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.WEIGHTS_QUANTIZED})
    provides: ClassVar[frozenset[Fact]] = frozenset({Fact.LOWERED})
    revokes: ClassVar[frozenset[Fact]] = frozenset({Fact.WEIGHTS_QUANTIZED, Fact.QDQ})

    accuracy_level: int = 4

    def run(self, graph: gs.Graph, ctx: PassContext) -> PassResult:
        namer = ir.Namer(graph)
        remarks: list[Remark] = []
        packed: _Packed = {}
        nodes, layers = list(graph.nodes), quantized_layers(graph)
        for index, found in enumerate(layers):
            ctx.tick("packing", index, len(layers))
            remarks.append(self._lower(graph, found, ctx, namer, packed))
        changed = bool(packed)
        for node in nodes:
            if (rows := table_rows(node)) is not None:
                remarks.append(_share_table(graph, rows, packed, namer))
            elif (table := table_dq(node)) is not None and table.dequantized.form.narrow:
                remarks.append(_unpack_rows(graph, node, table, ctx, namer, packed))
                changed = True
        ctx.tick("packing", len(layers), len(layers))
        if changed:
            ir.remove_dead(graph)
        return PassResult(graph=graph, changed=changed, remarks=tuple(remarks))

    def _lower(
        self,
        graph: gs.Graph,
        found: QuantizedLayer,
        ctx: PassContext,
        namer: ir.Namer,
        packed: _Packed,
    ) -> Remark:
        node, weight = found.layer.node, found.weight
        rows, columns = weight.shape
        if id(weight.codes) not in packed:
            loaded = _as_planned(weight.load(), found.name, ctx)
            constants = [
                ir.constant(namer(f"{node.name}_{suffix}"), values)
                for suffix, values in zip(("B", "scales", "zeros"), pack(loaded), strict=False)
            ]
            packed[id(weight.codes)] = (constants, loaded)
        activation = activation_qdq(found)
        x = found.layer.x if activation is None else activation.x
        output, name = node.outputs[0], node.name
        node.inputs.clear()
        node.outputs.clear()
        node.name = namer(f"{name}_float")
        attrs: dict[str, Any] = {
            "K": rows,
            "N": columns,
            "bits": packed[id(weight.codes)][1].form.bits,
            "block_size": packed[id(weight.codes)][1].form.group_size,
            "accuracy_level": self.accuracy_level,
        }
        ir.add_node(
            graph,
            "MatMulNBits",
            name,
            [x, *packed[id(weight.codes)][0]],
            [output],
            attrs=attrs,
            domain=ops.CONTRIB_DOMAIN,
        )
        return Lowered(
            layer=name,
            message="MatMulNBits; ONNX Runtime quantizes its input per block",
            op="MatMulNBits",
            activation=Granularity.PER_GROUP,
            bytes_after=_stored(packed[id(weight.codes)][0]),
        )


def _as_planned(weight: QuantizedWeight, layer: str, ctx: PassContext) -> QuantizedWeight:
    """A weight in blocks, in the bits that the plan has for its layer or table, where these hold
    its codes."""
    form = ctx.plan[layer].weight if layer in ctx.plan else None
    weight = in_blocks(weight)
    if form is None or form.bits >= weight.form.bits:
        return weight
    return narrowed(weight, form.bits) or weight


def _stored(constants: Iterable[gs.Constant]) -> int:
    """Bytes of constants."""
    return sum(map(ir.nbytes, constants))


def _share_table(
    graph: gs.Graph,
    found: TableRows,
    packed: _Packed,
    namer: ir.Namer,
) -> Remark:
    """Read an 8-bit table tied to the head from the head's own bytes."""
    layer = found.node.name
    if id(found.codes) not in packed:
        nbytes = _stored([found.codes, found.scales])
        message = "Gather, then dequantize"
        return Lowered(layer=layer, message=message, op="Gather", bytes_after=nbytes)
    constants, weight = packed[id(found.codes)]
    codes, scales = constants[:2]
    rows, columns = weight.codes.shape
    if rows % weight.block:
        return LeftAlone(
            layer=layer,
            message=f"not shared with the head: {rows} channels are no multiple of a block",
        )
    look_up = _LookUp(graph, found.node, found.ids, namer)
    middles = np.full((columns, rows // weight.block), weight.form.middle, np.uint8)
    zeros = ir.constant(namer(f"{layer}_zeros"), middles)
    flat = look_up.reshaped(codes, "table", [columns, rows])
    look_up.dequantize(
        look_up.rows(flat, "codes"),
        look_up.rows(scales, "scales"),
        look_up.rows(zeros, "zeros"),
        weight.block,
    )
    return Lowered(
        layer=layer,
        message="Gather from the head's table",
        op="Gather",
        bytes_after=_stored([*constants, zeros]),
    )


def _unpack_rows(
    graph: gs.Graph,
    node: gs.Node,
    table: TableDq,
    ctx: PassContext,
    namer: ir.Namer,
    packed: _Packed,
) -> Remark:
    """Look up packed narrow rows, the head's own where it has them, and unpack those."""
    layer, source = node.name, table.dequantized.codes
    shared = id(source) in packed
    if shared:
        constants, weight = packed[id(source)]
    else:
        weight = _as_planned(table.load(), layer, ctx)
        constants = [
            ir.constant(namer(f"{layer}_{suffix}"), values)
            for suffix, values in zip(("B", "scales"), pack(weight)[:2], strict=True)
        ]
    codes, scales = constants[:2]
    rows, columns = weight.codes.shape
    groups, width = codes.shape[1], codes.shape[1] * codes.shape[2]
    unpacked = np.full((columns, groups), weight.form.middle, np.uint8)
    if weight.zero_points is not None:
        unpacked = np.ascontiguousarray(weight.zero_points.T)
    zeros = ir.constant(namer(f"{layer}_zeros"), unpacked)
    look_up = _LookUp(graph, node, node.inputs[1], namer)
    packed_rows = look_up.rows(look_up.reshaped(codes, "table", [columns, width]), "packed_rows")
    look_up.dequantize(
        look_up.unpacked(packed_rows, width, rows, weight.form),
        look_up.rows(scales, "scales"),
        look_up.rows(zeros, "zeros"),
        weight.block,
    )
    message = "Gather from the head's table, then unpack" if shared else "Gather, then unpack"
    nbytes = _stored([*constants, zeros])
    return Lowered(layer=layer, message=message, op="Gather", bytes_after=nbytes)


class _LookUp:
    """Replaces the last node of a look-up by nodes that pick packed rows and dequantize them."""

    def __init__(self, graph: gs.Graph, node: gs.Node, ids: Any, namer: ir.Namer) -> None:
        self._graph, self._ids, self._namer = graph, ids, namer
        self._name, self._output = node.name, node.outputs[0]
        shape = self._output.shape
        self._lead = None if shape is None else list(shape)[:-1]
        node.inputs.clear()
        node.outputs.clear()
        node.name = namer(f"{self._name}_unshared")

    def _node(
        self, op_type: str, suffix: str, inputs: list[Any], shape: Any, dtype: Any, **attrs: Any
    ) -> gs.Variable:
        output = gs.Variable(self._namer(f"{self._name}_{suffix}"), np.dtype(dtype), shape)
        name = self._namer(f"{self._name}/{op_type}_{suffix}")
        ir.add_node(self._graph, op_type, name, inputs, [output], attrs=attrs)
        return output

    def _constant(self, suffix: str, values: NDArray[Any]) -> gs.Constant:
        return ir.constant(self._namer(f"{self._name}_{suffix}"), values)

    def _rows_of(self, *tail: int) -> list[Any] | None:
        return None if self._lead is None else [*self._lead, *tail]

    def reshaped(self, codes: gs.Constant, suffix: str, shape: list[int]) -> gs.Variable:
        """Packed bytes as a table of rows."""
        target = self._constant("shape", np.asarray(shape, np.int64))
        return self._node("Reshape", suffix, [codes, target], shape, np.uint8)

    def rows(self, table: Any, suffix: str) -> gs.Variable:
        """The rows looked up."""
        shape = self._rows_of(int(table.shape[1]))
        return self._node("Gather", suffix, [table, self._ids], shape, table.dtype, axis=0)

    def unpacked(
        self, packed: gs.Variable, width: int, channels: int, form: WeightFormat
    ) -> gs.Variable:
        """The codes in `width` bytes, those in low bits first, without those beyond `channels`."""
        share = 8 // form.bits
        last = self._constant("last", np.asarray([-1], np.int64))
        shifts = self._constant("shifts", np.arange(0, 8, form.bits, dtype=np.uint8))
        low_bits = self._constant("low_bits", np.asarray(form.top, np.uint8))
        apart, length = self._rows_of(width, share), share * width
        codes = self._node("Unsqueeze", "bytes", [packed, last], self._rows_of(width, 1), np.uint8)
        codes = self._node(
            "BitShift", "shifted", [codes, shifts], apart, np.uint8, direction="RIGHT"
        )
        codes = self._node("BitwiseAnd", "apart", [codes, low_bits], apart, np.uint8)
        ids = self._node("Shape", "ids_shape", [self._ids], None, np.int64)
        target = self._node(
            "Concat",
            "rows_shape",
            [ids, self._constant("length", np.asarray([length], np.int64))],
            None,
            np.int64,
            axis=0,
        )
        codes = self._node(
            "Reshape", "flat", [codes, target], self._rows_of(length), np.uint8, allowzero=1
        )
        if length == channels:
            return codes
        start, end = (
            self._constant(suffix, np.asarray([at], np.int64))
            for suffix, at in (("start", 0), ("end", channels))
        )
        return self._node(
            "Slice", "codes", [codes, start, end, last], self._rows_of(channels), np.uint8
        )

    def dequantize(self, codes: Any, scales: Any, zeros: Any, block: int) -> None:
        """The node that takes the place of the one replaced."""
        axis = -1 if self._lead is None else len(self._lead)
        attrs = {"axis": axis, "block_size": block}
        ir.add_node(
            self._graph,
            "DequantizeLinear",
            self._name,
            [codes, scales, zeros],
            [self._output],
            attrs=attrs,
        )
