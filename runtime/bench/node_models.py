"""One layer as one-node models: in our op, in ONNX Runtime's own ops, and in float."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from qcompiler import ops
from qcompiler.formats import WeightFormat
from qcompiler.numerics.packing import PackedMatrix

MICROSOFT = "com.microsoft"
ZERO_POINT = 8


@dataclass(frozen=True)
class Layer:
    """A float K x N matrix and its symmetric int4 form: codes [K, N], scales [K / group, N]."""

    weights: np.ndarray
    codes: np.ndarray
    scales: np.ndarray
    group_size: int

    @classmethod
    def random(cls, K: int, N: int, group_size: int, seed: int = 0) -> Layer:
        """A random layer; K is a multiple of the group size."""
        rng = np.random.default_rng(seed)
        codes = rng.integers(0, 16, (K, N), dtype=np.uint8)
        scales = rng.uniform(0.5, 1.5, (K // group_size, N)).astype(np.float16).astype(np.float32)
        scales /= 256
        weights = np.repeat(scales, group_size, axis=0)
        weights *= codes.astype(np.float32) - ZERO_POINT
        return cls(weights, codes, scales, group_size)

    @property
    def shape(self) -> tuple[int, int]:
        """K and N."""
        return self.weights.shape[0], self.weights.shape[1]


def float_model(layer: Layer) -> bytes:
    """MatMul in float32."""
    node = helper.make_node("MatMul", ["X", "W"], ["Y"])
    return _model(layer, node, {"W": layer.weights})


def ours(layer: Layer) -> bytes:
    """MatMulW4A8, one scale a row of X."""
    K, N = layer.shape
    attributes: dict[str, Any] = {"K": K, "N": N, "group_size": layer.group_size}
    packed = PackedMatrix.pack(
        layer.codes, layer.scales, None, WeightFormat(bits=4, group_size=layer.group_size)
    )
    node = helper.make_node(
        "MatMulW4A8",
        ["X", "W", "scales", "zero_points", "bias"],
        ["Y", "", ""],
        domain=ops.DOMAIN,
        **attributes,
        splits=[N, 0, 0],
        activation_block=K,
        layout=1,
    )
    values = {
        "W": packed.W,
        "scales": packed.scales,
        "zero_points": packed.zero_points,
        "bias": np.zeros(1, np.float32),
    }
    return _model(layer, node, values)


def matmul_nbits(layer: Layer) -> bytes:
    """MatMulNBits with int8 activations, one scale a row and block of X."""
    K, N = layer.shape
    attributes: dict[str, Any] = {"K": K, "N": N, "block_size": layer.group_size}
    blocks = K // layer.group_size
    pairs = layer.codes.T.reshape(N, blocks, layer.group_size // 2, 2)
    node = helper.make_node(
        "MatMulNBits",
        ["X", "W", "scales"],
        ["Y"],
        domain=MICROSOFT,
        **attributes,
        bits=4,
        accuracy_level=4,
    )
    values = {
        "W": pairs[..., 0] | (pairs[..., 1] << np.uint8(4)),
        "scales": np.ascontiguousarray(layer.scales.T).reshape(-1),
    }
    return _model(layer, node, values)


def dynamic_quantize_matmul(layer: Layer) -> bytes:
    """DynamicQuantizeMatMul: int8 weights with a scale a column, one scale for all of X."""
    scales = np.abs(layer.weights).max(axis=0) / 127
    node = helper.make_node("DynamicQuantizeMatMul", ["X", "W", "s"], ["Y"], domain=MICROSOFT)
    values = {"W": np.rint(layer.weights / scales).astype(np.int8), "s": scales}
    return _model(layer, node, values)


def _model(layer: Layer, node: onnx.NodeProto, values: dict[str, Any]) -> bytes:
    K, N = layer.shape
    graph = helper.make_graph(
        [node],
        "node",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, ["rows", K])],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, ["rows", N])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()],
    )
    domains = {"": ops.ONNX_OPSET, MICROSOFT: 1, ops.DOMAIN: ops.OPSET_VERSION}
    model: onnx.ModelProto = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid(domain, at) for domain, at in domains.items()],
        functions=[ops.function(node.op_type)] if node.domain == ops.DOMAIN else [],
        ir_version=10,
    )
    return bytes(model.SerializeToString())
