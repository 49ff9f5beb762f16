"""The packed weight layout (layout 1) of the ``ai.qcompiler`` ops: pure array shuffling.

A ``K x N`` matrix is stored as panels of 16 columns, column 16p first. A panel is a run of 64-byte
blocks; a block holds 16 columns × 8 k (4-bit codes) or 16 columns × 4 k (8-bit codes), and its
dword ``c`` belongs to column ``16p + c``:

* 4 bit: the low nibbles of the dword's bytes are k .. k+3, the high nibbles k+4 .. k+7;
* 8 bit: its bytes are k .. k+3.

Every CPU register width reads this without a shuffle, so one file serves every machine.
Padding decodes to exactly 0: rows beyond K hold the zero point of their column's last group,
columns beyond N hold the symmetric zero point and have scale 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
import numpy.typing as npt

PANEL = 16
"""Columns in a panel."""

BLOCK_BYTES = 64
"""Bytes in a block: 16 dwords, one for each column of the panel."""

SYMMETRIC_ZERO_POINT: dict[int, int] = {4: 8, 8: 128}
"""The zero point of symmetric codes, by width in bits."""

U8Array = npt.NDArray[np.uint8]
Bits = Literal[4, 8]

_T = TypeVar("_T", bound=np.generic)


def ceil_div(a: int, b: int) -> int:
    """``a / b`` rounded up, for positive integers."""
    return -(-a // b)


def block_depth(bits: Bits) -> int:
    """Values of k that one block covers: 8 for 4-bit codes, 4 for 8-bit codes."""
    return 32 // bits


def packed_shape(bits: Bits, K: int, N: int) -> tuple[int, int, int]:
    """Shape of the packed form of a ``K x N`` matrix: [ceil(N/16), ceil(K/depth), 64]."""
    return ceil_div(N, PANEL), ceil_div(K, block_depth(bits)), BLOCK_BYTES


@dataclass(frozen=True)
class PackedMatrix:
    """A quantized K x N matrix as the ops' inputs.

    W: uint8 [P, ceil(K/depth), 64]. scales: float16 [P, G, 16]. zero_points: uint8 [P, G, 16], or
    [1, 1, 1] where all are the same. A weight is (code - zero point) · scale.
    """

    bits: Bits
    K: int
    N: int
    group_size: int
    W: U8Array
    scales: npt.NDArray[np.float16]
    zero_points: U8Array

    @property
    def groups(self) -> int:
        """G = ceil(K / group_size)."""
        return ceil_div(self.K, self.group_size)

    @classmethod
    def pack(
        cls,
        codes: U8Array,
        scales: npt.NDArray[np.floating],
        zero_points: U8Array | None,
        *,
        bits: Bits,
        group_size: int,
    ) -> PackedMatrix:
        """Pack codes [K, N], scales [G, N] and zero points [G, N] (None: symmetric).

        Raises ValueError where sizes disagree, or a scale is not finite in float16.
        """
        k, n = codes.shape
        zero = SYMMETRIC_ZERO_POINT[bits]
        pack = pack_w4 if bits == 4 else pack_w8
        W = pack(codes, zero_points, group_size)
        if scales.shape != (ceil_div(k, group_size), n):
            raise ValueError(
                f"scales must have shape {[ceil_div(k, group_size), n]}, got {list(scales.shape)}"
            )
        with np.errstate(over="ignore"):  # reported below
            half = scales.astype(np.float16)
        if not np.isfinite(half).all():
            raise ValueError("a scale is not finite in float16")
        return cls(
            bits=bits,
            K=k,
            N=n,
            group_size=group_size,
            W=W,
            scales=pack_groups(half, 0),
            zero_points=np.full((1, 1, 1), zero, dtype=np.uint8)
            if zero_points is None
            else pack_groups(zero_points, zero),
        )

    def centered(self) -> npt.NDArray[np.int16]:
        """Codes less their zero points: int16 [K, N]."""
        unpack = unpack_w4 if self.bits == 4 else unpack_w8
        codes = unpack(self.W, self.K, self.N).astype(np.int16)
        if self.zero_points.size == 1:
            return codes - np.int16(self.zero_points.item())
        zp = unpack_groups(self.zero_points, self.N).astype(np.int16)
        return codes - np.repeat(zp, self.group_size, axis=0)[: self.K]

    def group_scales(self) -> npt.NDArray[np.float32]:
        """float32 [G, N]."""
        return unpack_groups(self.scales, self.N).astype(np.float32)

    def dequantized(self) -> npt.NDArray[np.float32]:
        """The float matrix this stands for: float32 [K, N]."""
        scales = np.repeat(self.group_scales(), self.group_size, axis=0)[: self.K]
        return self.centered() * scales


def pack_w4(codes: U8Array, zero_points: U8Array | None, group_size: int) -> U8Array:
    """Pack 4-bit codes.

    codes: uint8 [K, N] holding 0 .. 15. zero_points: uint8 [G, N], G = ceil(K / group_size), or
    None where every zero point is 8. Returns uint8 [ceil(N/16), ceil(K/8), 64].
    Raises ValueError for another dtype, rank or size, or a code above 15.
    """
    if codes.size and int(codes.max()) > 15:
        raise ValueError("4-bit codes must lie in 0 .. 15")
    padded = _pad(codes, zero_points, group_size, 4)
    kb, panels = padded.shape[0] // 8, padded.shape[1] // PANEL
    split = padded.reshape(kb, 2, 4, panels, PANEL)
    pairs = split[:, 0] | (split[:, 1] << np.uint8(4))
    return _to_panels(pairs)


def pack_w8(codes: U8Array, zero_points: U8Array | None, group_size: int) -> U8Array:
    """Pack 8-bit codes.

    codes: uint8 [K, N]. zero_points: uint8 [G, N], G = ceil(K / group_size), or None where every
    zero point is 128. Returns uint8 [ceil(N/16), ceil(K/4), 64].
    Raises ValueError for another dtype, rank or size.
    """
    padded = _pad(codes, zero_points, group_size, 8)
    kb, panels = padded.shape[0] // 4, padded.shape[1] // PANEL
    return _to_panels(padded.reshape(kb, 4, panels, PANEL))


def unpack_w4(packed: U8Array, K: int, N: int) -> U8Array:
    """Inverse of `pack_w4`: uint8 [P, ceil(K/8), 64] -> codes uint8 [K, N]."""
    quads = _from_panels(packed, 4, K, N)
    codes = np.stack((quads & np.uint8(15), quads >> np.uint8(4)), axis=1)
    return np.ascontiguousarray(codes.reshape(-1, packed.shape[0] * PANEL)[:K, :N])


def unpack_w8(packed: U8Array, K: int, N: int) -> U8Array:
    """Inverse of `pack_w8`: uint8 [P, ceil(K/4), 64] -> codes uint8 [K, N]."""
    quads = _from_panels(packed, 8, K, N)
    return np.ascontiguousarray(quads.reshape(-1, packed.shape[0] * PANEL)[:K, :N])


def pack_groups(a: npt.NDArray[_T], fill: float) -> npt.NDArray[_T]:
    """Pack one value a group and column: [G, N] -> [ceil(N/16), G, 16], dtype kept.

    `fill` goes to the columns beyond N: 0 for scales, the symmetric zero point for zero points.
    """
    if a.ndim != 2 or 0 in a.shape:
        raise ValueError(f"expected a non-empty [groups, N] array, got shape {list(a.shape)}")
    groups, n = a.shape
    panels = ceil_div(n, PANEL)
    padded = np.full((groups, panels * PANEL), fill, dtype=a.dtype)
    padded[:, :n] = a
    return np.ascontiguousarray(padded.reshape(groups, panels, PANEL).transpose(1, 0, 2))


def unpack_groups(packed: npt.NDArray[_T], N: int) -> npt.NDArray[_T]:
    """Inverse of `pack_groups`: [P, G, 16] -> [G, N]."""
    panels, groups, _ = packed.shape
    return np.ascontiguousarray(
        packed.transpose(1, 0, 2).reshape(groups, panels * PANEL)[:, :N],
    )


def _pad(codes: U8Array, zero_points: U8Array | None, group_size: int, bits: Bits) -> U8Array:
    """Codes extended to whole blocks and panels with codes that decode to 0."""
    if codes.dtype != np.uint8 or codes.ndim != 2 or 0 in codes.shape:
        raise ValueError(
            f"codes must be a non-empty uint8 [K, N] array, "
            f"got {codes.dtype} of shape {list(codes.shape)}"
        )
    if group_size < 1:
        raise ValueError(f"group_size must be positive, got {group_size}")
    k, n = codes.shape
    if zero_points is not None and (
        zero_points.dtype != np.uint8 or zero_points.shape != (ceil_div(k, group_size), n)
    ):
        raise ValueError(
            f"zero_points must be uint8 [{ceil_div(k, group_size)}, {n}], "
            f"got {zero_points.dtype} of shape {list(zero_points.shape)}"
        )
    panels, blocks, _ = packed_shape(bits, k, n)
    rows, columns = blocks * block_depth(bits), panels * PANEL
    if (rows, columns) == (k, n):
        return codes
    padded = np.full((rows, columns), SYMMETRIC_ZERO_POINT[bits], dtype=np.uint8)
    padded[:k, :n] = codes
    if zero_points is not None:
        padded[k:, :n] = zero_points[-1]
    return padded


def _to_panels(quads: U8Array) -> U8Array:
    """[blocks, 4, panels, 16] -> [panels, blocks, 64], each column's four bytes side by side."""
    blocks, _, panels, _ = quads.shape
    return np.ascontiguousarray(quads.transpose(2, 0, 3, 1)).reshape(panels, blocks, BLOCK_BYTES)


def _from_panels(packed: U8Array, bits: Bits, K: int, N: int) -> U8Array:
    """[panels, blocks, 64] -> [blocks, 4, panels, 16]; checks that it packs a K x N matrix."""
    expected = packed_shape(bits, K, N)
    if packed.dtype != np.uint8 or packed.shape != expected:
        raise ValueError(
            f"expected uint8 {list(expected)} for K={K} N={N}, "
            f"got {packed.dtype} of shape {list(packed.shape)}"
        )
    panels, blocks, _ = packed.shape
    return np.ascontiguousarray(packed.reshape(panels, blocks, PANEL, 4).transpose(1, 3, 0, 2))
