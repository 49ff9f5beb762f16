"""Sensitivities and budgets from the command line, on a chain of layers of which some matter."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from command_line import qc
from onnx import helper, numpy_helper

from qcompiler.formats import WeightFormat

LAYERS = 12
SIZE = 64


def gain(layer: int) -> float:
    """How much of the output a layer decides: no two alike, and not in order."""
    return 2.0 ** ((7 * layer) % LAYERS)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """y = the sum of tanh(x W_i) times a gain of its own; each W_i reads an x of its own."""
    random = np.random.default_rng(0)
    nodes, constants, terms = [], [], []
    for i in range(LAYERS):
        weight = random.normal(0, 0.1, (SIZE, SIZE)).astype(np.float32)
        constants += [
            numpy_helper.from_array(weight, f"w{i}"),
            numpy_helper.from_array(np.asarray(gain(i), np.float32), f"g{i}"),
        ]
        nodes += [
            helper.make_node("MatMul", [f"x{i}", f"w{i}"], [f"h{i}"], name=f"fc{i}"),
            helper.make_node("Tanh", [f"h{i}"], [f"t{i}"]),
            helper.make_node("Mul", [f"t{i}", f"g{i}"], [f"s{i}"]),
        ]
        terms.append(f"s{i}")
    nodes.append(helper.make_node("Sum", terms, ["y"]))
    value = lambda name: helper.make_tensor_value_info(name, 1, ["N", SIZE])  # noqa: E731
    inputs = [value(f"x{i}") for i in range(LAYERS)]
    graph = helper.make_graph(nodes, "terms", inputs, [value("y")], constants)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(made, str(tmp_path / "terms.onnx"))
    return tmp_path / "terms.onnx"


def test_layers_are_ranked_by_what_they_do_to_the_output(model: Path) -> None:
    result = qc("sensitivity", model, "--json", "--top", 2)
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    ranked = [unit["layers"] for unit in found["units"]]
    assert ranked == [[f"fc{i}"] for i in sorted(range(LAYERS), key=gain, reverse=True)]
    excluded = [name for i in range(LAYERS) if re.search(found["exclusion"], name := f"fc{i}")]
    assert sorted(excluded) == sorted(name for names in ranked[:2] for name in names)
    table = qc("sensitivity", model).stdout
    assert "--nodes-to-exclude '^(" in table


def error(model: Path, output: Path) -> float:
    rng = np.random.default_rng(5)
    feeds = {f"x{i}": rng.normal(size=(40, SIZE)).astype(np.float32) for i in range(LAYERS)}
    results = []
    for path in (model, output):
        session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        results.append(session.run(None, feeds)[0])
    return float(np.square(results[0] - results[1]).sum() / np.square(results[0]).sum())


@pytest.mark.parametrize(("budget", "bits", "size"), [(4.75, 4, 32), (3.25, 2, 16)])
def test_a_budget_is_met_and_beats_one_format_for_all(
    model: Path, tmp_path: Path, budget: float, bits: int, size: int
) -> None:
    mixed, uniform, report = tmp_path / "mixed.onnx", tmp_path / "same.onnx", tmp_path / "r.json"
    result = qc(
        *("compile", model, "-o", mixed, "-r", "rtn", "--target", "qdq"),
        *("--budget", f"{budget}bpw", "--report", report),
    )
    assert result.exit_code == 0, result.stderr
    layers = json.loads(report.read_text("utf-8"))["layers"]
    sizes = [layer["bytes_after"] for layer in layers if layer["kind"] == "linear"]
    assert 0.9 * budget < 8 * sum(sizes) / (LAYERS * SIZE * SIZE) <= budget  # of few layers
    ranks = {layer["name"]: layer["sensitivity_rank"] for layer in layers}
    assert ranks["fc" + str(max(range(LAYERS), key=gain))] == 1
    same = {"bits": bits, "group_size": size, "symmetric": "false"}
    options = [part for k, v in same.items() for part in ("--set", f"plan-weights.{k}={v}")]
    result = qc("compile", model, "-o", uniform, "-r", "rtn", "--target", "qdq", *options)
    assert result.exit_code == 0, result.stderr
    assert error(model, mixed) < 0.5 * error(model, uniform)


def test_a_divergence_is_kept_with_few_bits(model: Path, tmp_path: Path) -> None:
    sizes = {}
    for limit in (3e-4, 1e-2):
        output, report = tmp_path / f"{limit}.onnx", tmp_path / f"{limit}.json"
        result = qc(
            *("compile", model, "-o", output, "-r", "rtn", "--target", "qdq"),
            *("--max-kl", limit, "--report", report),
        )
        assert result.exit_code == 0, result.stderr
        layers = json.loads(report.read_text("utf-8"))["layers"]
        sizes[limit] = sum(layer["bytes_after"] or 0 for layer in layers)
    assert sizes[1e-2] < sizes[3e-4]
    assert error(model, tmp_path / "0.01.onnx") < 3e-2  # activations add to the estimate


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--budget", "2bpw"), "the smallest take 2.750 bits a weight"),
        (("--budget", "many"), "is no number of bits"),
        (("--budget", "-1"), "budget must be positive"),
        (("--max-kl", "0"), "max-kl must be positive"),
        (("--max-kl", "1e-9"), "raise --budget or --max-kl"),
    ],
)
def test_limits_that_can_not_be_met(model: Path, options, message) -> None:
    result = qc("compile", model, *options)
    assert result.exit_code != 0
    assert message in re.sub(r"[\s│]+", " ", result.stderr)


def test_formats_of_the_report(model: Path, tmp_path: Path) -> None:
    report = tmp_path / "r.json"
    result = qc("compile", model, "-o", tmp_path / "o.onnx", "--budget", "5", "--report", report)
    assert result.exit_code == 0, result.stderr
    for layer in json.loads(report.read_text("utf-8"))["layers"]:
        if layer["kind"] == "linear":
            words = layer["scheme"].split()
            grouped = words[1].startswith("g") and words[1][1:].isdigit()
            WeightFormat.parse(" ".join(words[: 3 if grouped else 2]))
