"""Sources that are quantized in part: what is in codes stays as it is, the float rest compiles."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from command_line import qc
from odd_models import SQUARE, model_of, normal
from onnx import numpy_helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

import qcompiler
from qcompiler import ops
from qcompiler.numerics.rounding import sqnr_db

MODEL = """
g (float[n, 96] x) => (float[n, 96] y) {
    [first] h = MatMul(x, v)
    r = Relu(h)
    [second] y = MatMul(r, w)
}"""
FEED = {"x": normal(64, 96, std=1.0)}


class Samples(CalibrationDataReader):
    def __init__(self) -> None:
        self.left: Iterator[dict] = iter([FEED, FEED])

    def get_next(self) -> dict | None:
        return next(self.left, None)


def static(source: Path, made: Path, form: QuantFormat) -> None:
    quantize_static(
        source, made, Samples(), quant_format=form, per_channel=True, nodes_to_exclude=["second"]
    )


def four_bits(source: Path, made: Path) -> None:
    quantizer = MatMulNBitsQuantizer(
        onnx.load(source), block_size=32, is_symmetric=True, nodes_to_exclude=["second"]
    )
    quantizer.process()
    onnx.save(quantizer.model.model, made)


WAYS: dict[str, Callable[[Path, Path], None]] = {
    "dynamic": lambda source, made: quantize_dynamic(source, made, nodes_to_exclude=["second"]),
    "static, Q/DQ": lambda source, made: static(source, made, QuantFormat.QDQ),
    "static, operators": lambda source, made: static(source, made, QuantFormat.QOperator),
    "4 bits": four_bits,
}


def outputs(path: Path, *, library: bool = False) -> np.ndarray:
    options = ort.SessionOptions()
    if library:
        options.register_custom_ops_library(str(qcompiler.library_path()))
    return ort.InferenceSession(str(path), options, ["CPUExecutionProvider"]).run(None, FEED)[0]


def codes(path: Path) -> set[bytes]:
    return {
        numpy_helper.to_array(tensor).tobytes()
        for tensor in onnx.load(path).graph.initializer
        if len(tensor.dims) > 1 and numpy_helper.to_array(tensor).dtype.itemsize == 1
    }


@pytest.mark.parametrize("recipe", ["rtn", "w4a8"])
@pytest.mark.parametrize("opset", [13, 21])
@pytest.mark.parametrize("way", WAYS)
def test_the_float_rest_compiles(tmp_path: Path, way: str, opset: int, recipe: str) -> None:
    float_model = model_of(MODEL, v=SQUARE, w=SQUARE.T.copy())
    float_model.opset_import[0].version = opset
    onnx.save(float_model, tmp_path / "float.onnx")
    source, out = tmp_path / "m.onnx", tmp_path / "out.onnx"
    WAYS[way](tmp_path / "float.onnx", source)
    told = qc("compile", source, "-r", recipe, "-o", out, "--json")
    assert told.exit_code == 0, told.output
    report = json.loads(told.stdout)
    rows = {row["name"]: row for row in report["layers"]}
    assert ops.width_of(rows["second"]["op"])
    kept = [row["reason"] or "" for name, row in rows.items() if name.startswith("first")]
    assert kept and all("quantized already" in reason for reason in kept), rows
    assert codes(source) and codes(source) <= codes(out)
    wanted = outputs(source)
    assert sqnr_db(wanted, outputs(out, library=True)) > 17
    assert sqnr_db(wanted, outputs(out)) > 17
