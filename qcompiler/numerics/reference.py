"""What each ``ai.qcompiler`` op computes, in numpy, on packed inputs: the yardstick of the kernels.

Integer parts are exact. Sums over groups and the bias are done in float64 here, so that a float32
implementation is compared with the true value and not with another rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qcompiler.numerics.packing import (
    Bits,
    U8Array,
    ceil_div,
    unpack_groups,
    unpack_w4,
    unpack_w8,
)

F32Array = npt.NDArray[np.float32]
Array = npt.NDArray[np.generic]

_UNPACK: dict[int, Callable[[U8Array, int, int], U8Array]] = {4: unpack_w4, 8: unpack_w8}


@dataclass(frozen=True)
class QuantizedActivations:
    """Rows of X as int8 codes: x ≈ codes · scales of their block.

    codes: int8 [M, K] in -127 .. 127. scales: float32 [M, ceil(K / block)]. A row that held a
    non-finite value has codes 0 and scales NaN.
    """

    codes: npt.NDArray[np.int8]
    scales: F32Array
    block: int

    def dequantized(self) -> F32Array:
        """float32 [M, K]."""
        k = self.codes.shape[1]
        return self.codes * np.repeat(self.scales, self.block, axis=1)[:, :k]


def quantize_activations(X: Array, block: int, scale: float | None = None) -> QuantizedActivations:
    """Symmetric int8 quantization of the rows of X, float [M, K].

    Dynamic (`scale` None): one scale for each row and `block` values, max(|x|) / 127, or 1 where
    that is 0. Static: `scale` everywhere. Codes are clip(round_half_even(x / scale), ±127), with
    float32 division as ONNX QuantizeLinear does it.
    """
    x = X.astype(np.float32)
    m, k = x.shape
    blocks = ceil_div(k, block)
    finite = np.isfinite(x).all(axis=1)
    x = np.where(finite[:, None], x, np.float32(0))
    padded = np.zeros((m, blocks * block), dtype=np.float32)
    padded[:, :k] = x
    padded = padded.reshape(m, blocks, block)
    if scale is None:
        scales = np.abs(padded).max(axis=2) / np.float32(127)
        scales[scales == 0] = 1
    else:
        scales = np.full((m, blocks), scale, dtype=np.float32)
    codes = np.clip(np.rint(padded / scales[:, :, None]), -127, 127).astype(np.int8)
    scales[~finite] = np.nan
    return QuantizedActivations(codes.reshape(m, blocks * block)[:, :k], scales, block)


def integer_dots(
    codes: npt.NDArray[np.int8],
    W: U8Array,
    zero_points: U8Array,
    *,
    bits: Bits,
    N: int,
    group_size: int,
) -> npt.NDArray[np.int64]:
    """The exact sums of code · (weight code - zero point) in each group: int64 [M, G, N]."""
    m, k = codes.shape
    groups = ceil_div(k, group_size)
    q = np.zeros((m, groups * group_size), dtype=np.float64)
    q[:, :k] = codes
    w = np.zeros((groups * group_size, N), dtype=np.float64)
    w[:k] = _centered(W, zero_points, bits, k, N, group_size)
    dots = np.matmul(  # float64 holds these integers exactly, and runs on BLAS
        q.reshape(m, groups, group_size).transpose(1, 0, 2),
        w.reshape(groups, group_size, N),
    )
    return dots.transpose(1, 0, 2).astype(np.int64)


def dequantize_weights(
    W: U8Array,
    scales: npt.NDArray[np.float16],
    zero_points: U8Array,
    *,
    bits: Bits,
    K: int,
    N: int,
    group_size: int,
) -> F32Array:
    """The float matrix that the packed inputs stand for: float32 [K, N]."""
    s = np.repeat(unpack_groups(scales, N).astype(np.float32), group_size, axis=0)[:K]
    return (_centered(W, zero_points, bits, K, N, group_size) * s).astype(np.float32)


def matmul_w4a8(
    X: Array,
    W: U8Array,
    scales: npt.NDArray[np.float16],
    zero_points: U8Array,
    bias: F32Array,
    *,
    N: int,
    group_size: int,
    activation_block: int,
) -> F32Array:
    """``MatMulW4A8`` before the split: X [..., K] -> float32 [..., N]."""
    a = quantize_activations(_rows(X), activation_block)
    return _matmul(X, a, W, scales, zero_points, bias, 4, N, group_size)


def matmul_w4a8_static(
    X: Array,
    W: U8Array,
    scales: npt.NDArray[np.float16],
    zero_points: U8Array,
    bias: F32Array,
    x_scale: float,
    *,
    N: int,
    group_size: int,
) -> F32Array:
    """``MatMulW4A8Static`` before the split: X [..., K] -> float32 [..., N]."""
    a = quantize_activations(_rows(X), X.shape[-1], x_scale)
    return _matmul(X, a, W, scales, zero_points, bias, 4, N, group_size)


def matmul_w8a8(
    X: Array,
    W: U8Array,
    scales: npt.NDArray[np.float16],
    zero_points: U8Array,
    bias: F32Array,
    *,
    N: int,
    group_size: int,
    activation_block: int,
) -> F32Array:
    """``MatMulW8A8`` before the split: X [..., K] -> float32 [..., N]."""
    a = quantize_activations(_rows(X), activation_block)
    return _matmul(X, a, W, scales, zero_points, bias, 8, N, group_size)


def matmul_w8a8_static(
    X: Array,
    W: U8Array,
    scales: npt.NDArray[np.float16],
    zero_points: U8Array,
    bias: F32Array,
    x_scale: float,
    *,
    N: int,
    group_size: int,
) -> F32Array:
    """``MatMulW8A8Static`` before the split: X [..., K] -> float32 [..., N]."""
    a = quantize_activations(_rows(X), X.shape[-1], x_scale)
    return _matmul(X, a, W, scales, zero_points, bias, 8, N, group_size)


def gather_w8(
    ids: npt.NDArray[np.integer],
    W: U8Array,
    scales: npt.NDArray[np.float16],
    zero_points: U8Array,
    *,
    K: int,
    N: int,
    group_size: int,
) -> F32Array:
    """``GatherW8``: the dequantized columns `ids` of the K x N matrix, float32 [ids.shape..., K].

    Raises IndexError for an id outside -N .. N-1.
    """
    table = dequantize_weights(W, scales, zero_points, bits=8, K=K, N=N, group_size=group_size)
    return table.T[ids]


def _rows(X: Array) -> Array:
    k = X.shape[-1]
    return X.reshape(X.size // k, k)


def _centered(
    W: U8Array, zero_points: U8Array, bits: Bits, K: int, N: int, group_size: int
) -> npt.NDArray[np.int16]:
    """Weight codes less their zero points: int16 [K, N]."""
    codes = _UNPACK[bits](W, K, N).astype(np.int16)
    if zero_points.size == 1:
        return codes - np.int16(zero_points.reshape(()))
    zp = unpack_groups(zero_points, N).astype(np.int16)
    return codes - np.repeat(zp, group_size, axis=0)[:K]


def _matmul(
    X: Array,
    a: QuantizedActivations,
    W: U8Array,
    scales: npt.NDArray[np.float16],
    zero_points: U8Array,
    bias: F32Array,
    bits: Bits,
    N: int,
    group_size: int,
) -> F32Array:
    k = X.shape[-1]
    groups = ceil_div(k, group_size)
    if a.block not in (k, group_size):
        raise ValueError(f"activation_block must be K={k} or group_size={group_size}")
    dots = integer_dots(a.codes, W, zero_points, bits=bits, N=N, group_size=group_size)
    w_scale = unpack_groups(scales, N).astype(np.float64)
    x_scale = np.broadcast_to(a.scales, (len(dots), groups)).astype(np.float64)
    y = np.einsum("mgn,gn,mg->mn", dots, w_scale, x_scale, optimize=True) + bias
    return y.astype(np.float32).reshape(*X.shape[:-1], N)
