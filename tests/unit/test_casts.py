"""Constants stored in 16 bits and read in 32: folded, moved, written and run."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper

from qcompiler import ir
from qcompiler.passes.fold_constants import FoldConstants
from qcompiler.passes.import_model import ImportModel
from qcompiler.passmanager import PassContext, PassManager

HEADER = '<ir_version: 10, opset_import: ["" : 21]>\n'
HALVES = (np.float16, ml_dtypes.bfloat16)
K, N = 64, 48


def saved(path: Path, body: str, weights: dict[str, np.ndarray], *, external: bool) -> Path:
    model = onnx.parser.parse_model(HEADER + body)
    for name, values in weights.items():
        model.graph.initializer.append(numpy_helper.from_array(values, name))
    onnx.save(model, str(path), save_as_external_data=external)
    return path


def folded(path: Path):
    manager = PassManager([ImportModel(), FoldConstants()])
    return manager.run(ir.read_model(path), PassContext())[0]


def outputs(path: Path, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
    return ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, feed)


def half(dtype: type, *shape: int) -> np.ndarray:
    return np.random.default_rng(3).standard_normal(shape).astype(dtype)


LAYER = f"""g (float[M, {K}] x, bool c) => (float[M, {N}] y, float[M, {N}] z) {{
    flat = Cast <to = 1> (h)
    w = Reshape(flat, shape)
    [fc] y = MatMul(x, w)
    z = If (c) <
      then_branch = yes () => (float[M, {N}] p) {{ v = Cast <to = 1> (i) [in] p = MatMul(x, v) }},
      else_branch = no () => (float[M, {N}] q) {{ h_cast_stored = Neg(y) q = Neg(h_cast_stored) }}
    >
  }}"""


@pytest.mark.parametrize("external", [True, False])
@pytest.mark.parametrize("dtype", HALVES)
def test_written_as_it_was_stored(tmp_path: Path, dtype: type, external: bool) -> None:
    weights = {"h": half(dtype, K * N), "i": half(dtype, K, N), "shape": np.array([K, N])}
    source = saved(tmp_path / "m.onnx", LAYER, weights, external=external)
    graph = folded(source)
    weight = next(node for node in graph.nodes if node.name == "fc").inputs[1]
    assert ir.is_constant(weight) and ir.array(weight).dtype == np.float32
    assert ir.nbytes(weight) == 2 * K * N
    assert ir.elem_type(weight) == onnx.TensorProto.FLOAT

    for copy in (graph, graph.copy()):
        ir.write_model(copy, tmp_path / "out.onnx")
        onnx.checker.check_model(str(tmp_path / "out.onnx"), full_check=True)
        size = sum(file.stat().st_size for file in tmp_path.glob("out.onnx*"))
        assert size < 4 * K * N + 2000
        for c in (True, False):
            feed = {"x": np.ones((3, K), np.float32), "c": np.array(c)}
            for one, other in zip(
                outputs(source, feed), outputs(tmp_path / "out.onnx", feed), strict=True
            ):
                np.testing.assert_array_equal(one, other)


def test_a_source_and_its_cast_are_both_written(tmp_path: Path) -> None:
    body = f"""g (float[M, {K}] x) => (float[M, {N}] y, float16[{N}, {K}] t) {{
        w = Cast <to = 1> (h)
        y = MatMul(x, w)
        n = Neg(h)
        t = Transpose <perm = [1, 0]> (n)
    }}"""
    source = saved(tmp_path / "m.onnx", body, {"h": half(np.float16, K, N)}, external=True)
    ir.write_model(folded(source), tmp_path / "out.onnx")
    feed = {"x": np.ones((3, K), np.float32)}
    for one, other in zip(outputs(source, feed), outputs(tmp_path / "out.onnx", feed), strict=True):
        np.testing.assert_array_equal(one, other)


def test_constants_in_a_scratch_folder(tmp_path: Path) -> None:
    wide, tall = 512, 256
    body = f"""g (float[M, {tall}] x) => (float[M, {wide}] y) {{
        t = Transpose <perm = [1, 0]> (h)
        r = Reshape(t, shape)
        w = Cast <to = 1> (r)
        y = MatMul(x, w)
    }}"""
    values = half(np.float16, wide, tall)
    weights = {"h": values, "shape": np.array([tall, wide])}
    source = saved(tmp_path / "m.onnx", body, weights, external=True)
    with ir.spilling_beside(tmp_path / "out.onnx"):
        graph = folded(source)
        weight = graph.nodes[0].inputs[1]
        np.testing.assert_array_equal(ir.array(weight), values.T.astype(np.float32))
        turned = ir.rearranged("turned", weight, np.transpose)
        assert ir.nbytes(turned) == values.nbytes
        np.testing.assert_array_equal(ir.array(turned), values.astype(np.float32))
        ir.write_model(graph, tmp_path / "out.onnx")
    feed = {"x": np.ones((3, tall), np.float32)}
    np.testing.assert_array_equal(outputs(source, feed)[0], outputs(tmp_path / "out.onnx", feed)[0])
