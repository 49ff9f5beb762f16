"""The interface of a model, carried around graphsurgeon's import and export as it was read.

graphsurgeon holds tensors with element type and shape. It loses every other type (sequences, maps,
optional and sparse tensors), doc strings and denotations, and inputs that have a default: there an
initializer has the name of an input, and stands for it where none is fed.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from typing import Any

import onnx
import onnx_graphsurgeon as gs
from onnx import AttributeProto, TensorProto, ValueInfoProto, helper
from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter
from onnx_graphsurgeon.importers.onnx_importer import OnnxImporter

from qcompiler.ir.convert import from_message, to_message
from qcompiler.ir.walk import tensors_of

OVERRIDABLE_FROM = 4
"""The IR version from which an initializer need not be an input, and can be fed where it is one."""

_log = logging.getLogger(__name__)


class Declared(gs.Variable):
    """An input or output that was declared otherwise than graphsurgeon would write it.

    `declared`: as it was read. `default`: what it is where nothing is fed, None for other inputs.
    """

    declared: ValueInfoProto
    default: gs.Constant | None

    def copy(self) -> Declared:
        """The tensor without its nodes, as graphsurgeon copies one."""
        made: Any = super().copy()
        return _declare(made, self.declared, self.default)


def _declare(tensor: Any, declared: ValueInfoProto, default: gs.Constant | None) -> Declared:
    """The tensor itself, which others refer to, as a declared one."""
    tensor.__class__ = Declared  # as graphsurgeon makes constants of variables
    tensor.declared, tensor.default = declared, default
    return tensor


def hand_over(old: Any, new: Any) -> None:
    """What `old` was declared as, `new` is from now on."""
    if isinstance(old, Declared) and type(new) is gs.Variable:
        _declare(new, old.declared, None)


def has_default(tensor: Any) -> bool:
    """Whether a tensor is an input that need not be fed."""
    return isinstance(tensor, Declared) and tensor.default is not None


def defaults(graph: gs.Graph) -> Iterator[gs.Constant]:
    """The defaults of a graph's inputs."""
    inputs: list[Any] = graph.inputs
    for tensor in inputs:
        if has_default(tensor):
            yield tensor.default


def declare_outputs(graph: gs.Graph, declared: Sequence[ValueInfoProto]) -> None:
    """Let a graph's outputs be written with the shapes that were read, whatever is known now."""
    outputs: list[Any] = graph.outputs
    for tensor, value in zip(outputs, declared, strict=True):
        shape = OnnxImporter.import_tensor(value).shape
        if isinstance(tensor, Declared):
            tensor.declared = _copied(value)
        elif type(tensor) is gs.Variable and tensor.shape != shape:
            _declare(tensor, _copied(value), None)


def without_habitual_inputs(model: onnx.ModelProto) -> None:
    """Take initializers from the inputs where listing them was the exporter's habit.

    Before IR version 4 all had to be listed, and none could be fed. Later, an exporter that still
    lists every weight means nothing by it (and a model must be allowed to fold them), while a model
    with a few such inputs wants them fed. What counts is whether they hold most of the bytes. Empty
    ones are defaults in any case.
    """
    if model.ir_version < OVERRIDABLE_FROM:
        return
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    listed = [v.name for v in model.graph.input if v.name in stored and _bytes(stored[v.name])]
    if 2 * sum(_bytes(stored[name]) for name in listed) <= sum(map(_bytes, stored.values())):
        return
    _take_out(model, set(listed))
    _log.warning(
        "%d initializers of the model are inputs too; they are weights, and no inputs any more",
        len(listed),
    )


def _take_out(model: onnx.ModelProto, names: set[str]) -> None:
    kept = [value for value in model.graph.input if value.name not in names]
    del model.graph.input[:]
    model.graph.input.extend(kept)


def _bytes(tensor: TensorProto) -> int:
    size = 1
    if tensor.data_type != TensorProto.STRING:
        size = helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    return size * math.prod(tensor.dims)


def without_defaults(model: onnx.ModelProto) -> list[TensorProto]:
    """Take the defaults of inputs out of a model, and return them.

    For ONNX's tools, which believe that their values hold.
    """
    inputs = {value.name for value in model.graph.input}
    taken = [tensor for tensor in model.graph.initializer if tensor.name in inputs]
    if taken:
        kept = [tensor for tensor in model.graph.initializer if tensor.name not in inputs]
        del model.graph.initializer[:]
        model.graph.initializer.extend(kept)
    return taken


def import_graph(model: onnx.ModelProto) -> gs.Graph:
    """graphsurgeon's graph of a model whose attributes it holds; the model is left as it is."""
    protos = list(_protos(model))
    odd = [value for graph in protos for value in _values(graph) if not _is_tensor(value)]
    types = [value.type.SerializeToString() for value in odd]
    for value in odd:
        value.ClearField("type")
    try:
        graph = from_message(model)
    finally:
        for value, kind in zip(odd, types, strict=True):
            value.type.ParseFromString(kind)
    for made, proto in zip(_graphs(graph), protos, strict=True):
        _restore(made, proto)
    _restore_defaults(graph, model)
    return graph


