"""Random layers in the integer form, one-node models of them, and the bits they give."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from plane_cases import make_planes
from single_node import layer_model, rounded_to_bfloat16, table_model

from qcompiler import ops
from qcompiler.numerics import reference
from qcompiler.numerics.planes import PlaneMatrix

X_SCALE = 0.02


@dataclass(frozen=True)
class LinearLayer:
    """A random layer: a packed matrix and a bias."""

    w: PlaneMatrix
    bias: np.ndarray

    def weights(self) -> dict[str, np.ndarray]:
        """The inputs that hold the matrix, in the nodes' order."""
        groups = {} if self.w.groups is None else {"groups": self.w.groups}
        return {"W": self.w.W, **groups, "scales": self.w.scales}

    def inputs(self) -> dict[str, np.ndarray]:
        return self.weights() | {"bias": self.bias}

    def attributes(self) -> dict[str, Any]:
        """Those of a lookup; a layer has splits too."""
        group = {} if self.w.groups is None else {"group_size": self.w.group_size}
        return {"K": self.w.K, "N": self.w.N, **group, "layout": ops.LINEAR_LAYOUT}

    def expected(self, X, x_scale: float | None = None, *, dtype="float32") -> np.ndarray:
        """All outputs side by side, in the type that a session gives them. None: dynamic."""
        with np.errstate(invalid="ignore"):
            return stored(reference.linear_a8(X, self.w, self.bias, x_scale=x_scale), dtype)


def stored(y: np.ndarray, dtype: str) -> np.ndarray:
    """float32 values as outputs of another type; of bfloat16, which numpy lacks, widened again."""
    if dtype == "bfloat16":
        return rounded_to_bfloat16(y)
    with np.errstate(over="ignore"):
        return y.astype(dtype)


def make_linear(
    K: int, N: int, group_size: int, *, bits: int = 4, bias: bool = True, seed: int = 0
) -> LinearLayer:
    w = make_planes(K, N, group_size, bits=bits, seed=seed)
    values = np.random.default_rng(seed).normal(size=N).astype(np.float32)
    return LinearLayer(w, values if bias else np.zeros(1, np.float32))


def linear_model(
    layer: LinearLayer,
    *,
    static: bool = False,
    splits=None,
    x_scale: float = X_SCALE,
    attributes: dict[str, Any] | None = None,
    tensors: dict[str, np.ndarray] | None = None,
    **options: Any,
) -> onnx.ModelProto:
    """A model of one Linear node; `attributes` and `tensors` override what the layer says.

    `options` are those of `layer_model`.
    """
    splits = list(splits or (layer.w.N, 0, 0))
    values = layer.inputs()
    if static:
        values["x_scale"] = np.array(x_scale, np.float32)
    return layer_model(
        ops.linear_op(layer.w.bits, static=static),
        layer.attributes() | {"splits": splits} | (attributes or {}),
        values | (tensors or {}),
        K=layer.w.K,
        splits=splits,
        **options,
    )


def embedding_model(
    layer: LinearLayer,
    *,
    attributes: dict[str, Any] | None = None,
    tensors: dict[str, np.ndarray] | None = None,
    **options: Any,
) -> onnx.ModelProto:
    """A model of one Embedding node, likewise; `options` of `table_model`."""
    return table_model(
        ops.embedding_op(layer.w.bits),
        layer.attributes() | (attributes or {}),
        layer.weights() | (tensors or {}),
        K=layer.w.K,
        **options,
    )


def assert_same(y: np.ndarray, expected: np.ndarray) -> None:
    """The very bits, but for those of a NaN."""
    assert (y.dtype, y.shape) == (expected.dtype, expected.shape)
    np.testing.assert_array_equal(y, expected)
    signs = (np.signbit(each) & ~np.isnan(each) for each in (y, expected))
    np.testing.assert_array_equal(*signs)
