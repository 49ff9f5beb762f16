"""import: bring any valid model to the form that every other pass reads.

opset 7 .. newest           ->  opset 21 (blocked Q/DQ, 4-bit types), or newer if it must be
model-local functions       ->  inlined
Constant, Identity          ->  initializers, wires
unnamed or same-named nodes ->  unique names
unknown shapes              ->  inferred where ONNX can
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs
from onnx import inliner, shape_inference

from qcompiler import ir, ops
from qcompiler.ir import interface, opsets
from qcompiler.ir.io import import_proto
from qcompiler.passmanager import Fact, Numerics, Pass, PassContext, PassResult


@dataclass(frozen=True, kw_only=True)
class ImportModel(Pass):
    """Convert to opset 21, inline functions, name every node, infer shapes."""

    name: ClassVar[str] = "import"
    numerics: ClassVar[Numerics] = Numerics.EXACT
    provides: ClassVar[frozenset[Fact]] = frozenset({Fact.IMPORTED})

    def run(self, graph: gs.Graph, ctx: PassContext) -> PassResult:
        folder = ir.model_folder(graph)
        model = ir.to_model(graph)
        if any(function.domain != ops.DOMAIN for function in model.functions):
            model = inliner.inline_local_functions(model)
        unfed, outputs = interface.without_defaults(model), list(model.graph.output)
        model = opsets.converted(model)
        model = shape_inference.infer_shapes(model, data_prop=True)
        model.graph.initializer.extend(unfed)
        graph = import_proto(model, folder)
        interface.declare_outputs(graph, outputs)
        _fold_constant_nodes(graph)
        _drop_identities(graph)
        _name_nodes(graph)
        ir.remove_dead(graph)
        return PassResult(graph=graph, changed=True)


def _fold_constant_nodes(graph: gs.Graph) -> None:
    for node in list(graph.nodes):
        if node.op != "Constant" or node.domain:
            continue
        output = node.outputs[0]
        if ir.is_graph_output(graph, output):
            continue
        value = _constant_value(node)
        if value is None:
            continue
        output.inputs.clear()
        if isinstance(value, gs.Constant):
            output.to_constant(value._values)
        else:
            output.to_constant(value)


def _constant_value(node: gs.Node) -> gs.Constant | np.ndarray | None:
    attrs = node.attrs
    if "value" in attrs and isinstance(attrs["value"], gs.Constant):
        return attrs["value"]
    if "value_int" in attrs or "value_ints" in attrs:
        return np.asarray(attrs.get("value_int", attrs.get("value_ints")), np.int64)
    if "value_float" in attrs or "value_floats" in attrs:
        return np.asarray(attrs.get("value_float", attrs.get("value_floats")), np.float32)
    return None


def _drop_identities(graph: gs.Graph) -> None:
    for node in graph.nodes:
        if node.op != "Identity" or node.domain:
            continue
        source, output = node.inputs[0], node.outputs[0]
        if ir.is_graph_output(graph, output):
            continue
        ir.replace_uses(graph, output, source)
        node.inputs.clear()
        node.outputs.clear()


def _name_nodes(graph: gs.Graph) -> None:
    namer = ir.Namer(graph)
    for each in [graph, *graph.subgraphs(recursive=True)]:
        for node in each.nodes:
            node.name = node.name or ""
    seen: set[str] = set()
    for each in [graph, *graph.subgraphs(recursive=True)]:
        for node in each.nodes:
            if not node.name or node.name in seen:
                node.name = namer(node.name or f"{node.op}_{len(seen)}")
            seen.add(node.name)
