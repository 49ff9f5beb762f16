"""lower-ort-custom: Q/DQ patterns become ai.qcompiler ops with packed weights.

    [Split](MatMul(DQ(Q(X)), DQ(W)) [+ bias])      ->  LinearW4A8, LinearW8A8, ..
    the same where few codes are in use            ->  LinearT2A8, ..
    the same with a static activation scale        ->  LinearW4A8Static, ..
    DQ(Gather(codes, ids), Gather(scales, ids))    ->  EmbeddingW8
    Gather(DQ(codes, scales, zeros), ids)          ->  EmbeddingW4, ..

Weights are in the integer form (`integer_form`). A head tied to the embedding table shares its
packed weight. What does not match stays Q/DQ, and the remark says why.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler import ir, ops
from qcompiler.analysis.activation_qdq import activation_qdq
from qcompiler.analysis.qdq import (
    QuantizedLayer,
    TableDq,
    TableRows,
    quantized_layer,
    table_dq,
    table_rows,
)
from qcompiler.numerics.integer_form import planes_of
from qcompiler.numerics.planes import PlaneMatrix
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


@dataclass(frozen=True)
class _Packed:
    """A weight as our ops read it."""

    form: dict[str, Any]
    """As arguments for the names of ops."""
    inputs: list[gs.Constant]
    """W, groups where it has them, scales."""
    attrs: dict[str, Any]

    @property
    def nbytes(self) -> int:
        """As stored."""
        return sum(map(ir.nbytes, self.inputs))


class _Packer:
    """Packs each weight once, however many nodes read it."""

    def __init__(self, namer: ir.Namer) -> None:
        self.namer = namer
        self._packed: dict[int, _Packed | None] = {}

    def packed(self, codes: gs.Constant, weight: QuantizedWeight, base: str) -> _Packed | None:
        """A weight as the ops read it, None where they can't."""
        if id(codes) not in self._packed:
            planes = planes_of(weight)
            self._packed[id(codes)] = None if planes is None else self._planes(planes, base)
        return self._packed[id(codes)]

    def _planes(self, planes: PlaneMatrix, base: str) -> _Packed:
        groups = () if planes.groups is None else (("groups", planes.groups),)
        named = (("packed", planes.W), *groups, ("scales", planes.scales))
        inputs = [ir.constant(self.namer(f"{base}_{suffix}"), each) for suffix, each in named]
        attrs: dict[str, Any] = {"K": planes.K, "N": planes.N, "layout": ops.LAYOUT}
        if groups:
            attrs["group_size"] = planes.group_size
        if planes.grid is not None:
            attrs |= {"levels": list(planes.grid.levels), "zero": planes.grid.zero}
        form = {"bits": planes.bits, "levels": planes.grid is not None}
        return _Packed(form, inputs, attrs)


_NO_UNIT = "the scales of each column must be small whole multiples of one number"


def _stay(layer: str, reason: str) -> LeftAlone:
    return LeftAlone(layer=layer, message=f"kept as Q/DQ: {reason}")


def _lower_layer(graph: gs.Graph, found: QuantizedLayer, packer: _Packer) -> Remark:
    layer, weight = found.layer, found.weight
    node = layer.node
    activation = activation_qdq(found)
    if activation is None:
        return _stay(node.name, _unread(layer.x))
    columns = weight.shape[1]
    packed = packer.packed(weight.codes, weight.load(), node.name)
    if packed is None:
        return _stay(node.name, _NO_UNIT)
    shift = layer.shift()
    bias = np.zeros(1, np.float32) if shift is None else np.asarray(shift, np.float32)
    splits, outputs, split_node = [columns, 0, 0], [layer.output], None
    behind = _split(graph, layer.output, columns)
    if behind is not None:
        split_node, splits = behind
        outputs = list(split_node.outputs)
    attrs: dict[str, Any] = packed.attrs | {"splits": splits}
    inputs: list[Any] = [
        activation.x,
        *packed.inputs,
        ir.constant(packer.namer(f"{node.name}_bias"), bias),
    ]
    if activation.scale is not None:
        value = np.asarray(ir.array(activation.scale), np.float32).reshape(1)
        inputs.append(ir.constant(packer.namer(f"{node.name}_x_scale"), value))
    for each in (node, layer.bias_node, split_node):
        if each is not None:
            each.inputs.clear()
            each.outputs.clear()
    name, node.name = node.name, packer.namer(f"{node.name}_float")
    outputs += [gs.Variable.empty()] * (3 - len(outputs))
    op_type = ops.linear_op(**packed.form, static=activation.scale is not None)
    ir.add_node(graph, op_type, name, inputs, outputs, attrs=attrs, domain=ops.DOMAIN)
    return Lowered(layer=name, message=op_type, op=op_type, bytes_after=packed.nbytes)


def _unread(tensor: Any) -> str:
    """Why the input of a layer is no quantized activation."""
    clip = ir.producer(tensor, "Clip")
    if ir.producer(tensor if clip is None else clip.inputs[0], "DequantizeLinear") is None:
        return "its activations are not quantized, and the ops need int8"
    return "its activations are quantized in a form that no op has"


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
    packed = packer.packed(rows.codes, rows.load(), node.name)
    return _look_up(graph, node, rows.ids, packed, packer)


def _lower_table(graph: gs.Graph, node: gs.Node, table: TableDq, packer: _Packer) -> Remark:
    packed = packer.packed(table.dequantized.codes, table.load(), node.name)
    return _look_up(graph, node, node.inputs[1], packed, packer)


def _look_up(
    graph: gs.Graph, node: gs.Node, ids: Any, packed: _Packed | None, packer: _Packer
) -> Remark:
    """Put an op in the place of `node`, the last of those that look rows up."""
    if packed is None:
        return _stay(node.name, _NO_UNIT)
    output = node.outputs[0]
    node.inputs.clear()
    node.outputs.clear()
    name, node.name = node.name, packer.namer(f"{node.name}_float")
    op_type, inputs = ops.embedding_op(**packed.form), [ids, *packed.inputs]
    ir.add_node(graph, op_type, name, inputs, [output], attrs=packed.attrs, domain=ops.DOMAIN)
    return Lowered(layer=name, message=op_type, op=op_type, bytes_after=packed.nbytes)
