"""Models as messages: read from a file, and walked with all that lies below them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from qcompiler.errors import ModelError
from qcompiler.foreign import one_line

ONNX_DOMAIN, CONTRIB_DOMAIN = "ai.onnx", "com.microsoft"
ELEMENT_TYPES = frozenset(onnx.helper.get_all_tensor_dtypes()) - {onnx.TensorProto.UNDEFINED}
"""The types of elements that ONNX knows."""
VALUE_FIELDS = (
    *("float_data", "int32_data", "string_data", "int64_data", "double_data", "uint64_data"),
)
"""Where tensors have values that are spelled out."""
_SMALL = 1024
_WIDEST = 16
"""Bytes of a number, at most."""
_MOST_VALUES = 1 << 48
"""More than any memory holds: a tensor that is said to have so many has another size."""


def read_proto(path: Path) -> onnx.ModelProto:
    """Parse an ONNX file without loading external data; ModelError if it is not one."""
    try:
        model = onnx.load(str(path), load_external_data=False)
    except DecodeError as error:
        raise ModelError(
            f"{path} is not an ONNX model, or is cut off; export or copy it again"
        ) from error
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} can't be read: {one_line(error)}") from error
    if not model.HasField("graph"):
        raise ModelError(f"{path} is not an ONNX model: it holds no graph")
    if model.ir_version < 1:
        raise ModelError(f"{path} does not say its IR version; export it again")
    _settle(model)
    return model


def outlined(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model without values that take more than _SMALL bytes, which it loses."""
    large = [tensor for tensor in all_tensors(model) if _is_large(tensor)]
    for tensor in large:
        for name in ("raw_data", *VALUE_FIELDS):
            tensor.ClearField(name)
    if not large:
        return model
    made = onnx.ModelProto()  # what is cleared stays in memory as long as its message
    made.CopyFrom(model)
    return made


def _is_large(tensor: onnx.TensorProto) -> bool:
    """By its values: what is said beside them may be longer."""
    if tensor.ByteSize() <= _SMALL:
        return False
    is_text = tensor.data_type == onnx.TensorProto.STRING
    return is_text or math.prod(tensor.dims) * _WIDEST > _SMALL


def has_unknown_type(kind: onnx.TypeProto) -> bool:
    """Whether elements of a type are of none that ONNX knows."""
    match kind.WhichOneof("value"):
        case "tensor_type":
            return kind.tensor_type.elem_type not in ELEMENT_TYPES
        case "sparse_tensor_type":
            return kind.sparse_tensor_type.elem_type not in ELEMENT_TYPES
        case "sequence_type":
            return has_unknown_type(kind.sequence_type.elem_type)
        case "optional_type":
            return has_unknown_type(kind.optional_type.elem_type)
        case "map_type":
            return has_unknown_type(kind.map_type.value_type)
        case _:
            return False


def _settle(model: onnx.ModelProto) -> None:
    """Write what has several spellings, or one that says nothing, as ONNX Runtime reads it."""
    graphs, tensors = [model.graph], list(model.graph.initializer)
    for node in all_nodes(model):
        if node.domain == ONNX_DOMAIN:  # it has two names: from here on, the empty one
            node.ClearField("domain")
        for attribute in node.attribute or ():
            if attribute.HasField("t"):
                tensors.append(attribute.t)
            inner = [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]
            graphs += inner
            tensors += (tensor for graph in inner for tensor in graph.initializer)
    for owner in (model, *model.functions):
        _settle_opsets(owner)
    _name_opsets_of_functions(model)
    for depth, graph in enumerate(graphs):
        _settle_values((*graph.input, *graph.output), typed=not depth)
        _settle_values(graph.value_info, typed=False)
        _forget_vast((*graph.output, *graph.value_info))
    for tensor in tensors:
        _settle_data(tensor)


def _settle_data(tensor: onnx.TensorProto) -> None:
    """Leave a tensor the values that are read: those in the field of its type have no say beside
    raw data, and those in other fields have none at all."""
    if tensor.data_type not in ELEMENT_TYPES:
        return
    read = onnx.helper.tensor_dtype_to_field(tensor.data_type)
    raw = tensor.HasField("raw_data")
    for field, _ in tensor.ListFields():
        if field.name in VALUE_FIELDS and (raw or field.name != read):
            tensor.ClearField(field.name)


