"""One-node models of the Linear and Embedding ops, and what comparing bits means."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from op_models import FLOAT_TYPES, narrowed, with_function

from qcompiler import ops
from qcompiler.numerics.planes import PlaneMatrix


def matrix_tensors(w: PlaneMatrix) -> dict[str, np.ndarray]:
    """The inputs that hold a matrix, in the ops' order."""
    groups = {} if w.groups is None else {"groups": w.groups}
    return {"W": w.W, **groups, "scales": w.scales}


def matrix_attributes(w: PlaneMatrix) -> dict[str, int]:
    """The attributes that describe it."""
    sizes = {} if w.groups is None else {"group_size": w.group_size}
    return {"K": w.K, "N": w.N, **sizes, "layout": ops.LINEAR_LAYOUT}


def linear_model(
    w: PlaneMatrix,
    bias: np.ndarray | None = None,
    *,
    x_scale: float | None = None,
    dtype: str = "float32",
    splits: tuple[int, int, int] | None = None,
    leading: tuple[str, ...] = ("batch", "sequence"),
) -> onnx.ModelProto:
    """A Linear node; with `x_scale` of the Static form. In bfloat16 the model converts."""
    sizes = splits or (w.N, 0, 0)
    tensors = matrix_tensors(w)
    tensors["bias"] = np.zeros(1, np.float32) if bias is None else bias
    if x_scale is not None:
        tensors["x_scale"] = np.array(x_scale, np.float32)
    op_type = ops.linear_op(w.bits, static=x_scale is not None)
    outputs = [f"Y{i}" if size else "" for i, size in enumerate(sizes)]
    attributes = matrix_attributes(w) | {"splits": list(sizes)}
    node = _node(op_type, ["X", *tensors], outputs, attributes)
    elem = FLOAT_TYPES["float32" if dtype == "bfloat16" else dtype]
    return _model(
        narrowed(node) if dtype == "bfloat16" else [node],
        ("X", elem, [*leading, w.K]),
        [(y, elem, [*leading, n]) for y, n in zip(outputs, sizes, strict=True) if y],
        tensors,
        op_type,
    )


def embedding_model(
    w: PlaneMatrix, *, ids_type: int = TensorProto.INT64, ids_shape: tuple[str, ...] = ("a", "b")
) -> onnx.ModelProto:
    """An Embedding node."""
    op_type, tensors = ops.embedding_op(w.bits), matrix_tensors(w)
    node = _node(op_type, ["ids", *tensors], ["Y"], matrix_attributes(w))
    y = ("Y", TensorProto.FLOAT, [*ids_shape, w.K])
    return _model([node], ("ids", ids_type, [*ids_shape]), [y], tensors, op_type)


def assert_same_bits(found: np.ndarray, wanted: np.ndarray) -> None:
    """Equal in type, shape and bits, but for those of NaN."""
    assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape)
    np.testing.assert_array_equal(np.isnan(found), np.isnan(wanted))
    numbers = ~np.isnan(wanted)
    kind = f"u{found.itemsize}"
    np.testing.assert_array_equal(found[numbers].view(kind), wanted[numbers].view(kind))


def _node(
    op_type: str, inputs: list[str], outputs: list[str], attributes: dict[str, Any]
) -> onnx.NodeProto:
    return helper.make_node(
        op_type, inputs, outputs, name="layer0", domain=ops.DOMAIN, **attributes
    )


def _model(
    nodes: list[onnx.NodeProto],
    given: tuple[str, int, list[Any]],
    results: list[tuple[str, int, list[Any]]],
    tensors: dict[str, np.ndarray],
    op_type: str,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info(*given)],
        [helper.make_tensor_value_info(*each) for each in results],
        [numpy_helper.from_array(value, name) for name, value in tensors.items()],
    )
    return with_function(graph, op_type)
