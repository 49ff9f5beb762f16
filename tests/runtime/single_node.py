"""Models of one node, whatever the op, and what its results round to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from qcompiler import ops

FLOAT_TYPES = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
}

Values = dict[str, np.ndarray]


def layer_model(
    op_type: str,
    attributes: dict[str, Any],
    values: Values,
    *,
    K: int,
    splits: Sequence[int],
    dtype: str = "float32",
    outputs: Sequence[str] | None = None,
    leading: Sequence[str | int] = ("batch", "sequence"),
    as_inputs: Sequence[str] = (),
    functions: bool = True,
    name: str = "layer0",
) -> onnx.ModelProto:
    """A node that multiplies X [.., K] by weights into outputs [.., splits[i]].

    `values`: its other inputs, of which `as_inputs` are inputs of the model. Attributes that are
    None are left out.
    """
    given = {k: v for k, v in attributes.items() if v is not None}
    outputs = outputs or [f"Y{i}" if s else "" for i, s in enumerate(splits)]
    node = helper.make_node(op_type, ["X", *values], outputs, name=name, domain=ops.DOMAIN, **given)
    # numpy has no bfloat16: the model converts
    nodes = narrowed(node) if dtype == "bfloat16" else [node]
    elem = FLOAT_TYPES["float32" if dtype == "bfloat16" else dtype]
    return _model(
        op_type,
        nodes,
        [
            helper.make_tensor_value_info("X", elem, [*leading, K]),
            *(_value_info(v, values[v]) for v in as_inputs),
        ],
        [
            helper.make_tensor_value_info(o, elem, [*leading, s])
            for o, s in zip(outputs, splits, strict=True)
            if o
        ],
        {k: v for k, v in values.items() if k not in as_inputs},
        functions=functions,
    )


def table_model(
    op_type: str,
    attributes: dict[str, Any],
    values: Values,
    *,
    K: int,
    ids_type: str = "int64",
    ids_shape: Sequence[str | int] = ("batch", "sequence"),
    functions: bool = True,
) -> onnx.ModelProto:
    """A node that looks up rows of K values; `values`: its inputs besides ids."""
    node = helper.make_node(
        op_type, ["ids", *values], ["Y"], name="embed", domain=ops.DOMAIN, **attributes
    )
    elem = TensorProto.INT64 if ids_type == "int64" else TensorProto.INT32
    return _model(
        op_type,
        [node],
        [helper.make_tensor_value_info("ids", elem, list(ids_shape))],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, [*ids_shape, K])],
        values,
        functions=functions,
    )


def narrowed(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """The node with X and its results in bfloat16, between Casts from and to float32."""
    x, results = node.input[0], [name for name in node.output if name]
    node.input[0] = f"{x}_narrow"
    node.output[:] = [f"{name}_narrow" if name else "" for name in node.output]
    return [
        helper.make_node("Cast", [x], [node.input[0]], to=TensorProto.BFLOAT16),
        node,
        *(
            helper.make_node("Cast", [f"{name}_narrow"], [name], to=TensorProto.FLOAT)
            for name in results
        ),
    ]


def _value_info(name: str, value: np.ndarray) -> onnx.ValueInfoProto:
    """An input like `value`, of any size."""
    elem = helper.np_dtype_to_tensor_dtype(value.dtype)
    return helper.make_tensor_value_info(name, elem, [f"{name}_{i}" for i in range(np.ndim(value))])


def _model(op_type, nodes, inputs, outputs, initializers, *, functions) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "test",
        inputs,
        outputs,
        [numpy_helper.from_array(np.asarray(v), k) for k, v in initializers.items()],
    )
    return with_function(graph, op_type if functions else None)


def with_function(graph: onnx.GraphProto, op_type: str | None, **domains: int) -> onnx.ModelProto:
    """A model that brings the function of one of our ops. `domains`: more of them, by version."""
    versions = {"": ops.ONNX_OPSET, ops.DOMAIN: ops.OPSET_VERSION} | domains
    return helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid(*each) for each in versions.items()],
        functions=[ops.function(op_type)] if op_type else [],
        ir_version=10,
    )


def rounded_to_bfloat16(x: np.ndarray) -> np.ndarray:
    """To nearest, ties to even; NaN stays."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000
    return np.where(np.isnan(x), x, rounded.astype(np.uint32).view(np.float32)).astype(np.float32)
