"""Layout 2 of packed weights, the integer form: every weight is an int8, stored in 2 to 8 bits.

    w[k, n] = (code[k, n] - z[g, n]) · m[g, n]        -127 .. 127, g the group of k
    W[k, n] ≈ w[k, n] · scale[n]

Codes have b = 2 .. 6 bits. A group of a column has one byte: b bits of zero point z, and above
them 8 - b bits of m - 1. Eight-bit codes are the int8 themselves and have no groups. What a byte
makes of a code is taken modulo 256, whatever it says.

With a grid, of 2 .. 4 bits, codes number its levels, and zero points count from its zero:

    w[k, n] = (levels[code[k, n]] - (z[g, n] + zero)) · m[g, n]

A ``K x N`` matrix is stored as panels of 16 columns, column 16p first, a panel as strips of 32 k. A
strip is b blocks of 64 bytes, in which dword ``c`` belongs to column ``16p + c``. First comes the
plane of the low bits of all codes (2 of them for 2 and 3 bits, 4 for 4, 5 and 6, else 8), then, for
3, 5 and 6 bits, the plane of the others. In a plane of p bits byte j of a dword holds, from its
lowest bits on, the bits of k = j, j + 4, j + 8, .. of a block, which covers 32 / p values of k.

Rows beyond K hold codes of 0, columns beyond N as well and groups of 0: nothing reads either.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

U8Array = NDArray[np.uint8]

PANEL = 16
"""Columns in a panel."""
BLOCK_BYTES = 64
"""Bytes in a block: a dword for each column of the panel."""
STRIP = 32
"""Values of k in a strip."""
WIDTHS = (2, 3, 4, 5, 6, 8)
"""Bits that codes may have."""
TABLE_WIDTHS = (2, 3, 4)
"""Bits that codes may have that number the levels of a grid."""
MOST_LEVEL = 32
"""The highest level, and the most that zero points may count from."""
GROUP_SIZES = (16, 32, 64, 128, 256)
"""Values of k that may share a zero point and a multiple."""
MOST_ROWS = 1 << 17
"""K at most: the sum of so many products of two int8 is an int32."""


def ceil_div(a: int, b: int) -> int:
    """``a / b`` rounded up, for positive integers."""
    return -(-a // b)


def planes(bits: int) -> tuple[int, ...]:
    """Bits of each plane of codes, the lowest first: (4,), (4, 2), .."""
    low = 8 if bits == 8 else 4 if bits >= 4 else 2
    return (low,) if low == bits else (low, bits - low)


def most_multiple(bits: int) -> int:
    """The largest m that a group of codes of so many bits can have."""
    return 1 << (8 - bits)


@dataclass(frozen=True)
class Grid:
    """What codes and zero points stand for where they are no numbers themselves.

    ValueError for levels that don't ascend, and where they or `zero` leave 0 .. 32.
    """

    levels: tuple[int, ...]
    """Of code 0, 1, .."""
    zero: int
    """What a stored zero point of 0 stands for."""

    def __post_init__(self) -> None:
        levels = self.levels
        if not levels or list(levels) != sorted(levels) or levels[0] < 0 or levels[-1] > MOST_LEVEL:
            raise ValueError(f"levels must ascend within 0 .. {MOST_LEVEL}, unlike {list(levels)}")
        if not 0 <= self.zero <= MOST_LEVEL:
            raise ValueError(f"zero must lie in 0 .. {MOST_LEVEL}, unlike {self.zero}")

    def filled(self, bits: int) -> Grid:
        """With a level for every code of so many bits: the last one is repeated.

        ValueError where codes of these bits can't number all levels.
        """
        missing = (1 << bits) - len(self.levels)
        if bits not in TABLE_WIDTHS or missing < 0:
            raise ValueError(f"no codes of {bits} bits for {len(self.levels)} levels")
        return Grid(self.levels + self.levels[-1:] * missing, self.zero)

    def numbers(self, codes: U8Array) -> U8Array:
        """The levels of codes, which must have one."""
        return translated(codes, self.levels)


@dataclass(frozen=True)
class PlaneMatrix:
    """A K x N matrix of int8 weights as the ops' inputs.

    W: uint8 [P, ceil(K/32), 64 · bits]. groups: uint8 [P, G, 16], None for 8 bits. scales: float32
    [N].
    """

    bits: int
    group_size: int
    """K for 8 bits."""
    K: int
    N: int
    W: U8Array
    groups: U8Array | None
    scales: NDArray[np.float32]
    grid: Grid | None = None
    """With a level for every code; None: codes are numbers."""

    @classmethod
    def pack(
        cls,
        codes: U8Array,
        zero_points: U8Array,
        multiples: U8Array,
        scales: NDArray[np.float32],
        *,
        bits: int,
        group_size: int,
        grid: Grid | None = None,
    ) -> PlaneMatrix:
        """Pack codes [K, N] of 2 .. 6 bits, zero points and multiples [G, N], scales [N].

        With a grid codes number its levels, zero points count from its zero, and bits are 2 .. 4.
        ValueError for sizes that disagree, a value that its bits don't hold, a weight that is no
        int8 in -127 .. 127, a level that times its multiple is beyond 255, or a scale that is not
        finite.
        """
        k, n = codes.shape
        shape = (ceil_div(k, group_size), n)
        if bits not in WIDTHS[:-1] or group_size not in GROUP_SIZES:
            raise ValueError(f"no layout for codes of {bits} bits in groups of {group_size}")
        for name, values, least, greatest in (
            ("zero_points", zero_points, 0, (1 << bits) - 1),
            ("multiples", multiples, 1, most_multiple(bits)),
        ):
            if values.shape != shape:
                raise ValueError(f"{name} must have shape {shape}, not {values.shape}")
            if values.min(initial=least) < least or values.max(initial=least) > greatest:
                raise ValueError(f"{name} must lie in {least} .. {greatest}")
        W = pack_planes(codes, bits)
        numbers, zeros = codes, zero_points
        if grid is not None:
            grid = grid.filled(bits)
            numbers, zeros = grid.numbers(codes), zero_points + np.uint8(grid.zero)
        if (farthest(numbers, zeros, group_size) * multiples).max(initial=0) > 127:
            raise ValueError("a code less its zero point times its multiple is beyond 127")
        if (highest(numbers, group_size) * multiples).max(initial=0) > 255:
            raise ValueError("a level times its multiple is beyond 255")
        byte = zero_points | (multiples - np.uint8(1)) << np.uint8(bits)
        return cls(bits, group_size, k, n, W, _to_panels(byte), _ok(scales, n), grid)

    @classmethod
    def of_int8(cls, weights: NDArray[np.int8], scales: NDArray[np.float32]) -> PlaneMatrix:
        """Weights [K, N] of 8 bits, as they are."""
        k, n = weights.shape
        if weights.min(initial=0) < -127:
            raise ValueError("a weight is beyond -127")
        return cls(8, k, k, n, pack_planes(weights.view(np.uint8), 8), None, _ok(scales, n))

    def weights(self) -> NDArray[np.int8]:
        """The int8 matrix, [K, N]."""
        codes = unpack_planes(self.W, self.K, self.N, self.bits)
        if self.groups is None:
            return codes.view(np.int8)
        byte = _from_panels(self.groups, self.N)
        spread = np.repeat(np.arange(len(byte)), self.group_size)[: self.K]
        zero = (byte & np.uint8((1 << self.bits) - 1))[spread]
        multiple = ((byte >> np.uint8(self.bits)) + np.uint8(1))[spread]
        if self.grid is not None:
            codes, zero = self.grid.numbers(codes), zero + np.uint8(self.grid.zero)
        return ((codes - zero) * multiple).view(np.int8)  # modulo 256

    def dequantized(self) -> NDArray[np.float32]:
        """The float matrix this stands for: float32 [K, N]."""
        return self.weights() * self.scales


def translated(codes: U8Array, table: Sequence[int]) -> U8Array:
    """``table[code]`` of each code: numpy would make indices of eight bytes of them."""
    values = codes.tobytes().translate(bytes(table).ljust(256, b"\0"))
    return np.frombuffer(values, np.uint8).reshape(codes.shape)


def pack_planes(codes: U8Array, bits: int) -> U8Array:
    """Codes uint8 [K, N] -> [ceil(N/16), ceil(K/32), 64 · bits]. ValueError for wider codes."""
    if bits not in WIDTHS or codes.dtype != np.uint8 or codes.ndim != 2 or 0 in codes.shape:
        raise ValueError(f"no {bits}-bit codes: {codes.dtype} of shape {list(codes.shape)}")
    if int(codes.max()) >> bits:
        raise ValueError(f"{bits}-bit codes must lie in 0 .. {(1 << bits) - 1}")
    k, n = codes.shape
    strips, panels = ceil_div(k, STRIP), ceil_div(n, PANEL)
    padded = codes
    if codes.shape != (strips * STRIP, panels * PANEL):
        padded = np.zeros((strips * STRIP, panels * PANEL), np.uint8)
        padded[:k, :n] = codes
    packed = np.zeros((strips, bits, 4, panels, PANEL), np.uint8)
    at = 0
    for width in planes(bits):
        # [strip, block, quad of a block, byte, panel, column]
        quads = padded.reshape(strips, width, 8 // width, 4, panels, PANEL)
        blocks = packed[:, at : at + width]
        for quad in range(8 // width):
            plane = quads[:, :, quad] >> np.uint8(at) & np.uint8((1 << width) - 1)
            blocks |= plane << np.uint8(quad * width)
        at += width
    by_column = packed.transpose(3, 0, 1, 4, 2)
    return np.ascontiguousarray(by_column).reshape(panels, strips, bits * BLOCK_BYTES)


def unpack_planes(packed: U8Array, K: int, N: int, bits: int) -> U8Array:
    """Inverse of `pack_planes`: uint8 [K, N]. ValueError for another shape."""
    strips, panels = ceil_div(K, STRIP), ceil_div(N, PANEL)
    if packed.dtype != np.uint8 or packed.shape != (panels, strips, bits * BLOCK_BYTES):
        raise ValueError(f"{packed.dtype} {list(packed.shape)} holds no {K} x {N} {bits}-bit codes")
    codes = np.zeros((panels, strips, STRIP // 4, PANEL, 4), np.uint8)
    start = at = 0
    for width in planes(bits):
        plane = packed[:, :, start : start + width * BLOCK_BYTES]
        fields = plane.reshape(panels, strips, width, 1, PANEL, 4)
        shifts = np.arange(0, 8, width, dtype=np.uint8)[:, None, None]
        values = fields >> shifts & np.uint8((1 << width) - 1)
        codes |= values.reshape(codes.shape) << np.uint8(at)
        start += width * BLOCK_BYTES
        at += width
    whole = codes.transpose(1, 2, 4, 0, 3).reshape(strips * STRIP, panels * PANEL)
    return np.ascontiguousarray(whole[:K, :N])


def highest(codes: U8Array, group_size: int) -> NDArray[np.int32]:
    """The highest code of each group of [K, N], [G, N]."""
    starts = range(0, codes.shape[0], group_size)
    return np.maximum.reduceat(codes, starts, axis=0).astype(np.int32)


def farthest(codes: U8Array, zero_points: U8Array, group_size: int) -> NDArray[np.int32]:
    """How far the codes [K, N] of each group lie from its zero point at most, [G, N] as those."""
    zero = zero_points.astype(np.int32)
    distances = np.empty_like(zero)
    for group, start in enumerate(range(0, codes.shape[0], group_size)):
        part = codes[start : start + group_size]
        above, below = part.max(axis=0) - zero[group], zero[group] - part.min(axis=0)
        np.maximum(above, below, out=distances[group])
    return distances


def _to_panels(groups: U8Array) -> U8Array:
    """[G, N] -> [P, G, 16], zeros beyond N."""
    count, n = groups.shape
    panels = ceil_div(n, PANEL)
    padded = np.zeros((count, panels * PANEL), np.uint8)
    padded[:, :n] = groups
    return np.ascontiguousarray(padded.reshape(count, panels, PANEL).transpose(1, 0, 2))


def _from_panels(packed: U8Array, N: int) -> U8Array:
    """[P, G, 16] -> [G, N]."""
    panels, count, _ = packed.shape
    return packed.transpose(1, 0, 2).reshape(count, panels * PANEL)[:, :N]


def _ok(scales: NDArray[Any], n: int) -> NDArray[np.float32]:
    if scales.shape != (n,) or scales.dtype != np.float32 or not np.isfinite(scales).all():
        raise ValueError(f"scales must be {n} finite float32")
    return scales
