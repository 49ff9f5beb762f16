"""Arrays from .npz files that people bring: numbers and text, never objects, within a limit.

An archive's headers say how large everything is, and some claim terabytes: they are added up before
anything is read.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from qcompiler.errors import QcError
from qcompiler.files import told_bytes
from qcompiler.foreign import foreign_errors

_MEMBERS = 4096
"""Arrays of an archive, at most: models have a few inputs."""
_PLAIN = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
_REMEDY = "save it again with numpy.savez"

Array = np.ndarray[Any, np.dtype[Any]]


def read_npz(path: Path, most: int, refusal: type[QcError]) -> dict[str, Array]:
    """The arrays of an .npz file by name.

    `refusal`, which names file and array, where it is none, cut off, holds anything but numbers and
    text, or more than `most` bytes.
    """
    with _opened(path, refusal) as archive:
        members = archive.infolist()
        headers = {each.filename: _header(archive, each, path, refusal) for each in members}
        size = sum(shape_bytes(shape, dtype) for shape, dtype in headers.values())
        if size > most:
            raise refusal(
                f"{path} holds {size / 1e9:.1f} GB of arrays, and {told_bytes(most)} may be held "
                "in memory; give fewer samples, in several files or one"
            )
        return {
            name.removesuffix(".npy"): _values(archive, name, *header, path, refusal)
            for name, header in headers.items()
        }


def npz_names(path: Path, refusal: type[QcError]) -> list[str]:
    """The names of the arrays in an .npz file; `refusal` where it is none."""
    with _opened(path, refusal) as archive:
        return [name.removesuffix(".npy") for name in archive.namelist()]


@contextmanager
def _opened(path: Path, refusal: type[QcError]) -> Generator[zipfile.ZipFile, None, None]:
    if not path.is_file():
        raise refusal(f"{path} is no file; give an .npz file, or a folder of them")
    what = f"{path} can't be read as .npz"
    with foreign_errors(refusal, what, _REMEDY), zipfile.ZipFile(path) as archive:
        count = len(archive.infolist())
        if count > _MEMBERS:
            raise refusal(f"{path} holds {count} arrays; a model has a few inputs")
        yield archive


def shape_bytes(shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    """Bytes of an array, however many: no integer of NumPy's is involved."""
    return math.prod(shape) * dtype.itemsize


def _header(
    archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path, refusal: type[QcError]
) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type of an array; `refusal` for objects, or other bytes than it says."""
    name = member.filename.removesuffix(".npy")
    if member.compress_type not in _PLAIN:
        raise refusal(f"{path}: '{name}' is compressed in an unusual way; {_REMEDY}")
    with archive.open(member) as file:
        shape, _, dtype = _read_header(file)
        if dtype.hasobject or dtype.names is not None:
            raise refusal(f"{path}: '{name}' holds objects, not numbers; save it as a plain array")
        # Where the file is told is where its values begin.
        have, need = member.file_size - file.tell(), shape_bytes(shape, dtype)
        if any(size < 0 for size in shape) or have != need:
            raise refusal(
                f"{path}: '{name}' says {need} bytes and has {have}: it is cut off, or no array; "
                f"{_REMEDY}"
            )
    return shape, dtype


def _read_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = npy.read_magic(file)
    if version not in _HEADERS:
        raise ValueError(f"version {version} of the format is not known here")
    shape, fortran, dtype = _HEADERS[version](file)
    return shape, fortran, dtype


def _values(
    archive: zipfile.ZipFile,
    name: str,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    path: Path,
    refusal: type[QcError],
) -> Array:
    with archive.open(name) as file:
        _, fortran, _ = _read_header(file)
        content = file.read()
    if len(content) != shape_bytes(shape, dtype):
        raise refusal(f"{path}: '{name}' is cut off; {_REMEDY}")
    if not content:
        return np.empty(shape, dtype)
    flat = np.frombuffer(bytearray(content), dtype)
    return flat.reshape(shape[::-1]).T if fortran else flat.reshape(shape)
