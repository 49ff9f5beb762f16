"""qc bench --explain: which kernels run the layers of a model."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
from command_line import qc
from odd_models import model_of, normal

from qcompiler import runtime
from qcompiler.errors import RuntimeLibraryError
from qcompiler.evaluation.kernels import FEW_ROWS

KERNELS = Path(__file__).resolve().parents[2] / "runtime" / "kernels" / "linear"

TEXT = """
g (int64[N] ids) => (float[N, 40] y) {
    [embed] e = Gather(table, ids)
    [up] u = MatMul(e, up)
    r = Relu(u)
    [head] y = MatMul(r, head)
}
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    made = model_of(TEXT, table=normal(40, 72), up=normal(72, 96), head=normal(96, 40))
    onnx.save(made, str(tmp_path / "m.onnx"))
    return tmp_path / "m.onnx"


def compiled(model: Path, target: str, bits: int = 4) -> Path:
    path = model.with_name(f"{target}.onnx")
    widths = [
        part
        for k in ("min_rows=1", "table_bits=4", "group_size=32", f"bits={bits}")
        for part in ("--set", f"plan-weights.{k}")
    ]
    result = qc("compile", model, "-o", path, "-t", target, "-r", "rtn", *widths, "--force")
    assert result.exit_code == 0, result.stderr
    return path


def layers(*arguments: Any) -> dict[str, dict[str, Any]]:
    (found,) = json.loads(qc("bench", *arguments, "--explain", "--json").stdout)
    return {layer["name"]: layer for layer in found["layers"]}


def test_our_ops(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = compiled(model, "ort-custom", bits=3)
    isa = str(runtime.info()["isa"])
    found = layers(path)
    assert [each["op"] for each in found.values()] == ["EmbeddingW4", "LinearW3A8", "LinearW8A8"]
    up = found["up"]
    assert (up["K"], up["N"], up["scheme"][:8]) == (72, 96, "int3 g32")
    for layer in (up, found["head"]):
        assert (layer["many_rows"], layer["few_rows"]) == (isa, FEW_ROWS.get(isa, isa))
    # 6 panels of 3 strips of 3 blocks, 3 groups a column, a scale and no bias.
    assert up["nbytes"] == 6 * 3 * 3 * 64 + 3 * 96 + 4 * 96 + 4
    assert found["embed"]["many_rows"] == found["embed"]["few_rows"] == "plain C++"
    monkeypatch.setenv(runtime.ISA_VARIABLE, "reference")
    command = [sys.executable, "-m", "qcompiler", "bench", path, "--explain", "--json"]
    (forced,) = json.loads(subprocess.check_output(command))
    assert forced["isa"] == forced["layers"][1]["many_rows"] == "reference"


@pytest.mark.parametrize("grid", ["gaussian", "odd"])
def test_grids_go_by_their_names(model: Path, grid: str) -> None:
    """Also by `qc inspect`: the op holds levels only."""
    path, options = model.with_name("grid.onnx"), [f"grid={grid}", "bits=2", "group_size=16"]
    sets = [part for each in options for part in ("--set", f"plan-weights.{each}")]
    assert qc("compile", model, "-o", path, "-r", "rtn", *sets).exit_code == 0
    up = layers(path)["up"]
    assert (up["op"], up["scheme"]) == ("LinearT2A8", f"int2 g16 {grid}")
    (found,) = (
        each
        for each in json.loads(qc("inspect", path, "--json").stdout)["layers"]
        if each["name"] == "up"
    )
    assert found["scheme"] == up["scheme"]


def test_without_the_library(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise RuntimeLibraryError("it is not built")

    monkeypatch.setattr(runtime, "info", missing)
    text = qc("bench", compiled(model, "ort-custom"), "--explain").stdout
    assert "without the op library: it is not built" in text
    assert text.count("function body") == 2 * 3
    assert "not built" not in qc("bench", model, "--explain").stdout, "it has no use for one"


@pytest.mark.parametrize(("target", "op"), [("ort-contrib", "MatMulNBits"), ("qdq", "Q/DQ")])
def test_what_onnxruntime_runs(model: Path, target: str, op: str) -> None:
    up = layers(compiled(model, target))["up"]
    assert (up["op"], up["scheme"]) == (op, "int4 g32 sym")
    assert up["many_rows"] == up["few_rows"] == f"{op} of ONNX Runtime"
    rows = 96 if op == "MatMulNBits" else 72  # it has whole groups
    assert up["nbytes"] == rows * 96 // 2 + 4 * 3 * 96


def test_a_float_model_beside_another(model: Path) -> None:
    lines = qc("bench", model, model, "--explain").stdout.splitlines()
    assert lines[: len(lines) // 2] == lines[len(lines) // 2 :]
    assert lines[0] == str(model)
    assert lines[1].split()[:3] == ["layer", "op", "weight"]
    kernel = "MatMul of ONNX Runtime"
    assert lines[2].split() == f"up MatMul float 72 x 96 27.6 kB {kernel} {kernel}".split()


def test_it_tells_of_the_cpu_only(model: Path) -> None:
    result = qc("bench", model, "--explain", "--provider", "cuda")
    assert result.exit_code == 2
    assert "the CPU's kernels only" in result.stderr


@pytest.mark.skipif(not KERNELS.is_dir(), reason="no checkout")
def test_few_rows_are_left_to_whom_the_kernels_leave_them() -> None:
    found = {
        file.stem.removeprefix("linear_"): other
        for file in KERNELS.glob("linear_*.cc")
        for other in re.findall(r"linear_s8_##letter##bits##_f32_(\w+)\)", file.read_text("utf-8"))
    }
    assert found == FEW_ROWS
