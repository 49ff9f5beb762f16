"""A compiled model that is broken is refused, and nothing of it is left."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import qcompiler
from qcompiler.errors import VerificationError

RECIPE = """
name = "strict"
min_sqnr_db = {least}
[[pass]]
name = "import"
[[pass]]
name = "canonicalize"
[[pass]]
name = "plan-weights"
[[pass]]
name = "plan-activations"
[[pass]]
name = "quantize-weights"
[[pass]]
name = "insert-qdq"
"""


@pytest.fixture
def model(tmp_path):
    rng = np.random.default_rng(0)
    weight = numpy_helper.from_array(rng.standard_normal((64, 48)).astype(np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], "linear")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 48])],
        [weight],
    )
    path = tmp_path / "model.onnx"
    opsets = [helper.make_opsetid("", 21)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


def recipe(folder, least: float):
    path = folder / "strict.toml"
    path.write_text(RECIPE.format(least=least), encoding="utf-8")
    return path


def test_too_noisy_is_refused(model, tmp_path):
    before = {path.name for path in tmp_path.iterdir()} | {"strict.toml"}
    with pytest.raises(VerificationError, match=r"dB.*--force") as caught:
        qcompiler.compile(model, recipe=recipe(tmp_path, 60.0))
    assert "60.0 dB" in str(caught.value)
    assert {path.name for path in tmp_path.iterdir()} == before


def test_force_writes_it_and_says_how_bad_it_is(model, tmp_path):
    result = qcompiler.compile(model, recipe=recipe(tmp_path, 60.0), force=True)
    assert result.output.is_file()
    assert 5 < result.report.verification["sqnr_db"] < 40


def test_good_enough_passes(model, tmp_path):
    result = qcompiler.compile(model, recipe=recipe(tmp_path, 5.0))
    assert result.report.verification["held_back"]
    assert result.report.verification["finite"]
