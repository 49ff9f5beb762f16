"""Function bodies of the Linear and Embedding ops in stock ONNX Runtime: the bits of numpy."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import pytest
from linear_models import assert_same_bits, embedding_model, linear_model, wanted
from onnx import TensorProto
from onnxruntime import GraphOptimizationLevel as Level
from onnxruntime import InferenceSession, SessionOptions
from plane_cases import EVERY_FORM, make_planes
from single_node import rounded_to_bfloat16

from qcompiler.inspection import inspect
from qcompiler.numerics import reference
from qcompiler.numerics.planes import MOST_ROWS, PlaneMatrix

EITHER_SCALE = pytest.mark.parametrize("x_scale", [None, 0.02], ids=["dynamic", "static"])
LEVELS = (Level.ORT_DISABLE_ALL, Level.ORT_ENABLE_BASIC, Level.ORT_ENABLE_ALL)

# K, N, group size, splits
SHAPES = [
    (1, 1, 16, (1, 0, 0)),
    (100, 35, 16, (30, 0, 5)),
    (300, 70, 256, (40, 20, 10)),
]


def rows_of(*leading: int, k: int) -> np.ndarray:
    """Random rows; of a dozen some are zeros, denormal, huge, or hold what is not finite."""
    x = np.random.default_rng(leading).normal(size=(*leading, k)).astype(np.float32)
    if leading == (2, 6):
        x[0, 0] = 0
        x[0, 1, 0], x[0, 2, -1], x[0, 3, k // 2] = np.nan, np.inf, -np.inf
        x[0, 4] *= np.float32(1e-42)
        x[0, 5] *= np.float32(1e-44)
        x[1, 0] *= np.float32(1e37)
        x[1, 1, 0] = 3.4e38
        x[1, 2] = 1.5 * np.arange(k) - 70  # ties, where the scale is 1
        x[1, 2, 0] = 127
    return x


def run(session: InferenceSession, x: np.ndarray) -> np.ndarray:
    return np.concatenate(session.run(None, {"X": x}), axis=-1)


@EVERY_FORM
@EITHER_SCALE
@pytest.mark.parametrize("level", LEVELS, ids=lambda level: level.name)
def test_linear_gives_the_bits_of_the_reference(session, bits, grid, x_scale, level):
    for k, n, group_size, splits in SHAPES:
        w = make_planes(k, n, group_size, bits=bits, grid=grid)
        bias = np.random.default_rng(1).normal(size=n).astype(np.float32)
        model = linear_model(w, bias, x_scale=x_scale, splits=splits)
        onnx.checker.check_model(model, full_check=True)
        runner = session(model, library=False, level=level)
        for leading in ((1, 1), (2, 6), (0, 3), (3, 0), (35, 2)):
            x = rows_of(*leading, k=k)
            assert_same_bits(run(runner, x), wanted(x, w, bias, x_scale))


@EITHER_SCALE
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("bits", [3, 8])
def test_narrow_floats_are_rounded_once(session, bits, dtype, x_scale):
    w = make_planes(100, 35, 32, bits=bits)
    model = linear_model(w, x_scale=x_scale, dtype=dtype)
    onnx.checker.check_model(model, full_check=True)
    runner = session(model, library=False)
    for leading in ((1, 1), (2, 6), (0, 3), (35, 2)):
        with np.errstate(over="ignore"):
            x = rounded_to_bfloat16(rows_of(*leading, k=100))
            x = x.astype(np.float16) if dtype == "float16" else x
        assert_same_bits(run(runner, x), wanted(x, w, x_scale=x_scale, dtype=dtype))


@pytest.mark.parametrize("leading", [(), ("a",), ("a", "b", "c")], ids=str)
def test_linear_of_any_rank(session, leading):
    w = make_planes(40, 20, 32, bits=5)
    x = rows_of(*[3] * len(leading), k=40)
    y = run(session(linear_model(w, leading=leading), library=False), x)
    assert_same_bits(y, wanted(x, w))


@pytest.mark.parametrize("k", [2048, MOST_ROWS])
def test_sums_are_exact(session, k):
    """The largest products there are: an instruction that saturates would show, and more rows of k
    would not fit an int32."""
    values = np.random.default_rng(k).choice(np.array([127, -127], np.int8), (k, 4))
    values[:, 0], values[:, 1] = 127, -127
    w = PlaneMatrix.of_int8(values, np.ones(4, np.float32))
    x = values.T.astype(np.float32)  # of scale 1
    y = run(session(linear_model(w, leading=("rows",)), library=False), x)
    assert_same_bits(np.diagonal(y), np.full(4, 127 * 127 * k, np.float32))
    assert_same_bits(y, wanted(x, w))


@EVERY_FORM
def test_any_byte_is_a_weight_modulo_256(session, bits, grid):
    rng = np.random.default_rng(7)
    w = make_planes(150, 35, 16, bits=bits, grid=grid)
    groups = None if w.groups is None else rng.integers(0, 256, w.groups.shape, dtype=np.uint8)
    W = rng.integers(0, 256, w.W.shape, dtype=np.uint8)
    w = dataclasses.replace(w, W=W, groups=groups)
    x, ids = rows_of(35, 2, k=150), np.arange(35).reshape(5, 7)
    y = run(session(linear_model(w), library=False), x)
    assert_same_bits(y, wanted(x, w))
    (rows,) = session(embedding_model(w), library=False).run(None, {"ids": ids})
    assert_same_bits(rows, reference.embedding(ids, w))


@pytest.mark.parametrize("level", LEVELS, ids=lambda level: level.name)
@pytest.mark.parametrize("n", [1, 35])
def test_no_bias_leaves_no_negative_zero(session, n, level):
    """The sum of -0 and a bias of 0 is 0; ONNX Runtime may not drop it."""
    w = make_planes(40, n, 32, bits=4)
    w.scales[:] = -w.scales
    y = run(session(linear_model(w), library=False, level=level), np.zeros((1, 2, 40), np.float32))
    assert_same_bits(y, np.zeros((1, 2, n), np.float32))


@EVERY_FORM
@EITHER_SCALE
def test_a_session_keeps_one_int8_matrix(tmp_path, bits, grid, x_scale):
    """Nothing of the packed form is left, and no optimization replaces what rounds."""
    w = make_planes(320, 144, 64, bits=bits, grid=grid)
    model = linear_model(w, np.ones(144, np.float32), x_scale=x_scale).SerializeToString()
    for level in LEVELS[1:]:
        options = SessionOptions()
        options.graph_optimization_level = level
        options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
        InferenceSession(model, options, providers=["CPUExecutionProvider"])
        graph = onnx.load(options.optimized_model_filepath).graph
        large = [(t.data_type, list(t.dims)) for t in graph.initializer if np.prod(t.dims) > 144]
        assert large == [(TensorProto.INT8, [320, 144])]
        operators = [node.op_type for node in graph.node]
        assert not any(node.domain for node in graph.node)
        assert operators.count("MatMulInteger") == 1
        at = operators.index("MatMulInteger")
        tail = ["Split", "Sub", "Cast", "Mul", "Mul", "Sum", "Reshape"]
        assert operators[at + 1 :][: len(tail)] == tail


@EVERY_FORM
@pytest.mark.parametrize("ids_type", ["int64", "int32"])
def test_embedding_gives_the_bits_of_the_reference(session, bits, grid, ids_type):
    for k, n, group_size, _ in SHAPES:
        w = make_planes(k, n, group_size, bits=bits, grid=grid)
        w.scales[::2] *= -1
        model = embedding_model(w, ids_type=ids_type)
        onnx.checker.check_model(model, full_check=True)
        for level in (Level.ORT_DISABLE_ALL, Level.ORT_ENABLE_ALL):
            runner = session(model, library=False, level=level)
            every = np.arange(-n, n, dtype=ids_type)
            for ids in (every.reshape(2, n), every[:1].reshape(1, 1), every[:0].reshape(0, 3)):
                (y,) = runner.run(None, {"ids": ids})
                assert_same_bits(y, reference.embedding(ids, w))


@pytest.mark.parametrize("ids_shape", [(), ("a",), ("a", "b", "c")], ids=str)
def test_embedding_of_any_rank(session, ids_shape):
    w = make_planes(33, 20, 32, bits=6)
    ids = np.full([2] * len(ids_shape), 19, np.int64)
    runner = session(embedding_model(w, ids_shape=ids_shape), library=False)
    (y,) = runner.run(None, {"ids": ids})
    assert_same_bits(y, reference.embedding(ids, w))


@EVERY_FORM
@pytest.mark.parametrize("wrong", [35, -36, 48, 2**40, -(2**63)])
def test_an_id_out_of_range_is_an_error(session, bits, grid, wrong):
    w = make_planes(100, 35, 32, bits=bits, grid=grid)
    runner = session(embedding_model(w), library=False)
    with pytest.raises(Exception, match="Gather"):  # onnxruntime's errors share no other base
        runner.run(None, {"ids": np.array([[0, wrong]], np.int64)})
    with pytest.raises(IndexError):
        reference.embedding(np.array([0, wrong]), w)


@EVERY_FORM
def test_inspect_tells_what_the_ops_are(tmp_path, bits, grid):
    w = make_planes(100, 35, 32, bits=bits, grid=grid)
    kind = "asym" if grid is None else {2: "gaussian", 3: "learned", 4: "gaussian"}[bits]
    scheme = f"int{bits} g32 {kind}" if bits < 8 else "int8 sym"
    form = f"{'W' if grid is None else 'T'}{bits}"
    for model, op, activation in (
        (linear_model(w), f"Linear{form}A8", "per-token"),
        (linear_model(w, x_scale=0.02), f"Linear{form}A8Static", "per-tensor"),
        (embedding_model(w), f"Embedding{form}", "float"),
    ):
        onnx.save(model, tmp_path / "model.onnx")
        (layer,) = inspect(tmp_path / "model.onnx").layers
        assert (layer.op, layer.K, layer.N) == (op, 100, 35)
        assert (layer.scheme, layer.activation) == (scheme, activation)
