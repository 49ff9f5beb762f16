"""lower-ort-custom: Q/DQ patterns become ai.qcompiler ops with packed weights.

    [Split](MatMul(DQ(Q(X)), DQ(W)) [+ bias])           ->  MatMulW4A8 / MatMulW8A8
    the same with a static activation scale             ->  MatMulW4A8Static / MatMulW8A8Static
    DQ(Gather(codes, ids), Gather(scales, ids))         ->  GatherW8
    Gather(DQ(codes, scales, zeros), ids)               ->  GatherW4

A head tied to the embedding table shares its packed weight. What does not match stays Q/DQ, and
the remark says why.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from qcompiler import ir, ops
from qcompiler.analysis.linears import Linear, bias_of
from qcompiler.analysis.qdq import (
    ActivationQdq,
    TableDq,
    WeightDq,
    activation_qdq,
    table_dq,
    weight_dq,
)
from qcompiler.ir.matcher import Match, const, either, match, op, var
from qcompiler.numerics.packing import PackedMatrix
from qcompiler.numerics.rounding import QuantizedWeight
from qcompiler.passmanager import (
    Fact,
    Granularity,
    Numerics,
    Pass,
    PassContext,
    PassResult,
    Remark,
)

GROUP_SIZES = (32, 64, 128, 256)

TABLE_ROWS = op(
    "DequantizeLinear",
    op("Gather", either(op("Transpose", const("codes")), const("codes")), var("ids")),
    op("Gather", either(op("Transpose", const("scales")), const("scales")), var("ids")),
)
"""Rows of an 8-bit table, dequantized after the look-up."""


@dataclass(frozen=True, kw_only=True)
class LowerOrtCustom(Pass):
    """Replace quantized layers by the op library's nodes, weights packed for its kernels."""

    name: ClassVar[str] = "lower-ort-custom"
    numerics: ClassVar[Numerics] = Numerics.EXACT
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.QDQ})
    provides: ClassVar[frozenset[Fact]] = frozenset({Fact.LOWERED})

    def run(self, graph: gs.Graph, ctx: PassContext) -> PassResult:
        packer = _Packer(ir.Namer(graph))
        remarks: list[Remark] = []
        nodes = list(graph.nodes)
        changed = False
        for index, node in enumerate(nodes):
            ctx.tick("packing", index, len(nodes))
            if node.op == "MatMul" and not node.domain:
                weight = weight_dq(node.inputs[1])
                if weight is None:
                    continue
                remark = _lower_linear(graph, node, weight, packer)
            elif node.op == "DequantizeLinear":
                found = match(TABLE_ROWS, node)
                if not isinstance(found, Match):
                    continue
                remark = _lower_table(graph, found, packer)
            elif (table := table_dq(node)) is not None:
                remark = _lower_dequantized_table(graph, node, table, packer)
            else:
                continue
            remarks.append(remark)
            changed |= remark.applied
        ctx.tick("packing", len(nodes), len(nodes))
        if changed:
            ir.remove_dead(graph)
        return PassResult(graph=graph, changed=changed, remarks=tuple(remarks))


class _Packer:
    """Packs each weight once, however many nodes read it."""

    def __init__(self, namer: ir.Namer) -> None:
        self.namer = namer
        self._packed: dict[int, tuple[PackedMatrix, list[gs.Constant]]] = {}

    def inputs(self, codes: gs.Constant, weight: QuantizedWeight, base: str) -> list[gs.Constant]:
        """W, scales and zero points of a weight as the ops read them."""
        if id(codes) not in self._packed:
            packed = PackedMatrix.pack(
                weight.codes,
                weight.scales,
                weight.zero_points,
                bits=4 if weight.bits == 4 else 8,
                group_size=weight.group_size,
            )
            constants = [
                ir.constant(self.namer(f"{base}_packed"), packed.W),
                ir.constant(self.namer(f"{base}_scales"), packed.scales),
                ir.constant(self.namer(f"{base}_zeros"), packed.zero_points),
            ]
            self._packed[id(codes)] = (packed, constants)
        return self._packed[id(codes)][1]


def _stay(layer: str, reason: str) -> Remark:
    return Remark(layer=layer, applied=False, message=f"kept as Q/DQ: {reason}")


