"""graphsurgeon's graphs from messages and back, in time that grows with the number of nodes.

Its own importer copies the names of all tensors around it for every subgraph, and its exporter
builds each message from several. What is unusual is left to them. Sparse tensors are none any more.
"""

from __future__ import annotations

from collections import ChainMap, OrderedDict
from collections.abc import Iterable, Mapping, MutableMapping
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import AttributeProto
from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter, dtype_to_onnx
from onnx_graphsurgeon.exporters.onnx_exporter import update_import_domains as used_domains
from onnx_graphsurgeon.importers.onnx_importer import OnnxImporter

from qcompiler.ir.walk import tensors_of

_Tensors = MutableMapping[str, Any]


def from_message(model: onnx.ModelProto) -> gs.Graph:
    """The graph of a model, with its local functions; constants refer to the message."""
    opset: Any = OnnxImporter.get_opset(model)
    domains: Any = OnnxImporter.get_import_domains(model)
    functions = [
        OnnxImporter.import_function(each, model_opset=opset, model_import_domains=domains)
        for each in model.functions
    ]
    about = {
        "producer_name": model.producer_name,
        "producer_version": model.producer_version,
        "functions": functions,
        "ir_version": model.ir_version,
    }
    return _read_graph(model.graph, ChainMap(), {"opset": opset, "import_domains": domains}, about)


def _read_graph(
    proto: onnx.GraphProto,
    outer: ChainMap[str, Any],
    versions: Mapping[str, Any],
    about: Mapping[str, Any],
) -> gs.Graph:
    """`outer`: the tensors around it by name, the nearest first; `about`: further arguments."""
    known = outer.new_child()
    own = known.maps[0]
    stored = {tensor.name for tensor in proto.initializer}
    for tensor in proto.initializer:
        if tensor.name not in outer:
            own.setdefault(tensor.name, OnnxImporter.import_tensor(tensor))
    for value in proto.value_info:
        _describe(value, own, outer)
    inputs = [_own(value, own) for value in proto.input if value.name not in stored]
    outputs = [_own(value, own) for value in proto.output]
    nodes = [_read_node(node, known, own, versions) for node in proto.node]
    return gs.Graph(
        nodes=nodes,
        inputs=inputs,
        outputs=outputs,
        name=proto.name,
        doc_string=proto.doc_string,
        **versions,
        **about,
    )


def _own(value: onnx.ValueInfoProto, own: _Tensors) -> Any:
    """An input or output of a graph: it is never one of a graph around it."""
    if value.name not in own:
        own[value.name] = OnnxImporter.import_tensor(value)
    return own[value.name]


def _describe(value: onnx.ValueInfoProto, own: _Tensors, outer: Mapping[str, Any]) -> None:
    """Note what a message says of a tensor that nodes compute; it may say so more than once."""
    known = own.get(value.name)
    if known is None:
        if value.name not in outer:
            own[value.name] = OnnxImporter.import_tensor(value)
    elif isinstance(known, gs.Variable):
        said: Any = OnnxImporter.import_tensor(value)
        tensor: Any = known
        tensor.dtype = tensor.dtype or said.dtype
        tensor.shape = tensor.shape or said.shape


def _read_node(
    proto: onnx.NodeProto, known: ChainMap[str, Any], own: _Tensors, versions: Mapping[str, Any]
) -> gs.Node:
    attrs: OrderedDict[str, Any] = OrderedDict()
    for each in proto.attribute:
        if each.type == AttributeProto.GRAPH and not each.ref_attr_name:
            attrs[each.name] = _read_graph(each.g, known, versions, {})
        else:
            attrs.update(_plain(each, versions))
    inputs = [_tensor(name, known, own) for name in proto.input]
    outputs = [_tensor(name, own, own) for name in proto.output]
    domain: Any = proto.domain if proto.HasField("domain") else None
    made: Any = gs.Node(proto.op_type, proto.name, attrs, inputs, outputs, domain)
    return made


def _tensor(name: str, known: Mapping[str, Any], own: _Tensors) -> Any:
    found = own.get(name)
    if found is None:
        found = known.get(name)
    if found is None:
        found = gs.Variable(name)
        if name:  # one without a name stands for an input that is left out
            own[name] = found
    return found


