"""Changes to graphs: edges, nodes, operators, attributes, interfaces, and to whole models."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import onnx
from google.protobuf.descriptor import FieldDescriptor as Field
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto, helper
from tensor_changes import TYPES

NAMES = ["", "x", "y", "w", "a\0b", "é", "../m", "x" * 300, "two\nlines", "%s{0}"]
_DOMAINS = ["", "ai.onnx", "com.microsoft", "ai.onnx.ml", "local", "ai.qcompiler", "nobody"]


def messages(message: Any) -> Iterator[Any]:
    """A message, and all those in it."""
    yield message
    for field, value in message.ListFields():
        if field.type == Field.TYPE_MESSAGE:
            for each in value if field.is_repeated else [value]:
                yield from messages(each)


def copied(message: Any) -> Any:
    """The same message, of nobody's."""
    made = type(message)()
    made.CopyFrom(message)
    return made


def _graphs(model: onnx.ModelProto) -> list[Any]:
    """Everything with nodes: graphs and functions."""
    kinds = (GraphProto, onnx.FunctionProto)
    return [each for each in messages(model) if isinstance(each, kinds) and each.node]


def change_graph(rng: random.Random, model: onnx.ModelProto) -> str:
    """Change an edge, a node, an operator, an attribute or an interface."""
    found = _graphs(model)
    if not found:
        return ""
    graph = rng.choice(found)
    node = rng.choice(graph.node)
    change = rng.choice(_GRAPH_CHANGES)
    return f"node '{node.name or node.op_type}': {change(rng, graph, node)}"


def _edge_names(graph: Any) -> list[str]:
    names = [name for node in graph.node for name in [*node.input, *node.output]]
    if isinstance(graph, GraphProto):
        names += [each.name for each in (*graph.input, *graph.output, *graph.initializer)]
    return names


def _rewire(rng: random.Random, graph: Any, node: NodeProto) -> str:
    ends = node.input if rng.random() < 0.7 else node.output
    name = rng.choice([*_edge_names(graph), "", "nobody"])
    match rng.choice(["set", "add", "drop"]):
        case "set" if ends:
            ends[rng.randrange(len(ends))] = name
        case "drop" if ends:
            del ends[rng.randrange(len(ends))]
        case _:
            ends.append(name)
    return f"{list(node.input)} -> {list(node.output)}"


def _reop(rng: random.Random, graph: Any, node: NodeProto) -> str:
    ops = [schema.name for schema in onnx.defs.get_all_schemas()]
    ours = [each.op_type for each in graph.node]
    node.op_type = rng.choice([rng.choice(ops), rng.choice(ours), "Nothing"])
    if rng.random() < 0.2:
        node.domain = rng.choice(_DOMAINS)
    return f"becomes {node.domain}.{node.op_type}"


def _attribute(rng: random.Random, _: Any, node: NodeProto) -> str:
    known: list[str] = []
    if onnx.defs.has(node.op_type):
        known = list(onnx.defs.get_schema(node.op_type).attributes)
    names = [each.name for each in node.attribute] + known + ["axis", "to", "value", "body"]
    name = rng.choice(names)
    values: list[Any] = [
        *(0, 1, -1, 7, 1 << 40, 0.5, "text", b"\xff", [1, 0], [0] * 9, [1.5], ["a"]),
        helper.make_tensor("t", TensorProto.FLOAT, [1], [1.0]),
        helper.make_graph([], "g", [], []),
        helper.make_tensor_type_proto(1, [2]),
    ]
    made = helper.make_attribute(name, rng.choice(values))
    if rng.random() < 0.15:
        made = AttributeProto(name=name, type=rng.randrange(15))
    if rng.random() < 0.1:
        made.ref_attr_name = "alpha"
    if rng.random() < 0.8:
        for each in [each for each in node.attribute if each.name == name]:
            node.attribute.remove(each)
    node.attribute.append(made)
    return f"attribute {name} of type {made.type} {made.ref_attr_name}"


def _delete(_rng: random.Random, graph: Any, node: NodeProto) -> str:
    graph.node.remove(node)
    return "deleted"


