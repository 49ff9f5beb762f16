"""Types, ranks and sizes that ONNX's shape inference can't tell, from whoever can.

ONNX Runtime knows its own operators, and infers what lies behind them. A Loop carries values of the
rank they begin with, if its body keeps it. Sizes follow from what the nodes do (`sizes`).
"""

from __future__ import annotations

from typing import Any

import onnx
import onnx_graphsurgeon as gs
import onnxruntime as ort
from onnx import shape_inference
from onnx_graphsurgeon.importers.onnx_importer import get_numpy_type

from qcompiler.ir.io import to_model
from qcompiler.ir.sizes import settle_sizes
from qcompiler.ir.verifier import skeleton, without_weights
from qcompiler.protos import all_attributes
from qcompiler.session import load_soon

_LONG = 1 << 20
"""No vector of sizes has as many elements."""


def declared_names(model: onnx.ModelProto) -> frozenset[str]:
    """The names of sizes in a model, those in its subgraphs too."""
    attributes = all_attributes(model)
    inner = [each.g for each in attributes if each.type == onnx.AttributeProto.GRAPH]
    return frozenset(
        dim.dim_param
        for graph in [model.graph, *inner]
        for value in [*graph.input, *graph.output, *graph.value_info]
        for dim in value.type.tensor_type.shape.dim
        if dim.dim_param
    )


def inferred(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with the shapes that ONNX infers, and the values of shapes that it follows.

    To follow values it makes a message for each element of a vector that it may ask for, known or
    not: where there is one of millions, it only infers shapes.
    """
    plain = shape_inference.infer_shapes(model)
    graph = plain.graph
    for value in (*graph.input, *graph.value_info, *graph.output):
        sizes = value.type.tensor_type.shape.dim
        if len(sizes) == 1 and sizes[0].dim_value > _LONG:
            return plain
    if any(len(each.dims) == 1 and each.dims[0] > _LONG for each in graph.initializer):
        return plain
    return shape_inference.infer_shapes(model, data_prop=True)


def complete_shapes(graph: gs.Graph, declared: frozenset[str]) -> None:
    """State what can be known of the tensors between a graph's inputs and outputs.

    `declared`: the names of sizes in the source. ONNX's inference and its version converter make up
    others.
    """
    for node in graph.nodes:
        if node.op == "Loop":
            _loop_shapes(node)
    if unknown := _unknown(graph):
        _ask_runtime(graph, unknown)
    settle_sizes(graph, declared)


def _unknown(graph: gs.Graph) -> dict[str, Any]:
    """The tensors that nodes make and of which the type or the rank is not known, by name."""
    made = [tensor for node in graph.nodes for tensor in node.outputs if not tensor.is_empty()]
    given = {id(tensor) for tensor in graph.outputs}
    return {
        tensor.name: tensor
        for tensor in made
        if id(tensor) not in given and (tensor.shape is None or tensor.dtype is None)
    }


def _loop_shapes(node: Any) -> None:
    """The rank of what a Loop carries, and the sizes that its body keeps."""
    carried = zip(node.inputs[2:], node.attrs["body"].outputs[1:], node.outputs, strict=False)
    for begin, after, end in carried:
        if begin.shape is None or after.shape is None or end.shape is not None:
            continue
        if len(begin.shape) == len(after.shape):
            pairs = zip(begin.shape, after.shape, strict=True)
            end.shape = _named(
                end, [a if a == b and isinstance(a, int) else None for a, b in pairs]
            )


def _named(tensor: Any, sizes: list[Any]) -> list[Any]:
    """Sizes with a name of its own for each that is not known."""
    return [f"{tensor.name}.{axis}" if size is None else size for axis, size in enumerate(sizes)]


def _ask_runtime(graph: gs.Graph, unknown: dict[str, Any]) -> None:
    """What ONNX Runtime infers. It may refuse the model, which then says no more."""
    with without_weights(graph):
        model = to_model(graph)
    skeleton(model)
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in unknown)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    load_soon(options, model)
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = ort.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception:  # ONNX Runtime's errors share no other base class
        return
    for told in session.get_outputs():
        tensor = unknown.get(told.name)
        if tensor is None or not told.type.startswith("tensor("):
            continue
        kind = onnx.TensorProto.DataType.Value(told.type[len("tensor(") : -1].upper())
        tensor.dtype = get_numpy_type(kind) if tensor.dtype is None else tensor.dtype
        if tensor.shape is None and told.shape:  # empty for a scalar, and where it is not known
            tensor.shape = _named(tensor, list(told.shape))
