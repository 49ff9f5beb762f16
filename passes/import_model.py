"""import: bring any valid model to the form that every other pass reads.

opset 7 .. newest           ->  opset 21 (blocked Q/DQ, 4-bit types), or newer if it must be
model-local functions       ->  inlined
Constant                    ->  initializers
Identity, no-op Cast, Dropout   ->  wires
unnamed or same-named nodes ->  unique names
unknown shapes              ->  inferred, by ONNX and then by `ir.shapes`

Constants change from here on, so this is also where those of the source are counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from qcompiler import ir, ops
from qcompiler.analysis.inventory import find_stored, held_alone, inventory, kept
from qcompiler.functions import inlined
from qcompiler.ir import interface, opsets
from qcompiler.ir.io import import_proto
from qcompiler.ir.shapes import complete_shapes, declared_names, inferred
from qcompiler.passmanager import Fact, Numerics, Pass, PassContext, PassResult
from qcompiler.remarks import LeftAlone
from qcompiler.soundness import check_nodes


@dataclass(frozen=True, kw_only=True)
class ImportModel(Pass):
    """Convert to opset 21, inline functions, name every node, infer shapes."""

    name: ClassVar[str] = "import"
    numerics: ClassVar[Numerics] = Numerics.EXACT
    provides: ClassVar[frozenset[Fact]] = frozenset({Fact.IMPORTED})

    def run(self, graph: gs.Graph, ctx: PassContext) -> PassResult:
        folder, alone = ir.model_folder(graph), held_alone(graph)
        model = ir.to_model(graph)
        declared = declared_names(model)
        if any(function.domain != ops.DOMAIN for function in model.functions):
            model = inlined(model)
            check_nodes(model)
        _forget_wrong_sizes(model)
        names = set(_stored_names(model.graph))
        unfed, outputs = interface.without_defaults(model), list(model.graph.output)
        model = opsets.converted(model)
        model = inferred(model)
        model.graph.initializer.extend(unfed)
        graph = import_proto(model, folder)
        interface.declare_outputs(graph, outputs)
        stored = find_stored(graph, names, alone)
        for each in ir.graphs(graph):
            _fold_constant_nodes(each)
            _drop_identities(each)
        _name_nodes(graph)
        ir.remove_dead(graph)
        complete_shapes(graph, declared)
        return PassResult(
            graph=graph,
            changed=True,
            remarks=tuple(LeftAlone(layer=n, message=why) for n, why in kept(stored).items()),
            inventory=inventory(stored),
        )


def _forget_wrong_sizes(model: onnx.ModelProto) -> None:
    """Let outputs that nodes read too have the sizes that are computed, whatever is declared.

    ONNX Runtime warns, and takes what it infers; behind our ops it can't infer, and would refuse.
    """
    read = {name for node in model.graph.node for name in node.input}
    told = {each.name: each.type.tensor_type for each in model.graph.output if each.name in read}
    told = {name: kind for name, kind in told.items() if kind.HasField("shape")}
    if not told:
        return
    declared: dict[str, onnx.TensorShapeProto] = {}
    for name, kind in told.items():
        declared[name] = onnx.TensorShapeProto()
        declared[name].CopyFrom(kind.shape)
        kind.ClearField("shape")
    found = {each.name: each.type.tensor_type for each in inferred(model).graph.output}
    for name, shape in declared.items():
        sizes, others = shape.dim, found[name].shape.dim
        fits = len(sizes) == len(others) and all(map(_may_be, sizes, others))
        if fits or not found[name].HasField("shape"):
            told[name].shape.CopyFrom(shape)


def _may_be(one: onnx.TensorShapeProto.Dimension, other: onnx.TensorShapeProto.Dimension) -> bool:
    """Whether two sizes can be one."""
    numbers = [size.dim_value for size in (one, other) if size.HasField("dim_value")]
    return len(set(numbers)) < 2


def _stored_names(graph: onnx.GraphProto) -> Iterator[str]:
    """Constants by name, those of subgraphs too; a conversion adds its own."""
    yield from (tensor.name for tensor in graph.initializer)
    for node in graph.node:
        if node.op_type == "Constant":
            yield from node.output
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _stored_names(attribute.g)


def _fold_constant_nodes(graph: gs.Graph) -> None:
    for node in list(graph.nodes):
        if node.op != "Constant" or node.domain or not node.outputs:
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
        if not _is_identity(node):
            continue
        source, output = node.inputs[0], node.outputs[0]
        if ir.is_graph_output(graph, output):
            continue
        ir.replace_uses(graph, output, source)
        node.inputs.clear()
        node.outputs.clear()


def _is_identity(node: gs.Node) -> bool:
    """Whether a node hands its input on as it is."""
    if node.domain:
        return False
    if node.op == "Cast":
        return ir.elem_type(node.inputs[0]) == ir.cast_type(node)
    if node.op == "Dropout":
        trains = [t for t in node.inputs[2:] if not t.is_empty()]
        off = all(ir.is_constant(t) and not ir.array(t).any() for t in trains)
        return off and all(t.is_empty() for t in node.outputs[1:])
    return node.op == "Identity"


def _name_nodes(graph: gs.Graph) -> None:
    namer = ir.Namer(graph)
    for each in ir.graphs(graph):
        for node in each.nodes:
            node.name = node.name or ""
    seen: set[str] = set()
    for each in ir.graphs(graph):
        for node in each.nodes:
            if not node.name or node.name in seen:
                node.name = namer(node.name or f"{node.op}_{len(seen)}")
            seen.add(node.name)
