"""Constants without surprises: external data stays on disk until someone reads it.

graphsurgeon caches what it loads and cannot export 4-bit arrays; the two functions
`constant` and `array` are the only way the rest of the compiler touches constant values. Where a
scratch folder is open (`scratch`), large ones that passes make lie in files as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import ml_dtypes
import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import numpy_helper
from onnx_graphsurgeon.ir.tensor import LazyValues

from qcompiler.ir import scratch
from qcompiler.stored import external_entry, packed_bits, stored_bytes

_FOUR_BIT = frozenset({np.dtype(ml_dtypes.int4), np.dtype(ml_dtypes.uint4)})

_BLOCK = 4 << 20  # elements packed or brought in order at a time; even, so that no byte is shared


Stored: TypeAlias = np.ndarray[Any, Any] | LazyValues
"""What holds the values of a constant: an array, a tensor of the model, or a file."""


class MappedValues(LazyValues):
    """Values of an initializer in an external file, mapped afresh for each reader.

    Never cached by graphsurgeon (`Constant.values` would keep the whole model in memory), so
    read through `array`.
    """

    def __init__(
        self, proto: onnx.TensorProto, folder: Path, kept: scratch.ScratchFile | None = None
    ) -> None:
        """`kept`: the file, if it is one that goes with its last reader."""
        super().__init__(proto)
        self.folder = folder
        self._kept = kept

    def load(self) -> np.ndarray[Any, Any]:
        entry = external_entry(self.tensor)
        path = self.folder / entry["location"]
        offset = int(entry.get("offset", 0))
        dims = tuple(self.tensor.dims)
        count = int(np.prod(dims, dtype=np.int64))
        if packed_bits(self.tensor.data_type):
            copy = onnx.TensorProto(data_type=self.tensor.data_type, raw_data=self.packed())
            copy.dims.extend(dims)
            return numpy_helper.to_array(copy)
        dtype = onnx.helper.tensor_dtype_to_np_dtype(self.tensor.data_type)
        if count == 0:
            return np.empty(dims, dtype)
        return np.memmap(path, dtype=dtype, mode="r", offset=offset, shape=dims)

    def packed(self) -> bytes:
        """The bytes in the file, of types whose values share them."""
        entry = external_entry(self.tensor)
        with (self.folder / entry["location"]).open("rb") as file:
            file.seek(int(entry.get("offset", 0)))
            return file.read(stored_bytes(self.tensor.data_type, self.tensor.dims))


class CastValues(LazyValues):
    """Values stored in a narrower float type than they are read in, as a Cast gives them.

    They are written as they are stored, with the Cast behind (`io.to_model`).
    """

    def __init__(self, stored: Stored, kind: int) -> None:
        """`stored`: what holds the narrow values; `kind`: the ONNX type they are read in."""
        self.stored = _owned(stored)
        proto = onnx.TensorProto(data_type=kind)
        proto.dims.extend(stored.shape)
        super().__init__(proto)

    def load(self) -> np.ndarray[Any, Any]:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(self.tensor.data_type)
        return array(gs.Constant("", self.stored)).astype(dtype)


def _owned(stored: Stored) -> Stored:
    """The same values under a tensor of their own: graphsurgeon writes names into it."""
    if not isinstance(stored, LazyValues):
        return stored
    proto = onnx.TensorProto()
    proto.CopyFrom(stored.tensor)
    if isinstance(stored, MappedValues):
        return MappedValues(proto, stored.folder, stored._kept)
    return LazyValues(proto)


def stored_values(tensor: gs.Constant) -> Stored:
    """What holds the values of an initializer as they lie in memory or in a file."""
    values = tensor._values
    return values.stored if isinstance(values, CastValues) else values


def stored_type(tensor: gs.Constant) -> int:
    """ONNX element type of an initializer as it is stored."""
    values = stored_values(tensor)
    if isinstance(values, LazyValues):
        return int(values.tensor.data_type)
    return int(onnx.helper.np_dtype_to_tensor_dtype(values.dtype))


def put_stored(tensor: gs.Constant, stored: Stored) -> None:
    """Hold the same values elsewhere: what `stored_values` gives from now on."""
    values = tensor._values
    cast = isinstance(values, CastValues)
    tensor._values = CastValues(stored, values.tensor.data_type) if cast else stored


def is_constant(tensor: Any) -> bool:
    """Whether a tensor is an initializer."""
    return isinstance(tensor, gs.Constant)


def constant(name: str, values: np.ndarray[Any, Any]) -> gs.Constant:
    """An initializer holding `values`; ml_dtypes' int4 and uint4 are packed as ONNX stores them.

    In a file, where a scratch folder is open and they are large.
    """
    values = np.asarray(values)
    four_bit = values.dtype in _FOUR_BIT
    store = scratch.active()
    size = values.size // 2 if four_bit else values.nbytes
    if store is not None and size >= store.threshold and values.dtype.kind not in "OUS":
        return gs.Constant(name, spilled(name, values, store))
    if four_bit:
        return gs.Constant(name, LazyValues(numpy_helper.from_array(values, name)))
    return gs.Constant(name, np.asarray(values, order="C"))


def spilled(name: str, values: np.ndarray[Any, Any], store: scratch.Scratch) -> MappedValues:
    """Values in a new file of `store`, as an initializer of that name has them."""
    kind = onnx.helper.np_dtype_to_tensor_dtype(values.dtype)
    return _in_file(name, kind, values.shape, store.store(_blocks(values)))


def spilled_proto(tensor: onnx.TensorProto, store: scratch.Scratch) -> MappedValues:
    """The raw data of a tensor in a new file of `store`."""
    file = store.store([tensor.raw_data])
    return _in_file(tensor.name, tensor.data_type, tensor.dims, file)


def rearranged(
    name: str, tensor: gs.Constant, move: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]
) -> gs.Constant:
    """An initializer with the values of another in other places, in the type those are stored in.

    `move` changes places and nothing else.
    """
    made = constant(name, move(array(gs.Constant("", stored_values(tensor)))))
    put = gs.Constant(name, tensor._values)
    put_stored(put, made._values)
    return put


def _in_file(name: str, kind: int, dims: Iterable[int], file: scratch.ScratchFile) -> MappedValues:
    proto = onnx.TensorProto(name=name, data_type=kind)
    proto.dims.extend(dims)
    proto.data_location = onnx.TensorProto.EXTERNAL
    proto.external_data.add(key="location", value=file.path.name)
    return MappedValues(proto, file.path.parent, file)


def _blocks(values: np.ndarray[Any, Any]) -> Iterator[bytes | memoryview]:
    """The bytes of values as ONNX stores them, without a copy of all."""
    if values.dtype not in _FOUR_BIT and values.flags.c_contiguous:
        yield values.reshape(-1).view(np.uint8).data
        return
    if not values.flags.c_contiguous:
        step = max(2, _BLOCK * len(values) // values.size // 2 * 2)
        for start in range(0, len(values), step):
            yield from _blocks(np.ascontiguousarray(values[start : start + step]))
        return
    flat = values.reshape(-1)
    for start in range(0, flat.size, _BLOCK):
        yield numpy_helper.from_array(flat[start : start + _BLOCK]).raw_data


def array(tensor: gs.Constant) -> np.ndarray[Any, Any]:
    """The values of an initializer, read-only where they are mapped; never cached."""
    values = tensor._values
    if isinstance(values, (MappedValues, CastValues)):
        return values.load()
    if isinstance(values, LazyValues):
        return numpy_helper.to_array(values.tensor)
    return np.asarray(values)


def nbytes(tensor: gs.Constant) -> int:
    """Bytes the values take in a file."""
    values = stored_values(tensor)
    if isinstance(values, LazyValues):
        return stored_bytes(values.tensor.data_type, values.tensor.dims)
    return int(np.asarray(values).nbytes)
