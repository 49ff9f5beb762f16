"""The MatMul ops in ONNX Runtime: with the library, without it, and numpy agree."""

from __future__ import annotations

from functools import partial

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper
from op_checks import (
    BOTH,
    FORMS,
    VARIABLE,
    check_empty_outputs,
    check_form,
    check_variable_inputs,
    run,
)
from op_models import (
    ACTIVATIONS,
    assert_close,
    make_layer,
    matmul_model,
)

from qcompiler import runtime

RNG = np.random.default_rng(3)


@BOTH
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_agrees_with_reference(session, form, dtype, library):
    check_form(partial(session, library=library), form, dtype, RNG)


@BOTH
@pytest.mark.parametrize("leading", [(), ("a",), ("a", "b", "c"), (2, 3)], ids=str)
def test_any_rank(session, leading, library):
    layer = make_layer(40, 20, 32)
    x = RNG.normal(size=(*[3 if isinstance(d, str) else d for d in leading], 40))
    x = x.astype(np.float32)
    model = matmul_model(layer, "row", leading=leading)
    y = run(session(model, library=library), x)
    assert_close(y, layer.expected(x, "row"), layer.tolerance(x, "row"))


def test_beside_int8_kernels_of_onnxruntime(session):
    """Both may use registers that have to be set up first, on the same threads."""
    layer = make_layer(256, 64, 32)
    model = matmul_model(layer, "row", leading=("rows",))
    b = RNG.integers(-127, 128, (256, 64), dtype=np.int8)
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
    x = RNG.normal(size=(96, 256)).astype(np.float32)
    theirs = x @ (b * np.float32(0.01))
    for rows in (96, 16, 9, 33, 96):
        y, other = runner.run(None, {"X": x[:rows]})
        assert_close(y, layer.expected(x[:rows], "row"), layer.tolerance(x[:rows], "row"))
        error = np.linalg.norm(other - theirs[:rows]) / np.linalg.norm(theirs[:rows])
        assert error < 0.1  # it saturates on some CPUs; without its setup nothing would be right


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("splits", [(1000, 0, 0), (512, 243, 245)], ids=str)
def test_bits_do_not_depend_on_threads_or_rows(session, splits, activation):
    layer = make_layer(520, 1000, 64, symmetric=False)
    model = matmul_model(layer, activation, splits=splits)
    x = RNG.normal(size=(1, 70, 520)).astype(np.float32)
    one = run(session(model, threads=1), x)
    two = session(model, threads=2)
    np.testing.assert_array_equal(one, run(two, x))
    np.testing.assert_array_equal(one[:, 5:6], run(two, x[:, 5:6]))
    assert_close(one, layer.expected(x, activation), layer.tolerance(x, activation))


def test_more_rows_than_are_quantized_at_once(session):
    """17 MiB of int8 rows: more than one chunk of scratch memory."""
    layer = make_layer(4096, 16, 256)
    x = np.tile(RNG.normal(size=(41, 4096)).astype(np.float32), (100, 1))
    y = run(session(matmul_model(layer, "row", leading=("m",))), x)
    np.testing.assert_array_equal(y, np.tile(y[:41], (100, 1)))
    assert_close(y[:41], layer.expected(x[:41], "row"), layer.tolerance(x[:41], "row"))


@BOTH
@VARIABLE
def test_inputs_need_not_be_constant(session, tensors, library):
    check_variable_inputs(partial(session, library=library), tensors)


@BOTH
def test_one_bias_value_is_for_all_columns(session, library):
    layer = make_layer(64, 20, 32, bias=False)
    model = matmul_model(layer, "row", tensors={"bias": np.array([0.5], np.float32)})
    x = RNG.normal(size=(1, 2, 64)).astype(np.float32)
    y = run(session(model, library=library), x)
    assert_close(y, layer.expected(x, "row") + np.float32(0.5), 1e-4)


@BOTH
def test_one_zero_point_is_for_all_weights(session, library):
    layer = make_layer(64, 20, 32)
    model = matmul_model(layer, "row", tensors={"zero_points": np.full((1, 1, 1), 5, np.uint8)})
    x = RNG.normal(size=(1, 2, 64)).astype(np.float32)
    shifted = np.broadcast_to(np.uint8(5), layer.w.scales.shape).copy()
    explicit = matmul_model(layer, "row", tensors={"zero_points": shifted})
    y = run(session(model, library=library), x)
    np.testing.assert_allclose(y, run(session(explicit, library=library), x), rtol=1e-5, atol=1e-5)


@BOTH
def test_a_scale_for_x_of_shape_1(session, library):
    layer = make_layer(64, 20, 32)
    scale = {"x_scale": np.array([0.02], np.float32)}
    x = RNG.normal(size=(1, 2, 64)).astype(np.float32)
    y = run(session(matmul_model(layer, "static", tensors=scale), library=library), x)
    assert_close(y, layer.expected(x, "static"), layer.tolerance(x, "static"))


@BOTH
def test_an_output_may_be_left_out(session, library):
    layer = make_layer(64, 48, 32)
    model = matmul_model(layer, "row", splits=(16, 16, 16), outputs=["Y0", "", "Y2"])
    x = RNG.normal(size=(1, 2, 64)).astype(np.float32)
    y = run(session(model, library=library), x)
    expected = layer.expected(x, "row")
    expected = np.concatenate([expected[..., :16], expected[..., 32:]], axis=-1)
    assert_close(y, expected, 1e-4)


@BOTH
def test_outputs_may_be_empty(session, library):
    check_empty_outputs(partial(session, library=library))


@BOTH
def test_weights_may_lie_unaligned_in_a_mapped_file(tmp_path, library):
    layer = make_layer(100, 35, 32, symmetric=False)
    model = matmul_model(layer, "row")
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
    x = RNG.normal(size=(1, 3, 100)).astype(np.float32)
    assert_close(run(runner, x), layer.expected(x, "row"), layer.tolerance(x, "row"))


@BOTH
def test_x_of_unknown_rank(session, library):
    layer = make_layer(64, 48, 32)
    model = matmul_model(layer, "row", splits=(16, 32, 0))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.ClearField("shape")
    runner = session(model, library=library)
    for leading in ((3,), (2, 1)):
        x = RNG.normal(size=(*leading, 64)).astype(np.float32)
        assert_close(run(runner, x), layer.expected(x, "row"), layer.tolerance(x, "row"))


def test_output_shapes_are_inferred_without_functions(session):
    layer = make_layer(64, 48, 32)
    model = matmul_model(layer, "row", splits=(16, 32, 0), functions=False)
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")
    shapes = [o.shape for o in session(model).get_outputs()]
    assert shapes == [["batch", "sequence", 16], ["batch", "sequence", 32]]
