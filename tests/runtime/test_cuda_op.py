"""The MatMul ops of the CUDA library: their glue on the emulated GPU, the ops on a real one."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
from op_checks import FORMS, VARIABLE, check_empty_outputs, check_form, check_variable_inputs, run
from op_models import (
    ACTIVATIONS,
    BITS,
    assert_close,
    gather_model,
    make_layer,
    matmul_model,
)
from test_op_refusals import ATTRIBUTES

from qcompiler import runtime
from qcompiler.numerics import reference
from qcompiler.session import CPU, CUDA, create_session

RNG = np.random.default_rng(23)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_glue_agrees_with_reference(emulated_session, form, dtype):
    check_form(emulated_session, form, dtype, RNG)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_op_agrees_with_reference(gpu_session, form, dtype):
    check_form(gpu_session, form, dtype, RNG)


@pytest.mark.parametrize("ids_type", ["int64", "int32"])
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("where", ["emulated_session", "gpu_session"])
def test_gather_is_exact(request, where, bits, ids_type):
    layer = make_layer(100, 35, 32, bits=bits, symmetric=False)
    session = request.getfixturevalue(where)(gather_model(layer, ids_type=ids_type))
    for ids in (np.arange(-35, 35).reshape(2, 35), np.zeros((0, 3))):
        (y,) = session.run(None, {"ids": ids.astype(ids_type)})
        np.testing.assert_array_equal(y, reference.gather(ids.astype(ids_type), layer.w))


def test_outputs_may_be_empty(emulated_session):
    check_empty_outputs(emulated_session)


@VARIABLE
@pytest.mark.parametrize("where", ["emulated_session", "gpu_session"])
def test_inputs_need_not_be_constant(request, where, tensors):
    check_variable_inputs(request.getfixturevalue(where), tensors)


def test_an_output_may_be_left_out(emulated_session):
    layer = make_layer(64, 48, 32)
    model = matmul_model(layer, "row", splits=(16, 16, 16), outputs=["Y0", "", "Y2"])
    x = RNG.normal(size=(1, 2, 64)).astype(np.float32)
    expected = layer.expected(x, "row")
    expected = np.concatenate([expected[..., :16], expected[..., 32:]], axis=-1)
    assert_close(run(emulated_session(model), x), expected, 1e-4)


@pytest.mark.parametrize(("attributes", "cause"), ATTRIBUTES, ids=str)
def test_malformed_nodes_are_refused_as_on_the_cpu(emulated_session, attributes, cause):
    model = matmul_model(make_layer(100, 35, 32), "row", attributes=attributes, functions=False)
    with pytest.raises(Exception, match="MatMulW4A8 node 'layer0'") as error:
        emulated_session(model)
    assert cause in str(error.value)


def test_malformed_tensors_are_refused(emulated_session):
    layer = make_layer(64, 20, 32)
    session = emulated_session(matmul_model(layer, "row", as_inputs=("W",)))
    x = np.zeros((1, 1, 64), np.float32)
    with pytest.raises(Exception, match=r"W has shape \[2, 7, 64\], expected \[2, 8, 64\]"):
        session.run(None, {"X": x, "W": np.zeros((2, 7, 64), np.uint8)})
    static = emulated_session(matmul_model(layer, "static", as_inputs=("x_scale",)))
    with pytest.raises(Exception, match="x_scale is -1"):
        static.run(None, {"X": x, "x_scale": np.array(-1, np.float32)})


def test_kernels_come_and_go(emulated_session):
    """Sessions made and dropped: each kernel holds its provider's allocator, and lets it go."""
    layer = make_layer(64, 20, 32)
    x = RNG.normal(size=(1, 9, 64)).astype(np.float32)
    for _ in range(20):
        y = run(emulated_session(matmul_model(layer, "row")), x)
        assert_close(y, layer.expected(x, "row"), layer.tolerance(x, "row"))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_cuda_library_serves_the_cpu_too(cuda_path, session, activation):
    """In a session without a GPU: the same kernels as those of the other library."""
    layer = make_layer(200, 70, 64)
    model = matmul_model(layer, activation, functions=False)
    options = onnxruntime.SessionOptions()
    runtime.register(options, cuda=True)
    both = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=[CPU])
    x = RNG.normal(size=(1, 9, 200)).astype(np.float32)
    np.testing.assert_array_equal(run(both, x), run(session(model), x))


def test_a_session_takes_one_of_the_libraries(cuda_path):
    """ONNX Runtime takes a domain once; so the CUDA library has the ops for the CPU as well."""
    model = matmul_model(make_layer(64, 20, 32), "row")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.register_custom_ops_library(str(runtime.library_path()))
    options.register_custom_ops_library(str(cuda_path))
    try:
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=[CPU])
    except Exception as error:
        assert "Domain already set" in str(error)


def test_sessions_register_the_library_that_fits(cuda_path, monkeypatch, tmp_path):
    registered = []
    monkeypatch.setattr(
        onnxruntime.SessionOptions,
        "register_custom_ops_library",
        lambda self, path: registered.append(path),
    )
    model = tmp_path / "model.onnx"
    model.write_bytes(matmul_model(make_layer(64, 20, 32), "row").SerializeToString())
    create_session(model)
    assert registered == [str(runtime.library_path())]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, CPU])
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *a: StandIn())
    create_session(model, providers=(CUDA, CPU))
    assert registered[1:] == [str(cuda_path)]


class StandIn:
    def get_providers(self) -> list[str]:
        return [CUDA, CPU]


@pytest.mark.parametrize("rows", [1, 20, 100])
def test_gpu_and_cpu_agree(gpu_session, session, rows):
    layer = make_layer(1024, 300, 64, symmetric=False)
    model = matmul_model(layer, "group", splits=(100, 100, 100))
    x = RNG.normal(size=(1, rows, 1024)).astype(np.float32)
    on_gpu = gpu_session(model)
    y = run(on_gpu, x)
    assert_close(y, run(session(model), x), 2 * layer.tolerance(x, "group"))
    for _ in range(3):
        np.testing.assert_array_equal(run(on_gpu, x), y)


def test_a_cuda_graph_can_be_captured(gpu_session):
    layer = make_layer(512, 256, 128)
    on_gpu = gpu_session(matmul_model(layer, "row", leading=(1, 4)), enable_cuda_graph="1")
    binding = on_gpu.io_binding()
    x = onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros((1, 4, 512), np.float32), "cuda", 0)
    y = onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros((1, 4, 256), np.float32), "cuda", 0)
    binding.bind_ortvalue_input("X", x)
    binding.bind_ortvalue_output("Y0", y)
    for _ in range(4):  # a run to warm up, one to capture, then replays
        values = RNG.normal(size=(1, 4, 512)).astype(np.float32)
        x.update_inplace(values)
        on_gpu.run_with_iobinding(binding)
        assert_close(y.numpy(), layer.expected(values, "row"), layer.tolerance(values, "row"))
