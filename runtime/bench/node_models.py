"""One layer as one-node models: in our op, in ONNX Runtime's own ops, and in float."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from qcompiler import ops, targets
from qcompiler.formats import LayerPlan, WeightFormat
from qcompiler.numerics import nbits
from qcompiler.numerics.planes import PlaneMatrix, most_multiple
from qcompiler.numerics.rounding import QuantizedWeight

MICROSOFT = "com.microsoft"


@dataclass(frozen=True)
class Layer:
    """A random K x N matrix that every contender holds as it is: w = (code - middle) * m * scale.

    codes uint8 [K, N]; multiples m uint8 [G, N]; scales float32 [N].
    """

    form: WeightFormat
    """Symmetric. Groups of 8 bits are MatMulNBits's alone."""
    codes: NDArray[np.uint8]
    multiples: NDArray[np.uint8]
    scales: NDArray[np.float32]

    @classmethod
    def random(cls, K: int, N: int, form: WeightFormat) -> Layer:
        """K is a multiple of the group size."""
        rng = np.random.default_rng(0)
        # Without code 0, of which 8 bits would make -128.
        most = min(most_multiple(form.bits), 127 // (form.middle - 1))
        multiples = rng.integers(1, most + 1, (K // form.group_size, N), dtype=np.uint8)
        return cls(
            form,
            rng.integers(1, form.top + 1, (K, N), dtype=np.uint8),
            multiples,
            rng.uniform(0.5, 1.5, N).astype(np.float32) / 1024,
        )

    def planes(self) -> PlaneMatrix:
        """In the integer form."""
        form = self.form
        if form.bits == 8:
            return PlaneMatrix.of_int8(
                (self.codes ^ np.uint8(form.middle)).view(np.int8), self.scales
            )
        zero_points = np.full_like(self.multiples, form.middle)
        return PlaneMatrix.pack(
            self.codes,
            zero_points,
            self.multiples,
            self.scales,
            bits=form.bits,
            group_size=form.group_size,
        )


def float_model(layer: Layer) -> bytes:
    """MatMul in float32."""
    node = helper.make_node("MatMul", ["X", "W"], ["Y"])
    return _model(layer, node, {"W": layer.planes().dequantized()})


def ours(layer: Layer) -> bytes:
    """LinearW{bits}A8, one scale a row of X."""
    planes = layer.planes()
    grouped = planes.groups is not None
    values = {
        "W": planes.W,
        **({"groups": planes.groups} if grouped else {}),
        "scales": planes.scales,
        "bias": np.zeros(1, np.float32),
    }
    attributes: dict[str, Any] = {"group_size": planes.group_size} if grouped else {}
    node = helper.make_node(
        ops.linear_op(planes.bits),
        ["X", *values],
        ["Y", "", ""],
        domain=ops.DOMAIN,
        **attributes,
        K=planes.K,
        N=planes.N,
        splits=[planes.N, 0, 0],
        layout=ops.LAYOUT,
    )
    return _model(layer, node, values)


def has_matmul_nbits(form: WeightFormat) -> bool:
    """Whether this ONNX Runtime has kernels of MatMulNBits for such weights."""
    return targets.get("ort-contrib").accepts(LayerPlan(weight=form)) is None


def matmul_nbits(layer: Layer) -> bytes:
    """MatMulNBits with int8 activations, one scale a row and block of X."""
    form = layer.form
    K, N = layer.codes.shape
    node = helper.make_node(
        "MatMulNBits",
        ["X", "W", "scales"],
        ["Y"],
        domain=MICROSOFT,
        K=K,
        N=N,
        bits=form.bits,
        block_size=form.group_size,
        accuracy_level=4,
    )
    scales = layer.multiples * layer.scales
    W, scales = nbits.pack(QuantizedWeight(layer.codes, scales, None, form))
    return _model(layer, node, {"W": W, "scales": scales})


def dynamic_quantize_matmul(layer: Layer) -> bytes:
    """DynamicQuantizeMatMul: int8 weights with a scale a column, one scale for all of X."""
    node = helper.make_node("DynamicQuantizeMatMul", ["X", "W", "s"], ["Y"], domain=MICROSOFT)
    return _model(layer, node, {"W": layer.planes().weights(), "s": layer.scales})


def _model(layer: Layer, node: onnx.NodeProto, values: dict[str, Any]) -> bytes:
    K, N = layer.codes.shape
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
