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
from qcompiler.analysis.qdq import QuantizedLayer, insert_weight_dq, quantized_layers
from qcompiler.numerics.integer_form import planes_form
from qcompiler.numerics.rounding import joined
from qcompiler.passmanager import Fact, Numerics, Pass, PassContext, PassResult
from qcompiler.remarks import Merged

MOST = 3
"""The ops have three outputs."""


@dataclass(frozen=True, kw_only=True)
class MergeLinears(Pass):
    """Concatenate the quantized weights of layers that read the same activation."""

    name: ClassVar[str] = "merge-linears"
    numerics: ClassVar[Numerics] = Numerics.EXACT
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.QDQ})
    revokes: ClassVar[frozenset[Fact]] = frozenset({Fact.WEIGHTS_PLANNED, Fact.PLANNED})

    def run(self, graph: gs.Graph, ctx: PassContext) -> PassResult:
        namer = ir.Namer(graph)
        remarks: list[Merged] = []
        for members in _siblings(graph):
            for start in range(0, len(members), MOST):
                part = members[start : start + MOST]
                if len(part) > 1:
                    remarks += _merge(graph, part, namer)
        if remarks:
            ir.remove_dead(graph)
        return PassResult(graph=graph, changed=bool(remarks), remarks=tuple(remarks))


def _siblings(graph: gs.Graph) -> list[list[QuantizedLayer]]:
    """Layers that read one activation and have weights of one format and width."""
    groups: dict[tuple[Any, ...], list[QuantizedLayer]] = {}
    for found in quantized_layers(graph):
        weight = found.weight
        if len(ir.consumers(weight.node.outputs[0])) != 1:
            continue
        if len(ir.consumers(weight.codes)) != 1:  # a table tied to the embedding stays as it is
            continue
        groups.setdefault((id(found.layer.x), weight.form), []).append(found)
    return [alike for members in groups.values() if len(members) > 1 for alike in _by_form(members)]


def _by_form(members: list[QuantizedLayer]) -> list[list[QuantizedLayer]]:
    """Those of one integer form: a wider one might leave no room for the multiples of the others.

    Grids that don't go together in as many bits stay apart.
    """
    groups: dict[tuple[int, bool] | None, list[list[QuantizedLayer]]] = {}
    for found in members:
        form = planes_form(found.weight.load())
        alike = groups.setdefault(form, [])
        fits = (each for each in alike if form is None or not form[1] or _keep(form, each, found))
        if (kept := next(fits, None)) is not None:
            kept.append(found)
        else:
            alike.append([found])
    return [each for alike in groups.values() for each in alike if len(each) > 1]


def _keep(form: tuple[int, bool], members: list[QuantizedLayer], another: QuantizedLayer) -> bool:
    """Whether weights of a form have it together, too."""
    return planes_form(joined([each.weight.load() for each in (*members, another)])) == form


def _merge(graph: gs.Graph, members: list[QuantizedLayer], namer: ir.Namer) -> list[Merged]:
    merged = joined([member.weight.load() for member in members])
    sizes = [member.weight.shape[1] for member in members]
    names = [member.name for member in members]
    name = namer("+".join(names))
    x = members[0].layer.x
    total = sum(sizes)
    lead = None if x.shape is None else list(x.shape)[:-1]

    def variable(suffix: str) -> gs.Variable:
        shape = None if lead is None else [*lead, total]
        return gs.Variable(namer(f"{name}_{suffix}"), np.dtype(np.float32), shape)

    outputs = [member.layer.output for member in members]
    shifts = [member.layer.shift() for member in members]
    for member in members:
        for node in (member.layer.node, member.layer.bias_node):
            if node is not None:
                node.inputs.clear()
                node.outputs.clear()
        member.layer.node.name = namer(f"{member.name}_merged")
    product = variable("product")
    weight = insert_weight_dq(graph, merged, name, namer)
    ir.add_node(graph, "MatMul", name, [x, weight], [product])
    if any(shift is not None for shift in shifts):
        values = [
            np.zeros(size, np.float32) if shift is None else np.asarray(shift, np.float32)
            for size, shift in zip(sizes, shifts, strict=True)
        ]
        bias = ir.constant(namer(f"{name}_bias"), np.concatenate(values))
        shifted = variable("biased")
        ir.add_node(graph, "Add", namer(f"{name}/Add"), [product, bias], [shifted])
        product = shifted
    split = ir.constant(namer(f"{name}_sizes"), np.asarray(sizes, np.int64))
    ir.add_node(
        graph, "Split", namer(f"{name}/Split"), [product, split], outputs, attrs={"axis": -1}
    )
    message = f"one node with {len(names) - 1} more"
    return [Merged(layer=each, message=message, members=tuple(names), into=name) for each in names]
