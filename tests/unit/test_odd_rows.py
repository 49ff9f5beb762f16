"""Rows that are not finite, and no rows: a compiled model gives what its source gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from command_line import qc
from odd_models import SQUARE, model_of, normal
from onnx import ModelProto

WIDTH = 96  # no multiple of the group: its last group is short

MODEL = """
g (float[b, n, 96] x) => (float[b, n, 96] y) { h = MatMul(x, v) r = Relu(h) y = MatMul(r, w) }
"""


def source() -> ModelProto:
    return model_of(MODEL, v=SQUARE, w=SQUARE.T.copy())


POLICIES = ["per-token", "per-tensor"]


@pytest.fixture(scope="module", params=POLICIES)
def policy(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def compiled(
    policy: str, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, ort.InferenceSession]:
    """By target, without the op library."""
    folder = tmp_path_factory.mktemp("rows")
    (folder / "m.onnx").write_bytes(source().SerializeToString())
    return {target: _session(folder, target, policy) for target in ("qdq", "ort-custom")}


def _session(folder: Path, target: str, policy: str) -> ort.InferenceSession:
    result = folder / f"{target}.onnx"
    options = ("--set", f"plan-activations.policy={policy}")
    options += ("--set", "plan-weights.group_size=64", "-t", target, "-o", result)
    done = qc("compile", folder / "m.onnx", "-r", "fptq", *options)
    assert done.exit_code == 0, done.stderr
    return ort.InferenceSession(str(result), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("target", ["qdq", "ort-custom"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_stays_in_its_row(
    compiled: dict[str, ort.InferenceSession], policy: str, target: str, value: float
) -> None:
    x = normal(1, WIDTH + 3, WIDTH, std=1.0)
    for channel in range(WIDTH):
        x[0, channel, channel] = value
    y = compiled[target].run(None, {"x": x})[0][0]
    hidden = policy == "per-tensor" and target == "qdq"  # codes can't hold it, a constant neither
    assert np.isfinite(y[:WIDTH]).all() if hidden else not np.isfinite(y[:WIDTH]).any()
    assert np.isfinite(y[WIDTH:]).all()


@pytest.mark.parametrize("target", ["qdq", "ort-custom"])
@pytest.mark.parametrize("shape", [(0, 5), (3, 0)])
def test_no_rows(
    compiled: dict[str, ort.InferenceSession], target: str, shape: tuple[int, int]
) -> None:
    y = compiled[target].run(None, {"x": np.zeros((*shape, WIDTH), np.float32)})[0]
    assert y.shape == (*shape, WIDTH)
