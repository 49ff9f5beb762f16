"""Whether files of weights hold what their headers say, before a library is let loose on them.

Readers believe the headers: one that claims 2^60 values is worked through until memory ends.
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qcompiler import settings
from qcompiler.errors import ExportError
from qcompiler.files import decoded, parse_json, told_bytes

_HEADER = 100 << 20  # bytes of a safetensors header, at most; the format says so
_DEEPEST = 4  # arrays in arrays of GGUF's metadata
_MOST_DIMS = 8
_VERSIONS = (2, 3)
_SCALARS = dict(enumerate((1, 1, 2, 2, 4, 4, 4, 1))) | {10: 8, 11: 8, 12: 8}
"""Bytes of GGUF's value types but for strings and arrays."""
_STRING, _ARRAY = 8, 9


def check_safetensors(path: Path) -> int:
    """The values that a .safetensors file holds.

    ExportError where it is cut off, or its header is none.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        lead = file.read(8)
        length = int.from_bytes(lead, "little")
        if len(lead) < 8 or length > size - 8:
            raise _cut_off(path)
        if length > _HEADER:
            raise ExportError(f"{path}: its header is larger than {told_bytes(_HEADER)}; {_AGAIN}")
        content = file.read(length)
    where = f"the header of {path}"
    header = parse_json(decoded(content, where, ExportError), where, ExportError)
    if not isinstance(header, dict):
        raise ExportError(f"{where} is no JSON object; {_AGAIN}")
    tensors = {name: about for name, about in header.items() if name != "__metadata__"}
    for name, about in tensors.items():
        if not _fits(about, size - 8 - length):
            raise ExportError(
                f"{path}: tensor '{name}' lies outside the file, or has no shape; {_AGAIN}"
            )
    return sum(math.prod(about["shape"]) for about in tensors.values())


_AGAIN = "download it again"


def _cut_off(path: Path) -> ExportError:
    return ExportError(f"{path} is cut off: it holds less than its header says; {_AGAIN}")


def _fits(about: Any, size: int) -> bool:
    """Whether a tensor's entry names a shape, and a place within `size` bytes."""
    if not isinstance(about, dict) or settings.text(about, "dtype") is None:
        return False
    shape, place = _sizes(about.get("shape")), _sizes(about.get("data_offsets"))
    if shape is None or place is None or len(place) != 2:
        return False
    start, end = place
    # The narrowest type has 4 bits.
    return start <= end <= size and math.prod(shape) <= 2 * (end - start)


def _sizes(value: Any) -> list[int] | None:
    """A list of sizes, None for anything else."""
    if not isinstance(value, list) or any(type(each) is not int or each < 0 for each in value):
        return None
    return value


def check_gguf(path: Path) -> int:
    """The values that a .gguf file holds.

    ExportError where it is of another version, cut off, or its header is none.
    """
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ExportError(f"{path} is not a GGUF file; {_AGAIN}")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            try:
                return _Header(path, content).check()
            except struct.error:
                raise _cut_off(path) from None


@dataclass
class _Header:
    """Walks over a header; struct.error where the file ends before."""

    path: Path
    content: mmap.mmap
    at: int = 4

    def check(self) -> int:
        """The values of all tensors."""
        (version,) = self._read("<I")
        if version not in _VERSIONS:
            known = " and ".join(map(str, _VERSIONS))
            raise ExportError(
                f"{self.path} has GGUF version {version}, and {known} can be read; convert it anew"
            )
        tensors, entries = self._read("<QQ")
        for _ in range(entries):
            self._skip_string()
            self._skip_value(*self._read("<I"))
        values = 0
        for _ in range(tensors):
            self._skip_string()
            (count,) = self._read("<I")
            if count > _MOST_DIMS:
                raise ExportError(f"{self.path}: a tensor has {count} dimensions; {_AGAIN}")
            *dims, _, offset = self._read(f"<{count}QIQ")
            # Blocks of the narrowest type take about a bit a value.
            if max(offset, math.prod(dims) // 8) > len(self.content):
                raise _cut_off(self.path)
            values += math.prod(dims)
        return values

    def _read(self, form: str) -> tuple[Any, ...]:
        found = struct.unpack_from(form, self.content, self.at)
        self.at += struct.calcsize(form)
        return found

    def _skip(self, size: int) -> None:
        if self.at + size > len(self.content):
            raise _cut_off(self.path)
        self.at += size

    def _skip_string(self) -> None:
        self._skip(*self._read("<Q"))

    def _skip_value(self, kind: int, depth: int = 0) -> None:
        if kind in _SCALARS:
            self._skip(_SCALARS[kind])
        elif kind == _STRING:
            self._skip_string()
        elif kind == _ARRAY and depth < _DEEPEST:
            inner, count = self._read("<IQ")
            if inner in _SCALARS:
                self._skip(_SCALARS[inner] * count)
                return
            for _ in range(count):  # each takes 8 bytes or more
                self._skip_value(inner, depth + 1)
        else:
            raise ExportError(f"{self.path}: its metadata has an unknown type {kind}; {_AGAIN}")
