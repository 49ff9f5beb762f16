"""Checks that a graph is a valid model: our own structural rules, then ONNX's checker.

Weights are not needed for that: large initializers become graph inputs first, so a check takes
a fraction of a second however large the model.
"""

from __future__ import annotations

import contextlib
from collections import ChainMap
from collections.abc import Generator
from typing import Any

import onnx
import onnx_graphsurgeon as gs
from onnx import checker, shape_inference
from onnx_graphsurgeon.ir.tensor import LazyValues

from qcompiler import ops
from qcompiler.errors import PassError
from qcompiler.ir.graph import elem_type
from qcompiler.ir.io import to_model
from qcompiler.ir.order import topological
from qcompiler.ir.tensors import MappedValues, nbytes
from qcompiler.ir.walk import tensors_of
from qcompiler.protos import nodes_below

SKELETON_BYTES = 1024
"""Initializers above this size are replaced by inputs in a skeleton."""

_CONTRIB = frozenset(
    {
        "SimplifiedLayerNormalization",
        "SkipLayerNormalization",
        "SkipSimplifiedLayerNormalization",
    }
)
"""Operators that ONNX Runtime also accepts in the default domain, unknown to ONNX's checker."""


def verify(graph: gs.Graph) -> None:
    """Check that the graph is valid ONNX; PassError names the node and the cause."""
    _check_structure(graph, ChainMap())
    with without_weights(graph):
        model = to_model(graph)
    check_model(model)


@contextlib.contextmanager
def without_weights(graph: gs.Graph) -> Generator[None, None, None]:
    """Large in-memory constants become references, so that exporting copies no weights."""
    saved: list[tuple[gs.Constant, Any]] = []
    try:
        for tensor in tensors_of(graph).values():
            if not isinstance(tensor, gs.Constant) or nbytes(tensor) <= SKELETON_BYTES:
                continue
            values = tensor._values
            if isinstance(values, MappedValues):
                continue
            proto = onnx.TensorProto(name=tensor.name, data_type=elem_type(tensor))
            proto.dims.extend(tensor.shape)
            proto.data_location = onnx.TensorProto.EXTERNAL
            proto.external_data.add(key="location", value="skeleton")
            saved.append((tensor, values))
            tensor._values = LazyValues(proto)
        yield
    finally:
        for tensor, values in saved:
            tensor._values = values


def check_model(model: onnx.ModelProto) -> None:
    """ONNX's checker and shape inference on a model, which becomes a skeleton; PassError if it is
    invalid.
    """
    skeleton(model)
    _hide_contrib(model)
    try:
        with _some_rank(model):
            checker.check_model(model)
        shape_inference.infer_shapes(model, check_type=True, strict_mode=False)
    except (checker.ValidationError, shape_inference.InferenceError) as error:
        cause = " ".join(str(error).split())
        raise PassError(f"the graph is not valid ONNX: {cause}") from None


@contextlib.contextmanager
def _some_rank(model: onnx.ModelProto) -> Generator[None, None, None]:
    """Inputs and outputs of unknown rank, which ONNX Runtime takes and the checker does not."""
    values = [*model.graph.input, *model.graph.output]
    kinds = [value.type.tensor_type for value in values if value.type.HasField("tensor_type")]
    open_kinds = [kind for kind in kinds if not kind.HasField("shape")]
    for kind in open_kinds:
        kind.shape.SetInParent()
    yield
    for kind in open_kinds:
        kind.ClearField("shape")


def skeleton(model: onnx.ModelProto, above: int = SKELETON_BYTES) -> None:
    """Make graph inputs of a model's large initializers (over `above` bytes, or external)."""
    graph = model.graph
    graph.name = graph.name or "graph"
    declared = {entry.name for entry in graph.input}
    small: list[onnx.TensorProto] = []
    for tensor in graph.initializer:
        if tensor.data_location != onnx.TensorProto.EXTERNAL and tensor.ByteSize() <= above:
            small.append(tensor)
        elif tensor.name not in declared:
            kind, dims = tensor.data_type, tensor.dims
            graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, kind, dims))
    if len(small) < len(graph.initializer):
        del graph.initializer[:]
        graph.initializer.extend(small)
    _drop_external(graph)


