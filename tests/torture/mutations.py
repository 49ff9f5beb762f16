"""Changes to ONNX files: of any field of any message, of tensors, of graphs, of bytes, of files.

A case is a number: it names the seed model and draws the changes.
"""

from __future__ import annotations

import os
import random
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.descriptor import FieldDescriptor as Field
from google.protobuf.message import DecodeError
from graph_changes import NAMES, change_graph, change_model, copied, messages
from seed_models import SEEDS, Seed
from tensor_changes import BYTES, TYPES, change_tensor

_NUMBERS = [0, 1, -1, 2, 3, 7, 16, 31, 32, 127, 255, 1 << 15, (1 << 31) - 1, -(1 << 31)]
_NUMBERS_64 = [*_NUMBERS, 1 << 31, 1 << 40, 1 << 60, (1 << 63) - 1, -(1 << 63)]
_REALS = [0.0, -1.0, 1e-30, 1e30, float("inf"), float("nan")]
_FILE_KINDS = ["gone", "short", "empty", "folder", "pipe", "loop", "device"]


@dataclass(frozen=True)
class Case:
    """A file to compile."""

    seed: str
    """The name of the model it was made of."""
    changes: tuple[str, ...]
    content: bytes
    files: dict[str, bytes]
    kind: str | None = None
    """What the data file is in place of a file with its bytes, one of _FILE_KINDS."""

    def write(self, folder: Path) -> Path:
        """The model in a folder, with what lies beside it."""
        for name, data in self.files.items():
            _put(folder / name, data, self.kind)
        path = folder / "m.onnx"
        path.write_bytes(self.content)
        return path