def _duplicate(rng: random.Random, graph: Any, node: NodeProto) -> str:
    made = copied(node)
    if rng.random() < 0.7:
        for at, name in enumerate(made.output):
            made.output[at] = f"{name}_again"
    graph.node.insert(rng.randrange(len(graph.node) + 1), made)
    return f"doubled -> {list(made.output)}"


def _move(rng: random.Random, graph: Any, node: NodeProto) -> str:
    made = copied(node)
    graph.node.remove(node)
    graph.node.insert(rng.randrange(len(graph.node) + 1), made)
    return "moved"


def _nest(rng: random.Random, graph: Any, node: NodeProto) -> str:
    """The node in an If in an If, and so on; the other branches hold a copy of it."""
    depth = rng.choice([1, 1, 2, 5, 20, 28])
    at = list(graph.node).index(node)
    made = node
    for level in range(depth):
        branches = [_branch(each, level) for each in (made, node)]
        go = f"go_{at}_{level}"
        made = helper.make_node(
            *("If", [go], list(node.output)), then_branch=branches[0], else_branch=branches[1]
        )
        value = helper.make_tensor("", TensorProto.BOOL, [], [rng.random() < 0.5])
        graph.node.insert(0, helper.make_node("Constant", [], [go], value=value))
        at += 1
    graph.node[at].CopyFrom(made)
    return f"nested in {depth} Ifs"


def _branch(node: NodeProto, level: int) -> GraphProto:
    inner = copied(node)
    inner.output[:] = [f"{name}_{level}" for name in node.output]
    outputs = [helper.make_tensor_value_info(o, TensorProto.FLOAT, None) for o in inner.output]
    return helper.make_graph([inner], f"level{level}", [], outputs)


def _interface(rng: random.Random, graph: Any, node: NodeProto) -> str:
    if not isinstance(graph, GraphProto):
        return _rewire(rng, graph, node)
    values = [*graph.input, *graph.output, *graph.value_info]
    if not values:
        return "nothing to change"
    value = rng.choice(values)
    element = helper.make_tensor_type_proto(rng.choice(TYPES), rng.choice([None, [], [2, "n"]]))
    kinds: list[Callable[[], Any]] = [
        onnx.TypeProto,
        lambda: element,
        lambda: helper.make_sequence_type_proto(element),
        lambda: helper.make_optional_type_proto(element),
        lambda: helper.make_map_type_proto(TensorProto.INT64, element),
        lambda: helper.make_sparse_tensor_type_proto(rng.choice(TYPES), [2, 2]),
    ]
    if rng.random() < 0.6:
        value.type.CopyFrom(rng.choice(kinds)())
        return f"type of '{value.name}': {value.type.WhichOneof('value')}"
    if rng.random() < 0.3:
        value.name = rng.choice([*_edge_names(graph), *NAMES])
        return f"an interface named {value.name!r:.40}"
    shape = value.type.tensor_type.shape
    if not shape.dim or rng.random() < 0.3:
        shape.dim.add()
    dim = rng.choice(shape.dim)
    if rng.random() < 0.5:
        dim.dim_value = rng.choice([0, 1, -1, 31, 32, 1 << 31, 1 << 40, 1 << 62])
    else:
        dim.dim_param = rng.choice(["", "n", "batch", "n\n", "-1", "?"])
    return f"shape of '{value.name}': {[d.dim_param or d.dim_value for d in shape.dim]}"


_GRAPH_CHANGES: list[Callable[[random.Random, Any, NodeProto], str]] = [
    *(_rewire, _rewire, _rewire, _reop, _attribute, _attribute, _delete, _duplicate, _move),
    *(_nest, _interface, _interface),
]


def change_model(rng: random.Random, model: onnx.ModelProto) -> str:
    return rng.choice(_RARE)(rng, model)


