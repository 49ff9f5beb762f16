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
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from qcompiler.formats import WeightFormat

PANEL = 16
"""Columns in a panel."""

BLOCK_BYTES = 64
"""Bytes in a block: 16 dwords, one for each column of the panel."""

U8Array = npt.NDArray[np.uint8]

_T = TypeVar("_T", bound=np.generic)


def ceil_div(a: int, b: int) -> int:
    """``a / b`` rounded up, for positive integers."""
    return -(-a // b)


def packed_shape(form: WeightFormat, K: int, N: int) -> tuple[int, int, int]:
    """Shape of the packed form of a ``K x N`` matrix: [ceil(N/16), ceil(K/depth), 64]."""
    return ceil_div(N, PANEL), ceil_div(K, form.depth), BLOCK_BYTES


@dataclass(frozen=True)
class PackedMatrix:
    """A quantized K x N matrix as the ops' inputs.

    W: uint8 [P, ceil(K/depth), 64]. scales: float16 [P, G, 16]. zero_points: uint8 [P, G, 16], or
    [1, 1, 1] where all are the same. A weight is (code - zero point) · scale.
    """

    form: WeightFormat
    K: int
    N: int
    W: U8Array
    scales: npt.NDArray[np.float16]
    zero_points: U8Array

    @property
    def groups(self) -> int:
        """G = ceil(K / group_size)."""
        return self.form.groups(self.K)

    @classmethod
    def pack(
        cls,
        codes: U8Array,
        scales: npt.NDArray[np.floating],
        zero_points: U8Array | None,
        form: WeightFormat,
    ) -> PackedMatrix:
        """Pack codes [K, N], scales [G, N] and zero points [G, N] (None: symmetric).

        Raises ValueError where sizes disagree, or a scale is not finite in float16.
        """
        k, n = codes.shape
        W = pack_codes(codes, zero_points, form)
        if scales.shape != (form.groups(k), n):
            raise ValueError(
                f"scales must have shape {[form.groups(k), n]}, got {list(scales.shape)}"
            )
        with np.errstate(over="ignore"):  # reported below
            half = scales.astype(np.float16)
        if not np.isfinite(half).all():
            raise ValueError("a scale is not finite in float16")
        return cls(
            form=form,
            K=k,
            N=n,
            W=W,
            scales=pack_groups(half, 0),
            zero_points=np.full((1, 1, 1), form.middle, dtype=np.uint8)
            if zero_points is None
            else pack_groups(zero_points, form.middle),
        )

    def centered(self) -> npt.NDArray[np.int16]:
        """Codes less their zero points: int16 [K, N]."""
        codes = unpack_codes(self.W, self.K, self.N, self.form).astype(np.int16)
        if self.zero_points.size == 1:
            return codes - np.int16(self.zero_points.item())
        zp = unpack_groups(self.zero_points, self.N).astype(np.int16)
        return codes - np.repeat(zp, self.form.group_size, axis=0)[: self.K]

    def group_scales(self) -> npt.NDArray[np.float32]:
        """float32 [G, N]."""
        return unpack_groups(self.scales, self.N).astype(np.float32)

    def dequantized(self) -> npt.NDArray[np.float32]:
        """The float matrix this stands for: float32 [K, N]."""
        scales = np.repeat(self.group_scales(), self.form.group_size, axis=0)[: self.K]
        return self.centered() * scales


def pack_codes(codes: U8Array, zero_points: U8Array | None, form: WeightFormat) -> U8Array:
    """Pack codes: uint8 [K, N] -> [ceil(N/16), ceil(K/depth), 64].

    zero_points: uint8 [G, N], or None where every one is the middle code. Raises ValueError for
    another dtype, rank or size, or a code of more bits.
    """
    if codes.size and int(codes.max()) > form.top:
        raise ValueError(f"{form.bits}-bit codes must lie in 0 .. {form.top}")
    padded = _pad(codes, zero_points, form)
    blocks, panels = padded.shape[0] // form.depth, padded.shape[1] // PANEL
    # Bytes of a dword are four k; each part of a byte is another four.
    parts = padded.reshape(blocks, form.depth // 4, 4, panels, PANEL)
    packed = parts[:, 0].copy()
    for part in range(1, parts.shape[1]):
        packed |= parts[:, part] << np.uint8(part * form.bits)
    return _to_panels(packed)


def unpack_codes(packed: U8Array, K: int, N: int, form: WeightFormat) -> U8Array:
    """Inverse of `pack_codes`: codes uint8 [K, N]."""
    quads = _from_panels(packed, form, K, N)
    parts = [
        quads >> np.uint8(part * form.bits) & np.uint8(form.top) for part in range(form.depth // 4)
    ]
    codes = np.stack(parts, axis=1)
    return np.ascontiguousarray(codes.reshape(-1, packed.shape[0] * PANEL)[:K, :N])


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


def _pad(codes: U8Array, zero_points: U8Array | None, form: WeightFormat) -> U8Array:
    """Codes extended to whole blocks and panels with codes that decode to 0."""
    if codes.dtype != np.uint8 or codes.ndim != 2 or 0 in codes.shape:
        raise ValueError(
            f"codes must be a non-empty uint8 [K, N] array, "
            f"got {codes.dtype} of shape {list(codes.shape)}"
        )
    k, n = codes.shape
    if zero_points is not None and (
        zero_points.dtype != np.uint8 or zero_points.shape != (form.groups(k), n)
    ):
        raise ValueError(
            f"zero_points must be uint8 [{form.groups(k)}, {n}], "
            f"got {zero_points.dtype} of shape {list(zero_points.shape)}"
        )
    panels, blocks, _ = packed_shape(form, k, n)
    rows, columns = blocks * form.depth, panels * PANEL
    if (rows, columns) == (k, n):
        return codes
    padded = np.full((rows, columns), form.middle, dtype=np.uint8)
    padded[:k, :n] = codes
    if zero_points is not None:
        padded[k:, :n] = zero_points[-1]
    return padded


def _to_panels(quads: U8Array) -> U8Array:
    """[blocks, 4, panels, 16] -> [panels, blocks, 64], each column's four bytes side by side."""
    blocks, _, panels, _ = quads.shape
    return np.ascontiguousarray(quads.transpose(2, 0, 3, 1)).reshape(panels, blocks, BLOCK_BYTES)


def _from_panels(packed: U8Array, form: WeightFormat, K: int, N: int) -> U8Array:
    """[panels, blocks, 64] -> [blocks, 4, panels, 16]; checks that it packs a K x N matrix."""
    expected = packed_shape(form, K, N)
    if packed.dtype != np.uint8 or packed.shape != expected:
        raise ValueError(
            f"expected uint8 {list(expected)} for K={K} N={N}, "
            f"got {packed.dtype} of shape {list(packed.shape)}"
        )
    panels, blocks, _ = packed.shape
    return np.ascontiguousarray(packed.reshape(panels, blocks, PANEL, 4).transpose(1, 3, 0, 2))
