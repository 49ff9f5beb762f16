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
import onnx_graphsurgeon as gs

from qcompiler import ir, ops
from qcompiler.analysis.activation_qdq import ActivationQdq, activation_qdq
from qcompiler.analysis.qdq import (
    QuantizedLayer,
    TableDq,
    TableRows,
    quantized_layer,
    table_dq,
    table_rows,
)
from qcompiler.formats import GROUP_SIZES, Granularity, WeightFormat
from qcompiler.numerics.packing import PackedMatrix
from qcompiler.numerics.rounding import QuantizedWeight
from qcompiler.passmanager import Fact, Numerics, Pass, PassContext, PassResult
from qcompiler.remarks import LeftAlone, Lowered, Remark


@dataclass(frozen=True, kw_only=True)
class LowerOrtCustom(Pass):
    """Replace quantized layers by the op library's nodes, weights packed for its kernels."""

    name: ClassVar[str] = "lower-ort-custom"
    numerics: ClassVar[Numerics] = Numerics.EXACT
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.QDQ})
    provides: ClassVar[frozenset[Fact]] = frozenset({Fact.LOWERED})
    revokes: ClassVar[frozenset[Fact]] = frozenset({Fact.WEIGHTS_QUANTIZED, Fact.QDQ})

    def run(self, graph: gs.Graph, ctx: PassContext) -> PassResult:
        packer = _Packer(ir.Namer(graph))
        remarks: list[Remark] = []
        nodes = list(graph.nodes)
        changed = False
        for index, node in enumerate(nodes):
            ctx.tick("packing", index, len(nodes))
            if (found := quantized_layer(graph, node)) is not None:
                remark = _lower_layer(graph, found, packer)
            elif (rows := table_rows(node)) is not None:
                remark = _lower_rows(graph, rows, packer)
            elif (table := table_dq(node)) is not None:
                remark = _lower_table(graph, node, table, packer)
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
        self._packed: dict[int, list[gs.Constant]] = {}

    def inputs(self, codes: gs.Constant, weight: QuantizedWeight, base: str) -> list[gs.Constant]:
        """W, scales and zero points of a weight as the ops read them."""
        if id(codes) not in self._packed:
            packed = PackedMatrix.pack(weight.codes, weight.scales, weight.zero_points, weight.form)
            self._packed[id(codes)] = [
                ir.constant(self.namer(f"{base}_packed"), packed.W),
                ir.constant(self.namer(f"{base}_scales"), packed.scales),
                ir.constant(self.namer(f"{base}_zeros"), packed.zero_points),
            ]
        return self._packed[id(codes)]


def _stay(layer: str, reason: str) -> LeftAlone:
    return LeftAlone(layer=layer, message=f"kept as Q/DQ: {reason}")


def _refused(weight: WeightFormat) -> str | None:
    """Why no op takes a weight, None if one does."""
    if weight.bits not in ops.WIDTHS:
        return f"weights of {weight.bits} bits have no kernel"
    if weight.group_size not in GROUP_SIZES:
        return f"group size {weight.group_size} has no kernel"
    return None


def _lower_layer(graph: gs.Graph, found: QuantizedLayer, packer: _Packer) -> Remark:
    layer, weight = found.layer, found.weight
    node, form = layer.node, weight.form
    activation = activation_qdq(layer.x)
    if activation is None:
        return _stay(node.name, _unread(layer.x))
    if (reason := _refused(form)) is not None:
        return _stay(node.name, reason)
    rows, columns = weight.shape
    granularity = activation.granularity(rows)
    if granularity is Granularity.PER_GROUP and activation.block != form.group_size:
        return _stay(node.name, "activation and weight groups differ")
    shift = layer.shift()
    bias = np.zeros(1, np.float32) if shift is None else np.asarray(shift, np.float32)
    splits, outputs, split_node = [columns, 0, 0], [layer.output], None
    behind = _split(graph, layer.output, columns)
    if behind is not None:
        split_node, splits = behind
        outputs = list(split_node.outputs)
    attrs: dict[str, Any] = {
        "K": rows,
        "N": columns,
        "splits": splits,
        "group_size": form.group_size,
        "layout": ops.LAYOUT,
    }
    static = granularity is Granularity.PER_TENSOR
    op_type = ops.matmul_op(form.bits, static=static)
    inputs: list[Any] = [
        activation.x,
        *packer.inputs(weight.codes, weight.load(), node.name),
        ir.constant(packer.namer(f"{node.name}_bias"), bias),
    ]
    if static:
        inputs.append(_static_scale(activation, node, packer))
    else:
        attrs["activation_block"] = min(activation.block, rows)
    for each in (node, layer.bias_node, split_node):
        if each is not None:
            each.inputs.clear()
            each.outputs.clear()
    name, node.name = node.name, packer.namer(f"{node.name}_float")
    outputs += [gs.Variable.empty()] * (3 - len(outputs))
    ir.add_node(graph, op_type, name, inputs, outputs, attrs=attrs, domain=ops.DOMAIN)
    return Lowered(layer=name, message=op_type, op=op_type)


def _unread(tensor: Any) -> str:
    """Why the input of a layer is no quantized activation."""
    clip = ir.producer(tensor, "Clip")
    if ir.producer(tensor if clip is None else clip.inputs[0], "DequantizeLinear") is None:
        return "its activations are not quantized, and the ops need int8"
    return "its activations are quantized in a form that no op has"


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


def _lower_rows(graph: gs.Graph, rows: TableRows, packer: _Packer) -> Remark:
    node = rows.node
    if len(rows.codes.shape) != 2:
        return _stay(node.name, "the table is not two-dimensional")
    weight = rows.load()
    if weight is None:
        return _stay(node.name, "only symmetric 8-bit tables have a kernel")
    return _look_up(graph, node, rows.ids, rows.codes, weight, packer)


def _lower_table(graph: gs.Graph, node: gs.Node, table: TableDq, packer: _Packer) -> Remark:
    weight = table.dequantized
    if (reason := _refused(weight.form)) is not None:
        return _stay(node.name, reason)
    return _look_up(graph, node, node.inputs[1], weight.codes, table.load(), packer)


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
    op_type = ops.gather_op(weight.form.bits)
    size = weight.form.group_size
    attrs = {"K": rows, "N": columns, "group_size": size, "layout": ops.LAYOUT}
    ir.add_node(graph, op_type, name, inputs, [output], attrs=attrs, domain=ops.DOMAIN)
    return Lowered(layer=name, message=op_type, op=op_type)
