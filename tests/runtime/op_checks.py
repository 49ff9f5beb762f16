"""What is asked of the ops of every library."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from op_models import X_SCALE, assert_close, make_layer, matmul_model

BOTH = pytest.mark.parametrize("library", [True, False], ids=["library", "functions"])

# Bits, symmetric, activations, K, N, group size, splits.
FORMS = [
    (4, True, "row", 64, 48, 32, (48, 0, 0)),
    (4, False, "row", 100, 35, 32, (32, 3, 0)),
    (4, True, "group", 200, 96, 64, (32, 32, 32)),
    (4, False, "group", 300, 41, 256, (20, 0, 21)),
    (4, True, "static", 7, 5, 32, (3, 1, 1)),
    (4, False, "static", 136, 50, 128, (50, 0, 0)),
    (8, True, "row", 100, 35, 32, (1, 34, 0)),
    (8, False, "row", 64, 48, 64, (16, 16, 16)),
    (8, True, "group", 300, 41, 256, (41, 0, 0)),
    (8, False, "group", 130, 64, 32, (48, 16, 0)),
    (8, True, "static", 136, 50, 128, (17, 17, 16)),
    (8, False, "static", 7, 5, 32, (5, 0, 0)),
]

VARIABLE = pytest.mark.parametrize(
    "tensors", [("W",), ("scales", "zero_points"), ("bias",), ("x_scale",)]
)


def refusal(open_session, model) -> str:
    """Why no session is made of a model."""
    with pytest.raises(Exception) as caught:
        open_session(model)
    return str(caught.value)


def run(session, x, names=None) -> np.ndarray:
    return np.concatenate([y.astype(np.float32) for y in session.run(names, {"X": x})], axis=-1)


def run_into(session, feeds, buffers: Iterable[np.ndarray]) -> list[np.ndarray]:
    """Copies of all outputs, written into memory that held `buffers` before."""
    binding = session.io_binding()
    for name, value in feeds.items():
        binding.bind_cpu_input(name, np.asarray(value, order="C"))
    results = [ort.OrtValue.ortvalue_from_numpy(np.asarray(b, order="C")) for b in buffers]
    for output, result in zip(session.get_outputs(), results, strict=True):
        binding.bind_ortvalue_output(output.name, result)
    session.run_with_iobinding(binding)
    return [np.array(result.numpy()) for result in results]


def check_form(open_session, form, dtype: str, rng: np.random.Generator) -> None:
    """A layer agrees with the reference for several numbers of rows, NaN and infinity too."""
    bits, symmetric, activation, k, n, group, splits = form
    layer = make_layer(k, n, group, bits=bits, symmetric=symmetric, bias=symmetric)
    model = matmul_model(layer, activation, dtype=dtype, splits=splits)
    onnx.checker.check_model(model, full_check=True)
    session = open_session(model)
    for leading in ((1, 1), (2, 4), (0, 3), (35, 2)):
        x = rng.normal(size=(*leading, k)).astype(np.float32)
        if leading == (2, 4):
            x[0, 0] = 0
            x[0, 1, 0] = np.nan
            x[1, 2, k - 1] = np.inf
        # bfloat16: the model narrows X, so take values that it leaves as they are.
        if dtype == "bfloat16":
            x = (x.view(np.uint32) & 0xFFFF0000).view(np.float32)
        fed = x.astype(np.float16) if dtype == "float16" else x
        y = run(session, fed)
        assert_close(y, layer.expected(fed, activation), layer.tolerance(fed, activation), dtype)


def check_empty_outputs(open_session) -> None:
    """Outputs of no columns may have names; nothing is written beside them."""
    x = np.random.default_rng(5).normal(size=(1, 3, 64)).astype(np.float32)
    for splits in ((1, 0, 0), (17, 0, 2), (16, 0, 0), (30, 5, 0)):
        layer = make_layer(64, sum(splits), 32)
        model = matmul_model(layer, "row", splits=splits, outputs=["Y0", "Y1", "Y2"])
        memory = np.full((3, 4096), 7, np.float32)
        buffers = [
            row[1000 : 1000 + 3 * size].reshape(1, 3, size)
            for row, size in zip(memory, splits, strict=True)
        ]
        y = np.concatenate(run_into(open_session(model), {"X": x}, buffers), axis=-1)
        assert_close(y, layer.expected(x, "row"), layer.tolerance(x, "row"))
        for buffer in buffers:
            buffer[...] = 7
        assert (memory == 7).all()


def check_variable_inputs(open_session, tensors: tuple[str, ...]) -> None:
    """`tensors` may be inputs of the model: what is computed is the same."""
    layer = make_layer(100, 35, 32, symmetric=False)
    model = matmul_model(layer, "static", splits=(30, 5, 0), as_inputs=tensors)
    values = layer.inputs() | {"x_scale": np.array(X_SCALE, np.float32)}
    x = np.random.default_rng(3).normal(size=(2, 3, 100)).astype(np.float32)
    feeds = {"X": x} | {name: values[name] for name in tensors}
    y = np.concatenate(open_session(model).run(None, feeds), axis=-1)
    assert_close(y, layer.expected(x, "static"), layer.tolerance(x, "static"))
