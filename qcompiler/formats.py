"""What a layer can become: formats of weights, granularities of activations, and the plan of both.

Every fact about a width of weights (its codes, its storage in ONNX, its bytes) is stated here,
once: another width is a number more in `Bits`, and a row more in `_STORAGE`.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

if TYPE_CHECKING:
    import numpy as np

Bits = Literal[2, 3, 4, 5, 6, 8]
"""Widths of weights, for options."""
GroupSize = Literal[16, 32, 64, 128, 256]
"""Input channels of a group that shares a scale, for options."""

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


@dataclass(frozen=True, kw_only=True)
class WeightFormat:
    """How the weight of a layer is stored: unsigned codes in groups of input channels.

    w ≈ (code - zero point) · scale, a scale a group and column, and a zero point where it is not
    symmetric. Below 8 bits the scales of a column are 1, 2, .. 2^(8 - bits) times one number, so
    that codes become int8 values by integer arithmetic alone (`numerics.progressive`). Codes of 8
    bits are such values, so that the formats planned have one scale a column.
    """

    bits: int
    group_size: int | None = None
    """Input channels of a column that share a scale; None: all of them."""
    symmetric: bool = True
    """Whether every zero point is the middle code."""

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise ValueError(f"weights have 2 to 8 bits, not {self.bits}")
        if self.group_size is not None and self.group_size < 1:
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
    def storage(self) -> Storage:
        """The type of codes and zero points as ONNX holds them."""
        return _STORAGE[self.bits][0 if self.symmetric else 1]

    def __str__(self) -> str:
        """Such as "int4 g64 asym", or "int8 sym" where a column has one scale."""
        group = "" if self.group_size is None else f" g{self.group_size}"
        return f"int{self.bits}{group} {'sym' if self.symmetric else 'asym'}"

    def in_words(self) -> str:
        """Such as "int4 asymmetric, group 64"."""
        symmetry = "symmetric" if self.symmetric else "asymmetric"
        group = "per channel" if self.group_size is None else f"group {self.group_size}"
        return f"int{self.bits} {symmetry}, {group}"

    @classmethod
    def planned(cls, bits: int, group_size: int, *, symmetric: bool) -> WeightFormat:
        """The format of a width that our ops hold: of 8 bits symmetric, and without groups."""
        if bits == 8:
            return cls(bits=bits)
        return cls(bits=bits, group_size=group_size, symmetric=symmetric)

    @classmethod
    def parse(cls, text: str) -> WeightFormat:
        """The format that `str` writes, of those that are planned. ValueError for anything else."""
        found = re.fullmatch(r"int(\d)(?: g([1-9]\d{0,8}))? (a?)sym", text, re.ASCII)
        if found is None:
            raise ValueError(f"'{text}' is no weight format such as 'int4 g64 asym' or 'int8 sym'")
        bits, group, symmetric = int(found[1]), found[2], not found[3]
        if bits not in WIDTHS:
            raise ValueError(f"'{text}': weights have {_listed(WIDTHS)} bits")
        if bits == 8:
            if group is not None or not symmetric:
                raise ValueError(f"'{text}': weights of 8 bits are 'int8 sym', a scale a column")
            return cls(bits=bits)
        if group is None or int(group) not in GROUP_SIZES:
            raise ValueError(f"'{text}': groups have {_listed(GROUP_SIZES)} channels")
        return cls(bits=bits, group_size=int(group), symmetric=symmetric)

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


CANDIDATES = (
    *(
        WeightFormat(bits=bits, group_size=size, symmetric=False)
        for bits, sizes in (
            (2, (32, 16)),
            (3, (64, 32, 16)),
            (4, (128, 64, 32, 16)),
            (5, (32,)),
            (6, (64,)),
        )
        for size in sizes
    ),
    WeightFormat(bits=8),
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
    "WIDTHS",
    "Bits",
    "Granularity",
    "GroupSize",
    "LayerPlan",
    "Storage",
    "WeightFormat",
    "storage_of",
]