def _put(file: Path, data: bytes, kind: str | None) -> None:
    match kind:
        case "gone":
            return
        case "short":
            file.write_bytes(data[: len(data) // 3])
        case "empty":
            file.write_bytes(b"")
        case "folder":
            file.mkdir()
        case "pipe":
            os.mkfifo(file)
        case "loop":
            file.symlink_to(file.name)
        case "device":
            file.symlink_to("/dev/zero")
        case _:
            file.write_bytes(data)


@cache
def _seed(name: str) -> Seed:
    return SEEDS[name]()


def case(number: int) -> Case:
    """The case of a number, always the same."""
    rng = random.Random(number)
    name = list(SEEDS)[number % len(SEEDS)]
    seed = _seed(name)
    model = onnx.ModelProto()
    model.CopyFrom(seed.model)
    changes: list[str] = []
    for _ in range(rng.choice([1, 1, 1, 2, 2, 4])):
        kinds = [_change_field, change_tensor, change_graph, change_model]
        kind = rng.choices(kinds, [4, 3, 4, 2])[0]
        try:
            changes.append(kind(rng, model) or f"{kind.__name__}: nothing to change")
        except DecodeError:
            changes.append(f"{kind.__name__}: too deep for protobuf")
    content = model.SerializeToString()
    if rng.random() < 0.12:
        content, what = _bytes_changed(rng, content)
        changes.append(what)
    file_kind = None
    if seed.files and rng.random() < 0.15:
        file_kind = rng.choice(_FILE_KINDS)
        changes.append(f"data file: {file_kind}")
    return Case(name, tuple(changes), content, seed.files, file_kind)


def _change_field(rng: random.Random, model: onnx.ModelProto) -> str:
    """Change, drop, double, swap or set a field."""
    found = list(messages(model))
    # Tensors and dimensions are many: each kind of message has the same chance.
    kinds = sorted({each.DESCRIPTOR.name for each in found})
    wanted = rng.choice(kinds)
    owner = rng.choice([each for each in found if each.DESCRIPTOR.name == wanted])
    set_fields = [field for field, _ in owner.ListFields()]
    fields = set_fields if set_fields and rng.random() < 0.75 else list(owner.DESCRIPTOR.fields)
    field = rng.choice(fields)
    where = f"{wanted}.{field.name}"
    if field.is_repeated:
        return f"{where}: {_repeated(rng, owner, field, found)}"
    if rng.random() < 0.2:
        owner.ClearField(field.name)
        return f"{where}: dropped"
    if field.type == Field.TYPE_MESSAGE:
        donors = [m for m in found if field.message_type == m.DESCRIPTOR and m is not owner]
        if donors and rng.random() < 0.7:
            copy = copied(rng.choice(donors))
            getattr(owner, field.name).CopyFrom(copy)
            return f"{where}: another's"
        getattr(owner, field.name).SetInParent()
        return f"{where}: empty"
    value = _scalar(rng, field, found)
    setattr(owner, field.name, value)
    return f"{where} = {value!r:.60}"


def _repeated(rng: random.Random, owner: Any, field: Any, found: list[Any]) -> str:
    values = getattr(owner, field.name)
    if not len(values) or rng.random() < 0.2:
        if field.type != Field.TYPE_MESSAGE:
            value = _scalar(rng, field, found)
            values.append(value)
            return f"added {value!r:.60}"
        donors = [m for m in found if field.message_type == m.DESCRIPTOR]
        values.append(
            copied(rng.choice(donors)) if donors else field.message_type._concrete_class()
        )
        return "added one"
    at = rng.randrange(len(values))
    match rng.choice(["drop", "double", "swap", "change", "clear"]):
        case "drop":
            del values[at]
            return f"dropped {at}"
        case "double":
            values.append(values[at])
            return f"doubled {at}"
        case "swap":
            copies = list(values) if field.type != Field.TYPE_MESSAGE else [*map(copied, values)]
            other = rng.randrange(len(values))
            copies[at], copies[other] = copies[other], copies[at]
            del values[:]
            values.extend(copies)
            return f"swapped {at} and {other}"
        case "change" if field.type != Field.TYPE_MESSAGE:
            values[at] = _scalar(rng, field, found)
            return f"{at} = {values[at]!r:.60}"
        case _:
            owner.ClearField(field.name)
            return "cleared"


def _scalar(rng: random.Random, field: Any, found: list[Any]) -> Any:
    match field.type:
        case Field.TYPE_STRING:
            used = [m.name for m in found if "name" in m.DESCRIPTOR.fields_by_name]
            return rng.choice([*NAMES, *rng.sample(used, min(len(used), 12))])
        case Field.TYPE_BYTES:
            return rng.choice(BYTES)
        case Field.TYPE_FLOAT | Field.TYPE_DOUBLE:
            return rng.choice(_REALS)
        case Field.TYPE_ENUM:
            return rng.choice([v.number for v in field.enum_type.values])
        case Field.TYPE_INT32:
            return rng.choice(_NUMBERS + TYPES)
        case Field.TYPE_UINT64:
            return rng.choice([abs(n) for n in _NUMBERS_64])
        case _:
            return rng.choice(_NUMBERS_64)


def _bytes_changed(rng: random.Random, content: bytes) -> tuple[bytes, str]:
    data = bytearray(content or b"\0")
    match rng.choice(["flip", "cut", "insert", "not text", "group", "unknown", "nonsense"]):
        case "flip":
            for _ in range(rng.choice([1, 1, 3, 10])):
                data[rng.randrange(len(data))] = rng.randrange(256)
            return bytes(data), "bytes changed"
        case "cut":
            return bytes(data[: rng.randrange(len(data))]), "cut off"
        case "insert":
            at = rng.randrange(len(data))
            return bytes(data[:at] + rng.randbytes(rng.randrange(1, 20)) + data[at:]), "inserted"
        case "not text":
            names = [m.span() for m in re.finditer(rb"[a-z_]{3,12}", content)] or [(0, 1)]
            start, end = rng.choice(names)
            data[start:end] = b"\xff" * (end - start)
            return bytes(data), f"no UTF-8 for {content[start:end]!r}"
        case "group":
            return content + b"\xfb\x07" * 200 + b"\xfc\x07" * 200, "groups"
        case "unknown":
            return content + b"\xf8\x3f\x05" + b"\xfa\x3f\x03abc", "unknown fields"
        case _:
            return rng.choice([b"", b"hello", rng.randbytes(500), b"\n" * 100]), "no model"
