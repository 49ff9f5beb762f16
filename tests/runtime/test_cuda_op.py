"""The ops of the CUDA library: their glue on the emulated GPU, the ops on a real one."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
from linear_models import (
    X_SCALE,
    assert_same_bits,
    embedding_model,
    layer_tensors,
    linear_model,
    wanted,
)
from op_checks import refusal
from plane_cases import EVERY_FORM, FORMS, make_planes
from single_node import rounded_to_bfloat16
from test_op_linear import CASES, EMPTY_OUTPUTS, check_written
from test_op_refusals import GROUPS, SIZES, SPLITS

from qcompiler import runtime
from qcompiler.numerics import reference
from qcompiler.session import CPU, CUDA, create_session

RNG = np.random.default_rng(29)
WHERE = pytest.mark.parametrize("where", ["emulated_session", "gpu_session"])


def run(session, x, **fed) -> np.ndarray:
    return np.concatenate(session.run(None, {"X": x, **fed}), axis=-1)


def rows(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(
    ("where", "dtype"),
    [
        *(("emulated_session", dtype) for dtype in ("float32", "float16", "bfloat16")),
        *(("gpu_session", dtype) for dtype in ("float32", "float16")),
    ],
)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_linear_gives_the_bits_of_the_reference(request, where, case, dtype):
    form, static, k, n, group, splits = case
    bits, grid = FORMS[form]
    w = make_planes(k, n, group, bits=bits, grid=grid)
    bias, x_scale = (None, X_SCALE) if static else (rows(n), None)
    model = linear_model(w, bias, x_scale=x_scale, dtype=dtype, splits=splits)
    session = request.getfixturevalue(where)(model)
    for leading in ((1, 1), (2, 4), (0, 3), (5, 4)):
        x = rows(*leading, k)
        if leading == (2, 4):
            x[0, 0], x[0, 1, 0], x[1, 2, k - 1] = 0, np.nan, np.inf
        x = rounded_to_bfloat16(x) if dtype == "bfloat16" else x.astype(dtype)
        assert_same_bits(run(session, x), wanted(x, w, bias, x_scale, dtype=dtype))


@WHERE
@pytest.mark.parametrize("names", [("W", "groups"), ("scales", "bias"), ("x_scale",)], ids=str)
def test_inputs_need_not_be_constant(request, where, names):
    w, bias = make_planes(100, 35, 32, bits=3), rows(35)
    values = layer_tensors(w, bias, X_SCALE)
    model = linear_model(w, bias, x_scale=X_SCALE, as_inputs=names)
    session = request.getfixturevalue(where)(model)
    x = rows(2, 3, 100)
    y = run(session, x, **{name: values[name] for name in names})
    assert_same_bits(y, wanted(x, w, bias, X_SCALE))


@WHERE
@pytest.mark.parametrize("ids_type", ["int64", "int32"])
@EVERY_FORM
def test_embedding_op_is_exact(request, where, bits, grid, ids_type):
    w = make_planes(100, 35, 16, bits=bits, grid=grid)
    session = request.getfixturevalue(where)(embedding_model(w, ids_type=ids_type))
    for ids in (np.arange(-35, 35).reshape(2, 35), np.zeros((0, 3))):
        (y,) = session.run(None, {"ids": ids.astype(ids_type)})
        assert_same_bits(y, reference.embedding(ids.astype(ids_type), w))


def test_an_output_may_be_left_out(emulated_session):
    w, bias = make_planes(64, 48, 32, bits=4), rows(48)
    model = linear_model(w, bias, splits=(16, 16, 16), outputs=["Y0", "", "Y2"])
    x = rows(1, 2, 64)
    y = wanted(x, w, bias)
    y = np.concatenate([y[..., :16], y[..., 32:]], axis=-1)
    assert_same_bits(run(emulated_session(model), x), y)


@EMPTY_OUTPUTS
def test_every_element_is_written_and_nothing_beside(emulated_session, splits):
    check_written(emulated_session, splits)


@pytest.mark.parametrize(("attributes", "cause"), [*SIZES, *GROUPS, *SPLITS], ids=str)
def test_malformed_nodes_are_refused_as_on_the_cpu(emulated_session, attributes, cause):
    w = make_planes(100, 35, 32, bits=4)
    message = refusal(emulated_session, linear_model(w, attributes=attributes, functions=False))
    assert "LinearW4A8 node 'layer0': " in message
    assert cause.replace("{strip}", "256") in message


def test_malformed_tensors_are_refused(emulated_session):
    w = make_planes(64, 20, 32, bits=4)
    x = np.zeros((1, 1, 64), np.float32)
    session = emulated_session(linear_model(w, as_inputs=("W",)))
    with pytest.raises(Exception, match=r"W has shape \[2, 1, 256\], expected \[2, 2, 256\]"):
        session.run(None, {"X": x, "W": np.zeros((2, 1, 256), np.uint8)})
    static = emulated_session(linear_model(w, x_scale=X_SCALE, as_inputs=("x_scale",)))
    with pytest.raises(Exception, match="x_scale is -1"):
        static.run(None, {"X": x, "x_scale": np.array(-1, np.float32)})


def test_kernels_come_and_go(emulated_session):
    """Sessions made and dropped: each kernel holds its provider's allocator, and lets it go."""
    w, bias = make_planes(64, 20, 32, bits=4), rows(20)
    x = rows(1, 9, 64)
    for _ in range(20):
        assert_same_bits(run(emulated_session(linear_model(w, bias)), x), wanted(x, w, bias))


