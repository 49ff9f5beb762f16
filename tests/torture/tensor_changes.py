"""Changes to stored tensors: how they are stored, their types, sizes and values."""

from __future__ import annotations

import random
from collections.abc import Callable

import onnx
from onnx import TensorProto, helper

from qcompiler.protos import all_tensors

TYPES = list(range(29))
BYTES = [b"", b"\0", b"\xff\xfe", b"abc", bytes(64), b"\x80" * 300]


_STORES = [
    *("raw_data", "float_data", "int32_data", "int64_data"),
    *("double_data", "uint64_data", "string_data"),
]


def change_tensor(rng: random.Random, model: onnx.ModelProto) -> str:
    """Change how a tensor is stored, its type, its sizes or its values."""
    found = list(all_tensors(model))
    if not found:
        return ""
    tensor = rng.choice(found)
    what = rng.choice(["type", "dim", "store", "cut", "grow", "value", "external", "reshape"])
    return f"tensor '{tensor.name[:40]}': " + _TENSOR_CHANGES[what](rng, tensor)


def _retype(rng: random.Random, tensor: TensorProto) -> str:
    tensor.data_type = rng.choice([*TYPES, 99, -1])
    if rng.random() < 0.5:
        _fill(rng, tensor)
        return f"type {tensor.data_type}, filled"
    return f"type {tensor.data_type}"


def _fill(rng: random.Random, tensor: TensorProto) -> None:
    """Give a tensor about the bytes that its shape and type need, in the raw form."""
    count = 1
    for dim in tensor.dims:
        count *= max(int(dim), 0)
    try:
        size = helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    except (KeyError, TypeError):
        size = 4
    if count * size < 1 << 16:
        _empty(tensor)
        tensor.raw_data = rng.randbytes(count * size)


def _empty(tensor: TensorProto) -> None:
    for name in _STORES:
        tensor.ClearField(name)
    del tensor.external_data[:]
    tensor.ClearField("data_location")


def _resize(rng: random.Random, tensor: TensorProto) -> str:
    size = rng.choice([0, 1, 2, 16, 31, 33, 64, 1 << 31, 1 << 40, 1 << 62, -1, -32])
    if tensor.dims and rng.random() < 0.8:
        tensor.dims[rng.randrange(len(tensor.dims))] = size
    else:
        tensor.dims.append(size)
    if rng.random() < 0.4:
        _fill(rng, tensor)
    return f"dims {list(tensor.dims)}"


def _restore(rng: random.Random, tensor: TensorProto) -> str:
    """The values in another field."""
    name = rng.choice(_STORES)
    count = rng.choice([0, 1, 31, 32, 48, 1024, 1536])
    if rng.random() < 0.7:
        _empty(tensor)
    if name == "raw_data":
        tensor.raw_data = rng.randbytes(4 * count)
    elif name == "string_data":
        tensor.string_data.extend([rng.choice(BYTES)] * count)
    else:
        getattr(tensor, name).extend([1] * count)
    return f"{count} in {name}"


def _cut(rng: random.Random, tensor: TensorProto) -> str:
    tensor.raw_data = tensor.raw_data[: rng.randrange(len(tensor.raw_data) + 1)]
    return f"cut to {len(tensor.raw_data)} bytes"


def _grow(rng: random.Random, tensor: TensorProto) -> str:
    tensor.raw_data += rng.randbytes(rng.choice([1, 3, 4, 128]))
    return f"grown to {len(tensor.raw_data)} bytes"


def _revalue(rng: random.Random, tensor: TensorProto) -> str:
    data = bytearray(tensor.raw_data)
    if len(data) < 4:
        return "nothing to change"
    special = rng.choice(
        [
            *(b"\x00\x00\xc0\x7f", b"\x00\x00\x80\x7f", b"\xff\xff\x7f\x7f", b"\0\0\0\0"),
            *(b"\xff" * 8, (1 << 62).to_bytes(8, "little"), rng.randbytes(4)),
        ]
    )
    at = rng.randrange(max(len(data) // 4, 1)) * 4
    if rng.random() < 0.3:
        data = bytearray(special * (len(data) // len(special) + 1))[: len(data)]
    else:
        data[at : at + len(special)] = special[: len(data) - at]
    tensor.raw_data = bytes(data)
    return f"bytes {special!r} at {at}"


def _externalize(rng: random.Random, tensor: TensorProto) -> str:
    tensor.data_location = TensorProto.EXTERNAL
    size = len(tensor.raw_data)
    if rng.random() < 0.7:
        tensor.ClearField("raw_data")
    numbers = ["0", "64", "-1", str(1 << 62), "1e3", " 7", "", "none", str(size), "٣"]
    entries = {
        "location": rng.choice(["m.data", "m.onnx", "a\0b", "/etc/passwd", "..", ".", "", "\n"]),
        "offset": rng.choice(numbers),
        "length": rng.choice(numbers),
        "checksum": "0",
    }
    del tensor.external_data[:]
    for key in rng.sample(list(entries), rng.randrange(1, 5)):
        tensor.external_data.add(key=key, value=entries[key])
    return f"external {[(e.key, e.value) for e in tensor.external_data]}"


def _reshape(rng: random.Random, tensor: TensorProto) -> str:
    dims = list(tensor.dims)
    match rng.choice(["flat", "one", "turned", "scalar"]):
        case "flat":
            dims = [dims[0] * dims[-1]] if len(dims) > 1 else dims
        case "one":
            dims.insert(rng.randrange(len(dims) + 1), 1)
        case "turned":
            dims.reverse()
        case _:
            dims = []
    del tensor.dims[:]
    tensor.dims.extend(dims)
    if rng.random() < 0.5:
        _fill(rng, tensor)
    return f"dims {dims}"


_TENSOR_CHANGES: dict[str, Callable[[random.Random, TensorProto], str]] = {
    "type": _retype,
    "dim": _resize,
    "store": _restore,
    "cut": _cut,
    "grow": _grow,
    "value": _revalue,
    "external": _externalize,
    "reshape": _reshape,
}
