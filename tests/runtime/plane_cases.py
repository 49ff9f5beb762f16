"""Matrices in the integer form, and what they give."""

from __future__ import annotations

import numpy as np

from qcompiler.numerics import reference
from qcompiler.numerics.planes import PlaneMatrix, ceil_div, most_multiple, unpack_planes


def make_planes(K: int, N: int, group_size: int, *, bits: int, seed: int = 0) -> PlaneMatrix:
    """A random matrix; every group reaches from one end of int8 to the other where its bits can."""
    rng = np.random.default_rng(seed)
    scales = rng.uniform(0.5, 2.0, N).astype(np.float32) / 64
    if bits == 8:
        return PlaneMatrix.of_int8(rng.integers(-127, 128, (K, N), dtype=np.int8), scales)
    groups, top = ceil_div(K, group_size), (1 << bits) - 1
    zero = rng.integers(0, top + 1, (groups, N))
    most = np.minimum(127 // np.maximum(zero, top - zero), most_multiple(bits))
    multiples = rng.integers(1, most + 1)
    return PlaneMatrix.pack(
        rng.integers(0, top + 1, (K, N), dtype=np.uint8),
        zero.astype(np.uint8),
        multiples.astype(np.uint8),
        scales,
        bits=bits,
        group_size=group_size,
    )


def expected(codes: np.ndarray, x_scales: np.ndarray, w: PlaneMatrix, bias=None) -> np.ndarray:
    """The product, every float32 operation rounded by itself."""
    sums = reference.integer_product(codes, w)
    y = sums.astype(np.float32) * w.scales * x_scales[:, None]
    return y + (np.float32(0) if bias is None else bias)


def beyond_int8(w: PlaneMatrix) -> np.ndarray:
    """bool [N]: columns with a weight that leaves -127 .. 127, which `pack` would refuse."""
    codes = unpack_planes(w.W, w.K, w.N, w.bits)
    if w.groups is None:
        return (codes == 128).any(axis=0)
    count = w.groups.shape[1]
    byte = w.groups.transpose(1, 0, 2).reshape(count, -1)[:, : w.N].astype(np.int32)
    byte = np.repeat(byte, w.group_size, axis=0)[: w.K]
    zero, multiple = byte & ((1 << w.bits) - 1), (byte >> w.bits) + 1
    return (np.abs((codes - zero) * multiple) > 127).any(axis=0)
