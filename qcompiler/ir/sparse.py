"""Sparse tensors become dense ones when a model is read: no pass has to know them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from qcompiler.errors import ModelError
from qcompiler.ir.tensors import MappedValues
from qcompiler.ir.walk import proto_graphs


def without_sparse(model: onnx.ModelProto, folder: str = "") -> onnx.ModelProto:
    """The model with its sparse initializers and constants dense; itself where it has none."""
    if not any(_is_sparse(graph) for graph in proto_graphs(model.graph)):
        return model
    dense = onnx.ModelProto()
    dense.CopyFrom(model)
    for graph in proto_graphs(dense.graph):
        graph.initializer.extend(_dense(sparse, folder) for sparse in graph.sparse_initializer)
        del graph.sparse_initializer[:]
        for attribute in _constants(graph.node):
            tensor = _dense(attribute.sparse_tensor, folder)
            attribute.CopyFrom(onnx.helper.make_attribute("value", tensor))
    return dense


def _dense(sparse: onnx.SparseTensorProto, folder: str) -> onnx.TensorProto:
    values, indices = _read(sparse.values, folder), _read(sparse.indices, folder)
    dense = np.zeros(tuple(sparse.dims), values.dtype)
    flat = indices.ndim == 1  # positions in the flattened tensor
    if ((indices < 0) | (indices >= (dense.size if flat else dense.shape))).any():
        raise ModelError(
            f"sparse tensor '{sparse.values.name}' has values outside its shape "
            f"{list(dense.shape)}; export the model again"
        )
    if flat:
        dense.reshape(-1)[indices] = values
    else:
        dense[tuple(indices.T)] = values
    return numpy_helper.from_array(dense, sparse.values.name)


def _read(tensor: onnx.TensorProto, folder: str) -> np.ndarray[Any, Any]:
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        return MappedValues(tensor, Path(folder)).load()
    return numpy_helper.to_array(tensor)


def _is_sparse(graph: onnx.GraphProto) -> bool:
    return bool(graph.sparse_initializer) or any(True for _ in _constants(graph.node))


def _constants(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.AttributeProto]:
    """The values of the Constant nodes that are sparse."""
    for node in nodes:
        if node.op_type == "Constant":
            for attribute in node.attribute:
                if attribute.type == onnx.AttributeProto.SPARSE_TENSOR:
                    yield attribute
