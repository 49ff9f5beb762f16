"""Changes to ONNX files: of any field of any message, of tensors, of graphs, of bytes, of files.

A case is a number: it names the seed model and draws the changes.
"""

from __future__ import annotations

import os
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.descriptor import FieldDescriptor as Field
from google.protobuf.message import DecodeError
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto, helper
from seed_models import SEEDS, Seed

_NAMES = ["", "x", "y", "w", "a\0b", "é", "../m", "x" * 300, "two\nlines", "%s{0}"]
_NUMBERS = [0, 1, -1, 2, 3, 7, 16, 31, 32, 127, 255, 1 << 15, (1 << 31) - 1, -(1 << 31)]
_NUMBERS_64 = [*_NUMBERS, 1 << 31, 1 << 40, 1 << 60, (1 << 63) - 1, -(1 << 63)]
_REALS = [0.0, -1.0, 1e-30, 1e30, float("inf"), float("nan")]
_BYTES = [b"", b"\0", b"\xff\xfe", b"abc", bytes(64), b"\x80" * 300]
_DOMAINS = ["", "ai.onnx", "com.microsoft", "ai.onnx.ml", "local", "ai.qcompiler", "nobody"]
_TYPES = list(range(27))
_FILE_KINDS = ["gone", "short", "empty", "folder", "pipe", "loop", "device"]


@dataclass(frozen=True)
class Case:
    """A file to compile."""

    seed: str
    """The name of the model it was made of."""
    changes: tuple[str, ...]
    content: bytes
    files: dict[str, bytes]
    kind: str | None = None
    """What the data file is in place of a file with its bytes, one of _FILE_KINDS."""

    def write(self, folder: Path) -> Path:
        """The model in a folder, with what lies beside it."""
        for name, data in self.files.items():
            _put(folder / name, data, self.kind)
        path = folder / "m.onnx"
        path.write_bytes(self.content)
        return path


