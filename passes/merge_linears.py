"""merge-linears: matrix products that read the same input become one (Q/K/V, gate/up).

    MatMul(X, W1) [+ b1], MatMul(X, W2) [+ b2], ...
        ->  Split(MatMul(X, [W1 W2 ..]) [+ [b1 b2 ..]])

The input is read, and quantized, once; up to three matrices share a node.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler import ir
from qcompiler.analysis.linears import Linear, bias_of
from qcompiler.analysis.qdq import WeightDq, insert_weight_dq, weight_dq
from qcompiler.numerics.rounding import QuantizedWeight
from qcompiler.passmanager import Fact, Numerics, Pass, PassContext, PassResult, Remark

MOST = 3
"""The ops have three outputs."""


@dataclass(frozen=True)
class _Member:
    layer: Linear
    weight: WeightDq


@dataclass(frozen=True, kw_only=True)
class MergeLinears(Pass):
    """Concatenate the quantized weights of layers that read the same activation."""

    name: ClassVar[str] = "merge-linears"
    numerics: ClassVar[Numerics] = Numerics.EXACT
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.QDQ})

    def run(self, graph: gs.Graph, ctx: PassContext) -> PassResult:
        namer = ir.Namer(graph)
        remarks: list[Remark] = []
        for members in _siblings(graph):
            for start in range(0, len(members), MOST):
                part = members[start : start + MOST]
                if len(part) > 1:
                    remarks += _merge(graph, part, namer)
        if remarks:
            ir.remove_dead(graph)
        return PassResult(graph=graph, changed=bool(remarks), remarks=tuple(remarks))


def _siblings(graph: gs.Graph) -> list[list[_Member]]:
    """Layers by the activation they read and the scheme of their weights."""
    groups: dict[tuple[Any, ...], list[_Member]] = {}
    for node in graph.nodes:
        if node.op != "MatMul" or node.domain:
            continue
        weight = weight_dq(node.inputs[1])
        if weight is None or len(ir.consumers(weight.node.outputs[0])) != 1:
            continue
        if len(ir.consumers(weight.codes)) != 1:  # a table tied to the embedding stays as it is
            continue
        key = (
            id(node.inputs[0]),
            weight.bits,
            weight.group_size,
            weight.symmetric,
        )
        groups.setdefault(key, []).append(_Member(Linear(node, bias_of(graph, node)), weight))
    return [members for members in groups.values() if len(members) > 1]


def _merge(graph: gs.Graph, members: list[_Member], namer: ir.Namer) -> list[Remark]:
    first = members[0]
    parts = [member.weight.load() for member in members]
    sizes = [part.codes.shape[1] for part in parts]
    zeros = [part.zero_points for part in parts if part.zero_points is not None]
    merged = QuantizedWeight(
        np.concatenate([part.codes for part in parts], axis=1),
        np.concatenate([part.scales for part in parts], axis=1),
        np.concatenate(zeros, axis=1) if zeros else None,
        first.weight.bits,
        first.weight.group_size,
    )
    names = [member.layer.name for member in members]
    name = namer("+".join(names))
    x = first.layer.x
    total = sum(sizes)
    lead = None if x.shape is None else list(x.shape)[:-1]

    def variable(suffix: str) -> gs.Variable:
        shape = None if lead is None else [*lead, total]
        return gs.Variable(namer(f"{name}_{suffix}"), np.dtype(np.float32), shape)

    outputs = [member.layer.output for member in members]
    biases = [member.layer.bias for member in members]
    for member in members:
        for node in (member.layer.node, member.layer.bias_node):
            if node is not None:
                node.inputs.clear()
                node.outputs.clear()
        member.layer.node.name = namer(f"{member.layer.name}_merged")
    product = variable("product")
    weight = insert_weight_dq(graph, merged, name, namer)
    ir.add_node(graph, "MatMul", name, [x, weight], [product])
    if any(bias is not None for bias in biases):
        values = [
            np.zeros(size, np.float32) if bias is None else np.asarray(ir.array(bias), np.float32)
            for size, bias in zip(sizes, biases, strict=True)
        ]
        bias = ir.constant(namer(f"{name}_bias"), np.concatenate(values))
        shifted = variable("biased")
        ir.add_node(graph, "Add", namer(f"{name}/Add"), [product, bias], [shifted])
        product = shifted
    split = ir.constant(namer(f"{name}_sizes"), np.asarray(sizes, np.int64))
    ir.add_node(
        graph, "Split", namer(f"{name}/Split"), [product, split], outputs, attrs={"axis": -1}
    )
    data = {"merged": names, "merged_into": name}
    return [
        Remark(layer=each, applied=True, message=f"one node with {len(names) - 1} more", data=data)
        for each in names
    ]