def _settle_values(values: Iterable[onnx.ValueInfoProto], *, typed: bool) -> None:
    """`typed`: whether what is said of types counts, as it does of a model's inputs and outputs."""
    for value in values:
        if not typed and has_unknown_type(value.type):
            value.ClearField("type")
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_value < 0:  # some exporters write -1 for what is not known
                dim.ClearField("dim_value")


def _forget_vast(values: Iterable[onnx.ValueInfoProto]) -> None:
    """ONNX Runtime computes sizes itself, and warns where what is said is another."""
    for value in values:
        kind = value.type.tensor_type
        if math.prod(dim.dim_value for dim in kind.shape.dim if dim.dim_value) > _MOST_VALUES:
            kind.ClearField("shape")


def _settle_opsets(owner: onnx.ModelProto | onnx.FunctionProto) -> None:
    domains = {entry.domain for entry in owner.opset_import}
    for entry in [each for each in owner.opset_import if each.domain == ONNX_DOMAIN]:
        if "" in domains:
            owner.opset_import.remove(entry)
        else:
            entry.domain = ""


def _name_opsets_of_functions(model: onnx.ModelProto) -> None:
    """A model need not name opsets that only its functions use; once they are inlined it must."""
    if not model.functions:
        return
    named = {entry.domain for entry in model.opset_import}
    named |= {node.domain for node in nodes_below(model.graph.node)}
    for entry in (each for function in model.functions for each in function.opset_import):
        if entry.domain not in named:
            named.add(entry.domain)
            model.opset_import.add().CopyFrom(entry)


def all_nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Every node: of the graph, of its subgraphs, and of the model's local functions."""
    found = nodes_below(model.graph.node)
    for function in model.functions:
        found += nodes_below(function.node)
    return found


def nodes_below(nodes: Iterable[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """Nodes, each before those in its subgraphs."""
    found: list[onnx.NodeProto] = []
    for node in nodes:
        found.append(node)
        for attribute in node.attribute or ():
            if attribute.HasField("g"):
                found += nodes_below(attribute.g.node)
            for graph in attribute.graphs:
                found += nodes_below(graph.node)
    return found


def reads(node: onnx.NodeProto) -> set[str]:
    """The names a node reads, in its subgraphs too (and some that those make themselves)."""
    names = set(node.input)
    for attribute in node.attribute:
        if attribute.HasField("g"):
            names |= {output.name for output in attribute.g.output}
            for inner in attribute.g.node:
                names |= reads(inner)
    return names


def all_attributes(model: onnx.ModelProto) -> list[onnx.AttributeProto]:
    """Every attribute of every node."""
    return [each for node in all_nodes(model) for each in node.attribute or ()]


def all_graphs(model: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    """The graph, and every subgraph of it and of functions."""
    yield model.graph
    for attribute in all_attributes(model):
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def all_sparse(model: onnx.ModelProto) -> Iterator[onnx.SparseTensorProto]:
    """Every sparse tensor: initializers and attributes, at any depth."""
    yield from model.graph.sparse_initializer
    for attribute in all_attributes(model):
        if attribute.HasField("sparse_tensor"):
            yield attribute.sparse_tensor
        yield from attribute.sparse_tensors
        for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            yield from graph.sparse_initializer


def all_tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every stored tensor at any depth: initializers, constants, the parts of sparse ones."""

    def of_sparse(tensors: Iterable[onnx.SparseTensorProto]) -> Iterator[onnx.TensorProto]:
        for sparse in tensors:
            yield sparse.values
            yield sparse.indices

    def of_graph(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
        yield from graph.initializer
        yield from of_sparse(graph.sparse_initializer)

    yield from of_graph(model.graph)
    for attribute in all_attributes(model):
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
        if attribute.HasField("sparse_tensor"):
            yield from of_sparse([attribute.sparse_tensor])
        yield from of_sparse(attribute.sparse_tensors)
        if attribute.HasField("g"):
            yield from of_graph(attribute.g)
        for graph in attribute.graphs:
            yield from of_graph(graph)
