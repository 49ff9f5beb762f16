"""Large constants in a scratch folder: spilled, mapped, removed; and nobody else's business."""

from __future__ import annotations

import errno
import gc
import threading
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from qcompiler import ir
from qcompiler.calibration.graph_session import graph_session
from qcompiler.ir import scratch
from qcompiler.ir.io import import_proto
from qcompiler.ir.tensors import MappedValues
from qcompiler.passes.import_model import ImportModel
from qcompiler.passmanager import PassContext

LARGE = np.arange(256 * 384, dtype=np.float32).reshape(256, 384)


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.bin"))


def graph_of(*constants: gs.Constant) -> gs.Graph:
    out = gs.Variable("y", np.dtype(np.float32), None)
    node = gs.Node("Foo", "foo", inputs=list(constants), outputs=[out], domain="test")
    return gs.Graph([node], [], [out], opset=21)


@pytest.mark.parametrize(
    "values",
    [
        LARGE,
        LARGE.T,
        LARGE[::2, ::3],
        (LARGE % 999).astype(np.float16),
        LARGE.astype(ml_dtypes.bfloat16),
        (LARGE % 8).astype(ml_dtypes.int4),
        (LARGE % 8).astype(ml_dtypes.uint4).T,
        (LARGE % 8).astype(ml_dtypes.uint4)[:255, :383],
        LARGE > 7,
    ],
    ids=lambda v: f"{v.dtype}-{v.shape[0]}x{v.shape[1]}",
)
def test_large_constants_are_mapped_from_files(tmp_path: Path, values: np.ndarray) -> None:
    plain = ir.constant("w", values)
    with ir.spilling(tmp_path, 1 << 10):
        spilled = ir.constant("w", values)
        assert len(files(tmp_path)) == 1
        assert isinstance(spilled._values, MappedValues)
        np.testing.assert_array_equal(ir.array(spilled), ir.array(plain))
        assert ir.array(spilled).dtype == ir.array(plain).dtype
        assert ir.nbytes(spilled) == ir.nbytes(plain) == files(tmp_path)[0].stat().st_size
        assert ir.elem_type(spilled) == ir.elem_type(plain)
        assert tuple(spilled.shape) == values.shape
        written = [
            ir.write_model(graph_of(each), tmp_path / kind / "m.onnx")
            for kind, each in (("plain", plain), ("spilled", spilled))
        ]
    for one, other in zip(*written, strict=True):
        assert one.read_bytes() == other.read_bytes()


def test_small_constants_and_texts_stay_in_memory(tmp_path: Path) -> None:
    with ir.spilling(tmp_path):
        small = ir.constant("s", np.ones(scratch.THRESHOLD // 4 - 1, np.float32))
        texts = ir.constant("t", np.array(["a"] * (1 << 20), dtype=object))
        assert not isinstance(small._values, MappedValues)
        assert not isinstance(texts._values, MappedValues)
    assert not isinstance(ir.constant("w", LARGE)._values, MappedValues), "none is open"
    assert files(tmp_path) == []


def test_what_is_mapped_cannot_be_changed(tmp_path: Path) -> None:
    with ir.spilling(tmp_path):
        values = ir.array(ir.constant("w", LARGE))
        assert not values.flags.writeable
        with pytest.raises(ValueError, match="read-only"):
            values[0] = 1.0


def test_a_file_goes_with_its_last_reader(tmp_path: Path) -> None:
    with ir.spilling(tmp_path):
        first = graph_of(ir.constant("w", LARGE))
        copy = first.copy()
        del first
        gc.collect()
        held = ir.constant("other", LARGE)
        assert len(files(tmp_path)) == 2, "a copy still has it"
        mapped = ir.array(copy.nodes[0].inputs[0])
        del copy
        gc.collect()
        ir.constant("third", LARGE)
        assert [file.name for file in files(tmp_path)] == ["1.bin", "2.bin"]
        np.testing.assert_array_equal(mapped, LARGE, "what is mapped outlives its name")
        np.testing.assert_array_equal(ir.array(held), LARGE)


def test_import_keeps_files_and_puts_weights_of_the_model_into_some(tmp_path: Path) -> None:
    weight = numpy_helper.from_array(LARGE, "w")
    model = helper.make_model(
        helper.make_graph(
            [helper.make_node("MatMul", ["x", "w"], ["y"])],
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 256])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 384])],
            [weight],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
    )
    with ir.spilling(tmp_path):
        graph = import_proto(model)
        assert len(files(tmp_path)) == 1
        graph = ImportModel().run(graph, PassContext()).graph
        gc.collect()
        ir.constant("other", LARGE)
        np.testing.assert_array_equal(ir.array(graph.tensors()["w"]), LARGE)


def test_each_thread_has_its_own(tmp_path: Path) -> None:
    inside = threading.Barrier(2)
    found: dict[str, list[Path]] = {}

    def compiling(name: str, count: int) -> None:
        folder = tmp_path / name
        folder.mkdir()
        with ir.spilling(folder):
            inside.wait(timeout=60)
            made = [ir.constant(f"w{i}", LARGE + i) for i in range(count)]
            inside.wait(timeout=60)
            assert all((ir.array(each) == LARGE + i).all() for i, each in enumerate(made))
            found[name] = files(folder)

    threads = [threading.Thread(target=compiling, args=pair) for pair in (("a", 2), ("b", 3))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {name: len(each) for name, each in found.items()} == {"a": 2, "b": 3}


def test_a_full_disk_is_an_error_of_the_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with ir.spilling(tmp_path):
        monkeypatch.setattr(Path, "open", full)
        with pytest.raises(OSError, match="No space"):
            ir.constant("w", LARGE)


def test_a_session_reads_files_of_several_folders(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    x = gs.Variable("x", np.dtype(np.float32), ["N", 256])
    first = gs.Variable("a", np.dtype(np.float32), ["N", 384])
    second = gs.Variable("b", np.dtype(np.float32), ["N", 256])
    graph = gs.Graph(
        [
            gs.Node("MatMul", "1", inputs=[x, ir.constant("v", LARGE)], outputs=[first]),
            gs.Node("MatMul", "2", inputs=[first, ir.constant("w", LARGE.T)], outputs=[second]),
        ],
        [x],
        [second],
        opset=21,
        ir_version=10,
    )
    ir.write_model(graph, source / "m.onnx")
    feed = {"x": np.ones((2, 256), np.float32)}
    (expected,) = ort.InferenceSession(source / "m.onnx", providers=["CPUExecutionProvider"]).run(
        None, feed
    )
    (tmp_path / "scratch").mkdir()
    graph = ir.read_model(source / "m.onnx")
    with ir.spilling(tmp_path / "scratch"):
        graph.nodes[0].inputs[1] = ir.constant("v2", LARGE * 2)
        assert ir.model_folder(graph) == tmp_path.resolve()
        with graph_session(graph, lambda model: model) as session:
            (doubled,) = session.run(None, feed)
        model = ir.to_model(graph)
        again = import_proto(model, ir.model_folder(graph))
        np.testing.assert_array_equal(ir.array(again.tensors()["v2"]), LARGE * 2)
        assert isinstance(onnx.ModelProto.FromString(model.SerializeToString()), onnx.ModelProto)
    np.testing.assert_allclose(doubled, expected * 2, rtol=1e-5)
    assert [file.name for file in files(tmp_path / "scratch")] == ["0.bin"]
