"""Model families as PyTorch exports them: every linear layer in an op, right everywhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from tiny_families import FAMILIES, export

import qcompiler
from qcompiler import ops
from qcompiler.numerics.rounding import sqnr_db

pytestmark = pytest.mark.slow
pytest.importorskip("torch")
pytest.importorskip("transformers")


def run(path: Path, feed: dict[str, np.ndarray], *, library: bool = False) -> np.ndarray:
    options = ort.SessionOptions()
    if library:
        options.register_custom_ops_library(str(qcompiler.library_path()))
    return ort.InferenceSession(str(path), options, ["CPUExecutionProvider"]).run(None, feed)[0]


# The newer exporter traces shapes, so its graphs differ less from family to family.
TRACED = ("t5", "llama")
EXPORTS = [(name, "torchscript") for name in FAMILIES] + [(name, "dynamo") for name in TRACED]


@pytest.mark.parametrize(("name", "exporter"), EXPORTS)
def test_every_linear_layer_becomes_an_op(tmp_path: Path, name: str, exporter: str) -> None:
    source, out = tmp_path / "model.onnx", tmp_path / "out.onnx"
    feed = export(name, source, dynamo=exporter == "dynamo")
    result = qcompiler.compile(source, recipe="w4a8", output=out, calib_samples=4)
    linears = [layer for layer in result.report.layers if layer.kind == "linear"]
    assert linears
    assert not [e for e in linears if not ops.width_of(e.op or "")]
    onnx.checker.check_model(str(out))
    wanted = run(source, feed)
    with_library, without = run(out, feed, library=True), run(out, feed)
    assert sqnr_db(wanted, with_library) > 9
    assert sqnr_db(wanted, without) > 9
    assert sqnr_db(without, with_library) > 25
