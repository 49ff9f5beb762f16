"""Models in and out of files: mapping, packing, atomic writes, and refusals."""

from __future__ import annotations

import hashlib
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnxruntime as ort
import pytest
from odd_models import edited
from onnx import TensorProto, helper, numpy_helper

from qcompiler import ir
from qcompiler.errors import ModelError
from qcompiler.ir.tensors import MappedValues


def save(path: Path, values: np.ndarray, external: bool = True) -> Path:
    """y = x · w, its weight beside it in model.onnx.data."""
    weight = numpy_helper.from_array(values, "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="fc")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", values.shape[0]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", values.shape[1]])],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    options = {"save_as_external_data": True, "location": path.name + ".data"} if external else {}
    onnx.save(model, str(path), size_threshold=0, **options) if external else onnx.save(
        model, str(path)
    )
    return path


WEIGHT = np.arange(32 * 48, dtype=np.float32).reshape(32, 48) / 7


def test_external_data_is_mapped_not_loaded(tmp_path: Path) -> None:
    graph = ir.read_model(save(tmp_path / "m.onnx", WEIGHT))
    weight = graph.nodes[0].inputs[1]
    values = ir.array(weight)
    assert isinstance(values, np.memmap)
    assert not values.flags.writeable
    np.testing.assert_array_equal(values, WEIGHT)
    assert isinstance(weight._values, MappedValues), "reading must not cache"
    assert ir.model_folder(graph) == tmp_path.resolve()


def test_writing_what_was_read_gives_the_same_model(tmp_path: Path) -> None:
    source = save(tmp_path / "m.onnx", WEIGHT)
    files = ir.write_model(ir.read_model(source), tmp_path / "out" / "copy.onnx")
    content = WEIGHT.tobytes()
    data = f"copy.onnx.{hashlib.sha256(content).hexdigest()[:16]}.data"
    assert [file.name for file in files] == [data, "copy.onnx"], "data has the name of its content"
    assert (tmp_path / "out" / data).read_bytes() == content
    x = np.random.default_rng(0).standard_normal((3, 32)).astype(np.float32)
    results = [
        ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
        for path in (source, files[1])
    ]
    np.testing.assert_array_equal(*results)


@pytest.mark.parametrize("dtype", [ml_dtypes.int4, ml_dtypes.uint4, np.int8, np.float16])
@pytest.mark.parametrize("shape", [(64, 48), (33, 65)])
def test_every_type_survives_the_data_file(
    tmp_path: Path, dtype: type, shape: tuple[int, int]
) -> None:
    values = (np.arange(np.prod(shape)) % 8).reshape(shape).astype(dtype)
    weight = ir.constant("w", values)
    out = gs.Variable("y", np.dtype(np.float32), None)
    node = gs.Node("Foo", "foo", inputs=[weight], outputs=[out], domain="test")
    graph = gs.Graph([node], [], [out], opset=21)
    ir.write_model(graph, tmp_path / "m.onnx")
    assert ir.array(weight) is not None, "the graph in memory is as it was"
    again = ir.read_model(tmp_path / "m.onnx").tensors()["w"]
    np.testing.assert_array_equal(ir.array(again), values)
    assert ir.nbytes(again) == ir.nbytes(weight)


def test_arrays_start_on_cache_lines_and_equal_ones_share_a_place(tmp_path: Path) -> None:
    tensors = [
        ir.constant(f"w{i}", np.ones(size, np.uint8))
        for i, size in enumerate((1500, 5000, 1100, 5000))
    ]
    out = gs.Variable("y", np.dtype(np.float32), None)
    node = gs.Node("Foo", "foo", inputs=tensors, outputs=[out], domain="test")
    data, _ = ir.write_model(gs.Graph([node], [], [out], opset=21), tmp_path / "m.onnx")
    model = onnx.load(tmp_path / "m.onnx", load_external_data=False)
    offsets = {
        tensor.name: int({e.key: e.value for e in tensor.external_data}["offset"])
        for tensor in model.graph.initializer
    }
    assert offsets == {"w0": 0, "w1": 1536, "w2": 6592, "w3": 1536}
    assert data.stat().st_size == 6592 + 1100
    again = ir.read_model(tmp_path / "m.onnx").tensors()
    assert all(ir.array(again[t.name]).all() for t in tensors)


def test_metadata_and_functions_are_written(tmp_path: Path) -> None:
    graph = ir.read_model(save(tmp_path / "m.onnx", WEIGHT))
    ir.write_model(graph, tmp_path / "o.onnx", metadata={"who": "me"})
    model = onnx.load(tmp_path / "o.onnx", load_external_data=False)
    assert [(entry.key, entry.value) for entry in model.metadata_props] == [("who", "me")]


def test_a_failed_write_leaves_the_old_model_and_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = save(tmp_path / "m.onnx", WEIGHT)
    graph = ir.read_model(source)
    target = tmp_path / "out" / "o.onnx"
    ir.write_model(graph, target)
    before = {path.name: path.read_bytes() for path in target.parent.iterdir()}

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("qcompiler.ir.io.to_model", full)
    with pytest.raises(OSError, match="No space"):
        ir.write_model(graph, target)
    assert {path.name: path.read_bytes() for path in target.parent.iterdir()} == before
    assert isinstance(graph.nodes[0].inputs[1]._values, MappedValues)


def test_a_model_can_replace_the_file_it_was_read_from(tmp_path: Path) -> None:
    source = save(tmp_path / "m.onnx", WEIGHT)
    graph = ir.read_model(source)
    ir.write_model(graph, source)
    np.testing.assert_array_equal(ir.array(ir.read_model(source).tensors()["w"]), WEIGHT)


def no_file(path: Path) -> Path:
    return path.with_name("none.onnx")


def folder(path: Path) -> Path:
    return path.parent


def empty(path: Path) -> Path:
    path.write_bytes(b"")
    return path


def text(path: Path) -> Path:
    path.write_text("not a model, but text that is long enough to confuse a parser\n" * 9)
    return path


def cut(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[:-20])
    return path


def no_data(path: Path) -> Path:
    path.with_name(path.name + ".data").unlink()
    return path


def short_data(path: Path) -> Path:
    data = path.with_name(path.name + ".data")
    data.write_bytes(data.read_bytes()[:-1])
    return path


def escaping(path: Path) -> Path:
    path.parent.joinpath("..", "secret").resolve().write_bytes(bytes(10_000))
    return edited(path, location="../secret")


def absolute(path: Path) -> Path:
    return edited(path, location=str(Path(__file__)))


def negative_offset(path: Path) -> Path:
    return edited(path, offset="-64")


def odd_offset(path: Path) -> Path:
    return edited(path, offset="12 apples")


def negative_dim(path: Path) -> Path:
    model = onnx.load(path, load_external_data=False)
    model.graph.initializer[0].dims[0] = -32
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (no_file, "No such file"),
        (folder, "Is a directory|is a folder"),
        (empty, "holds no graph"),
        (text, "not an ONNX model|holds no graph"),
        (cut, "not an ONNX model, or is cut off"),
        (no_data, r"'w': its data file .*m\.onnx\.data is missing"),
        (short_data, r"m\.onnx\.data is cut off: 6144 bytes needed, 6143 there"),
        (escaping, "outside the model's folder"),
        (absolute, "outside the model's folder"),
        (negative_offset, "not a byte count"),
        (odd_offset, "not a byte count"),
        (negative_dim, "negative dimension"),
    ],
)
def test_broken_models_are_refused_in_words(tmp_path: Path, damage, message: str) -> None:
    path = tmp_path / "sub" / "m.onnx"
    path.parent.mkdir()
    broken = damage(save(path, WEIGHT))
    with pytest.raises(ModelError, match=message) as caught:
        ir.read_model(broken)
    assert str(broken) in str(caught.value)


def test_replace_uses_keeps_the_interface(tmp_path: Path) -> None:
    graph = gs.import_onnx(
        onnx.parser.parse_model(
            '<ir_version: 10, opset_import: ["" : 21]>\n'
            "g (float[2] x) => (float[2] y) { h = Neg(x) y = Relu(h) }"
        )
    )
    h, y = graph.tensors()["h"], graph.tensors()["y"]
    ir.replace_uses(graph, y, h)
    ir.remove_dead(graph)
    assert [tensor.name for tensor in graph.outputs] == ["y"]
    assert [node.op for node in graph.nodes] == ["Neg"]


def test_namer_never_repeats() -> None:
    graph = gs.import_onnx(
        onnx.parser.parse_model(
            '<ir_version: 10, opset_import: ["" : 21]>\n'
            "g (float[2] x) => (float[2] y) { [n] y = Relu(x) }"
        )
    )
    namer = ir.Namer(graph)
    assert [namer("x"), namer("x"), namer("n"), namer("new")] == ["x_1", "x_2", "n_1", "new"]