def _lower_linear(graph: gs.Graph, node: gs.Node, weight: WeightDq, packer: _Packer) -> Remark:
    activation = activation_qdq(node.inputs[0])
    if activation is None:
        return _stay(node.name, "its activations are not quantized, and the ops need int8")
    if weight.group_size not in GROUP_SIZES:
        return _stay(node.name, f"group size {weight.group_size} has no kernel")
    if activation.granularity is Granularity.PER_GROUP and activation.block != weight.group_size:
        return _stay(node.name, "activation and weight groups differ")
    rows, columns = weight.shape
    layer = Linear(node, bias_of(graph, node))
    bias = np.zeros(1, np.float32)
    if layer.bias is not None:
        bias = np.asarray(ir.array(layer.bias), np.float32)
    splits, outputs, split_node = [columns, 0, 0], [layer.output], None
    found = _split(graph, layer.output, columns)
    if found is not None:
        split_node, splits = found
        outputs = list(split_node.outputs)
    attrs: dict[str, Any] = {
        "K": rows,
        "N": columns,
        "splits": splits,
        "group_size": weight.group_size,
        "layout": ops.LAYOUT,
    }
    op_type = f"MatMulW{weight.bits}A8"
    inputs: list[Any] = [
        activation.x,
        *packer.inputs(weight.codes, weight.load(), node.name),
        ir.constant(packer.namer(f"{node.name}_bias"), bias),
    ]
    if activation.granularity is Granularity.PER_TENSOR:
        op_type += "Static"
        inputs.append(_static_scale(activation, node, packer))
    else:
        attrs["activation_block"] = _block(activation, rows)
    for each in (node, layer.bias_node, split_node):
        if each is not None:
            each.inputs.clear()
            each.outputs.clear()
    name, node.name = node.name, packer.namer(f"{node.name}_float")
    outputs += [gs.Variable.empty()] * (3 - len(outputs))
    ir.add_node(graph, op_type, name, inputs, outputs, attrs=attrs, domain=ops.DOMAIN)
    return Remark(layer=name, applied=True, message=op_type, data={"op": op_type})


def _block(activation: ActivationQdq, channels: int) -> int:
    return channels if activation.granularity is Granularity.PER_TOKEN else activation.block


def _static_scale(activation: ActivationQdq, node: gs.Node, packer: _Packer) -> gs.Constant:
    value = np.asarray(ir.array(activation.scale), np.float32).reshape(1)
    return ir.constant(packer.namer(f"{node.name}_x_scale"), value)


def _split(graph: gs.Graph, tensor: Any, columns: int) -> tuple[gs.Node, list[int]] | None:
    """The Split along the last axis that is a tensor's only reader, and its three sizes."""
    readers = ir.consumers(tensor)
    if len(readers) != 1 or readers[0].op != "Split" or ir.is_graph_output(graph, tensor):
        return None
    node = readers[0]
    rank = ir.tensor_rank(tensor)
    axis = node.attrs.get("axis", 0)
    if axis != -1 and (rank is None or axis != rank - 1):
        return None
    if len(node.inputs) < 2 or not ir.is_constant(node.inputs[1]) or len(node.outputs) > 3:
        return None
    sizes = [int(size) for size in ir.array(node.inputs[1])]
    if sum(sizes) != columns:
        return None
    return node, sizes + [0] * (3 - len(sizes))


def _lower_table(graph: gs.Graph, found: Match, packer: _Packer) -> Remark:
    node = found.root
    codes, scales = found["codes"], found["scales"]
    transposed = any(each.op == "Transpose" for each in found.nodes)
    group_size = int(node.attrs.get("block_size", 0))
    if ir.elem_type(codes) != onnx.TensorProto.INT8 or group_size not in GROUP_SIZES:
        return _stay(node.name, "only symmetric 8-bit tables have a kernel")
    if len(codes.shape) != 2:
        return _stay(node.name, "the table is not two-dimensional")
    values, steps = ir.array(codes), ir.array(scales)
    if not transposed:
        values, steps = values.T, steps.T
    weight = QuantizedWeight(
        (values.astype(np.int16) + 128).astype(np.uint8),
        steps.astype(np.float16),
        None,
        8,
        group_size,
    )
    return _look_up(graph, node, found["ids"], codes, weight, packer)


def _lower_dequantized_table(
    graph: gs.Graph, node: gs.Node, table: TableDq, packer: _Packer
) -> Remark:
    group_size = table.dequantized.group_size
    if group_size not in GROUP_SIZES:
        return _stay(node.name, f"group size {group_size} has no kernel")
    return _look_up(graph, node, node.inputs[1], table.dequantized.codes, table.load(), packer)


def _look_up(
    graph: gs.Graph,
    node: gs.Node,
    ids: Any,
    codes: gs.Constant,
    weight: QuantizedWeight,
    packer: _Packer,
) -> Remark:
    """Put an op in the place of `node`, the last of those that look rows up."""
    rows, columns = weight.codes.shape
    inputs = [ids, *packer.inputs(codes, weight, node.name)]
    output = node.outputs[0]
    node.inputs.clear()
    node.outputs.clear()
    name, node.name = node.name, packer.namer(f"{node.name}_float")
    op_type = f"GatherW{weight.bits}"
    attrs = {"K": rows, "N": columns, "group_size": weight.group_size, "layout": ops.LAYOUT}
    ir.add_node(graph, op_type, name, inputs, [output], attrs=attrs, domain=ops.DOMAIN)
    return Remark(layer=name, applied=True, message=op_type, data={"op": op_type})
