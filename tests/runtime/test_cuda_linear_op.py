"""The Linear and Embedding ops of the CUDA library, on the emulated GPU and on a real one."""

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
from plane_cases import make_planes
from test_op_linear import FORMS

from qcompiler import runtime
from qcompiler.numerics import reference
from qcompiler.numerics.planes import WIDTHS
from qcompiler.session import CPU

RNG = np.random.default_rng(29)
WHERE = pytest.mark.parametrize("where", ["emulated_session", "gpu_session"])


def run(session, x, **fed) -> np.ndarray:
    return np.concatenate(session.run(None, {"X": x, **fed}), axis=-1)


def rows(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


@WHERE
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_linear_gives_the_bits_of_the_reference(request, where, form, dtype):
    bits, static, k, n, group, splits = form
    w = make_planes(k, n, group, bits=bits)
    bias, x_scale = (None, X_SCALE) if static else (rows(n), None)
    model = linear_model(w, bias, x_scale=x_scale, dtype=dtype, splits=splits)
    session = request.getfixturevalue(where)(model)
    for leading in ((1, 1), (2, 4), (0, 3), (5, 4)):
        x = rows(*leading, k).astype(dtype)
        if leading == (2, 4):
            x[0, 0], x[0, 1, 0], x[1, 2, k - 1] = 0, np.nan, np.inf
        assert_same_bits(run(session, x), wanted(x, w, bias, x_scale, dtype=dtype))


@pytest.mark.parametrize("names", [("W", "groups"), ("scales", "bias"), ("x_scale",)], ids=str)
def test_linear_inputs_need_not_be_constant(emulated_session, names):
    w, bias = make_planes(100, 35, 32, bits=3), rows(35)
    values = layer_tensors(w, bias, X_SCALE)
    session = emulated_session(linear_model(w, bias, x_scale=X_SCALE, as_inputs=names))
    x = rows(2, 3, 100)
    y = run(session, x, **{name: values[name] for name in names})
    assert_same_bits(y, wanted(x, w, bias, X_SCALE))


@WHERE
@pytest.mark.parametrize("ids_type", ["int64", "int32"])
@pytest.mark.parametrize("bits", WIDTHS)
def test_embedding_op_is_exact(request, where, bits, ids_type):
    w = make_planes(100, 35, 16, bits=bits)
    session = request.getfixturevalue(where)(embedding_model(w, ids_type=ids_type))
    for ids in (np.arange(-35, 35).reshape(2, 35), np.zeros((0, 3))):
        (y,) = session.run(None, {"ids": ids.astype(ids_type)})
        assert_same_bits(y, reference.embedding(ids.astype(ids_type), w))


def test_malformed_linear_tensors_are_refused(emulated_session):
    w = make_planes(64, 20, 32, bits=4)
    x = np.zeros((1, 1, 64), np.float32)
    session = emulated_session(linear_model(w, as_inputs=("W",)))
    with pytest.raises(Exception, match=r"W has shape \[2, 1, 256\], expected \[2, 2, 256\]"):
        session.run(None, {"X": x, "W": np.zeros((2, 1, 256), np.uint8)})
    static = emulated_session(linear_model(w, x_scale=X_SCALE, as_inputs=("x_scale",)))
    with pytest.raises(Exception, match="x_scale is -1"):
        static.run(None, {"X": x, "x_scale": np.array(-1, np.float32)})


def test_the_cuda_library_has_linear_ops_for_the_cpu_too(cuda_path):
    w, bias = make_planes(200, 70, 64, bits=5), rows(70)
    options = onnxruntime.SessionOptions()
    runtime.register(options, cuda=True)
    model = linear_model(w, bias, functions=False)
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=[CPU])
    x = rows(1, 9, 200)
    assert_same_bits(run(session, x), wanted(x, w, bias))