def _versions(rng: random.Random, model: onnx.ModelProto) -> str:
    if rng.random() < 0.3:
        model.ir_version = rng.choice([0, 1, 2, 3, 4, 9, 12, 13, 14, 99, -1, 1 << 60])
        return f"ir_version {model.ir_version}"
    version = rng.choice([0, -1, 1, 5, 6, 7, 8, 9, 10, 11, 12, 13, 17, 18, 22, 23, 25, 99, 1 << 60])
    domain = rng.choice(_DOMAINS)
    match rng.choice(["set", "add", "drop"]):
        case "set" if model.opset_import:
            model.opset_import[0].version = version
        case "drop":
            del model.opset_import[:]
        case _:
            model.opset_import.append(helper.make_opsetid(domain, version))
    return f"opsets {[(o.domain, o.version) for o in model.opset_import]}"


def _function(rng: random.Random, model: onnx.ModelProto) -> str:
    """A function that a node calls, which calls itself, or another, or lacks what it refers to."""
    if not model.graph.node:
        return ""
    node = rng.choice(model.graph.node)
    called = rng.choice(["caller", "other", "nobody"])
    body = helper.make_node(called, ["a"], ["b"], domain="local")
    if rng.random() < 0.5:
        body = helper.make_node("LeakyRelu", ["a"], ["b"])
        reference = AttributeProto(name="alpha", ref_attr_name="alpha", type=AttributeProto.FLOAT)
        body.attribute.append(reference)
    opsets = [helper.make_opsetid("", rng.choice([21, 13, 99])), helper.make_opsetid("local", 1)]
    for name in ("caller", "other"):
        made = helper.make_function(
            "local", name, ["a"], ["b"], [body], opsets[: rng.choice([1, 2])]
        )
        made.attribute.extend(["alpha"] * rng.choice([0, 1]))
        model.functions.append(made)
    node.domain, node.op_type = "local", "caller"
    if rng.random() < 0.7:
        model.opset_import.append(helper.make_opsetid("local", 1))
    return f"'{node.output[:1]}' calls a function that calls {body.op_type}"


def _sparse(rng: random.Random, model: onnx.ModelProto) -> str:
    if not model.graph.initializer:
        return ""
    dense = rng.choice(model.graph.initializer)
    places = rng.choice([[0, 1], [5, 5], [-1, 3], [1 << 40, 0], [1, 0]])
    shape = rng.choice([[2], [2, 1], [1, 2]])
    indices = helper.make_tensor("i", TensorProto.INT64, shape, places)
    indices.data_type = rng.choice([TensorProto.INT64] * 3 + [TensorProto.FLOAT])
    values = helper.make_tensor(dense.name, TensorProto.FLOAT, [2], [1.0, 2.0])
    made = helper.make_sparse_tensor(values, indices, list(dense.dims))
    if rng.random() < 0.7:
        model.graph.initializer.remove(dense)
    model.graph.sparse_initializer.append(made)
    return f"'{values.name}' is sparse at {places}"


def _annotations(rng: random.Random, model: onnx.ModelProto) -> str:
    for _ in range(2):
        model.metadata_props.add(key=rng.choice(["k", "", "qcompiler.recipe"]), value="v")
    note = model.graph.quantization_annotation.add(tensor_name=rng.choice(["x", "nobody"]))
    note.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="nobody")
    training = model.training_info.add()
    training.algorithm.CopyFrom(model.graph)
    if rng.random() < 0.5:
        training.initialization_binding.add(key="x", value="nobody")
    return "annotations, metadata and training info"


def _extent(rng: random.Random, model: onnx.ModelProto) -> str:
    part = rng.choice(["input", "output", "node", "initializer", "graph"])
    if part == "graph":
        model.graph.Clear()
    else:
        model.graph.ClearField(part)
    return f"no {part}"


def _loop_back(rng: random.Random, model: onnx.ModelProto) -> str:
    """An edge from a later node to an earlier one."""
    if not model.graph.node:
        return ""
    early, late = sorted(rng.choices(range(len(model.graph.node)), k=2))
    source = model.graph.node[late].output
    if source and model.graph.node[early].input:
        model.graph.node[early].input[0] = source[0]
    return f"node {early} reads what node {late} gives"


_RARE: list[Callable[[random.Random, onnx.ModelProto], str]] = [
    *(_versions, _versions, _function, _sparse, _annotations, _extent, _loop_back)
]
