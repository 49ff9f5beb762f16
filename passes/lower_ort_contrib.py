"""lower-ort-contrib: quantized layers become ONNX Runtime's own MatMulNBits, for apps that can
load no library.

    MatMul([DQ(Q](X[))], DQ(W))  ->  com.microsoft.MatMulNBits(X, B, scales[, zeros])

accuracy_level 4 makes ORT quantize the activations itself, per row and block, so activation Q/DQ
is dropped. A table tied to the head reads the head's packed bytes through a Reshape, and a 4-bit
table is read as such bytes too: rows are unpacked after the look-up.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from qcompiler import ir, ops
from qcompiler.analysis.qdq import TableDq, WeightDq, activation_qdq, table_dq, weight_dq
from qcompiler.ir.matcher import Match, match
from qcompiler.numerics.rounding import QuantizedWeight
from qcompiler.passes.lower_ort_custom import TABLE_ROWS
from qcompiler.passmanager import Fact, Numerics, Pass, PassContext, PassResult, Remark


@dataclass(frozen=True, kw_only=True)
class LowerOrtContrib(Pass):
    """Replace quantized layers by MatMulNBits with int8 activations (accuracy_level 4)."""

    name: ClassVar[str] = "lower-ort-contrib"
    numerics: ClassVar[Numerics] = Numerics.LOSSY
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.WEIGHTS_QUANTIZED})
    provides: ClassVar[frozenset[Fact]] = frozenset({Fact.LOWERED})

    accuracy_level: int = 4

    def run(self, graph: gs.Graph, ctx: PassContext) -> PassResult:
        namer = ir.Namer(graph)
        remarks: list[Remark] = []
        packed: dict[int, tuple[list[gs.Constant], QuantizedWeight]] = {}
        nodes = list(graph.nodes)
        for index, node in enumerate(nodes):
            ctx.tick("packing", index, len(nodes))
            weight = None
            if node.op == "MatMul" and not node.domain:
                weight = weight_dq(node.inputs[1])
            if weight is not None:
                remarks.append(self._lower(graph, node, weight, namer, packed))
        changed = bool(packed)
        for node in nodes:
            found = match(TABLE_ROWS, node) if node.op == "DequantizeLinear" else None
            if isinstance(found, Match):
                remarks.append(_share_table(graph, found, packed, namer))
            elif (table := table_dq(node)) is not None and table.dequantized.bits == 4:
                remarks.append(_unpack_rows(graph, node, table, packed, namer))
                changed = True
        ctx.tick("packing", len(nodes), len(nodes))
        if changed:
            ir.remove_dead(graph)
        return PassResult(graph=graph, changed=changed, remarks=tuple(remarks))

    def _lower(
        self,
        graph: gs.Graph,
        node: gs.Node,
        weight: WeightDq,
        namer: ir.Namer,
        packed: dict[int, tuple[list[gs.Constant], QuantizedWeight]],
    ) -> Remark:
        rows, columns = weight.shape
        size = weight.group_size
        if id(weight.codes) not in packed:
            loaded = weight.load()
            constants = [
                ir.constant(namer(f"{node.name}_{suffix}"), values)
                for suffix, values in zip(("B", "scales", "zeros"), pack(loaded), strict=False)
            ]
            packed[id(weight.codes)] = (constants, loaded)
        activation = activation_qdq(node.inputs[0])
        x = node.inputs[0] if activation is None else activation.x
        output, name = node.outputs[0], node.name
        node.inputs.clear()
        node.outputs.clear()
        node.name = namer(f"{name}_float")
        attrs: dict[str, Any] = {
            "K": rows,
            "N": columns,
            "bits": weight.bits,
            "block_size": size,
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
        return Remark(
            layer=name,
            applied=True,
            message="MatMulNBits; ONNX Runtime quantizes its input per block",
            data={"op": "MatMulNBits", "activation": "per-group"},
        )


def pack(weight: QuantizedWeight) -> list[NDArray[Any]]:
    """B [N, G, group·bits/8], scales float32 [N, G] and, where asymmetric, zero points.

    Codes lie along K with the even one in the low nibble; rows past K hold the zero point, so
    that they decode to 0.
    """
    rows, columns = weight.codes.shape
    size, middle = weight.group_size, 1 << (weight.bits - 1)
    groups = -(-rows // size)
    codes = np.full((groups * size, columns), middle, np.uint8)
    codes[:rows] = weight.codes
    if weight.zero_points is not None and groups * size != rows:
        codes[rows:] = weight.zero_points[-1]
    by_column = np.ascontiguousarray(codes.T).reshape(columns, groups, size)
    scales = np.ascontiguousarray(weight.scales.T.astype(np.float32))
    arrays = [_nibbles(by_column) if weight.bits == 4 else by_column, scales]
    if weight.zero_points is not None:
        zeros = np.ascontiguousarray(weight.zero_points.T)
        if weight.bits == 4:
            if groups % 2:
                zeros = np.pad(zeros, ((0, 0), (0, 1)), constant_values=middle)
            zeros = _nibbles(zeros)
        arrays.append(zeros)
    return arrays


def _nibbles(codes: NDArray[Any]) -> NDArray[Any]:
    return np.ascontiguousarray(codes[..., 0::2] | (codes[..., 1::2] << np.uint8(4)))


def _share_table(
    graph: gs.Graph,
    found: Match,
    packed: dict[int, tuple[list[gs.Constant], QuantizedWeight]],
    namer: ir.Namer,
) -> Remark:
    """Read an 8-bit table tied to the head from the head's own bytes."""
    node = found.root
    layer = node.name
    if id(found["codes"]) not in packed:
        return Remark(
            layer=layer, applied=True, message="Gather, then dequantize", data={"op": "Gather"}
        )
    (codes, scales, *_), weight = packed[id(found["codes"])]
    rows, columns = weight.codes.shape
    if rows % weight.group_size:
        return Remark(
            layer=layer,
            applied=False,
            message=f"not shared with the head: {rows} channels are no multiple of the group",
        )
    look_up = _LookUp(graph, node, found["ids"], namer)
    zeros = np.full((columns, rows // weight.group_size), 128, np.uint8)
    flat = look_up.reshaped(codes, "table", [columns, rows])
    look_up.dequantize(
        look_up.rows(flat, "codes"),
        look_up.rows(scales, "scales"),
        look_up.rows(ir.constant(namer(f"{layer}_zeros"), zeros), "zeros"),
        weight.group_size,
    )
    return Remark(
        layer=layer, applied=True, message="Gather from the head's table", data={"op": "Gather"}
    )


def _unpack_rows(
    graph: gs.Graph,
    node: gs.Node,
    table: TableDq,
    packed: dict[int, tuple[list[gs.Constant], QuantizedWeight]],
    namer: ir.Namer,
) -> Remark:
    """Look up packed 4-bit rows, the head's own where it has them, and unpack those."""
    layer, source = node.name, table.dequantized.codes
    shared = id(source) in packed
    if shared:
        (codes, scales, *_), weight = packed[id(source)]
    else:
        weight = table.load()
        codes, scales = (
            ir.constant(namer(f"{layer}_{suffix}"), values)
            for suffix, values in zip(("B", "scales"), pack(weight)[:2], strict=True)
        )
    rows, columns = weight.codes.shape
    groups, width = codes.shape[1], codes.shape[1] * codes.shape[2]
    zeros = np.full((columns, groups), 8, np.uint8)
    if weight.zero_points is not None:
        zeros = np.ascontiguousarray(weight.zero_points.T)
    look_up = _LookUp(graph, node, node.inputs[1], namer)
    pairs = look_up.rows(look_up.reshaped(codes, "table", [columns, width]), "pairs")
    look_up.dequantize(
        look_up.unpacked(pairs, width, rows),
        look_up.rows(scales, "scales"),
        look_up.rows(ir.constant(namer(f"{layer}_zeros"), zeros), "zeros"),
        weight.group_size,
    )
    message = "Gather from the head's table, then unpack" if shared else "Gather, then unpack"
    return Remark(layer=layer, applied=True, message=message, data={"op": "Gather"})


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

    def unpacked(self, pairs: gs.Variable, width: int, channels: int) -> gs.Variable:
        """The nibbles of `width` bytes, low ones first, without those beyond `channels`."""
        low_bits = self._constant("low_bits", np.asarray(15, np.uint8))
        four = self._constant("four", np.asarray(4, np.uint8))
        last = self._constant("last", np.asarray([-1], np.int64))
        apart = self._rows_of(width, 1)
        low = self._node("BitwiseAnd", "low", [pairs, low_bits], pairs.shape, np.uint8)
        high = self._node(
            "BitShift", "high", [pairs, four], pairs.shape, np.uint8, direction="RIGHT"
        )
        low = self._node("Unsqueeze", "low_apart", [low, last], apart, np.uint8)
        high = self._node("Unsqueeze", "high_apart", [high, last], apart, np.uint8)
        both = self._node("Concat", "both", [low, high], self._rows_of(width, 2), np.uint8, axis=-1)
        ids = self._node("Shape", "ids_shape", [self._ids], None, np.int64)
        length = self._constant("length", np.asarray([2 * width], np.int64))
        target = self._node("Concat", "rows_shape", [ids, length], None, np.int64, axis=0)
        flat = self._rows_of(2 * width)
        codes = self._node("Reshape", "flat", [both, target], flat, np.uint8, allowzero=1)
        if 2 * width == channels:
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
