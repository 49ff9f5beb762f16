"""lower-ort-contrib: quantized layers become ONNX Runtime's own MatMulNBits, for apps that can
load no library.

    MatMul([DQ(Q](X[))], DQ(W))  ->  com.microsoft.MatMulNBits(X, B, scales[, zeros])

accuracy_level 4 makes ORT quantize the activations itself, per row and block, so activation Q/DQ
is dropped. A table tied to the head reads the head's packed bytes through a Reshape.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from qcompiler import ir
from qcompiler.analysis.qdq import WeightDq, activation_qdq, weight_dq
from qcompiler.ir.matcher import Match, match
from qcompiler.numerics.rounding import QuantizedWeight
from qcompiler.passes.lower_ort_custom import TABLE_ROWS
from qcompiler.passmanager import Fact, Numerics, Pass, PassContext, PassResult, Remark

DOMAIN = "com.microsoft"


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
        for node in nodes:
            found = match(TABLE_ROWS, node) if node.op == "DequantizeLinear" else None
            if isinstance(found, Match):
                remarks.append(_share_table(graph, found, packed, namer))
        ctx.tick("packing", len(nodes), len(nodes))
        if packed:
            ir.remove_dead(graph)
        return PassResult(graph=graph, changed=bool(packed), remarks=tuple(remarks))

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
            domain=DOMAIN,
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
    ids = found["ids"]
    zeros = ir.constant(
        namer(f"{layer}_zeros"), np.full((columns, rows // weight.group_size), 128, np.uint8)
    )
    shape = ir.constant(namer(f"{layer}_shape"), np.asarray([columns, rows], np.int64))
    table = gs.Variable(namer(f"{layer}_table"), np.dtype(np.uint8), [columns, rows])
    ir.add_node(graph, "Reshape", namer(f"{layer}/Reshape"), [codes, shape], [table])
    rank = node.attrs["axis"]
    parts = (("codes", table, np.uint8), ("scales", scales, np.float32), ("zeros", zeros, np.uint8))
    inputs = []
    for suffix, source, dtype in parts:
        lead = node.outputs[0].shape
        picked_shape = None if lead is None else [*list(lead)[:-1], int(source.shape[1])]
        picked = gs.Variable(namer(f"{layer}_{suffix}"), np.dtype(dtype), picked_shape)
        ir.add_node(
            graph,
            "Gather",
            namer(f"{layer}/Gather_{suffix}"),
            [source, ids],
            [picked],
            attrs={"axis": 0},
        )
        inputs.append(picked)
    output = node.outputs[0]
    node.inputs.clear()
    node.outputs.clear()
    node.name = namer(f"{layer}_unshared")
    ir.add_node(
        graph,
        "DequantizeLinear",
        layer,
        inputs,
        [output],
        attrs={"axis": rank, "block_size": weight.group_size},
    )
    return Remark(
        layer=layer, applied=True, message="Gather from the head's table", data={"op": "Gather"}
    )
