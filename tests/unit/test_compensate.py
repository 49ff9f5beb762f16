"""The pass 'compensate': which layers it takes, and that reports are judged by the source."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from qcompiler.analysis.layers import find_layers
from qcompiler.analysis.qdq import weight_dq
from qcompiler.calibration.supply import FeedData
from qcompiler.errors import RecipeError
from qcompiler.instruments import VerifyInstrument
from qcompiler.ir.io import import_proto
from qcompiler.numerics.rounding import sqnr_db
from qcompiler.passmanager import PassContext, PassManager
from qcompiler.recipe import make_pass, parse_pipeline
from qcompiler.remarks import Rounded
from qcompiler.report.layers import gather

BLOCKS, SIZE = 8, 32
ROUNDED = "import,canonicalize,plan-weights{bits=3},plan-activations,quantize-weights"


def blocks() -> onnx.ModelProto:
    """Perceptrons with gates in a row, each added to what it reads."""
    rng = np.random.default_rng(0)
    lines, weights = [], []
    for i in range(BLOCKS):
        for name in ("gate", "up", "down"):
            values = rng.normal(0, SIZE**-0.5, (SIZE, SIZE)).astype(np.float32)
            weights.append(numpy_helper.from_array(values, f"{name}{i}_w"))
        lines.append(f"""
            [gate{i}] g{i} = MatMul(x{i}, gate{i}_w)
            s{i} = Sigmoid(g{i})
            [up{i}] u{i} = MatMul(x{i}, up{i}_w)
            h{i} = Mul(s{i}, u{i})
            [down{i}] d{i} = MatMul(h{i}, down{i}_w)
            x{i + 1} = Add(x{i}, d{i})
        """)
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 21]>'
        f"g (float[N, {SIZE}] x0) => (float[N, {SIZE}] x{BLOCKS}) {{ {''.join(lines)} }}"
    )
    model.graph.initializer.extend(weights)
    return model


def feeds(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {"x0": (rng.standard_normal((16, SIZE)) + 1.0).astype(np.float32)}


def compiled(options: str, count: int = 12):
    manager = PassManager(parse_pipeline(f"{ROUNDED},compensate{options}"), [VerifyInstrument()])
    context = PassContext(data=FeedData([feeds(seed) for seed in range(count)], "test"))
    graph, _ = manager.run(import_proto(blocks()), context)
    return graph, manager.history


@pytest.mark.parametrize(
    ("options", "layers"),
    [
        ("", ["down0", "down1", "down4", "down5", "down6", "down7"]),
        ("{first=1,last=0}", ["down0"]),
        ("{first=0,last=1}", ["down7"]),
        ("{first=0,last=0}", []),
        ("{first=99,last=99}", [f"down{i}" for i in range(BLOCKS)]),
        ("{layers=up,first=1,last=1}", ["up0", "up7"]),
        ("{layers=nothing}", []),
    ],
)
def test_the_first_and_the_last_are_taken(options: str, layers: list[str]) -> None:
    _, history = compiled(options)
    assert [remark.layer for remark in history[-1].remarks] == layers
    assert history[-1].changed == any(remark.applied for remark in history[-1].remarks)


def test_the_report_is_judged_by_the_float_weight_of_the_source() -> None:
    graph, history = compiled("")
    sources = {layer.name: layer for layer in find_layers(import_proto(blocks()))[0]}
    nodes = {node.name: node for node in graph.nodes}
    rows = {row.name: row for row in gather(history)}
    done = [remark for remark in history[-1].remarks if isinstance(remark, Rounded)]
    assert len(done) > 2
    for remark in done:
        row = rows[remark.layer]
        found = weight_dq(nodes[remark.layer].inputs[1])
        assert found is not None
        true = sqnr_db(sources[remark.layer].matrix(), found.load(remark.form).dequantize())
        assert row.sqnr_db == pytest.approx(true, abs=1e-6)
        assert row.scheme == "int3 g128 sym compensated"
        assert row.output_error is not None and row.output_error_nearest is not None
        assert row.output_error < row.output_error_nearest


def test_bad_options() -> None:
    for options in ({"first": -1}, {"last": -2}):
        with pytest.raises(RecipeError, match="must not be negative"):
            make_pass("compensate", options)
    with pytest.raises(RecipeError, match="no regular expression"):
        make_pass("compensate", {"layers": "down("})