def _plain(attribute: AttributeProto, versions: Mapping[str, Any]) -> dict[str, Any]:
    """An attribute that is no graph, by name."""
    if attribute.type == AttributeProto.INT and not attribute.ref_attr_name:
        return {attribute.name: attribute.i}
    none: OrderedDict[str, Any] = OrderedDict()
    return OnnxImporter.import_attributes(
        [attribute], none, none, versions["opset"], versions["import_domains"]
    )


def to_message(graph: gs.Graph) -> onnx.ModelProto:
    """The model of a graph, with its local functions."""
    model = onnx.ModelProto(ir_version=onnx.IR_VERSION)
    _write_graph(graph, model.graph)
    model.functions.extend(OnnxExporter.export_function(each) for each in graph.functions)
    model.opset_import.extend(used_domains(graph))
    model.producer_name, model.producer_version = graph.producer_name, graph.producer_version
    version: Any = graph.ir_version
    if version is not None:
        model.ir_version = version
    return model


def _write_graph(graph: gs.Graph, proto: onnx.GraphProto) -> None:
    """Fill a message with a graph and all that lies below it."""
    proto.name = graph.name
    if graph.doc_string:
        proto.doc_string = graph.doc_string
    for node in graph.nodes:
        _write_node(node, proto.node)
    ends: list[Any] = [*graph.inputs, *graph.outputs]
    proto.input.extend(_value(tensor) for tensor in graph.inputs)
    proto.output.extend(_value(tensor) for tensor in graph.outputs)
    at_ends = {tensor.name for tensor in ends}
    for name, tensor in tensors_of(graph).items():
        if isinstance(tensor, gs.Constant):
            proto.initializer.append(OnnxExporter.export_tensor_proto(tensor))
        elif name not in at_ends and (tensor.dtype is not None or tensor.shape is not None):
            _write_value(tensor, proto.value_info)


def _write_node(node: gs.Node, nodes: Any) -> None:
    # One message is made, in its place: to copy it there would take longer than to make it.
    proto = nodes.add(op_type=node.op, name=node.name) if node.name else nodes.add(op_type=node.op)
    proto.input.extend([tensor.name for tensor in node.inputs])
    proto.output.extend([tensor.name for tensor in node.outputs])
    domain: Any = node.domain
    if domain is not None:
        proto.domain = domain
    plain: dict[str, Any] = {}
    for name, value in node.attrs.items():
        if isinstance(value, gs.Graph):
            proto.attribute.extend(OnnxExporter.export_attributes(plain))
            plain = {}
            inner = proto.attribute.add(name=name, type=AttributeProto.GRAPH)
            _write_graph(value, inner.g)
        else:
            plain[name] = value
    if plain:
        proto.attribute.extend(OnnxExporter.export_attributes(plain))


def _value(tensor: Any) -> onnx.ValueInfoProto:
    return OnnxExporter.export_value_info_proto(tensor, False)


def _write_value(tensor: Any, values: Any) -> None:
    if tensor.dtype is None or tensor.type != "tensor_type":
        values.append(_value(tensor))
        return
    made = values.add(name=tensor.name)
    kind = made.type.tensor_type
    kind.elem_type = _element_type(tensor.dtype)
    if tensor.shape is not None:
        _write_shape(tensor.shape, kind.shape)


def _write_shape(sizes: Iterable[Any], shape: onnx.TensorShapeProto) -> None:
    shape.SetInParent()
    for size in sizes:
        if isinstance(size, str):
            shape.dim.add(dim_param=size)
        elif size is None:
            shape.dim.add()
        else:
            shape.dim.add(dim_value=size)


_ELEMENT_TYPES: dict[np.dtype[Any], int] = {}


def _element_type(dtype: Any) -> int:
    if not isinstance(dtype, np.dtype):
        return int(dtype_to_onnx(dtype))
    if dtype not in _ELEMENT_TYPES:
        _ELEMENT_TYPES[dtype] = int(dtype_to_onnx(dtype))
    return _ELEMENT_TYPES[dtype]
