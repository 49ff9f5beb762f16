"""Compiled models whose weights are in the integer form: their ops, outputs and bytes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from command_line import qc
from odd_models import model_of, normal
from onnx import numpy_helper

from qcompiler import ops, runtime
from qcompiler.numerics.rounding import sqnr_db

TEXT = """
g (int64[N] ids) => (float[N, 40] y) {
    [embed] e = Gather(table, ids)
    [gate] g = MatMul(e, gate)
    [up] u = MatMul(e, up)
    r = Relu(g)
    m = Mul(r, u)
    [down] d = MatMul(m, down)
    n = Add(d, e)
    [head] y = MatMul(n, head)
}
"""
LAYERS = ("gate", "up", "down", "head")
SHAPES = {"gate": (96, 64), "up": (96, 64), "down": (64, 96), "head": (96, 40)}
NARROW = {"group_size": "32", "head_bits": "4", "table_bits": "4", "min_rows": "64"}
TIPPED_DB = 50.0
"""A sum in another order tips a code of int8 here and there (tests/numeric)."""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    weights = {name: normal(*shape, std=0.1) for name, shape in SHAPES.items()}
    onnx.save(model_of(TEXT, table=normal(128, 96, std=1.0), **weights), tmp_path / "m.onnx")
    np.savez(tmp_path / "feed.npz", ids=ids(512))
    return tmp_path / "m.onnx"


def ids(count: int) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 128, count)


def compiled(model: Path, target: str, recipe: str = "w4a8", **options: str) -> tuple[Path, dict]:
    """The output and the report; `options` are those of plan-weights."""
    out = model.with_name(f"{target}.onnx")
    changes = [part for k, v in options.items() for part in ("--set", f"plan-weights.{k}={v}")]
    calib = ("--calib", model.with_name("feed.npz"))
    told = qc("compile", model, "-r", recipe, "-t", target, "-o", out, *calib, *changes, "--json")
    assert told.exit_code == 0, told.output
    return out, json.loads(told.stdout)


def run(path: Path, *, library: bool = False) -> np.ndarray:
    options = ort.SessionOptions()
    if library:
        runtime.register(options)
    session = ort.InferenceSession(str(path), options, ["CPUExecutionProvider"])
    return session.run(None, {"ids": ids(50)})[0]


@pytest.mark.parametrize(
    ("bits", "group_size", "least_db"),
    [(2, 16, 4), (3, 32, 9), (4, 16, 16), (4, 64, 14), (5, 64, 20), (6, 64, 24)],
)
def test_it_computes_what_the_quantized_model_means(
    model: Path, bits: int, group_size: int, least_db: int
) -> None:
    """With the library the same bits as without, and what the codes in stock types mean."""
    width, size = str(bits), str(group_size)
    form = {"bits": width, "head_bits": width, "table_bits": width}
    form |= {"group_size": size, "table_group_size": size, "min_rows": "64"}
    out, report = compiled(model, "ort-custom", "w4a8-fast", **form)
    used = {row["name"]: row["op"] for row in report["layers"]}
    assert used == dict.fromkeys(LAYERS, f"LinearW{bits}A8") | {"embed": f"EmbeddingW{bits}"}
    assert {row["scheme"] for row in report["layers"]} == {f"int{bits} g{group_size} asym"}
    y = run(out)
    np.testing.assert_array_equal(run(out, library=True), y)
    wanted = run(compiled(model, "qdq", "w4a8-fast", **form)[0])
    assert sqnr_db(wanted, y) > TIPPED_DB
    assert sqnr_db(run(model), y) > least_db


@pytest.mark.parametrize("bits", ["4", "8"])
def test_the_report_says_how_many_bytes_are_stored(model: Path, bits: str) -> None:
    form = {"bits": bits, "table_bits": bits}
    out, report = compiled(model, "ort-custom", **(NARROW | form))
    quantized = [row for row in report["layers"] if row["quantized"]]
    assert sorted(row["name"] for row in quantized) == sorted([*LAYERS, "embed"])
    stored = onnx.load(out)
    weights = {
        name: numpy_helper.to_array(tensor).nbytes
        for tensor in stored.graph.initializer
        if not (name := tensor.name).endswith("_bias")
    }
    read = {name for node in stored.graph.node if ops.width_of(node.op_type) for name in node.input}
    assert sum(row["bytes_after"] for row in quantized) == sum(
        size for name, size in weights.items() if name in read
    )


def test_inspect_knows_them(model: Path) -> None:
    symmetric = {"head_bits": "8", "group_size": "128", "symmetric": "true"}
    out, _ = compiled(model, "ort-custom", "rtn", **(NARROW | symmetric))
    layers = {
        layer["name"]: layer for layer in json.loads(qc("inspect", out, "--json").stdout)["layers"]
    }
    told = {name: (each["op"], each["scheme"]) for name, each in layers.items()}
    # In the file every group has a zero point, also where all are the middle.
    assert told == {
        "embed": ("EmbeddingW4", "int4 g64 asym"),
        "gate+up": ("LinearW4A8", "int4 g128 asym"),
        "down": ("LinearW4A8", "int4 g128 asym"),
        "head": ("LinearW8A8", "int8 sym"),
    }
    assert layers["down"]["activation"] == "per-token"
