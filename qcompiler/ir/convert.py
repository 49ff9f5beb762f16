"""graphsurgeon's graphs from messages and back, in time that grows with the number of nodes.

Its own importer copies the names of all tensors around it for every subgraph, and its exporter
builds each message from several. What is unusual is left to them. Sparse tensors are none any more.
"""

from __future__ import annotations

from collections import ChainMap, OrderedDict
from collections.abc import Mapping, MutableMapping
from typing import Any

import onnx
import onnx_graphsurgeon as gs
from onnx import AttributeProto
from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter, dtype_to_onnx
from onnx_graphsurgeon.exporters.onnx_exporter import update_import_domains as used_domains
from onnx_graphsurgeon.importers.onnx_importer import OnnxImporter

from qcompiler.ir.structures import described, node, variable
from qcompiler.ir.walk import bodies, graphs, tensors_of

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
    nodes = [_read_node(each, known, own, versions) for each in proto.node]
    holding = [each for each in nodes if each.attrs and bodies(each)]
    made = gs.Graph(
        nodes=holding,  # it looks for bodies in all that it is given
        inputs=inputs,
        outputs=outputs,
        name=proto.name,
        doc_string=proto.doc_string,
        **versions,
        **about,
    )
    made.nodes = nodes
    return made


def _own(value: onnx.ValueInfoProto, own: _Tensors) -> Any:
    """An input or output of a graph: it is never one of a graph around it."""
    if value.name not in own:
        own[value.name] = described(value)
    return own[value.name]


def _describe(value: onnx.ValueInfoProto, own: _Tensors, outer: Mapping[str, Any]) -> None:
    """Note what a message says of a tensor that nodes compute; it may say so more than once."""
    known = own.get(value.name)
    if known is None:
        if value.name not in outer:
            own[value.name] = described(value)
    elif isinstance(known, gs.Variable):
        said: Any = described(value)
        tensor: Any = known
        tensor.dtype = tensor.dtype or said.dtype
        tensor.shape = tensor.shape or said.shape


def _read_node(
    proto: onnx.NodeProto, known: ChainMap[str, Any], own: _Tensors, versions: Mapping[str, Any]
) -> gs.Node:
    attrs: dict[str, Any] = {}
    for each in proto.attribute:
        if each.type == AttributeProto.GRAPH and not each.ref_attr_name:
            attrs[each.name] = _read_graph(each.g, known, versions, {})
        else:
            attrs.update(_plain(each, versions))
    inputs = [_tensor(name, known, own) for name in proto.input]
    outputs = [_tensor(name, own, own) for name in proto.output]
    domain = proto.domain if proto.HasField("domain") else None
    return node(proto.op_type, proto.name, attrs, inputs, outputs, domain)


def _tensor(name: str, known: Mapping[str, Any], own: _Tensors) -> Any:
    found = own.get(name)
    if found is None:
        found = known.get(name)
    if found is None:
        found = variable(name)
        if name:  # one without a name stands for an input that is left out
            own[name] = found
    return found


def _plain(attribute: AttributeProto, versions: Mapping[str, Any]) -> dict[str, Any]:
    """An attribute that is no graph, by name."""
    if not attribute.ref_attr_name:
        if attribute.type == AttributeProto.INT:
            return {attribute.name: attribute.i}
        if attribute.type == AttributeProto.INTS:
            return {attribute.name: list(attribute.ints)}
    none: OrderedDict[str, Any] = OrderedDict()
    return OnnxImporter.import_attributes(
        [attribute], none, none, versions["opset"], versions["import_domains"]
    )


def to_message(graph: gs.Graph) -> onnx.ModelProto:
    """The model of a graph, with its local functions."""
    model = onnx.ModelProto(ir_version=onnx.IR_VERSION)
    _write_graph(graph, model.graph)
    model.functions.extend(OnnxExporter.export_function(each) for each in graph.functions)
    model.opset_import.extend(_opsets(graph))
    model.producer_name, model.producer_version = graph.producer_name, graph.producer_version
    version: Any = graph.ir_version
    if version is not None:
        model.ir_version = version
    return model


def _opsets(graph: gs.Graph) -> list[onnx.OperatorSetIdProto]:
    """The opsets of a graph, those of all domains that its nodes have."""
    declared: Any = graph.import_domains
    used = {each.domain for inner in graphs(graph) for each in inner.nodes} - {None}
    if declared is None or not used <= {each.domain for each in declared}:
        declared = used_domains(graph)
    return list(declared)


def _write_graph(graph: gs.Graph, proto: onnx.GraphProto) -> None:
    """Fill a message with a graph and all that lies below it."""
    proto.name = graph.name
    if graph.doc_string:
        proto.doc_string = graph.doc_string
    for each in graph.nodes:
        _write_node(each, proto.node)
    ends: list[Any] = [*graph.inputs, *graph.outputs]
    proto.input.extend(_value(tensor) for tensor in graph.inputs)
    proto.output.extend(_value(tensor) for tensor in graph.outputs)
    at_ends = {tensor.name for tensor in ends}
    types: dict[Any, onnx.TypeProto] = {}
    for name, tensor in tensors_of(graph).items():
        if isinstance(tensor, gs.Constant):
            proto.initializer.append(OnnxExporter.export_tensor_proto(tensor))
        elif name not in at_ends and (tensor.dtype is not None or tensor.shape is not None):
            _write_value(tensor, proto.value_info, types)


def _write_node(written: gs.Node, nodes: Any) -> None:
    # One message is made, in its place: to copy it there would take longer than to make it.
    proto = nodes.add(
        op_type=written.op,
        name=written.name or None,
        input=[tensor.name for tensor in written.inputs],
        output=[tensor.name for tensor in written.outputs],
        domain=written.domain,
    )
    if not written.attrs:
        return
    plain: dict[str, Any] = {}
    for name, value in written.attrs.items():
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


def _write_value(tensor: Any, values: Any, types: dict[Any, onnx.TypeProto]) -> None:
    """`types`: the messages of types so far; many tensors have the same."""
    if tensor.dtype is None or tensor.type != "tensor_type":
        values.append(_value(tensor))
        return
    shape = None if tensor.shape is None else tuple(tensor.shape)
    key = tensor.dtype, shape
    if key not in types:
        types[key] = _type(tensor.dtype, shape)
    values.add(name=tensor.name, type=types[key])


def _type(dtype: Any, shape: tuple[Any, ...] | None) -> onnx.TypeProto:
    made = onnx.TypeProto()
    made.tensor_type.elem_type = int(dtype_to_onnx(dtype))
    if shape is None:
        return made
    sizes = made.tensor_type.shape
    sizes.SetInParent()
    for size in shape:
        if isinstance(size, str):
            sizes.dim.add(dim_param=size)
        elif size is None:
            sizes.dim.add()
        else:
            sizes.dim.add(dim_value=size)
    return made
