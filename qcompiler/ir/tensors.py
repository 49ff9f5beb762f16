"""Constants without surprises: external data stays on disk until someone reads it.

graphsurgeon caches what it loads and cannot export 4-bit arrays; the two functions
`constant` and `array` are the only way the rest of the compiler touches constant values.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import numpy_helper
from onnx_graphsurgeon.ir.tensor import LazyValues

_FOUR_BIT = frozenset({np.dtype(ml_dtypes.int4), np.dtype(ml_dtypes.uint4)})
_FOUR_BIT_PROTO = frozenset({onnx.TensorProto.INT4, onnx.TensorProto.UINT4})


def external_entry(proto: onnx.TensorProto) -> dict[str, str]:
    """The external-data fields of a tensor: location, and offset and length where given."""
    return {entry.key: entry.value for entry in proto.external_data}


class MappedValues(LazyValues):
    """Values of an initializer in an external file, mapped afresh for each reader.

    Never cached by graphsurgeon (`Constant.values` would keep the whole model in memory), so
    read through `array`.
    """

    def __init__(self, proto: onnx.TensorProto, folder: Path) -> None:
        super().__init__(proto)
        self.folder = folder

    def load(self) -> np.ndarray[Any, Any]:
        entry = external_entry(self.tensor)
        path = self.folder / entry["location"]
        offset = int(entry.get("offset", 0))
        dims = tuple(self.tensor.dims)
        count = int(np.prod(dims, dtype=np.int64))
        if self.tensor.data_type in _FOUR_BIT_PROTO:
            length = (count + 1) // 2
            copy = onnx.TensorProto()
            copy.data_type = self.tensor.data_type
            copy.dims.extend(dims)
            with path.open("rb") as file:
                file.seek(offset)
                copy.raw_data = file.read(length)
            return numpy_helper.to_array(copy)
        dtype = onnx.helper.tensor_dtype_to_np_dtype(self.tensor.data_type)
        if count == 0:
            return np.empty(dims, dtype)
        return np.memmap(path, dtype=dtype, mode="r", offset=offset, shape=dims)


def is_constant(tensor: Any) -> bool:
    """Whether a tensor is an initializer."""
    return isinstance(tensor, gs.Constant)


def constant(name: str, values: np.ndarray[Any, Any]) -> gs.Constant:
    """An initializer holding `values`; ml_dtypes' int4 and uint4 are packed as ONNX stores them."""
    values = np.asarray(values)
    if values.dtype in _FOUR_BIT:
        return gs.Constant(name, LazyValues(numpy_helper.from_array(values, name)))
    return gs.Constant(name, np.asarray(values, order="C"))


def array(tensor: gs.Constant) -> np.ndarray[Any, Any]:
    """The values of an initializer, read-only where they are mapped; never cached."""
    values = tensor._values
    if isinstance(values, MappedValues):
        return values.load()
    if isinstance(values, LazyValues):
        return numpy_helper.to_array(values.tensor)
    return np.asarray(values)


def nbytes(tensor: gs.Constant) -> int:
    """Bytes the values take in a file."""
    values = tensor._values
    if isinstance(values, LazyValues):
        count = int(np.prod(tuple(values.tensor.dims), dtype=np.int64))
        if values.tensor.data_type in _FOUR_BIT_PROTO:
            return (count + 1) // 2
        return count * onnx.helper.tensor_dtype_to_np_dtype(values.tensor.data_type).itemsize
    return int(np.asarray(values).nbytes)
