"""graphsurgeon's tensors and nodes, made at once: in large graphs its constructors take longest.

They look at every attribute that they set, and tell both ends of an edge of it one by one.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any, cast

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.importers.onnx_importer import OnnxImporter, get_numpy_type
from onnx_graphsurgeon.util.misc import SynchronizedList

from qcompiler.ir.walk import graphs, tensors_of

_put = object.__setattr__


def variable(name: str, dtype: Any = None, shape: list[Any] | None = None) -> gs.Variable:
    """A tensor that nodes compute; `shape` as graphsurgeon has it."""
    made = gs.Variable.__new__(gs.Variable)
    _put(made, "name", name)
    _put(made, "inputs", _ends(made, "outputs"))
    _put(made, "outputs", _ends(made, "inputs"))
    _put(made, "dtype", dtype)
    _put(made, "shape", shape)
    _put(made, "type", "tensor_type")
    return made


def described(value: onnx.ValueInfoProto) -> Any:
    """The tensor that a message describes."""
    if not value.type.HasField("tensor_type"):
        return OnnxImporter.import_tensor(value)
    kind = value.type.tensor_type
    dtype = _numpy_type(kind.elem_type)
    if dtype is None:  # graphsurgeon says so
        return OnnxImporter.import_tensor(value)
    shape = [_size(dim) for dim in kind.shape.dim] if kind.HasField("shape") else None
    return variable(value.name, dtype, shape)


@cache
def _numpy_type(kind: int) -> np.dtype[Any] | None:
    found: Any = get_numpy_type(kind)
    return found


def _size(dim: onnx.TensorShapeProto.Dimension) -> int | str | None:
    if dim.HasField("dim_value"):
        return dim.dim_value
    return dim.dim_param if dim.HasField("dim_param") else None


def node(
    op: str,
    name: str,
    attrs: dict[str, Any],
    inputs: Iterable[Any],
    outputs: Iterable[Any],
    domain: str | None,
) -> gs.Node:
    """A node between its tensors, which know of it."""
    made = gs.Node.__new__(gs.Node)
    _put(made, "op", op)
    _put(made, "name", name)
    _put(made, "attrs", attrs)
    _put(made, "inputs", _ends(made, "outputs", inputs))
    _put(made, "outputs", _ends(made, "inputs", outputs))
    _put(made, "domain", domain)
    for tensor in made.inputs:
        list.append(tensor.outputs, made)
    for tensor in made.outputs:
        list.append(tensor.inputs, made)
    return made


def copied(graph: gs.Graph) -> gs.Graph:
    """A copy of a graph with nodes and tensors of its own, as graphsurgeon's: constants share
    their values.
    """
    if len(graphs(graph)) > 1:  # bodies read tensors of the graphs around them
        return graph.copy()
    tensors = {name: _copied(tensor) for name, tensor in tensors_of(graph).items()}

    def ends(of: Iterable[Any]) -> list[Any]:
        return [tensors[each.name] if each.name else variable("") for each in of]

    made = gs.Graph(
        inputs=ends(graph.inputs),
        outputs=ends(graph.outputs),
        name=graph.name,
        doc_string=graph.doc_string,
        opset=graph.opset,
        import_domains=graph.import_domains,
        functions=graph.functions,
        ir_version=graph.ir_version,
    )
    made.nodes = [
        node(
            each.op,
            each.name,
            dict(each.attrs),
            ends(each.inputs),
            ends(each.outputs),
            cast("str | None", each.domain),
        )
        for each in graph.nodes
    ]
    return made


def _copied(tensor: Any) -> Any:
    if type(tensor) is gs.Variable:
        plain: Any = tensor
        return variable(plain.name, plain.dtype, plain.shape)
    return tensor.copy()


def _ends(owner: Any, field: str, items: Iterable[Any] = ()) -> Any:
    """A list of graphsurgeon's whose items have `owner` in their list `field`, or soon will."""
    made: Any = SynchronizedList.__new__(SynchronizedList)
    made.parent_obj = owner
    made.field_name = field
    list.extend(made, items)
    return made
