"""What a model stores, checked once: types, sizes and bytes of tensors, and the files they lie in.

Whoever reads a tensor later relies on it: its type is known, its shape and type need the bytes that
are there, text is UTF-8, and external data is a range of a plain file in the model's folder.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import onnx
from onnx import TensorProto, helper

from qcompiler import literals
from qcompiler.errors import ModelError, shown
from qcompiler.protos import ELEMENT_TYPES, all_sparse, all_tensors

_PACKED = {
    **dict.fromkeys(("INT4", "UINT4", "FLOAT4E2M1"), 4),
    **dict.fromkeys(("INT2", "UINT2"), 2),
    **dict.fromkeys(("FLOAT6E2M3", "FLOAT6E3M2"), 6),
}
"""Bits of the types whose values share bytes."""
_COMPLEX = (TensorProto.COMPLEX64, TensorProto.COMPLEX128)
_MOST_BYTES = 1 << 62
"""Counts and offsets have 64 bits."""
_MOST_DENSE_BYTES = 1 << 30
"""Of sparse tensors: more than a model file can hold twice, as reading them needs."""


def packed_bits(kind: int) -> int | None:
    """Bits of a value of an ONNX type whose values share bytes; None for all other types."""
    return _PACKED.get(TensorProto.DataType.Name(kind))  # pyright: ignore[reportArgumentType]


def stored_bytes(kind: int, dims: Iterable[int]) -> int:
    """Bytes of a tensor's raw form, of a type that is not string."""
    bits = packed_bits(kind) or 8 * helper.tensor_dtype_to_np_dtype(kind).itemsize
    return -(-math.prod(dims) * bits // 8)


def check_tensors(model: onnx.ModelProto, onnx_path: Path) -> None:
    """ModelError where a stored tensor has no known type, a bad shape, or not its bytes."""
    for tensor in all_tensors(model):
        where = f"{onnx_path}: tensor '{tensor.name}'"
        if tensor.data_type not in ELEMENT_TYPES:
            raise ModelError(
                f"{where} has the unknown element type {tensor.data_type}; export it in float32"
            )
        _check_dims(tensor.dims, where)
        if tensor.HasField("segment"):
            raise ModelError(f"{where} is stored in segments; export the model again")
        if tensor.data_type == TensorProto.STRING:
            _check_text(tensor, where)
        else:
            _check_numbers(tensor, where)
    for sparse in all_sparse(model):
        _check_sparse(sparse, f"{onnx_path}: sparse tensor '{sparse.values.name}'")


def _check_dims(dims: Iterable[int], where: str) -> None:
    if any(dim < 0 for dim in dims):
        raise ModelError(f"{where} has a negative dimension; export the model again")
    # 16 bytes are the most that a value takes.
    if 16 * math.prod(dim for dim in dims if dim) > _MOST_BYTES:
        raise ModelError(f"{where} has a shape of more values than any file; export it again")


def _check_text(tensor: TensorProto, where: str) -> None:
    if tensor.data_location == TensorProto.EXTERNAL or tensor.HasField("raw_data"):
        raise ModelError(f"{where} holds strings as bytes; export the model again")
    _check_count(tensor, "string_data", math.prod(tensor.dims), where)
    for text in tensor.string_data:
        try:
            text.decode()
        except UnicodeDecodeError:
            raise ModelError(f"{where} holds text that is not UTF-8; export it again") from None


def _check_numbers(tensor: TensorProto, where: str) -> None:
    need = stored_bytes(tensor.data_type, tensor.dims)
    if tensor.data_location == TensorProto.EXTERNAL:
        entries = external_entry(tensor)
        have = _byte_range(entries, where)[1] if "length" in entries else need
    elif tensor.HasField("raw_data"):
        have = len(tensor.raw_data)
    else:
        _check_spelled(tensor, where)
        return
    if have != need:
        raise ModelError(
            f"{where} holds {have} bytes, its shape and type need {need}; export the model again"
        )


def _check_spelled(tensor: TensorProto, where: str) -> None:
    """Values one by one, in the field of their type: those narrower than a byte share entries."""
    count = math.prod(tensor.dims)
    bits = packed_bits(tensor.data_type)
    if bits in (2, 4):
        count = stored_bytes(tensor.data_type, tensor.dims)
    elif tensor.data_type in _COMPLEX:
        count *= 2
    _check_count(tensor, helper.tensor_dtype_to_field(tensor.data_type), count, where)


def _check_count(tensor: TensorProto, field: str, need: int, where: str) -> None:
    have = len(getattr(tensor, field))
    if have != need:
        raise ModelError(
            f"{where} holds {have} values in {field}, its shape and type need {need}; export the "
            "model again"
        )


def _check_sparse(sparse: onnx.SparseTensorProto, where: str) -> None:
    """Sizes and forms; where the values belong is seen when they are put there."""
    _check_dims(sparse.dims, where)
    if sparse.values.data_type == TensorProto.STRING:
        raise ModelError(f"{where} holds strings; store it as a dense tensor")
    if stored_bytes(sparse.values.data_type, sparse.dims) > _MOST_DENSE_BYTES:
        raise ModelError(f"{where} would take more than 1 GiB as a dense tensor; export it dense")
    values, places = tuple(sparse.values.dims), tuple(sparse.indices.dims)
    if sparse.indices.data_type != TensorProto.INT64 or len(values) != 1:
        raise ModelError(f"{where} does not list its values by index; export the model again")
    if places not in (values, (*values, len(sparse.dims))):
        raise ModelError(
            f"{where} has {list(values)} values and indices of shape {list(places)}; export the "
            "model again"
        )


def external_files(model: onnx.ModelProto, onnx_path: Path) -> tuple[Path, ...]:
    """The distinct external-data files of `model`, in order of first use.

    Raises ModelError when a reference leaves the model's folder, names no file, or reaches beyond
    the file's end.
    """
    # A hub cache links model and data into one store: the linked file's own folder counts as home.
    homes = {onnx_path.parent.resolve(), onnx_path.resolve().parent}
    sizes: dict[Path, int] = {}
    for tensor in all_tensors(model):
        if tensor.data_location != TensorProto.EXTERNAL:
            continue
        entries = external_entry(tensor)
        where = f"{onnx_path}: tensor '{tensor.name}'"
        file = _data_file(onnx_path.parent, entries.get("location", ""), homes, where)
        if file not in sizes:
            sizes[file] = file.stat().st_size
        end = _byte_range(entries, where)[0] + stored_bytes(tensor.data_type, tensor.dims)
        if end > sizes[file]:
            raise ModelError(
                f"{where}: {file} is cut off: {end} bytes needed, {sizes[file]} there; "
                "copy or export the model again"
            )
    return tuple(sizes)


def _data_file(folder: Path, location: str, homes: Iterable[Path], where: str) -> Path:
    inside = not Path(location).is_absolute() and ".." not in Path(location).parts
    if not location or not inside:
        raise ModelError(f"{where}: its data {shown(location)} lies outside the model's folder")
    file = folder / location
    try:
        real, plain = file.resolve(), file.is_file()
    except (ValueError, RuntimeError, OSError):  # NUL in a name, links in a circle, a name too long
        raise ModelError(
            f"{where}: its data {shown(location)} is no file; export it again"
        ) from None
    if not any(real.is_relative_to(home) for home in homes):
        raise ModelError(f"{where}: its data {shown(location)} lies outside the model's folder")
    if not plain:
        raise ModelError(f"{where}: its data file {file} is missing, or no plain file")
    return file


def external_entry(tensor: TensorProto) -> dict[str, str]:
    """The external-data fields of a tensor: location, and offset and length where given."""
    return {entry.key: entry.value for entry in tensor.external_data if entry.value}


def _byte_range(entries: Mapping[str, str], where: str) -> tuple[int, int]:
    """Offset and length of external data, 0 where they are not given."""
    try:
        offset, length = (literals.whole(entries.get(key, "0")) for key in ("offset", "length"))
    except ValueError:
        offset = length = -1
    if offset < 0 or length < 0:
        raise ModelError(f"{where}: its external-data offset or length is not a byte count")
    return offset, length