def _restore(graph: gs.Graph, proto: onnx.GraphProto) -> None:
    ends: list[Any] = [*graph.inputs, *graph.outputs]
    tensors = {each.name: each for each in ends}
    for value in [*proto.input, *proto.output]:
        tensor = tensors.get(value.name)
        if type(tensor) is gs.Variable and not _is_held(value):
            _declare(tensor, _copied(value), None)


def _restore_defaults(graph: gs.Graph, model: onnx.ModelProto) -> None:
    """Make variables of the constants that are inputs with a default."""
    if model.ir_version < OVERRIDABLE_FROM:
        graph.ir_version = OVERRIDABLE_FROM  # as its initializers are no inputs any more
        return
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    if not any(value.name in stored for value in model.graph.input):
        return
    inputs: list[Any] = graph.inputs
    found = {tensor.name: tensor for tensor in inputs}
    known = tensors_of(graph)
    for value in model.graph.input:
        if value.name in found:
            continue
        made: Any = OnnxImporter.import_tensor(value)
        tensor = known.get(value.name, made)  # unknown where no node reads it
        if tensor is not made:
            tensor.to_variable(made.dtype, made.shape).type = made.type
        default: Any = OnnxImporter.import_tensor(stored[value.name])
        found[value.name] = _declare(tensor, _copied(value), default)
    graph.inputs = [found[value.name] for value in model.graph.input]


def export_graph(graph: gs.Graph) -> onnx.ModelProto:
    """The model of a graph whose attributes graphsurgeon writes."""
    graphs = list(_graphs(graph))
    ends = [tensor for each in graphs for tensor in [*each.inputs, *each.outputs]]
    declared = [tensor for tensor in ends if isinstance(tensor, Declared)]
    odd = [tensor for tensor in declared if not _is_tensor(tensor.declared)]
    saved = [(tensor, tensor.dtype, tensor.shape) for tensor in odd]
    for tensor in odd:
        tensor.dtype = tensor.shape = None
    try:
        model = to_message(graph)
    finally:
        for tensor, dtype, shape in saved:
            tensor.dtype, tensor.shape = dtype, shape
    for each, proto in zip(graphs, _protos(model), strict=True) if declared else ():
        for tensors, values in ((each.inputs, proto.input), (each.outputs, proto.output)):
            for tensor, value in zip(tensors, values, strict=True):
                if isinstance(tensor, Declared):
                    value.CopyFrom(_written(tensor.declared, value))
    model.graph.initializer.extend(map(OnnxExporter.export_tensor_proto, defaults(graph)))
    return model


def _written(declared: ValueInfoProto, exported: ValueInfoProto) -> ValueInfoProto:
    """As it was declared, with the name and element type that the graph has now."""
    if not declared.HasField("type"):
        return exported
    value = _copied(declared)
    value.name = exported.name
    if _is_tensor(declared) and exported.type.tensor_type.elem_type:
        value.type.tensor_type.elem_type = exported.type.tensor_type.elem_type
    return value


def _copied(value: ValueInfoProto) -> ValueInfoProto:
    made = ValueInfoProto()
    made.CopyFrom(value)
    return made


def _is_tensor(value: ValueInfoProto) -> bool:
    return value.type.HasField("tensor_type") or not value.HasField("type")


def _is_held(value: ValueInfoProto) -> bool:
    """Whether name, element type and sizes are all that is said of a tensor."""
    bare = ValueInfoProto(name=value.name)
    if value.HasField("type") and value.type.HasField("tensor_type"):
        kind = bare.type.tensor_type
        kind.elem_type = value.type.tensor_type.elem_type
        if value.type.tensor_type.HasField("shape"):
            kind.shape.CopyFrom(value.type.tensor_type.shape)
            for dim in kind.shape.dim:
                dim.ClearField("denotation")
    return bare.SerializeToString() == value.SerializeToString()


def _values(graph: onnx.GraphProto) -> list[ValueInfoProto]:
    return [*graph.input, *graph.output, *graph.value_info]


def _protos(model: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    """The graph and every subgraph, in the order of the nodes, then those of functions."""

    def below(nodes: Any) -> Iterator[onnx.GraphProto]:
        for node in nodes:
            for attribute in node.attribute or ():
                if attribute.type == AttributeProto.GRAPH and not attribute.ref_attr_name:
                    yield attribute.g
                    yield from below(attribute.g.node)

    yield model.graph
    yield from below(model.graph.node)
    for function in model.functions:
        yield from below(function.node)


def _graphs(graph: gs.Graph) -> Iterator[Any]:
    """The same of graphsurgeon's graphs."""

    def below(nodes: Any) -> Iterator[Any]:
        for node in nodes:
            for value in node.attrs.values() if node.attrs else ():
                if isinstance(value, gs.Graph):
                    yield value
                    yield from below(value.nodes)

    yield graph
    yield from below(graph.nodes)
    for function in graph.functions:
        yield from below(function.nodes)