def _put(file: Path, data: bytes, kind: str | None) -> None:
    match kind:
        case "gone":
            return
        case "short":
            file.write_bytes(data[: len(data) // 3])
        case "empty":
            file.write_bytes(b"")
        case "folder":
            file.mkdir()
        case "pipe":
            os.mkfifo(file)
        case "loop":
            file.symlink_to(file.name)
        case "device":
            file.symlink_to("/dev/zero")
        case _:
            file.write_bytes(data)


@cache
def _seed(name: str) -> Seed:
    return SEEDS[name]()


def case(number: int) -> Case:
    """The case of a number, always the same."""
    rng = random.Random(number)
    name = list(SEEDS)[number % len(SEEDS)]
    seed = _seed(name)
    model = onnx.ModelProto()
    model.CopyFrom(seed.model)
    changes: list[str] = []
    for _ in range(rng.choice([1, 1, 1, 2, 2, 4])):
        kind = rng.choices([_any_field, _tensor, _graph, _rare], [4, 3, 4, 2])[0]
        try:
            changes.append(kind(rng, model) or f"{kind.__name__}: nothing to change")
        except DecodeError:
            changes.append(f"{kind.__name__}: too deep for protobuf")
    content = model.SerializeToString()
    if rng.random() < 0.12:
        content, what = _bytes_changed(rng, content)
        changes.append(what)
    file_kind = None
    if seed.files and rng.random() < 0.15:
        file_kind = rng.choice(_FILE_KINDS)
        changes.append(f"data file: {file_kind}")
    return Case(name, tuple(changes), content, seed.files, file_kind)


# Any field of any message.


def _messages(message: Any) -> Iterator[Any]:
    yield message
    for field, value in message.ListFields():
        if field.type == Field.TYPE_MESSAGE:
            for each in value if field.is_repeated else [value]:
                yield from _messages(each)


def _any_field(rng: random.Random, model: onnx.ModelProto) -> str:
    """Change, drop, double, swap or set a field."""
    messages = list(_messages(model))
    # Tensors and dimensions are many: each kind of message has the same chance.
    kinds = sorted({each.DESCRIPTOR.name for each in messages})
    wanted = rng.choice(kinds)
    owner = rng.choice([each for each in messages if each.DESCRIPTOR.name == wanted])
    set_fields = [field for field, _ in owner.ListFields()]
    fields = set_fields if set_fields and rng.random() < 0.75 else list(owner.DESCRIPTOR.fields)
    field = rng.choice(fields)
    where = f"{wanted}.{field.name}"
    if field.is_repeated:
        return f"{where}: {_repeated(rng, owner, field, messages)}"
    if rng.random() < 0.2:
        owner.ClearField(field.name)
        return f"{where}: dropped"
    if field.type == Field.TYPE_MESSAGE:
        donors = [m for m in messages if m.DESCRIPTOR == field.message_type and m is not owner]
        if donors and rng.random() < 0.7:
            copy = _copy(rng.choice(donors))
            getattr(owner, field.name).CopyFrom(copy)
            return f"{where}: another's"
        getattr(owner, field.name).SetInParent()
        return f"{where}: empty"
    value = _scalar(rng, field, messages)
    setattr(owner, field.name, value)
    return f"{where} = {value!r:.60}"


def _copy(message: Any) -> Any:
    made = type(message)()
    made.CopyFrom(message)
    return made


def _repeated(rng: random.Random, owner: Any, field: Any, messages: list[Any]) -> str:
    values = getattr(owner, field.name)
    if not len(values) or rng.random() < 0.2:
        if field.type != Field.TYPE_MESSAGE:
            value = _scalar(rng, field, messages)
            values.append(value)
            return f"added {value!r:.60}"
        donors = [m for m in messages if m.DESCRIPTOR == field.message_type]
        values.append(_copy(rng.choice(donors)) if donors else field.message_type._concrete_class())
        return "added one"
    at = rng.randrange(len(values))
    match rng.choice(["drop", "double", "swap", "change", "clear"]):
        case "drop":
            del values[at]
            return f"dropped {at}"
        case "double":
            values.append(values[at])
            return f"doubled {at}"
        case "swap":
            copies = list(values) if field.type != Field.TYPE_MESSAGE else [*map(_copy, values)]
            other = rng.randrange(len(values))
            copies[at], copies[other] = copies[other], copies[at]
            del values[:]
            values.extend(copies)
            return f"swapped {at} and {other}"
        case "change" if field.type != Field.TYPE_MESSAGE:
            values[at] = _scalar(rng, field, messages)
            return f"{at} = {values[at]!r:.60}"
        case _:
            owner.ClearField(field.name)
            return "cleared"


def _scalar(rng: random.Random, field: Any, messages: list[Any]) -> Any:
    match field.type:
        case Field.TYPE_STRING:
            used = [m.name for m in messages if "name" in m.DESCRIPTOR.fields_by_name]
            return rng.choice([*_NAMES, *rng.sample(used, min(len(used), 12))])
        case Field.TYPE_BYTES:
            return rng.choice(_BYTES)
        case Field.TYPE_FLOAT | Field.TYPE_DOUBLE:
            return rng.choice(_REALS)
        case Field.TYPE_ENUM:
            return rng.choice([v.number for v in field.enum_type.values])
        case Field.TYPE_INT32:
            return rng.choice(_NUMBERS + _TYPES)
        case Field.TYPE_UINT64:
            return rng.choice([abs(n) for n in _NUMBERS_64])
        case _:
            return rng.choice(_NUMBERS_64)


# Tensors.


def _tensors(model: onnx.ModelProto) -> list[TensorProto]:
    return [each for each in _messages(model) if isinstance(each, TensorProto)]


_STORES = [
    *("raw_data", "float_data", "int32_data", "int64_data"),
    *("double_data", "uint64_data", "string_data"),
]


def _tensor(rng: random.Random, model: onnx.ModelProto) -> str:
    """Change how a tensor is stored, its type, its sizes or its values."""
    found = _tensors(model)
    if not found:
        return ""
    tensor = rng.choice(found)
    what = rng.choice(["type", "dim", "store", "cut", "grow", "value", "external", "reshape"])
    return f"tensor '{tensor.name[:40]}': " + _TENSOR_CHANGES[what](rng, tensor)


def _retype(rng: random.Random, tensor: TensorProto) -> str:
    tensor.data_type = rng.choice([*_TYPES, 99, -1])
    if rng.random() < 0.5:
        _fill(rng, tensor)
        return f"type {tensor.data_type}, filled"
    return f"type {tensor.data_type}"


def _fill(rng: random.Random, tensor: TensorProto) -> None:
    """Give a tensor about the bytes that its shape and type need, in the raw form."""
    count = 1
    for dim in tensor.dims:
        count *= max(int(dim), 0)
    try:
        size = helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    except (KeyError, TypeError):
        size = 4
    if count * size < 1 << 16:
        _empty(tensor)
        tensor.raw_data = rng.randbytes(count * size)


def _empty(tensor: TensorProto) -> None:
    for name in _STORES:
        tensor.ClearField(name)
    del tensor.external_data[:]
    tensor.ClearField("data_location")


def _resize(rng: random.Random, tensor: TensorProto) -> str:
    size = rng.choice([0, 1, 2, 16, 31, 33, 64, 1 << 31, 1 << 40, 1 << 62, -1, -32])
    if tensor.dims and rng.random() < 0.8:
        tensor.dims[rng.randrange(len(tensor.dims))] = size
    else:
        tensor.dims.append(size)
    if rng.random() < 0.4:
        _fill(rng, tensor)
    return f"dims {list(tensor.dims)}"


def _restore(rng: random.Random, tensor: TensorProto) -> str:
    """The values in another field."""
    name = rng.choice(_STORES)
    count = rng.choice([0, 1, 31, 32, 48, 1024, 1536])
    if rng.random() < 0.7:
        _empty(tensor)
    if name == "raw_data":
        tensor.raw_data = rng.randbytes(4 * count)
    elif name == "string_data":
        tensor.string_data.extend([rng.choice(_BYTES)] * count)
    else:
        getattr(tensor, name).extend([1] * count)
    return f"{count} in {name}"


def _cut(rng: random.Random, tensor: TensorProto) -> str:
    tensor.raw_data = tensor.raw_data[: rng.randrange(len(tensor.raw_data) + 1)]
    return f"cut to {len(tensor.raw_data)} bytes"


def _grow(rng: random.Random, tensor: TensorProto) -> str:
    tensor.raw_data += rng.randbytes(rng.choice([1, 3, 4, 128]))
    return f"grown to {len(tensor.raw_data)} bytes"


def _revalue(rng: random.Random, tensor: TensorProto) -> str:
    data = bytearray(tensor.raw_data)
    if len(data) < 4:
        return "nothing to change"
    special = rng.choice(
        [
            *(b"\x00\x00\xc0\x7f", b"\x00\x00\x80\x7f", b"\xff\xff\x7f\x7f", b"\0\0\0\0"),
            *(b"\xff" * 8, (1 << 62).to_bytes(8, "little"), rng.randbytes(4)),
        ]
    )
    at = rng.randrange(max(len(data) // 4, 1)) * 4
    if rng.random() < 0.3:
        data = bytearray(special * (len(data) // len(special) + 1))[: len(data)]
    else:
        data[at : at + len(special)] = special[: len(data) - at]
    tensor.raw_data = bytes(data)
    return f"bytes {special!r} at {at}"


def _externalize(rng: random.Random, tensor: TensorProto) -> str:
    tensor.data_location = TensorProto.EXTERNAL
    size = len(tensor.raw_data)
    if rng.random() < 0.7:
        tensor.ClearField("raw_data")
    numbers = ["0", "64", "-1", str(1 << 62), "1e3", " 7", "", "none", str(size), "٣"]
    entries = {
        "location": rng.choice(["m.data", "m.onnx", "a\0b", "/etc/passwd", "..", ".", "", "\n"]),
        "offset": rng.choice(numbers),
        "length": rng.choice(numbers),
        "checksum": "0",
    }
    del tensor.external_data[:]
    for key in rng.sample(list(entries), rng.randrange(1, 5)):
        tensor.external_data.add(key=key, value=entries[key])
    return f"external {[(e.key, e.value) for e in tensor.external_data]}"


def _reshape(rng: random.Random, tensor: TensorProto) -> str:
    dims = list(tensor.dims)
    match rng.choice(["flat", "one", "turned", "scalar"]):
        case "flat":
            dims = [dims[0] * dims[-1]] if len(dims) > 1 else dims
        case "one":
            dims.insert(rng.randrange(len(dims) + 1), 1)
        case "turned":
            dims.reverse()
        case _:
            dims = []
    del tensor.dims[:]
    tensor.dims.extend(dims)
    if rng.random() < 0.5:
        _fill(rng, tensor)
    return f"dims {dims}"


_TENSOR_CHANGES: dict[str, Callable[[random.Random, TensorProto], str]] = {
    "type": _retype,
    "dim": _resize,
    "store": _restore,
    "cut": _cut,
    "grow": _grow,
    "value": _revalue,
    "external": _externalize,
    "reshape": _reshape,
}


# Graphs.


def _graphs(model: onnx.ModelProto) -> list[Any]:
    """Everything with nodes: graphs and functions."""
    kinds = (GraphProto, onnx.FunctionProto)
    return [each for each in _messages(model) if isinstance(each, kinds) and each.node]


def _graph(rng: random.Random, model: onnx.ModelProto) -> str:
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
    made = _copy(node)
    if rng.random() < 0.7:
        for at, name in enumerate(made.output):
            made.output[at] = f"{name}_again"
    graph.node.insert(rng.randrange(len(graph.node) + 1), made)
    return f"doubled -> {list(made.output)}"


def _move(rng: random.Random, graph: Any, node: NodeProto) -> str:
    made = _copy(node)
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
    inner = _copy(node)
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
    element = helper.make_tensor_type_proto(rng.choice(_TYPES), rng.choice([None, [], [2, "n"]]))
    kinds: list[Callable[[], Any]] = [
        lambda: onnx.TypeProto(),
        lambda: element,
        lambda: helper.make_sequence_type_proto(element),
        lambda: helper.make_optional_type_proto(element),
        lambda: helper.make_map_type_proto(TensorProto.INT64, element),
        lambda: helper.make_sparse_tensor_type_proto(rng.choice(_TYPES), [2, 2]),
    ]
    if rng.random() < 0.6:
        value.type.CopyFrom(rng.choice(kinds)())
        return f"type of '{value.name}': {value.type.WhichOneof('value')}"
    if rng.random() < 0.3:
        value.name = rng.choice([*_edge_names(graph), *_NAMES])
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


# Rare things that belong to the whole model.


def _rare(rng: random.Random, model: onnx.ModelProto) -> str:
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
        made = helper.make_function("local", name, ["a"], ["b"], [body], opsets[: rng.choice([1, 2])])
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


# Bytes.


def _bytes_changed(rng: random.Random, content: bytes) -> tuple[bytes, str]:
    data = bytearray(content or b"\0")
    match rng.choice(["flip", "cut", "insert", "not text", "group", "unknown", "nonsense"]):
        case "flip":
            for _ in range(rng.choice([1, 1, 3, 10])):
                data[rng.randrange(len(data))] = rng.randrange(256)
            return bytes(data), "bytes changed"
        case "cut":
            return bytes(data[: rng.randrange(len(data))]), "cut off"
        case "insert":
            at = rng.randrange(len(data))
            return bytes(data[:at] + rng.randbytes(rng.randrange(1, 20)) + data[at:]), "inserted"
        case "not text":
            names = [m.span() for m in re.finditer(rb"[a-z_]{3,12}", content)] or [(0, 1)]
            start, end = rng.choice(names)
            data[start:end] = b"\xff" * (end - start)
            return bytes(data), f"no UTF-8 for {content[start:end]!r}"
        case "group":
            return content + b"\xfb\x07" * 200 + b"\xfc\x07" * 200, "groups"
        case "unknown":
            return content + b"\xf8\x3f\x05" + b"\xfa\x3f\x03abc", "unknown fields"
        case _:
            return rng.choice([b"", b"hello", rng.randbytes(500), b"\n" * 100]), "no model"
