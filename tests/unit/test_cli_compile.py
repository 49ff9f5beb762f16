"""compile, inspect, opt and recipe from the command line, on a model of two layers."""

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

from qcompiler.commit import is_data_of

TEXT = """
<ir_version: 10, opset_import: ["" : 21]>
mlp (float[N, 64] x) => (float[N, 32] y) {
    [fc1] h = MatMul(x, w1)
    [fc1_bias] b = Add(h, b1)
    r = Relu(b)
    [fc2] m = MatMul(r, w2)
    y = Tanh(m)
}
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    made = onnx.parser.parse_model(TEXT)
    for name, shape in (("w1", (64, 96)), ("b1", (96,)), ("w2", (96, 32))):
        values = random.normal(0, 0.1, shape).astype(np.float32)
        made.graph.initializer.append(numpy_helper.from_array(values, name))
    onnx.save(made, str(tmp_path / "mlp.onnx"))
    return tmp_path / "mlp.onnx"


def run(path: Path) -> np.ndarray:
    x = np.random.default_rng(1).standard_normal((5, 64)).astype(np.float32)
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


def operators(path: Path) -> set[str]:
    return {node.op_type for node in onnx.load(path, load_external_data=False).graph.node}


@pytest.mark.parametrize(
    ("tolerance", "way"), [(1.0, "per-tensor"), (0.008, "per-token"), (0.0, "per-token")]
)
def test_measured_activations(model: Path, tolerance: float, way: str) -> None:
    """A recipe that does not calibrate learns the ranges of static scales all the same."""
    options = {"policy": "measured", "tolerance": tolerance}
    changes = [part for k, v in options.items() for part in ("--set", f"plan-activations.{k}={v}")]
    changes += ["--set", "plan-weights.group_size=32"]
    report = model.with_name("report.json")
    result = qc(
        "compile", model, "-r", "gptq", *changes, "--calib-samples", "64", "--report", report
    )
    assert result.exit_code == 0, result.stderr
    layers = json.loads(report.read_text())["layers"]
    assert [layer["activation"] for layer in layers] == [way] * 2
    for layer in layers:
        errors = layer["activation_errors"]
        assert errors["per-token"] < 0.008 < errors["per-tensor"]
    static = "LinearW4A8Static" in operators(model.with_name("mlp.gptq.onnx"))
    assert static == (way == "per-tensor")


def test_compile_writes_a_model_that_works(model: Path) -> None:
    result = qc("compile", model)
    assert result.exit_code == 0, result.stderr
    output = model.with_name("mlp.w4a8.onnx")
    assert "2 of 2 linear layers" in result.stdout
    assert "LinearW4A8" in operators(output)
    reference = run(model)
    assert np.linalg.norm(run(output) - reference) < 0.25 * np.linalg.norm(reference)


@pytest.mark.parametrize(
    ("target", "op"),
    [
        ("ort-custom", "LinearW4A8"),
        ("cuda", "LinearW4A8"),
        ("ort-contrib", "MatMulNBits"),
        ("qdq", "DequantizeLinear"),
    ],
)
def test_targets(model: Path, tmp_path: Path, target: str, op: str) -> None:
    output = tmp_path / "deep" / "o.onnx"
    result = qc("compile", model, "-o", output, "-t", target, "-r", "rtn")
    assert result.exit_code == 0, result.stderr
    assert op in operators(output)


def test_compile_json_and_report_files(model: Path, tmp_path: Path) -> None:
    result = qc(
        *("compile", model, "-o", tmp_path / "o.onnx", "--json", "--report", tmp_path / "r.json"),
        *("--nodes-to-exclude", "fc2", "--set", "plan-weights.group_size=64", "--no-verify"),
        *("--calib-samples", "64"),
    )
    assert result.exit_code == 0, result.stderr
    data = json.loads(result.stdout)
    layers = {layer["name"]: layer for layer in data["layers"]}
    assert layers["fc1"]["scheme"] == "int4 g64 asym gptaq"
    assert layers["fc1"]["op"] == "LinearW4A8"
    assert layers["fc2"]["reason"] == "excluded by pattern 'fc2'"
    assert data["verification"] is None
    weights, compiled = map(Path, data["files"])
    assert compiled.name == "o.onnx"
    assert is_data_of(weights.name, compiled.name)
    assert json.loads((tmp_path / "r.json").read_text())["layers"] == data["layers"]
    page = qc("compile", model, "-o", tmp_path / "p.onnx", "--report", tmp_path / "r.html")
    assert page.exit_code == 0
    assert "<svg" in (tmp_path / "r.html").read_text()


def test_dump_ir_numbers_the_passes(model: Path, tmp_path: Path) -> None:
    assert qc("compile", model, "--dump-ir", tmp_path / "ir").exit_code == 0
    names = sorted(path.name for path in (tmp_path / "ir").iterdir())
    assert names[0] == "000_import.qir"
    assert names[-1].endswith("_decompose-norm.qir")
    lowered = next(name for name in names if name.endswith("_lower-ort-custom.qir"))
    text = (tmp_path / "ir" / lowered).read_text()
    assert "// + fc1: LinearW4A8" in text
    assert "function" not in text.split("\n", 2)[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-r", "w4a9"], "did you mean 'w4a8'"),
        (["-t", "ort-costum"], "did you mean 'ort-custom'"),
        (["--set", "plan-weights.bits=7"], "must be one of 2, 3, 4, 5, 6, 8"),
        (["--nodes-to-exclude", "("], "no regular expression"),
        (["--nodes-to-exclude", "."], "holds nothing this recipe can quantize"),
        (["-o", "{model}"], "overwrite its source"),
        (["-o", "{folder}/name"], "must end in .onnx"),
        (["--calib", "{folder}/none.npz"], "none.npz"),
    ],
)
def test_refusals_leave_nothing_behind(model: Path, options: list[str], message: str) -> None:
    filled = [text.format(model=model, folder=model.parent) for text in options]
    result = qc("compile", model, *filled)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert message in result.stderr
    assert [path.name for path in model.parent.iterdir()] == ["mlp.onnx"]


def test_a_broken_result_is_refused_unless_forced(model: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "strict.toml"
    recipe.write_text(
        'name = "strict"\nmin_sqnr_db = 90\n[[pass]]\nname = "import"\n[[pass]]\n'
        'name = "canonicalize"\n[[pass]]\nname = "plan-weights"\n[[pass]]\n'
        'name = "plan-activations"\n[[pass]]\n'
        'name = "quantize-weights"\n[[pass]]\nname = "insert-qdq"\n'
    )
    result = qc("compile", model, "-r", recipe)
    assert result.exit_code == 1
    assert "less than the 90.0 dB" in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mlp.onnx", "strict.toml"]
    assert qc("compile", model, "-r", recipe, "--force").exit_code == 0
    assert model.with_name("mlp.strict.onnx").is_file()


@pytest.mark.parametrize(
    "arguments",
    [
        ["compile"],
        ["compile", "m", "--report", "layers.txt"],
        ["compile", "m", "--calib-samples", "0"],
        ["opt", "m"],
        ["inspect"],
        ["recipe", "show"],
    ],
)
def test_usage_errors(arguments: list[str]) -> None:
    assert qc(*arguments).exit_code == 2


@pytest.mark.parametrize("command", ["compile", "inspect", "opt", "recipe show"])
def test_help_teaches_by_example(command: str) -> None:
    result = qc(*command.split(), "--help")
    assert result.exit_code == 0
    assert "Example" in result.stdout
    assert "--json" in result.stdout


def test_inspect_a_float_model(model: Path) -> None:
    text = qc("inspect", model).stdout
    assert "opsets ai.onnx 21" in text
    assert "input x: float[N, 64]" in text
    data = json.loads(qc("inspect", model, "--json").stdout)
    assert data["sizes"]["float"] == {"count": 3, "bytes": 4 * (64 * 96 + 96 + 96 * 32)}
    assert data["operators"] == {"MatMul": 2, "Add": 1, "Relu": 1, "Tanh": 1}
    layers = {layer["name"]: layer for layer in data["layers"]}
    assert (layers["fc1"]["K"], layers["fc1"]["N"], layers["fc1"]["scheme"]) == (64, 96, "float")
    vetoes = {edge["activation"]: edge["veto"] for edge in data["edges"]}
    assert "input of the model" in vetoes["x"]
    assert "Relu" in vetoes["r"]


@pytest.mark.parametrize(
    ("target", "op", "activation"),
    [
        ("ort-custom", "LinearW4A8", "per-token"),
        ("ort-contrib", "MatMulNBits", "per-group"),
        ("qdq", "Q/DQ", "per-token"),
    ],
)
def test_inspect_a_compiled_model(model: Path, target: str, op: str, activation: str) -> None:
    output = model.with_name("q.onnx")
    assert qc("compile", model, "-o", output, "-t", target).exit_code == 0
    data = json.loads(qc("inspect", output, "--json").stdout)
    first = next(layer for layer in data["layers"] if layer["name"] == "fc1")
    assert (first["op"], first["scheme"], first["activation"]) == (op, "int4 g16 asym", activation)
    assert data["metadata"]["qcompiler.target"] == target
    assert "fc1" not in data["left_alone"]
    assert next(iter(data["weights"])) == "quantized already"


def test_inspect_says_what_can_be_quantized_and_what_holds_the_rest(tmp_path: Path) -> None:
    made = model_of(
        "g (float[s, n, 64] x) => (float[s, n, 96] y, float[s, n, 64] e) { [fc] y = MatMul (x, w)"
        ' [sum] e = Einsum <equation = "snk,km->snm"> (x, a) }',
        w=normal(64, 96),
        a=normal(64, 64),
    )
    onnx.save(made, str(tmp_path / "m.onnx"))
    data = json.loads(qc("inspect", tmp_path / "m.onnx", "--json").stdout)
    assert data["weights"] == {"linear layers": 64 * 96 * 4, "Einsum": 64 * 64 * 4}
    assert data["left_alone"] == {"sum": "products written as Einsum are not quantized"}
    lines = [line.split() for line in qc("inspect", tmp_path / "m.onnx").stdout.splitlines()]
    assert ["linear", "layers", "24.6", "kB", "can", "be", "quantized"] in lines
    assert ["Einsum", "16.4", "kB", "stays", "as", "it", "is"] in lines


def test_inspect_looks_into_bodies(tmp_path: Path) -> None:
    made = model_of(
        "g (float[n, 64] x, bool c) => (float[n, 96] y) { y = If (c) <"
        " then_branch = one () => (float[n, 96] t) { [inside] t = MatMul (x, w) },"
        " else_branch = two () => (float[n, 96] e) { [other] e = MatMul (x, w) }> }",
        w=normal(64, 96),
    )
    onnx.save(made, str(tmp_path / "m.onnx"))
    data = json.loads(qc("inspect", tmp_path / "m.onnx", "--json").stdout)
    assert {layer["name"] for layer in data["layers"]} == {"inside", "other"}
    assert data["weights"] == {"linear layers": 64 * 96 * 4} and not data["left_alone"]


def test_inspect_folds_alike_rows_unless_asked(model: Path) -> None:
    assert "fc* (2)" not in qc("inspect", model).stdout, "these two differ in size"
    short = qc("inspect", model).stdout.splitlines()
    assert short == qc("inspect", model, "--all").stdout.splitlines()


def test_inspect_says_what_it_cannot_analyze(tmp_path: Path) -> None:
    old = onnx.parser.parse_model(
        '<ir_version: 3, opset_import: ["" : 6]> g (float[2] x) => (float[2] y) { y = Relu(x) }'
    )
    onnx.save(old, str(tmp_path / "old.onnx"))
    result = qc("inspect", tmp_path / "old.onnx")
    assert result.exit_code == 0
    assert "not analyzed further" in result.stdout and "opset 6" in result.stdout


def test_opt_prints_the_graph_or_the_remarks(model: Path) -> None:
    text = qc("opt", model, "-p", "import,canonicalize", "--print").stdout
    assert text.startswith('opset "" 21\n')
    assert "%h : float[N, 96] = MatMul(%x, %w1)  # fc1" in text
    pipeline = "import,canonicalize,plan-weights{bits=8},plan-activations"
    pipeline += ",quantize-weights"
    lines = qc("opt", model, "-p", pipeline).stdout.splitlines()
    assert "  + fc1: int8 symmetric, per channel" in lines


def test_opt_lowers_what_is_quantized_already(model: Path, tmp_path: Path) -> None:
    middle, final = tmp_path / "q.onnx", tmp_path / "f.onnx"
    assert qc("compile", model, "-o", middle, "-t", "qdq").exit_code == 0
    refused = qc("opt", middle, "-p", "lower-ort-custom", "-o", final)
    assert refused.exit_code == 1
    assert "needs a graph that is qdq" in refused.stderr
    assert not final.exists()
    result = qc("opt", middle, "-p", "lower-ort-custom", "--assume", "qdq", "-o", final, "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["passes"][0]["changed"] is True
    assert "LinearW4A8" in operators(final)
    np.testing.assert_allclose(run(final), run(middle), atol=0.05)


def test_opt_with_a_target_ends_with_its_passes(model: Path, tmp_path: Path) -> None:
    pipeline = "import,canonicalize,plan-weights,plan-activations,quantize-weights,insert-qdq"
    result = qc("opt", model, "-p", pipeline, "-t", "ort-contrib", "-o", tmp_path / "o.onnx")
    assert result.exit_code == 0, result.stderr
    assert "MatMulNBits" in operators(tmp_path / "o.onnx")
    result = qc("opt", model, "-p", pipeline, "-t", "ort-costum")
    assert result.exit_code == 1
    assert "did you mean 'ort-custom'" in result.stderr


def test_opt_explains_unknown_facts(model: Path) -> None:
    result = qc("opt", model, "-p", "import", "--assume", "qqd")
    assert result.exit_code == 1
    assert "did you mean 'qdq'" in result.stderr


def test_warnings_of_graphsurgeon_stay_out_of_the_output(tmp_path: Path) -> None:
    twice = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 21]>\n'
        "g (float[2] x) => (float[2] y) { [same] h = Relu(x) [same] y = Neg(h) }"
    )
    onnx.save(twice, str(tmp_path / "twice.onnx"))
    result = qc("opt", tmp_path / "twice.onnx", "-p", "import", "--print")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith("opset")
    assert "# same\n" in result.stdout and "# same_1\n" in result.stdout


def test_recipes_are_listed_and_shown() -> None:
    listed = qc("recipe", "list").stdout
    assert "w4a8: The default" in listed
    names = [recipe["name"] for recipe in json.loads(qc("recipe", "list", "--json").stdout)]
    assert names == sorted(names) and "fptq" in names
    assert qc("recipe", "show", "fptq").stdout.startswith('name = "fptq"')
    shown = json.loads(qc("recipe", "show", "fptq", "--json").stdout)
    assert shown["pass"][0]["name"] == "import"
    assert qc("recipe", "show", "fptk").exit_code == 1
