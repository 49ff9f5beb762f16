"""One-node models of the Linear and Embedding ops, and the bits that they give."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from single_node import Values, layer_model, rounded_to_bfloat16, table_model

from qcompiler import ops
from qcompiler.numerics import reference
from qcompiler.numerics.planes import PlaneMatrix

X_SCALE = 0.02


def matrix_tensors(w: PlaneMatrix) -> Values:
    """The inputs that hold a matrix, in the ops' order."""
    groups = {} if w.groups is None else {"groups": w.groups}
    return {"W": w.W, **groups, "scales": w.scales}


def layer_tensors(w: PlaneMatrix, bias: np.ndarray | None, x_scale: float | None) -> Values:
    """All inputs of a Linear node but X. Without a bias one 0; with `x_scale` the Static form."""
    static = {} if x_scale is None else {"x_scale": np.array(x_scale, np.float32)}
    return matrix_tensors(w) | {"bias": np.zeros(1, np.float32) if bias is None else bias} | static


def matrix_attributes(w: PlaneMatrix) -> dict[str, Any]:
    """The attributes that describe it."""
    sizes = {} if w.groups is None else {"group_size": w.group_size}
    grid = {} if w.grid is None else {"levels": list(w.grid.levels), "zero": w.grid.zero}
    return {"K": w.K, "N": w.N, **sizes, **grid, "layout": ops.LAYOUT}


def linear_model(
    w: PlaneMatrix,
    bias: np.ndarray | None = None,
    *,
    x_scale: float | None = None,
    splits: tuple[int, int, int] | None = None,
    attributes: dict[str, Any] | None = None,
    tensors: Values | None = None,
    **options: Any,
) -> onnx.ModelProto:
    """A Linear node; with `x_scale` of the Static form.

    `attributes` and `tensors` override what these say; `options` are those of `layer_model`.
    """
    sizes = splits or (w.N, 0, 0)
    return layer_model(
        ops.linear_op(w.bits, levels=w.grid is not None, static=x_scale is not None),
        matrix_attributes(w) | {"splits": list(sizes)} | (attributes or {}),
        layer_tensors(w, bias, x_scale) | (tensors or {}),
        K=w.K,
        splits=sizes,
        **options,
    )


def embedding_model(
    w: PlaneMatrix,
    *,
    attributes: dict[str, Any] | None = None,
    tensors: Values | None = None,
    **options: Any,
) -> onnx.ModelProto:
    """An Embedding node, likewise; `options` are those of `table_model`."""
    return table_model(
        ops.embedding_op(w.bits, levels=w.grid is not None),
        matrix_attributes(w) | (attributes or {}),
        matrix_tensors(w) | (tensors or {}),
        K=w.K,
        **options,
    )


def wanted(
    x: np.ndarray,
    w: PlaneMatrix,
    bias: np.ndarray | None = None,
    x_scale: float | None = None,
    *,
    dtype: str = "float32",
) -> np.ndarray:
    """What a Linear node gives, its outputs side by side, as a session returns them."""
    with np.errstate(over="ignore", invalid="ignore"):
        none = np.zeros(1, np.float32)
        y = reference.linear_a8(x, w, none if bias is None else bias, x_scale=x_scale)
        return rounded_to_bfloat16(y) if dtype == "bfloat16" else y.astype(dtype)


def assert_same_bits(found: np.ndarray, wanted: np.ndarray) -> None:
    """Equal in type, shape and bits, but for those of NaN."""
    assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape)
    np.testing.assert_array_equal(np.isnan(found), np.isnan(wanted))
    numbers = ~np.isnan(wanted)
    kind = f"u{found.itemsize}"
    np.testing.assert_array_equal(found[numbers].view(kind), wanted[numbers].view(kind))
