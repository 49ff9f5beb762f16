"""The Linear ops in ONNX Runtime: the bits of numpy with the library, and without it.

What the function bodies give is tested in `test_op_linear_bodies.py` too.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import onnx
import onnxruntime
import pytest
from linear_models import X_SCALE, assert_same_bits, layer_tensors, linear_model, wanted
from onnx import helper, numpy_helper
from op_checks import BOTH, run_into
from plane_cases import EVERY_FORM, FORMS, at_their_ends, make_planes

from qcompiler import runtime
from qcompiler.numerics.planes import Grid, PlaneMatrix

EMPTY_OUTPUTS = pytest.mark.parametrize(
    "splits", [(1, 0, 0), (17, 0, 2), (16, 0, 0), (30, 5, 0)], ids=str
)
RNG = np.random.default_rng(3)

# Form, static, K, N, group size, splits.
CASES = [
    ("W2", False, 100, 35, 16, (32, 3, 0)),
    ("W2", True, 64, 48, 32, (16, 16, 16)),
    ("W3", False, 300, 41, 256, (20, 0, 21)),
    ("W3", True, 7, 5, 16, (3, 1, 1)),
    ("W4", False, 200, 96, 64, (32, 32, 32)),
    ("W4", True, 136, 50, 128, (50, 0, 0)),
    ("W5", False, 33, 17, 32, (1, 16, 0)),
    ("W5", True, 130, 64, 16, (48, 16, 0)),
    ("W6", False, 64, 48, 64, (48, 0, 0)),
    ("W6", True, 100, 35, 32, (17, 17, 1)),
    ("W8", False, 300, 41, 16, (41, 0, 0)),
    ("W8", True, 7, 5, 16, (5, 0, 0)),
    ("T2", False, 100, 35, 16, (32, 3, 0)),
    ("T2", True, 300, 41, 64, (20, 0, 21)),
    ("T3", False, 200, 96, 32, (32, 32, 32)),
    ("T3", True, 33, 17, 16, (1, 16, 0)),
    ("T4", False, 7, 5, 16, (3, 1, 1)),
    ("T4", True, 136, 50, 128, (50, 0, 0)),
]


def make_layer(
    K: int, N: int, group_size: int, *, bits: int = 4, grid: Grid | None = None
) -> tuple[PlaneMatrix, np.ndarray]:
    """A matrix and a bias."""
    return make_planes(K, N, group_size, bits=bits, grid=grid), rows(N)


def run(session, x, **fed) -> np.ndarray:
    return np.concatenate(session.run(None, {"X": x, **fed}), axis=-1)


def rows(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_same_bits_as_the_reference(session, case, dtype):
    name, static, k, n, group, splits = case
    bits, grid = FORMS[name]
    w, bias = make_layer(k, n, group, bits=bits, grid=grid)
    bias, x_scale = (None, X_SCALE) if static else (bias, None)
    model = linear_model(w, bias, x_scale=x_scale, dtype=dtype, splits=splits)
    onnx.checker.check_model(model, full_check=True)
    runner = session(model)
    for leading in ((1, 1), (2, 4), (0, 3), (35, 2)):
        x = rows(*leading, k)
        if leading == (2, 4):
            x[0, 0] = 0
            x[0, 1, 0] = np.nan
            x[1, 2, k - 1] = np.inf
        # bfloat16: the model narrows X, so take values that it leaves as they are.
        if dtype == "bfloat16":
            x = (x.view(np.uint32) & 0xFFFF0000).view(np.float32)
        x = x.astype(np.float16) if dtype == "float16" else x
        assert_same_bits(run(runner, x), wanted(x, w, bias, x_scale, dtype=dtype))


@EVERY_FORM
def test_sums_as_large_as_they_come(session, bits, grid):
    """Of as many rows as a matrix may have, all codes 127 or -127."""
    k = 1 << 17
    high = np.tile([True, True, True, False, False], (k // 256, 1))
    w = at_their_ends(high, k, 256, bits=bits, grid=grid)
    x = np.full((2, k), 127, np.float32)
    x[1] = -127
    y = wanted(x, w)
    assert int(y[0, 0]) == k * 127 * int(w.weights()[0, 0])
    assert_same_bits(run(session(linear_model(w, leading=("m",))), x), y)


@pytest.mark.parametrize("leading", [(), ("a",), ("a", "b", "c"), (2, 3)], ids=str)
def test_any_rank(session, leading):
    w, bias = make_layer(40, 20, 16)
    x = rows(*[3 if isinstance(d, str) else d for d in leading], 40)
    assert_same_bits(run(session(linear_model(w, bias, leading=leading)), x), wanted(x, w, bias))


@BOTH
def test_x_of_unknown_rank(session, library):
    w, bias = make_layer(64, 48, 32)
    model = linear_model(w, bias, splits=(16, 32, 0))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.ClearField("shape")
    runner = session(model, library=library)
    for leading in ((3,), (2, 1)):
        x = rows(*leading, 64)
        assert_same_bits(run(runner, x), wanted(x, w, bias))


def test_beside_int8_kernels_of_onnxruntime(session):
    """Both may use registers that have to be set up first, on the same threads."""
    w, bias = make_layer(256, 64, 32)
    model = linear_model(w, bias, leading=("rows",))
    # Of 7 bits: with 8, pairs of theirs saturate on CPUs without VNNI.
    b = RNG.integers(-63, 64, (256, 64), dtype=np.int8)
    weights = {"B": b, "b_scale": np.full(1, 0.01, np.float32)}
    model.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in weights.items())
    node = helper.make_node(
        "DynamicQuantizeMatMul", ["X", *weights], ["theirs"], domain="com.microsoft"
    )
    model.graph.node.append(node)
    value = helper.make_tensor_value_info("theirs", onnx.TensorProto.FLOAT, ["rows", 64])
    model.graph.output.append(value)
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    runner = session(model)
    x = rows(96, 256)
    theirs = x @ (b * np.float32(0.01))
    for count in (96, 16, 9, 33, 96):
        y, other = runner.run(None, {"X": x[:count]})
        assert_same_bits(y, wanted(x[:count], w, bias))
        error = np.linalg.norm(other - theirs[:count]) / np.linalg.norm(theirs[:count])
        assert error < 0.03  # without its setup nothing would be right


@EVERY_FORM
@pytest.mark.parametrize("splits", [(400, 0, 0), (256, 71, 73)], ids=str)
def test_bits_do_not_depend_on_threads_or_rows(session, splits, bits, grid):
    w, bias = make_layer(260, 400, 64, bits=bits, grid=grid)
    model = linear_model(w, bias, splits=splits)
    x = rows(1, 70, 260)
    y = wanted(x, w, bias)
    for threads in (1, 2, 5):
        runner = session(model, threads=threads)
        assert_same_bits(run(runner, x), y)
        assert_same_bits(run(runner, x[:, 5:6]), y[:, 5:6])


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_more_rows_than_are_quantized_at_once(session, dtype):
    """Codes of 2 MiB: more than one chunk of scratch memory."""
    w, bias = make_layer(2048, 16, 256, bits=3)
    x = np.tile(rows(41, 2048), (25, 1)).astype(dtype)
    y = run(session(linear_model(w, bias, leading=("m",), dtype=dtype)), x)
    assert_same_bits(y, np.tile(wanted(x[:41], w, bias, dtype=dtype), (25, 1)))


@BOTH
@EVERY_FORM
@pytest.mark.parametrize("names", [("W",), ("groups", "scales"), ("bias",), ("x_scale",)])
def test_inputs_need_not_be_constant(session, names, bits, grid, library):
    w, bias = make_layer(100, 35, 32, bits=bits, grid=grid)
    values = layer_tensors(w, bias, X_SCALE)
    names = [name for name in names if name in values]
    model = linear_model(w, bias, x_scale=X_SCALE, splits=(30, 5, 0), as_inputs=names)
    x = rows(2, 3, 100)
    y = run(session(model, library=library), x, **{name: values[name] for name in names})
    assert_same_bits(y, wanted(x, w, bias, X_SCALE))


@BOTH
@pytest.mark.parametrize("value", [0.5, -0.0, np.nan, np.inf])
def test_one_bias_value_is_for_all_columns(session, value, library):
    w, bias = make_planes(64, 20, 32, bits=4), np.array([value], np.float32)
    w.scales[::2] *= -1
    x = rows(1, 2, 64)
    x[0, 1] = 0  # whose results are zeros of either sign
    y = run(session(linear_model(w, bias), library=library), x)
    assert_same_bits(y, wanted(x, w, bias))


@BOTH
def test_scales_of_any_value(session, library):
    w, bias = make_layer(64, 20, 32)
    w.scales[:6] = [0.0, -0.0, -2.0, np.inf, np.nan, 3e38]
    x = rows(1, 3, 64)
    x[0, 0] = 0
    x[0, 1] *= 1e4
    y = run(session(linear_model(w, bias), library=library), x)
    assert_same_bits(y, wanted(x, w, bias))


@BOTH
def test_a_scale_for_x_of_shape_1(session, library):
    w, bias = make_layer(64, 20, 32)
    tensors = {"x_scale": np.array([X_SCALE], np.float32)}
    model = linear_model(w, bias, x_scale=X_SCALE, tensors=tensors)
    x = rows(1, 2, 64)
    assert_same_bits(run(session(model, library=library), x), wanted(x, w, bias, X_SCALE))


@BOTH
def test_an_output_may_be_left_out(session, library):
    w, bias = make_layer(64, 48, 32)
    model = linear_model(w, bias, splits=(16, 16, 16), outputs=["Y0", "", "Y2"])
    x = rows(1, 2, 64)
    y = wanted(x, w, bias)
    y = np.concatenate([y[..., :16], y[..., 32:]], axis=-1)
    assert_same_bits(run(session(model, library=library), x), y)


@BOTH
@EMPTY_OUTPUTS
def test_every_element_is_written_and_nothing_beside(session, splits, library):
    check_written(partial(session, library=library), splits)


def check_written(open_session, splits) -> None:
    """Outputs of no columns may have names."""
    w, bias = make_layer(64, sum(splits), 32)
    model = linear_model(w, bias, splits=splits, outputs=["Y0", "Y1", "Y2"])
    x = rows(1, 3, 64)
    memory = np.full((3, 4096), 7, np.float32)
    buffers = [
        row[1000 : 1000 + 3 * size].reshape(1, 3, size)
        for row, size in zip(memory, splits, strict=True)
    ]
    results = run_into(open_session(model), {"X": x}, buffers)
    assert_same_bits(np.concatenate(results, axis=-1), wanted(x, w, bias))
    for buffer in buffers:
        buffer[...] = 7
    assert (memory == 7).all()


@BOTH
@EVERY_FORM
def test_weights_may_lie_unaligned_in_a_mapped_file(tmp_path, bits, grid, library):
    w, bias = make_layer(100, 35, 32, bits=bits, grid=grid)
    model = linear_model(w, bias)
    data = bytearray()
    for tensor in model.graph.initializer:
        data += bytes(1 + len(data) % 2)  # what follows starts at an odd offset
        onnx.external_data_helper.set_external_data(
            tensor, "weights.data", offset=len(data), length=len(tensor.raw_data)
        )
        data += tensor.raw_data
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
    (tmp_path / "weights.data").write_bytes(data)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    options = onnxruntime.SessionOptions()
    if library:
        runtime.register(options)
    runner = onnxruntime.InferenceSession(
        tmp_path / "model.onnx", options, providers=["CPUExecutionProvider"]
    )
    x = rows(1, 3, 100)
    assert_same_bits(run(runner, x), wanted(x, w, bias))


def test_output_shapes_are_inferred_without_functions(session):
    model = linear_model(make_planes(64, 48, 32, bits=4), splits=(16, 32, 0), functions=False)
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")
    shapes = [o.shape for o in session(model).get_outputs()]
    assert shapes == [["batch", "sequence", 16], ["batch", "sequence", 32]]
