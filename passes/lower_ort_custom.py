"""lower-ort-custom: Q/DQ patterns become ai.qcompiler ops with packed weights.

    [Split](MatMul(DQ(Q(X)), DQ(W)) [+ bias])      ->  LinearW4A8, LinearW8A8 or MatMulW4A8, ..
    the same with a static activation scale        ->  LinearW4A8Static, ..
    DQ(Gather(codes, ids), Gather(scales, ids))    ->  EmbeddingW8 or GatherW8
    Gather(DQ(codes, scales, zeros), ids)          ->  EmbeddingW4 or GatherW4

Linear and Embedding take weights in the integer form (`integer_form`), MatMul and Gather the rest.
Activations with a scale a group are MatMul's too. A head tied to the embedding table shares its
packed weight. What does not match stays Q/DQ, and the remark says why.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

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
from qcompiler.formats import PACKED_GROUP_SIZES, Granularity
from qcompiler.numerics.integer_form import planes_of
from qcompiler.numerics.packing import PackedMatrix
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
        packer = _Packer(ir.Namer(graph), _per_group(graph))
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


def _per_group(graph: gs.Graph) -> frozenset[int]:
    """Identities of the codes that a layer with a scale a group of activations reads."""
    found = set[int]()
    for node in graph.nodes:
        layer = quantized_layer(graph, node)
        activation = None if layer is None else activation_qdq(layer.layer.x)
        if layer is None or activation is None:
            continue
        if activation.granularity(layer.weight.shape[0]) is Granularity.PER_GROUP:
            found.add(id(layer.weight.codes))
    return frozenset(found)


@dataclass(frozen=True)
class _Packed:
    """A weight as one of the two families of ops reads it."""

    integer: bool
    bits: int
    inputs: list[gs.Constant]
    """W, and behind it groups and scales, or scales and zero points."""
    attrs: dict[str, int]

    def linear_op(self, *, static: bool) -> str:
        """The op of a layer that has the weight."""
        op = ops.linear_op if self.integer else ops.matmul_op
        return op(self.bits, static=static)

    def table_op(self) -> str:
        """The op that looks up its columns."""
        return (ops.embedding_op if self.integer else ops.gather_op)(self.bits)

    @property
    def nbytes(self) -> int:
        """As stored."""
        return sum(map(ir.nbytes, self.inputs))


class _Packer:
    """Packs each weight once, however many nodes read it."""

    def __init__(self, namer: ir.Namer, per_group: frozenset[int]) -> None:
        """`per_group`: codes that can't be in the integer form."""
        self.namer = namer
        self._per_group = per_group
        self._packed: dict[int, _Packed | str] = {}

    def packed(self, codes: gs.Constant, weight: QuantizedWeight, base: str) -> _Packed | str:
        """A weight as the ops read it, or why none does."""
        if id(codes) not in self._packed:
            planes = None if id(codes) in self._per_group else planes_of(weight)
            made = self._grouped(weight, base) if planes is None else self._planes(planes, base)
            self._packed[id(codes)] = made
        return self._packed[id(codes)]

    def _planes(self, planes: PlaneMatrix, base: str) -> _Packed:
        groups = () if planes.groups is None else (("groups", planes.groups),)
        inputs = self._constants(base, ("packed", planes.W), *groups, ("scales", planes.scales))
        attrs = {"K": planes.K, "N": planes.N, "layout": ops.LINEAR_LAYOUT}
        if groups:
            attrs["group_size"] = planes.group_size
        return _Packed(True, planes.bits, inputs, attrs)

    def _grouped(self, weight: QuantizedWeight, base: str) -> _Packed | str:
        form = weight.form
        if form.bits not in ops.WIDTHS:
            return f"weights of {form.bits} bits have no kernel"
        if form.group_size not in PACKED_GROUP_SIZES:
            return f"group size {form.group_size} has no kernel"
        if not _half_holds(weight.scales):
            return "float16 can't hold its scales"
        packed = PackedMatrix.pack(weight.codes, weight.scales, weight.zero_points, form)
        inputs = self._constants(
            base, ("packed", packed.W), ("scales", packed.scales), ("zeros", packed.zero_points)
        )
        rows, columns = weight.codes.shape
        attrs = {"K": rows, "N": columns, "group_size": form.group_size, "layout": ops.LAYOUT}
        return _Packed(False, form.bits, inputs, attrs)

    def _constants(self, base: str, *named: tuple[str, NDArray[Any]]) -> list[gs.Constant]:
        return [ir.constant(self.namer(f"{base}_{suffix}"), values) for suffix, values in named]


