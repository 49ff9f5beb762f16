"""Broken input: one line says why it is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from command_line import qc, refusal
from odd_models import K, N, W, edited, linear, model_of, no_rank_input, normal
from onnx import TensorProto, helper

from qcompiler.formats import WeightFormat
from qcompiler.ir.io import read_model
from qcompiler.models import ModelPackage
from qcompiler.numerics.rounding import quantize_weight, sqnr_db
from qcompiler.passes import registry


def cut(made: onnx.ModelProto) -> onnx.ModelProto:
    made.graph.initializer[0].raw_data = made.graph.initializer[0].raw_data[:100]
    return made


def of_type(made: onnx.ModelProto, kind: int) -> onnx.ModelProto:
    made.graph.initializer[0].data_type = kind
    return made


def with_hole(value: float) -> np.ndarray:
    w = W.copy()
    w[3, 4] = value
    return w


BAD = {
    "nothing to quantize": (
        model_of("g (float[n, 4] x) => (float[n, 4] y) { y = Relu(x) }"),
        "it has no matrix product by a constant",
    ),
    "nothing but recurrent weights": (
        model_of(
            "g (float[s, n, 64] x) => (float[s, 1, n, 64] y)"
            " { [lstm] y = LSTM <hidden_size = 64> (x, w, r) }",
            w=normal(1, 256, 64),
            r=normal(1, 256, 64),
        ),
        "'lstm': recurrent weights are not quantized); what holds its weights: LSTM 0.1 MB",
    ),
    "nothing but Einsum": (
        model_of(
            "g (float[n, 64] x) => (float[n, 96] y)"
            ' { [sum] y = Einsum <equation = "nk,km->nm"> (x, w) }',
            w=W,
        ),
        "'sum': products written as Einsum are not quantized); "
        "what holds its weights: Einsum 24.6 kB",
    ),
    "nothing but a norm": (
        model_of(
            "g (float[n, 64] x) => (float[n, 64] y) { y = LayerNormalization(x, w) }", w=W[:, 0]
        ),
        "a constant; what holds its weights: vectors and small constants 0.3 kB",
    ),
    "few channels": (
        model_of("g (float[n, 16] x) => (float[n, 8] y) { [fc] y = MatMul(x, w) }", w=W[:16, :8]),
        "'fc': only 16 input channels",
    ),
    "NaN": (linear(w=with_hole(np.nan)), "holds NaN or infinity"),
    "infinity": (linear(w=with_hole(np.inf)), "holds NaN or infinity"),
    "double": (
        model_of(
            "g (double[n, 64] x) => (double[n, 96] y) { y = MatMul(x, w) }", w=W.astype(np.float64)
        ),
        "its weight has type double",
    ),
    "weight on the left": (
        model_of("g (float[64, n] x) => (float[96, n] y) { y = MatMul(w, x) }", w=W.T.copy()),
        "its constant is the left operand",
    ),
    "batched weight": (
        model_of(
            "g (float[2, 1, n, 64] x) => (float[2, 1, n, 96] y) { y = MatMul(x, w) }",
            w=normal(2, 1, K, N),
        ),
        "not two-dimensional",
    ),
    "bfloat16": (
        model_of(
            "g (bfloat16[n, 64] x) => (bfloat16[n, 96] y) { y = MatMul(x, w) }",
            w=helper.make_tensor("w", TensorProto.BFLOAT16, [K, N], W.ravel()),
        ),
        "export it in float32",
    ),
    "shapes that don't fit": (
        linear(w=normal(60, N)),
        "node 'MatMul_0' multiplies 64 channels by a weight of 60",
    ),
    "an unknown operator": (
        model_of("g (float[n, 64] x) => (float[n, 96] y) { h = MatMul(x, w) y = Foo(h) }", w=W),
        "No Op registered for Foo",
    ),
    "a cycle": (
        model_of(
            "g (float[n, 64] x) => (float[n, 96] y) "
            "{ h = MatMul(x, w) a = Add(h, b) b = Relu(a) y = Relu(b) }",
            w=W,
        ),
        "ycle",
    ),
    "too few bytes": (cut(linear(w=W)), "holds 100 bytes, its shape and type need 24576"),
    "an unknown type": (of_type(linear(w=W), 99), "unknown element type 99"),
    "no type": (of_type(linear(w=W), 0), "unknown element type 0"),
    "an input of no rank": (no_rank_input(), "give an .npz"),
}


@pytest.mark.parametrize("name", BAD)
def test_models_that_are_refused(name: str, tmp_path: Path) -> None:
    made, cause = BAD[name]
    (tmp_path / "m.onnx").write_bytes(made.SerializeToString())
    assert cause in refusal("compile", tmp_path / "m.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "m.onnx").write_bytes(linear(w=W).SerializeToString())
    return tmp_path / "m.onnx"


@pytest.mark.parametrize("content", [b"", b"hello", bytes(range(256)) * 8, None])
@pytest.mark.parametrize("command", ["compile", "inspect", "eval", "bench", "generate", "opt"])
def test_files_that_are_no_models(model: Path, command: str, content: bytes | None) -> None:
    model.write_bytes(model.read_bytes()[:9000] if content is None else content)
    more = {"generate": ["hello"], "opt": ["-p", "import"]}.get(command, [])
    assert "is not an ONNX model" in refusal(command, model, *more)


@pytest.mark.parametrize("command", ["compile", "inspect", "eval", "bench"])
def test_no_such_model(tmp_path: Path, command: str) -> None:
    assert "no such file or folder" in refusal(command, tmp_path / "m.onnx")
    assert "holds no model.onnx" in refusal(command, tmp_path)


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"location": "../m.onnx.data"}, "lies outside the model's folder"),
        ({"location": "/etc/passwd"}, "lies outside the model's folder"),
        ({"location": "other.data"}, "is missing"),
        ({"offset": "-4"}, "not a byte count"),
        ({"offset": "1000000"}, "is cut off"),
        ({"length": "100"}, "holds 100 bytes, its shape and type need 24576"),
    ],
)
def test_external_data(tmp_path: Path, change: dict[str, str], cause: str) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(
        linear(w=W), path, save_as_external_data=True, location="m.onnx.data", size_threshold=0
    )
    edited(path, **change)
    assert cause in refusal("compile", path)
    assert cause in refusal("inspect", path)


def test_hub_cache(tmp_path: Path) -> None:
    """A cache keeps the files in a store under other names, and links to them."""
    store, folder = tmp_path / "blobs", tmp_path / "snapshots"
    store.mkdir()
    folder.mkdir()
    onnx.save(
        linear(w=W), store / "a", save_as_external_data=True, location="m.data", size_threshold=0
    )
    (store / "m.data").rename(store / "b")
    (folder / "m.onnx").symlink_to(store / "a")
    (folder / "m.data").symlink_to(store / "b")
    result = qc("compile", folder / "m.onnx", "-o", tmp_path / "o.onnx")
    assert result.exit_code == 0, result.stderr


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        (["--nodes-to-exclude", "nothere"], "no layer has a name that matches 'nothere'"),
        (["--calib", ""], "leave --calib out"),
        (["--set", "quantize-weights.alpha=7"], "alpha must lie in 0 .. 1"),
        (["-o", "m.onnx/o.onnx"], "a file is where a folder is needed"),
        (["-o", "m.onnx"], "would overwrite its source"),
        (["-o", "loop.onnx"], "a link that leads back to itself"),
        (["-o", "x" * 300 + ".onnx"], "File name too long; choose another path"),
        (["--report", "m.onnx/r.html"], "a file is where a folder is needed"),
        (["--dump-ir", "m.onnx"], "a file is where a folder is needed"),
    ],
)
def test_options(model: Path, monkeypatch, arguments: list[str], cause: str) -> None:
    monkeypatch.chdir(model.parent)
    Path("loop.onnx").symlink_to("loop.onnx")
    assert cause in refusal("compile", "m.onnx", *arguments)
    assert {path.name for path in model.parent.iterdir()} == {"m.onnx", "loop.onnx"}


def test_what_is_wrong_is_said_before_the_long_passes(tmp_path: Path, monkeypatch) -> None:
    late = AssertionError("weights were rounded first")

    def rounds(*_: object) -> None:
        raise late

    monkeypatch.setattr(registry()["quantize-weights"], "run", rounds)
    onnx.save(linear(w=W), tmp_path / "linear.onnx")
    excluded = ("--nodes-to-exclude", "nothere")
    assert "no layer has a name" in refusal("compile", tmp_path / "linear.onnx", *excluded)


def test_options_of_opt(model: Path) -> None:
    assert "would overwrite" in refusal("opt", model, "-p", "import", "-o", model)
    assert "did you mean 'qdq'" in refusal("opt", model, "-p", "import", "-t", "qdk")


def test_negative_seed(model: Path) -> None:
    assert qc("compile", model, "--seed", "-1").exit_code == 2


def test_recipe_names_stay_in_the_folder(model: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text('name = "../r"\n[[pass]]\nname = "import"\n')
    assert "must consist of letters" in refusal("compile", model, "-r", recipe)


@pytest.mark.parametrize("target", ["ort-custom", "cuda", "ort-contrib", "qdq"])
def test_compiling_twice(model: Path, tmp_path: Path, target: str) -> None:
    assert qc("compile", model, "-o", tmp_path / "o.onnx", "-t", target).exit_code == 0
    assert "quantized already" in refusal("compile", tmp_path / "o.onnx")


def test_negative_dimensions(model: Path) -> None:
    made = onnx.load(model)
    made.graph.initializer[0].dims[0] = -K
    model.write_bytes(made.SerializeToString())
    with pytest.raises(Exception, match="negative dimension"):
        read_model(model)


def test_overwriting_is_seen_through_links(model: Path, tmp_path: Path) -> None:
    (tmp_path / "link.onnx").symlink_to(model)
    package = ModelPackage(onnx_path=model, folder=None, config=None, tokenizer_file=None)
    with pytest.raises(Exception, match="would overwrite"):
        package.refuse_overwriting(tmp_path / "link.onnx")


def test_scales_of_small_weights() -> None:
    small = normal(K, N, std=1e-8)
    four = WeightFormat(bits=4, group_size=64)
    dead = np.concatenate([W, small])  # some groups may be dead
    for values in (small, dead):
        assert sqnr_db(values, quantize_weight(values, four).dequantize()) > 15
