"""What a layer can become: formats of weights, granularities of activations, and the plan of both.

Every fact about a width of weights (its codes, its storage in ONNX, its bytes) is stated here,
once: another width is a number more in `Bits`, and a row more in `_STORAGE`.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

if TYPE_CHECKING:
    import numpy as np

Bits = Literal[2, 3, 4, 5, 6, 8]
"""Widths of weights, for options."""
GroupSize = Literal[16, 32, 64, 128, 256]
"""Input channels of a group that shares a scale, for options."""

WIDTHS: tuple[int, ...] = get_args(Bits)
PACKED_WIDTHS: tuple[int, ...] = (4, 8)
"""Those that layout 1 of our ops holds."""
GROUP_SIZES: tuple[GroupSize, ...] = get_args(GroupSize)
PACKED_GROUP_SIZES: tuple[GroupSize, ...] = (32, 64, 128, 256)
"""Those of layout 1. 8 bits, which gain nothing by smaller ones, are planned in no others."""


class Granularity(enum.Enum):
    """How activations share an int8 scale."""

    NONE = "none"
    PER_TENSOR = "per-tensor"
    PER_TOKEN = "per-token"
    PER_GROUP = "per-group"


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


def depth(bits: int) -> int:
    """Values of k in a dword of packed codes."""
    return 32 // bits


def storage_of(element_type: int) -> Storage | None:
    """The type of codes that an ONNX element type is, None for any other."""
    known = {each.element_type: each for pair in _STORAGE.values() for each in pair}
    return known.get(element_type)


@dataclass(frozen=True, kw_only=True)
class WeightFormat:
    """How the weight of a layer is stored: unsigned codes in groups of input channels.

    w ≈ (code - zero point) · scale, a scale a group and column, and a zero point where it is not
    symmetric. Below 8 bits the scales of a column are 1, 2, .. 2^(8 - bits) times one number, so
    that codes become int8 values by integer arithmetic alone (`numerics.progressive`).
    """

    bits: int
    group_size: int
    symmetric: bool = True
    """Whether every zero point is the middle code."""

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise ValueError(f"weights have 2 to 8 bits, not {self.bits}")
        if self.group_size < 1:
            raise ValueError(f"a group has at least one channel, not {self.group_size}")

    @property
    def top(self) -> int:
        """The largest code; the least is 0."""
        return (1 << self.bits) - 1

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
    def depth(self) -> int:
        """Values of k in a dword of packed codes."""
        return depth(self.bits)

    @property
    def storage(self) -> Storage:
        """The type of codes and zero points as ONNX holds them."""
        return _STORAGE[self.bits][0 if self.symmetric else 1]

    def __str__(self) -> str:
        """Such as "int4 g64 asym"."""
        return f"int{self.bits} g{self.group_size} {'sym' if self.symmetric else 'asym'}"

    def in_words(self) -> str:
        """Such as "int4 asymmetric, group 64"."""
        symmetry = "symmetric" if self.symmetric else "asymmetric"
        return f"int{self.bits} {symmetry}, group {self.group_size}"

    @classmethod
    def parse(cls, text: str) -> WeightFormat:
        """The format that `str` writes. ValueError for anything else."""
        try:
            kind, group, symmetry = text.split()
            found = cls(
                bits=int(kind.removeprefix("int")),
                group_size=int(group.removeprefix("g")),
                symmetric=symmetry == "sym",
            )
        except ValueError:
            found = None
        if found is None or str(found) != text:
            raise ValueError(f"'{text}' is no weight format such as 'int4 g64 asym'")
        if found.bits not in WIDTHS:
            raise ValueError(f"'{text}': weights have {_listed(WIDTHS)} bits")
        if found.group_size not in GROUP_SIZES:
            raise ValueError(f"'{text}': groups have {_listed(GROUP_SIZES)} channels")
        return found

    def groups(self, rows: int) -> int:
        """Groups of a column of `rows` input channels; the last may be short."""
        return -(-rows // self.group_size)

    def nbytes(self, rows: int, columns: int) -> int:
        """Bytes of a rows × columns weight as our ops store it, but for bits of padding.

        Beside the codes, narrow ones have a byte a group for zero point and multiple and a float32
        a column, those of 8 bits a float16 a group and a byte for a zero point.
        """
        codes = rows * columns * self.bits // 8
        if self.narrow:
            return codes + self.groups(rows) * columns + 4 * columns
        return codes + self.groups(rows) * columns * (2 if self.symmetric else 3)


CANDIDATES = tuple(
    WeightFormat(bits=bits, group_size=size, symmetric=bits == 8)
    for bits, sizes in (
        (2, (32, 16)),
        (3, (64, 32, 16)),
        (4, (128, 64, 32, 16)),
        (5, (32,)),
        (6, (64,)),
        (8, (128,)),
    )
    for size in sizes
)
"""Formats to choose from where bits are few, the smallest first: each is worth its size."""


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
    "CANDIDATES",
    "GROUP_SIZES",
    "PACKED_GROUP_SIZES",
    "PACKED_WIDTHS",
    "WIDTHS",
    "Bits",
    "Granularity",
    "GroupSize",
    "LayerPlan",
    "Storage",
    "WeightFormat",
    "depth",
    "storage_of",
]