def _drop_external(graph: onnx.GraphProto) -> None:
    """Subgraphs and attributes may hold external tensors too: empty stand-ins take their place."""
    for node in graph.node:
        for attribute in node.attribute or ():
            if attribute.type == onnx.AttributeProto.TENSOR:
                _stand_in(attribute.t)
            elif attribute.type == onnx.AttributeProto.GRAPH:
                for tensor in attribute.g.initializer:
                    _stand_in(tensor)
                _drop_external(attribute.g)


def _stand_in(tensor: onnx.TensorProto) -> None:
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        size = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        for dim in tensor.dims:
            size *= dim
        del tensor.external_data[:]
        tensor.data_location = onnx.TensorProto.DEFAULT
        tensor.raw_data = bytes(size)


def _hide_contrib(model: onnx.ModelProto) -> None:
    moved = False
    for node in nodes_below(model.graph.node):
        if node.domain in ("", "ai.onnx") and node.op_type in _CONTRIB:
            node.domain = ops.CONTRIB_DOMAIN
            moved = True
    if moved and not any(entry.domain == ops.CONTRIB_DOMAIN for entry in model.opset_import):
        model.opset_import.append(onnx.helper.make_opsetid(ops.CONTRIB_DOMAIN, 1))


_Known = ChainMap[str, Any]
"""Tensors by name: of the graphs around one, the nearest first."""


def _check_structure(graph: gs.Graph, outside: _Known) -> None:
    _check_node_names(graph)
    made: dict[str, Any] = {}
    for tensor in graph.inputs:
        _declare(made, tensor, "graph input")
    for node in graph.nodes:
        for tensor in node.outputs:
            if tensor.name:
                if tensor.name in made or isinstance(tensor, gs.Constant):
                    _refuse_output(made, tensor, node)
                made[tensor.name] = tensor
    for node in graph.nodes:
        for tensor in node.inputs:
            if made.get(tensor.name) is not tensor:
                _check_read(made, tensor, f"{_label(node)} reads", outside)
    for tensor in graph.outputs:
        _check_read(made, tensor, "the graph gives out", outside)
    known = outside.new_child(made)
    for node in graph.nodes:
        for value in node.attrs.values() if node.attrs else ():
            if isinstance(value, gs.Graph):
                _check_structure(value, known)
    topological(graph)


def _refuse_output(made: dict[str, Any], tensor: Any, node: gs.Node) -> None:
    _declare(made, tensor, f"output of {_label(node)}")
    raise PassError(f"{_label(node)} writes the initializer '{tensor.name}'")


def _check_node_names(graph: gs.Graph) -> None:
    seen: set[str] = set()
    for node in graph.nodes:
        if node.name and node.name in seen:
            raise PassError(f"two nodes are named '{node.name}'")
        seen.add(node.name)


def _declare(made: dict[str, Any], tensor: Any, what: str) -> None:
    if tensor.name in made:
        raise PassError(f"two tensors are named '{tensor.name}' (one is an {what})")
    made[tensor.name] = tensor


def _check_read(made: dict[str, Any], tensor: Any, what: str, outside: _Known) -> None:
    if tensor.is_empty():
        return
    known = made.get(tensor.name)
    if known is None:
        if isinstance(tensor, gs.Constant):
            made[tensor.name] = tensor
        elif tensor.name not in outside:
            raise PassError(f"{what} '{tensor.name}', which nothing computes")
    elif known is not tensor:
        raise PassError(f"{what} a second tensor named '{tensor.name}'")


def _label(node: gs.Node) -> str:
    return f"node '{node.name}' ({node.op})"
