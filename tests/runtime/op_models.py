"""Random layers in packed form, and one-node models of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from single_node import layer_model, table_model

from qcompiler import ops
from qcompiler.formats import WeightFormat
from qcompiler.numerics import reference
from qcompiler.numerics.packing import PackedMatrix

BITS = ops.WIDTHS
GROUPS = (32, 64, 128, 256)

X_SCALE = 0.02
ACTIVATIONS = ("row", "group", "static")

# What a result stored in a narrower type adds to its relative error.
ROUNDING = {"float32": 0.0, "float16": 2.0**-10, "bfloat16": 2.0**-7}


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
    splits=None,
    x_scale: float = X_SCALE,
    attributes: dict[str, Any] | None = None,
    tensors: dict[str, np.ndarray] | None = None,
    **options: Any,
) -> onnx.ModelProto:
    """A model of one MatMul node; `attributes` and `tensors` override what the layer says.

    `options` are those of `layer_model`.
    """
    static = activation == "static"
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
    return layer_model(
        ops.matmul_op(layer.w.form.bits, static=static),
        attrs,
        values | (tensors or {}),
        K=layer.w.K,
        splits=splits,
        **options,
    )


def gather_model(
    layer: Layer,
    *,
    attributes: dict[str, Any] | None = None,
    tensors: dict[str, np.ndarray] | None = None,
    **options: Any,
) -> onnx.ModelProto:
    """A model of one Gather node, likewise; `options` of `table_model`."""
    attrs = {"K": layer.w.K, "N": layer.w.N, "group_size": layer.w.form.group_size, "layout": 1}
    attrs |= attributes or {}
    values = {k: v for k, v in layer.inputs().items() if k != "bias"} | (tensors or {})
    return table_model(ops.gather_op(layer.w.form.bits), attrs, values, K=layer.w.K, **options)


def assert_close(y, expected, tolerance, dtype="float32") -> None:
    """NaN where expected, else within tolerance and the rounding of dtype."""
    assert y.shape == expected.shape
    np.testing.assert_array_equal(np.isnan(y), np.isnan(expected))
    excess = np.abs(np.nan_to_num(y - expected)) - tolerance
    excess -= ROUNDING[dtype] * np.abs(np.nan_to_num(expected))
    assert excess.size == 0 or excess.max() <= 0, f"off by {excess.max():.3g} beyond the tolerance"