def _half_holds(scales: NDArray[Any]) -> bool:
    """Whether float16 has scales to its precision, or to that of the largest."""
    with np.errstate(over="ignore"):
        half = scales.astype(np.float16).astype(np.float32)
    return bool(np.abs(half - scales).max() <= np.abs(scales).max() * 2.0**-11)


def _stay(layer: str, reason: str) -> LeftAlone:
    return LeftAlone(layer=layer, message=f"kept as Q/DQ: {reason}")


def _lower_layer(graph: gs.Graph, found: QuantizedLayer, packer: _Packer) -> Remark:
    layer, weight = found.layer, found.weight
    node = layer.node
    activation = activation_qdq(layer.x)
    if activation is None:
        return _stay(node.name, _unread(layer.x))
    rows, columns = weight.shape
    granularity = activation.granularity(rows)
    if granularity is Granularity.PER_GROUP and activation.block != weight.form.group_size:
        return _stay(node.name, "activation and weight groups differ")
    packed = packer.packed(weight.codes, weight.load(), node.name)
    if isinstance(packed, str):
        return _stay(node.name, packed)
    shift = layer.shift()
    bias = np.zeros(1, np.float32) if shift is None else np.asarray(shift, np.float32)
    splits, outputs, split_node = [columns, 0, 0], [layer.output], None
    behind = _split(graph, layer.output, columns)
    if behind is not None:
        split_node, splits = behind
        outputs = list(split_node.outputs)
    attrs: dict[str, Any] = packed.attrs | {"splits": splits}
    static = granularity is Granularity.PER_TENSOR
    inputs: list[Any] = [
        activation.x,
        *packed.inputs,
        ir.constant(packer.namer(f"{node.name}_bias"), bias),
    ]
    if static:
        inputs.append(_static_scale(activation, node, packer))
    elif not packed.integer:
        attrs["activation_block"] = min(activation.block, rows)
    for each in (node, layer.bias_node, split_node):
        if each is not None:
            each.inputs.clear()
            each.outputs.clear()
    name, node.name = node.name, packer.namer(f"{node.name}_float")
    outputs += [gs.Variable.empty()] * (3 - len(outputs))
    op_type = packed.linear_op(static=static)
    ir.add_node(graph, op_type, name, inputs, outputs, attrs=attrs, domain=ops.DOMAIN)
    return Lowered(layer=name, message=op_type, op=op_type, bytes_after=packed.nbytes)


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
    return _look_up(graph, node, rows.ids, packer.packed(rows.codes, weight, node.name), packer)


def _lower_table(graph: gs.Graph, node: gs.Node, table: TableDq, packer: _Packer) -> Remark:
    packed = packer.packed(table.dequantized.codes, table.load(), node.name)
    return _look_up(graph, node, node.inputs[1], packed, packer)


def _look_up(
    graph: gs.Graph, node: gs.Node, ids: Any, packed: _Packed | str, packer: _Packer
) -> Remark:
    """Put an op in the place of `node`, the last of those that look rows up."""
    if isinstance(packed, str):
        return _stay(node.name, packed)
    output = node.outputs[0]
    node.inputs.clear()
    node.outputs.clear()
    name, node.name = node.name, packer.namer(f"{node.name}_float")
    op_type, inputs = packed.table_op(), [ids, *packed.inputs]
    ir.add_node(graph, op_type, name, inputs, [output], attrs=packed.attrs, domain=ops.DOMAIN)
    return Lowered(layer=name, message=op_type, op=op_type, bytes_after=packed.nbytes)
