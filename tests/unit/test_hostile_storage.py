"""Hostile storage: tensors that hold other than their shape and type need, and data files."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from command_line import refusal
from odd_models import W, linear
from onnx import ModelProto, TensorProto, helper, numpy_helper

from qcompiler import ir
from qcompiler.errors import ModelError
from qcompiler.ir import read_model
from qcompiler.stored import check_tensors

# Storage: every type in every form, and with less or more than its shape needs.

KINDS = sorted(set(TensorProto.DataType.values()) - {TensorProto.UNDEFINED})


def spelled(kind: int) -> TensorProto:
    """Five values in the field of their type."""
    if kind == TensorProto.STRING:
        return helper.make_tensor("t", kind, [5], [b"a"] * 5)
    return helper.make_tensor("t", kind, [5], np.ones(5).tolist())


def raw(kind: int) -> TensorProto:
    """The same as bytes."""
    return numpy_helper.from_array(numpy_helper.to_array(spelled(kind)), "t")


def holding(tensor: TensorProto) -> ModelProto:
    made = linear(w=W)
    made.graph.initializer.append(tensor)
    return made


def test_every_type_in_every_form(tmp_path: Path) -> None:
    for kind in KINDS:
        check_tensors(holding(spelled(kind)), tmp_path)
        if kind != TensorProto.STRING:
            check_tensors(holding(raw(kind)), tmp_path)


@pytest.mark.parametrize("kind", KINDS, ids=TensorProto.DataType.Name)
def test_other_sizes_than_the_shape_needs(tmp_path: Path, kind: int) -> None:
    forms = [spelled(kind), *([raw(kind)] if kind != TensorProto.STRING else [])]
    for tensor in forms:
        for dims in ([0], [2, 6], [1 << 40]):
            wrong = TensorProto()
            wrong.CopyFrom(tensor)
            wrong.dims[:] = dims
            with pytest.raises(ModelError, match=r"'t' holds \d+ .*its shape and type need \d+"):
                check_tensors(holding(wrong), tmp_path)


def test_values_in_the_field_of_another_type(tmp_path: Path) -> None:
    for kind in KINDS:
        fields = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data")
        for field in set(fields) - {helper.tensor_dtype_to_field(kind)}:
            tensor = TensorProto(name="t", data_type=kind, dims=[5])
            getattr(tensor, field).extend([1] * 5)
            with pytest.raises(ModelError, match="'t' holds 0 values in"):
                check_tensors(holding(tensor), tmp_path)


# Data files.


def stored_beside(folder: Path) -> Path:
    path = folder / "m.onnx"
    onnx.save(linear(w=W), path, save_as_external_data=True, location="m.data", size_threshold=0)
    return path


def entry(path: Path, **fields: str) -> None:
    """What a file says of where its first weight lies."""
    model = onnx.load(path, load_external_data=False)
    tensor = model.graph.initializer[0]
    entries = {each.key: each.value for each in tensor.external_data} | fields
    del tensor.external_data[:]
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    path.write_bytes(model.SerializeToString())


@pytest.mark.parametrize(
    ("fields", "cause"),
    [
        ({"location": "a\0b"}, "is no file"),
        ({"location": "a" * 5000}, "is no file"),
        ({"location": "."}, "no plain file"),
        ({"location": "two\nlines"}, "is missing"),
        ({"location": "\x1b[31m"}, "\\x1b[31m is missing"),
        ({"offset": " 7"}, "not a byte count"),
        ({"offset": "1e3"}, "not a byte count"),
        ({"offset": "٣"}, "not a byte count"),
        ({"offset": "9" * 30}, "not a byte count"),
        ({"offset": str(10**17)}, "is cut off"),
        ({"length": "-1"}, "not a byte count"),
    ],
)
def test_places_of_data(tmp_path: Path, fields: dict[str, str], cause: str) -> None:
    path = stored_beside(tmp_path)
    entry(path, **fields)
    assert cause in refusal("compile", path)


def pipe(file: Path) -> None:
    os.mkfifo(file)


def circle(file: Path) -> None:
    file.symlink_to(file.name)


def device(file: Path) -> None:
    file.symlink_to("/dev/zero")


@pytest.mark.parametrize("make", [pipe, circle, device, Path.mkdir])
def test_data_files_that_are_none(tmp_path: Path, make: Callable[[Path], None]) -> None:
    path = stored_beside(tmp_path)
    (tmp_path / "m.data").unlink()
    make(tmp_path / "m.data")
    told = refusal("compile", path)
    assert re.search("no plain file|is no file|outside the model's folder", told)


def test_sparse_values_in_a_file_that_holds_more(tmp_path: Path) -> None:
    made = linear(w=W)
    sparse = made.graph.sparse_initializer.add(dims=W.shape)
    sparse.indices.CopyFrom(numpy_helper.from_array(np.array([0, 5, 7])))
    sparse.values.CopyFrom(numpy_helper.from_array(np.zeros(3, np.float32), "w"))
    del made.graph.initializer[:]
    sparse.values.ClearField("raw_data")
    sparse.values.data_location = TensorProto.EXTERNAL
    sparse.values.external_data.add(key="location", value="m.data")
    sparse.values.external_data.add(key="offset", value="")
    np.arange(100, dtype=np.float32).tofile(tmp_path / "m.data")
    onnx.save(made, tmp_path / "m.onnx")
    (weight,) = (
        t for n in read_model(tmp_path / "m.onnx").nodes for t in n.inputs if t.name == "w"
    )
    np.testing.assert_array_equal(ir.array(weight).reshape(-1)[[0, 5, 7]], [0.0, 1.0, 2.0])
