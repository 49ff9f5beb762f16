"""Random layers in packed form, and one-node models of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from qcompiler import ops
from qcompiler.formats import WeightFormat
from qcompiler.numerics import reference
from qcompiler.numerics.packing import PackedMatrix

BITS = ops.WIDTHS

X_SCALE = 0.02
ACTIVATIONS = ("row", "group", "static")

# What a result stored in a narrower type adds to its relative error.
ROUNDING = {"float32": 0.0, "float16": 2.0**-10, "bfloat16": 2.0**-7}

FLOAT_TYPES = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
}


@dataclass(frozen=True)
class Layer:
    """A random layer: a packed matrix and a bias."""

    w: PackedMatrix
    bias: np.ndarray

    def inputs(self) -> dict[str, np.ndarray]:
        return {
            "W": self.w.W,
            "scales": self.w.scales,
            "zero_points": self.w.zero_points,
            "bias": self.bias,
        }

    def quantize(self, X, activation: str, x_scale: float = X_SCALE):
        """The quantized rows of X under 'row', 'group' or 'static' activations."""
        rows = X.reshape(-1, self.w.K)
        if activation == "static":
            return reference.quantize_activations(rows, self.w.K, x_scale)
        return reference.quantize_activations(rows, self.block(activation))

    def block(self, activation: str) -> int:
        return self.w.form.group_size if activation == "group" else self.w.K

    def expected(self, X, activation: str, x_scale: float = X_SCALE) -> np.ndarray:
        if activation == "static":
            return reference.matmul_a8_static(X, self.w, self.bias, x_scale=x_scale)
        return reference.matmul_a8(X, self.w, self.bias, activation_block=self.block(activation))

    def tolerance(self, X, activation: str, x_scale: float = X_SCALE) -> np.ndarray:
        """1e-5 of the sum of the terms' magnitudes: what float32 summation may be off by."""
        a = np.abs(np.nan_to_num(self.quantize(X, activation, x_scale).dequantized()))
        terms = a @ np.abs(self.w.dequantized()) + np.abs(self.bias)
        return 1e-5 * terms.reshape(*X.shape[:-1], self.w.N) + 1e-30


def make_layer(
    K: int, N: int, group_size: int, *, bits=4, symmetric=True, bias=True, seed=0
) -> Layer:
    rng = np.random.default_rng(seed + 7919 * K + 104729 * N)
    form = WeightFormat(bits=bits, group_size=group_size, symmetric=symmetric)
    groups = form.groups(K)
    codes = rng.integers(0, 1 << bits, (K, N), dtype=np.uint8)
    zp = None if symmetric else rng.integers(0, 1 << bits, (groups, N), dtype=np.uint8)
    scales = rng.uniform(0.5, 1.5, (groups, N)) / (form.middle * np.sqrt(K))
    return Layer(
        PackedMatrix.pack(codes, scales, zp, form),
        rng.normal(size=N).astype(np.float32) if bias else np.zeros(1, np.float32),
    )


def extreme_problem(bits, zero_point: str | None) -> tuple[PackedMatrix, np.ndarray]:
    """A matrix of the least and greatest codes, all scales 1, and int8 rows of ±127.

    `zero_point`: None for symmetric weights, "lowest", "highest" or "mixed".
    """
    top, k, n, group = (1 << bits) - 1, 512, 20, 256
    rng = np.random.default_rng(0)
    codes = rng.choice(np.array([0, top], np.uint8), (k, n))
    codes[:, 0], codes[:, 1] = 0, top
    zero_points = {
        None: None,
        "lowest": np.zeros((2, n), np.uint8),
        "highest": np.full((2, n), top, np.uint8),
        "mixed": rng.integers(0, top + 1, (2, n), dtype=np.uint8),
    }[zero_point]
    ones = np.ones((2, n), np.float16)
    q = rng.choice(np.array([-127, 127], np.int8), (8, k))
    q[0], q[1] = 127, -127
    form = WeightFormat(bits=bits, group_size=group, symmetric=zero_points is None)
    return PackedMatrix.pack(codes, ones, zero_points, form), q


def matmul_model(
    layer: Layer,
    activation: str,
    *,
    dtype="float32",
    splits=None,
    outputs=None,
    leading=("batch", "sequence"),
    x_scale: float = X_SCALE,
    attributes: dict[str, Any] | None = None,
    tensors: dict[str, np.ndarray] | None = None,
    as_inputs: tuple[str, ...] = (),
    functions: bool = True,
    name: str = "layer0",
) -> onnx.ModelProto:
    """A model of one MatMul node; `attributes` and `tensors` override what the layer says."""
    static = activation == "static"
    op_type = ops.matmul_op(layer.w.form.bits, static=static)
    splits = list(splits or (layer.w.N, 0, 0))
    attrs: dict[str, Any] = {
        "K": layer.w.K,
        "N": layer.w.N,
        "splits": splits,
        "group_size": layer.w.form.group_size,
        "layout": 1,
    }
    values = layer.inputs()
    if static:
        values["x_scale"] = np.float32(x_scale)
    else:
        attrs["activation_block"] = layer.block(activation)
    attrs |= attributes or {}
    attrs = {k: v for k, v in attrs.items() if v is not None}
    values |= tensors or {}
    outputs = outputs or [f"Y{i}" if s else "" for i, s in enumerate(splits)]
    node = helper.make_node(op_type, ["X", *values], outputs, name=name, domain=ops.DOMAIN, **attrs)
    # numpy has no bfloat16: the model converts
    nodes = narrowed(node) if dtype == "bfloat16" else [node]
    elem = FLOAT_TYPES["float32" if dtype == "bfloat16" else dtype]
    return _model(
        op_type,
        nodes,
        [
            helper.make_tensor_value_info("X", elem, [*leading, layer.w.K]),
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


def gather_model(
    layer: Layer,
    *,
    ids_type="int64",
    ids_shape=("batch", "sequence"),
    attributes: dict[str, Any] | None = None,
    tensors: dict[str, np.ndarray] | None = None,
    functions: bool = True,
) -> onnx.ModelProto:
    attrs = {"K": layer.w.K, "N": layer.w.N, "group_size": layer.w.form.group_size, "layout": 1}
    attrs |= attributes or {}
    values = {k: v for k, v in layer.inputs().items() if k != "bias"} | (tensors or {})
    op_type = ops.gather_op(layer.w.form.bits)
    node = helper.make_node(
        op_type, ["ids", *values], ["Y"], name="embed", domain=ops.DOMAIN, **attrs
    )
    elem = TensorProto.INT64 if ids_type == "int64" else TensorProto.INT32
    return _model(
        op_type,
        [node],
        [helper.make_tensor_value_info("ids", elem, list(ids_shape))],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, [*ids_shape, layer.w.K])],
        values,
        functions=functions,
    )


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


def assert_close(y, expected, tolerance, dtype="float32") -> None:
    """NaN where expected, else within tolerance and the rounding of dtype."""
    assert y.shape == expected.shape
    np.testing.assert_array_equal(np.isnan(y), np.isnan(expected))
    excess = np.abs(np.nan_to_num(y - expected)) - tolerance
    excess -= ROUNDING[dtype] * np.abs(np.nan_to_num(expected))
    assert excess.size == 0 or excess.max() <= 0, f"off by {excess.max():.3g} beyond the tolerance"