@pytest.mark.parametrize("x_scale", [None, X_SCALE])
def test_the_cuda_library_serves_the_cpu_too(cuda_path, x_scale):
    """In a session without a GPU."""
    w, bias = make_planes(200, 70, 64, bits=5), rows(70)
    options = onnxruntime.SessionOptions()
    runtime.register(options, cuda=True)
    model = linear_model(w, bias, x_scale=x_scale, functions=False)
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=[CPU])
    x = rows(1, 9, 200)
    assert_same_bits(run(session, x), wanted(x, w, bias, x_scale))


def test_a_session_takes_one_of_the_libraries(cuda_path):
    """ONNX Runtime takes a domain once; so the CUDA library has the ops for the CPU as well."""
    model = linear_model(make_planes(64, 20, 32, bits=4))
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
    model.write_bytes(linear_model(make_planes(64, 20, 32, bits=4)).SerializeToString())
    create_session(model)
    assert registered == [str(runtime.library_path())]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, CPU])
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *a: StandIn())
    create_session(model, providers=(CUDA, CPU))
    assert registered[1:] == [str(cuda_path)]


class StandIn:
    def get_providers(self) -> list[str]:
        return [CUDA, CPU]


@pytest.mark.parametrize("count", [1, 20, 100])
def test_gpu_and_cpu_agree(gpu_session, session, count):
    w, bias = make_planes(1024, 300, 64, bits=4), rows(300)
    model = linear_model(w, bias, splits=(100, 100, 100))
    x = rows(1, count, 1024)
    on_gpu, on_cpu = gpu_session(model), run(session(model), x)
    for _ in range(3):
        assert_same_bits(run(on_gpu, x), on_cpu)


def test_a_cuda_graph_can_be_captured(gpu_session):
    w, bias = make_planes(512, 256, 128, bits=4), rows(256)
    on_gpu = gpu_session(linear_model(w, bias, leading=(1, 4)), enable_cuda_graph="1")
    binding = on_gpu.io_binding()
    x = onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros((1, 4, 512), np.float32), "cuda", 0)
    y = onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros((1, 4, 256), np.float32), "cuda", 0)
    binding.bind_ortvalue_input("X", x)
    binding.bind_ortvalue_output("Y0", y)
    for _ in range(4):  # a run to warm up, one to capture, then replays
        values = rows(1, 4, 512)
        x.update_inplace(values)
        on_gpu.run_with_iobinding(binding)
        assert_same_bits(y.numpy(), wanted(values, w, bias))
