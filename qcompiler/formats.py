"""What a layer can become: formats of weights, granularities of activations, and the plan of both.

Every fact about a width of weights (its codes, its storage in ONNX, its bytes) is stated here,
once: another width is a number more in `Bits`, and a row more in `_STORAGE`.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, get_args

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy as np

Bits = Literal[2, 3, 4, 5, 6, 8]
"""Widths of weights, for options."""
GroupSize = Literal[16, 32, 64, 128, 256]
"""Input channels of a group that shares a scale, for options."""

GridName = Literal[
    "even", "gaussian", "ternary", "balanced", "odd", "fp4", "nf4", "dint4", "learned"
]
"""Grids of weights (`GRIDS`), for options."""

WIDTHS: tuple[int, ...] = get_args(Bits)
GROUP_SIZES: tuple[GroupSize, ...] = get_args(GroupSize)


class Granularity(enum.Enum):
    """How activations share an int8 scale."""

    NONE = "none"
    PER_TENSOR = "per-tensor"
    PER_TOKEN = "per-token"
    PER_GROUP = "per-group"
    """What ONNX Runtime's MatMulNBits does; no plan has it."""


@dataclass(frozen=True)
class Storage:
    """An integer type of ONNX that holds codes, signed around the middle or unsigned from 0."""

    name: str
    """As in onnx.TensorProto."""
    bits: int
    signed: bool

    @property
    def element_type(self) -> int:
        """The number of the type in onnx.TensorProto."""
        from onnx import TensorProto  # noqa: PLC0415  (slow, and the command line imports this file)

        return int(TensorProto.DataType.Value(self.name))

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of arrays."""
        from onnx import helper  # noqa: PLC0415

        return helper.tensor_dtype_to_np_dtype(self.element_type)

    @property
    def middle(self) -> int:
        """What makes stored values unsigned: stored + middle = code."""
        return 1 << (self.bits - 1) if self.signed else 0


_INT4, _UINT4 = Storage("INT4", 4, True), Storage("UINT4", 4, False)
_INT8, _UINT8 = Storage("INT8", 8, True), Storage("UINT8", 8, False)

# The narrowest types that hold a width and that every ONNX Runtime knows: signed, unsigned.
_STORAGE: dict[int, tuple[Storage, Storage]] = {
    **dict.fromkeys((2, 3, 4), (_INT4, _UINT4)),
    **dict.fromkeys((5, 6, 8), (_INT8, _UINT8)),
}


def storage_of(element_type: int) -> Storage | None:
    """The type of codes that an ONNX element type is, None for any other."""
    known = {each.element_type: each for pair in _STORAGE.values() for each in pair}
    return known.get(element_type)


@dataclass(frozen=True)
class Grid:
    """Which whole numbers the codes of a weight may be, where these are not all of 0 .. 2^bits - 1,
    and which its zero points may be: these need be no code."""

    name: GridName
    levels: tuple[int, ...]
    """Ascending from 0."""
    zeros: range

    @property
    def bits(self) -> int:
        """What the number of a level takes."""
        return (len(self.levels) - 1).bit_length()

    @property
    def widest(self) -> int:
        """Between neighbouring levels."""
        return max(b - a for a, b in pairwise(self.levels))


# Of two bits the zero points are thirds between 1 and 2, of three and four halves. Least squared
# error of Gaussian weights in groups of 16 and 32, found by trying: 0.9 dB better than even levels
# and zero points for 2 and 3 bits, 0.3 dB for 4.
_GAUSSIAN = (
    Grid("gaussian", (0, 3, 6, 9), range(3, 7)),
    Grid("gaussian", (0, 3, 5, 7, 9, 11, 13, 16), range(4, 12)),
    Grid("gaussian", (0, *range(2, 16), 17), range(1, 17)),
)
_EACH: tuple[Grid, ...] = (
    *_GAUSSIAN,
    *(Grid("learned", grid.levels, grid.zeros) for grid in _GAUSSIAN),
    Grid("ternary", (0, 1, 2), range(1, 2)),
    Grid("balanced", (0, 1, 2, 3, 4), range(5)),
    Grid("odd", (0, 2, 4, 6), range(3, 4)),
    Grid("fp4", (0, 4, 6, *range(8, 17), 18, 20, 24), range(12, 13)),
    Grid("nf4", (0, 5, 8, 10, 11, 13, 15, 16, 17, 19, 20, 21, 23, 25, 28, 32), range(16, 17)),
    Grid("dint4", (0, 2, 4, 6, 8, 10, 11, 12, 13, 14, 16, 18, 20, 22, 24), range(12, 13)),
)
GRIDS: dict[tuple[str, int], Grid] = {(grid.name, grid.bits): grid for grid in _EACH}
"""By name and bits; whole numbers are "even" and have none.

    gaussian   for weights that rotations have made so
    learned    begins as that, and is fitted to each layer
    ternary    -1, 0, 1
    balanced   five levels -2 .. 2, in three bits (ABQ-LLM's W2*, arXiv 2408.08554)
    odd        -3, -1, 1, 3
    fp4        0, 1/2, 1, 3/2, 2, 3, 4, 6 and their negatives (E2M1)
    nf4        quantiles of a normal distribution (QLoRA, arXiv 2305.14314), to 1/16
    dint4      int4 with -1/2 and 1/2 (AQAS, arXiv 2311.05161)
"""


def grid_of(levels: Iterable[int], bits: int) -> Grid:
    """The grid of these levels; one that nobody has named is "learned"."""
    found = tuple(sorted(set(levels)))
    named = (grid for (_, width), grid in GRIDS.items() if width == bits and grid.levels == found)
    return next(named, Grid("learned", found, GRIDS["learned", bits].zeros))


@dataclass(frozen=True, kw_only=True)
class WeightFormat:
    """How the weight of a layer is stored: unsigned codes in groups of input channels.

    w ≈ (code - zero point) · scale, a scale a group and column, and a zero point where it is not
    symmetric. Below 8 bits the scales of a column are 1, 2, .. `most_multiple` times one number, so
    that codes become int8 values by integer arithmetic alone (`numerics.progressive`). Codes of 8
    bits are such values, so that the formats planned have one scale a column.

    With a grid codes are its levels. What is stored of them is their number, by our ops alone.
    """

    bits: int
    group_size: int | None = None
    """Input channels of a column that share a scale; None: all of them."""
    symmetric: bool = True
    """Whether every zero point is the middle code."""
    grid: Grid | None = None
    """None: codes and zero points may be all of 0 .. 2^bits - 1."""

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise ValueError(f"weights have 2 to 8 bits, not {self.bits}")
        if self.group_size is not None and self.group_size < 1:
            raise ValueError(f"a group has at least one channel, not {self.group_size}")
        if self.grid is not None and (self.symmetric or self.grid.bits > self.bits):
            raise ValueError(f"weights of {self.bits} bits have no grid '{self.grid.name}'")

    @property
    def top(self) -> int:
        """The largest code; the least is 0."""
        return (1 << self.bits) - 1 if self.grid is None else self.grid.levels[-1]

    @property
    def levels(self) -> Sequence[int]:
        """What codes may be."""
        return range(self.top + 1) if self.grid is None else self.grid.levels

    @property
    def zeros(self) -> range:
        """What zero points may be, where they are not all the middle code."""
        return range(self.top + 1) if self.grid is None else self.grid.zeros

    @property
    def most_multiple(self) -> int:
        """Of the number of a column that a scale may be: bits beyond those of zero points hold it,
        and a byte its product with the largest code."""
        return min(1 << (8 - self.bits), 255 // self.top)

    @property
    def gap(self) -> float:
        """Between neighbouring codes at most, as a share of the largest."""
        return (1 if self.grid is None else self.grid.widest) / self.top

    @property
    def middle(self) -> int:
        """The zero point of symmetric codes."""
        return 1 << (self.bits - 1)

    @property
    def narrow(self) -> bool:
        """Whether codes are so few that which range they span is worth a search, and so few values
        that scales can be whole multiples of one number."""
        return self.bits < 8

    @property
    def grouped(self) -> bool:
        """Whether groups of a column have ranges of their own."""
        return self.narrow and self.group_size is not None

    @property
    def storage(self) -> Storage:
        """The type of codes and zero points as ONNX holds them."""
        if self.grid is not None:
            return _UINT4 if max(self.top, self.zeros[-1]) < 16 else _UINT8
        return _STORAGE[self.bits][0 if self.symmetric else 1]

    def __str__(self) -> str:
        """Such as "int4 g64 asym", "int4 g64 gaussian", or "int8 sym" where a column has one
        scale."""
        group = "" if self.group_size is None else f" g{self.group_size}"
        kind = "sym" if self.symmetric else "asym"
        return f"int{self.bits}{group} {kind if self.grid is None else self.grid.name}"

    def in_words(self) -> str:
        """Such as "int4 asymmetric, group 64"."""
        symmetry = "symmetric" if self.symmetric else "asymmetric"
        if self.grid is not None:
            symmetry = f"{self.grid.name} grid"
            if self.grid.name == "learned":
                symmetry += f" {' '.join(map(str, self.grid.levels))}"
        group = "per channel" if self.group_size is None else f"group {self.group_size}"
        return f"int{self.bits} {symmetry}, {group}"

    @classmethod
    def planned(
        cls, bits: int, group_size: int, *, symmetric: bool, grid: GridName = "even"
    ) -> WeightFormat:
        """The format of a width that our ops hold: of 8 bits symmetric, and without groups.

        Widths that a grid of this name doesn't have are even. Those of a grid have its zero points.
        """
        if bits == 8:
            return cls(bits=bits)
        found = GRIDS.get((grid, bits))
        symmetric = symmetric and found is None
        return cls(bits=bits, group_size=group_size, symmetric=symmetric, grid=found)

    @classmethod
    def parse(cls, text: str) -> WeightFormat:
        """The format that `str` writes, of those that are planned. ValueError for anything else."""
        found = re.fullmatch(r"int(\d)(?: g([1-9]\d{0,8}))? (\w+)", text, re.ASCII)
        kinds = {"sym", "asym", *(name for name, _ in GRIDS)}
        if found is None or found[3] not in kinds:
            raise ValueError(f"'{text}' is no weight format such as 'int4 g64 asym' or 'int8 sym'")
        bits, group, symmetric = int(found[1]), found[2], found[3] == "sym"
        grid = GRIDS.get((found[3], bits))
        if bits not in WIDTHS:
            raise ValueError(f"'{text}': weights have {_listed(WIDTHS)} bits")
        if bits == 8:
            if group is not None or not symmetric:
                raise ValueError(f"'{text}': weights of 8 bits are 'int8 sym', a scale a column")
            return cls(bits=bits)
        if group is None or int(group) not in GROUP_SIZES:
            raise ValueError(f"'{text}': groups have {_listed(GROUP_SIZES)} channels")
        if grid is None and found[3] not in ("sym", "asym"):
            raise ValueError(f"'{text}': weights of {bits} bits have no grid '{found[3]}'")
        return cls(bits=bits, group_size=int(group), symmetric=symmetric, grid=grid)

    def block(self, rows: int) -> int:
        """Input channels that share a scale, in a column of `rows`; the last group may be short."""
        return max(rows, 1) if self.group_size is None else self.group_size

    def groups(self, rows: int) -> int:
        """Groups of a column of `rows` input channels."""
        return -(-rows // self.block(rows))

    def nbytes(self, rows: int, columns: int) -> int:
        """Bytes of a rows × columns weight as our ops store it, but for bits of padding.

        Beside the codes, narrow ones have a byte a group for zero point and multiple. Every column
        has a float32.
        """
        groups = self.groups(rows) if self.narrow else 0
        return rows * columns * self.bits // 8 + groups * columns + 4 * columns


_WORTHWHILE: tuple[tuple[int, GridName, tuple[GroupSize, ...]], ...] = (
    (2, "gaussian", (32, 16)),
    (3, "gaussian", (64, 32, 16)),
    (4, "even", (128, 64, 32, 16)),
    (5, "even", (32,)),
    (6, "even", (64,)),
)


def candidates(grids: bool) -> tuple[WeightFormat, ...]:
    """Formats to choose from where bits are few, the smallest first: each is worth its size.

    `grids`: codes may be other than all whole numbers.
    """
    narrow = (
        WeightFormat.planned(bits, size, symmetric=False, grid=grid if grids else "even")
        for bits, grid, sizes in _WORTHWHILE
        for size in sizes
    )
    return (*narrow, WeightFormat(bits=8))


@dataclass(frozen=True, kw_only=True)
class LayerPlan:
    """What is to become of one layer; passes that plan fill it, passes that rewrite obey it."""

    weight: WeightFormat | None = None
    """None: the weight stays in float."""
    activation: Granularity = Granularity.NONE
    """How its input becomes int8; none: it stays in float."""
    equalize: bool = False
    """Whether its input asks for equalization."""


def _listed(numbers: tuple[int, ...]) -> str:
    *first, last = map(str, numbers)
    return f"{', '.join(first)} or {last}"


__all__ = [
    "GRIDS",
    "GROUP_SIZES",
    "WIDTHS",
    "Bits",
    "Granularity",
    "Grid",
    "GridName",
    "GroupSize",
    "LayerPlan",
    "Storage",
    "WeightFormat",
    "candidates",
    "grid_of",
    "storage_of",
]
