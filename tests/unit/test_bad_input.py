"""Odd and broken input: it compiles to what the source computes, or one line says why not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import AttributeProto, TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from qcompiler.cli import app
from qcompiler.ir.io import import_proto, read_model, to_model
from qcompiler.models import ModelPackage
from qcompiler.numerics.rounding import quantize_weight, sqnr_db
from qcompiler.passes import registry

RANDOM = np.random.default_rng(0)
K, N = 64, 96


def normal(*shape: int, std: float = 0.1) -> np.ndarray:
    return RANDOM.normal(0, std, shape).astype(np.float32)


W, SQUARE = normal(K, N), normal(N, N)


def model_of(text: str, **weights) -> onnx.ModelProto:
    """A model in ONNX's text form with its weights, arrays or tensors."""
    made = onnx.parser.parse_model('<ir_version: 10, opset_import: ["" : 21]>\n' + text)
    for name, values in weights.items():
        tensor = values
        if not isinstance(values, TensorProto):
            tensor = numpy_helper.from_array(np.asarray(values), name)
        tensor.name = name
        made.graph.initializer.append(tensor)
    return made


def linear(**weights) -> onnx.ModelProto:
    return model_of("g (float[n, 64] x) => (float[n, 96] y) { y = MatMul(x, w) }", **weights)


def qc(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def refusal(*arguments) -> str:
    """The one line with which a command is refused."""
    result = qc(*arguments)
    assert result.exit_code == 1, result.stdout
    assert isinstance(result.exception, SystemExit)
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    return result.stderr


def run(path: Path, feeds: dict) -> list[np.ndarray]:
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {k: v for k, v in feeds.items() if k in inputs(session)})


def inputs(session: ort.InferenceSession) -> set[str]:
    return {each.name for each in session.get_inputs()}


def unnamed_and_shared() -> onnx.ModelProto:
    made = model_of(
        "g (float[n, 64] x) => (float[n, 96] y, float[64, 96] w) { h = MatMul(x, w) y = Relu(h) }",
        w=W,
    )
    made.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [K, N]))
    return made


def sparse_bias() -> onnx.ModelProto:
    made = model_of(
        "g (float[n, 64] x) => (float[n, 96] y) { h = MatMul(x, w) y = Add(h, b) }", w=W
    )
    values = numpy_helper.from_array(normal(3, std=3.0), "b")
    places = numpy_helper.from_array(np.array([1, 5, 9]), "b_places")
    made.graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, [N]))
    return made


def sparse_constant() -> onnx.ModelProto:
    made = model_of("g (float[n, 64] x) => (float[n, 96] y) { h = MatMul(x, w) y = Add(h, b) }")
    made.graph.initializer.append(numpy_helper.from_array(W, "w"))
    values = numpy_helper.from_array(normal(2, std=3.0), "")
    places = numpy_helper.from_array(np.array([[0, 7], [0, 8]]), "")
    sparse = helper.make_sparse_tensor(values, places, [1, N])
    made.graph.node.insert(0, helper.make_node("Constant", [], ["b"], sparse_value=sparse))
    return made


def open_rank() -> onnx.ModelProto:
    made = linear(w=W)
    made.graph.output[0].type.tensor_type.ClearField("shape")
    return made


BRANCHES = """
g (float[n, 64] x, bool c) => (float[n, 96] y) {
    h = MatMul(x, w)
    y = If (c) <
        then_branch = yes () => (float[n, 96] p) { p = MatMul(h, v) },
        else_branch = no () => (float[n, 96] q) { q = Relu(h) }
    >
}
"""
GOOD = {
    "unnamed, weight is input and output": unnamed_and_shared(),
    "K not a multiple of the group": model_of(
        "g (float[n, 100] x) => (float[n, 96] y) { y = MatMul(x, w) }", w=normal(100, N)
    ),
    "one column": model_of(
        "g (float[n, 64] x) => (float[n, 1] y) { y = MatMul(x, w) }", w=normal(K, 1)
    ),
    "few channels beside many": model_of(
        "g (float[n, 16] x) => (float[n, 96] y) { h = MatMul(x, u) y = MatMul(h, w) }",
        u=normal(16, K),
        w=W,
    ),
    "large weights": linear(w=normal(K, N, std=1e5)),
    "an empty weight": model_of(
        "g (float[n, 64] x) => (float[n, 0] e, float[n, 96] y) "
        "{ e = MatMul(x, v) y = MatMul(x, w) }",
        w=W,
        v=np.zeros((K, 0), np.float32),
    ),
    "a batched weight beside": model_of(
        "g (float[2, 3, 64] x) => (float[2, 3, 96] y) { h = MatMul(x, v) y = MatMul(h, w) }",
        v=normal(2, 64, N),
        w=SQUARE,
    ),
    "half precision": model_of(
        "g (float16[n, 64] x) => (float16[n, 96] y) { y = MatMul(x, w) }", w=W.astype(np.float16)
    ),
    "a scalar output": model_of(
        "g (float[n, 64] x) => (float y) "
        "{ h = MatMul(x, w) s = Mul(h, h) y = ReduceSum <keepdims = 0> (s) }",
        w=W,
    ),
    "whole numbers come first": model_of(
        "g (float[n, 64] x) => (int64[n] i, float[n, 96] y) "
        "{ y = MatMul(x, w) i = ArgMax <axis = 1, keepdims = 0> (y) }",
        w=W,
    ),
    "infinities are meant": model_of(
        "g (float[n, 64] x) => (float[n, 96] y) { h = MatMul(x, w) y = Add(h, m) }",
        w=W,
        m=np.where(np.arange(N) % 3, 0, -np.inf).astype(np.float32),
    ),
    "an empty list": model_of(
        "g (float[n, 64] x) => (float[n, 96] y) "
        "{ h = MatMul(x, w) s = Constant <value_ints: ints = []> () y = Expand(h, s) }",
        w=W,
    ),
    "no rank": open_rank(),
    "sparse initializer": sparse_bias(),
    "sparse constant": sparse_constant(),
    "weights in a branch": model_of(BRANCHES, w=W, v=SQUARE),
    "a single vector": model_of(
        "g (float[64] v, float[n, 64] x) => (float[n, 96] y) "
        "{ a = MatMul(v, w) b = MatMul(x, w) y = Add(a, b) }",
        w=W,
    ),
}


@pytest.mark.parametrize("target", ["ort-custom", "cuda", "ort-contrib", "qdq"])
@pytest.mark.parametrize("name", GOOD)
def test_compiles_to_what_the_source_computes(name: str, target: str, tmp_path: Path) -> None:
    source, result = tmp_path / "m.onnx", tmp_path / "o.onnx"
    source.write_bytes(GOOD[name].SerializeToString())
    done = qc("compile", source, "-o", result, "-t", target)
    assert done.exit_code == 0, done.stderr
    assert done.stderr == ""
    shape = [d.dim_value or 3 for d in GOOD[name].graph.input[0].type.tensor_type.shape.dim]
    kind = GOOD[name].graph.input[0].type.tensor_type.elem_type
    x = normal(*shape, std=1.0).astype(helper.tensor_dtype_to_np_dtype(kind))
    feeds = {"x": x, "c": np.array(True)}
    if name == "a single vector":
        feeds |= {"v": x, "x": normal(3, K, std=1.0)}
    wanted, found = run(source, feeds), run(result, feeds)
    assert [a.shape for a in wanted] == [b.shape for b in found]
    for a, b in zip(wanted, found, strict=True):
        if a.dtype.kind == "f":
            sound = np.isfinite(a)
            assert np.array_equal(a[~sound], b[~sound])
            assert sqnr_db(a[sound], b[sound]) > 15


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


def no_rank_input() -> onnx.ModelProto:
    made = open_rank()
    made.graph.input[0].type.tensor_type.ClearField("shape")
    return made


BAD = {
    "nothing to quantize": (
        model_of("g (float[n, 4] x) => (float[n, 4] y) { y = Relu(x) }"),
        "it has no matrix product by a constant",
    ),
    "few channels": (
        model_of("g (float[n, 16] x) => (float[n, 8] y) { [fc] y = MatMul(x, w) }", w=W[:16, :8]),
        "'fc': only 16 input channels",
    ),
    "NaN": (linear(w=with_hole(np.nan)), "holds NaN or infinity"),
    "infinity": (linear(w=with_hole(np.inf)), "holds NaN or infinity"),
    "beyond float16": (linear(w=normal(K, N, std=1e30)), "beyond float16"),
    "lost in float16": (linear(w=normal(K, N, std=1e-8)), "too small for float16"),
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
            "g (float[2, n, 64] x) => (float[2, n, 96] y) { y = MatMul(x, w) }", w=normal(2, K, N)
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
    "only whole numbers come out": (
        model_of(
            "g (float[n, 64] x) => (int64[n, 1] y) { h = MatMul(x, w) y = ArgMax <axis = 1> (h) }",
            w=W,
        ),
        "compile with --no-verify",
    ),
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
    made = onnx.load(path, load_external_data=False)
    entries = {entry.key: entry for entry in made.graph.initializer[0].external_data}
    for key, value in change.items():
        entries[key].value = value
    path.write_bytes(made.SerializeToString())
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
        (["--report", "m.onnx/r.html"], "a file is where a folder is needed"),
        (["--dump-ir", "m.onnx"], "a file is where a folder is needed"),
    ],
)
def test_options(model: Path, monkeypatch, arguments: list[str], cause: str) -> None:
    monkeypatch.chdir(model.parent)
    assert cause in refusal("compile", "m.onnx", *arguments)
    assert [path.name for path in model.parent.iterdir()] == ["m.onnx"]


def test_what_is_wrong_is_said_before_the_long_passes(tmp_path: Path, monkeypatch) -> None:
    late = AssertionError("weights were rounded first")

    def rounds(*_: object) -> None:
        raise late

    monkeypatch.setattr(registry()["quantize-weights"], "run", rounds)
    chooses = model_of(
        """g (float[n, 64] x) => (int64[n, 1] y) {
            h = MatMul(x, w)
            y = ArgMax <axis: int = -1> (h)
        }""",
        w=W,
    )
    onnx.save(chooses, tmp_path / "chooses.onnx")
    assert "compile with --no-verify" in refusal("compile", tmp_path / "chooses.onnx")
    onnx.save(linear(w=W), tmp_path / "linear.onnx")
    excluded = ("--nodes-to-exclude", "nothere")
    assert "no layer has a name" in refusal("compile", tmp_path / "linear.onnx", *excluded)
    monkeypatch.undo()
    assert qc("compile", tmp_path / "chooses.onnx", "--no-verify").exit_code == 0


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


def test_inputs_of_no_rank_take_arrays(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(no_rank_input().SerializeToString())
    np.savez(tmp_path / "c.npz", x=normal(5, 7, K, std=1.0))
    result = qc("compile", path, "--calib", tmp_path / "c.npz")
    assert result.exit_code == 0, result.stderr


def attributes() -> list[AttributeProto]:
    """One of every kind that graphsurgeon drops or can't write."""
    tensor = numpy_helper.from_array(np.ones(2, np.float32), "t")
    kind = helper.make_tensor_type_proto(TensorProto.FLOAT, [1])
    graph = helper.make_graph([], "inner", [], [])
    return [
        helper.make_attribute("ints", [], attr_type=AttributeProto.INTS),
        helper.make_attribute("floats", [], attr_type=AttributeProto.FLOATS),
        helper.make_attribute("strings", [], attr_type=AttributeProto.STRINGS),
        helper.make_attribute("bytes", b"\xff\xfe"),
        helper.make_attribute("more_bytes", [b"\xff", b"ok"]),
        helper.make_attribute("type", kind),
        helper.make_attribute("tensors", [tensor, tensor]),
        helper.make_attribute("graphs", [graph]),
    ]


def test_every_attribute_survives() -> None:
    made = linear(w=W)
    inner = helper.make_node("Bar", [], ["z"], domain="custom")
    inner.attribute.extend(attributes())
    body = helper.make_graph([inner], "body", [], [])
    node = helper.make_node("Foo", ["x"], ["f"], domain="custom", body=body, plain=3)
    node.attribute.extend(attributes())
    made.graph.node.append(node)
    made.opset_import.append(helper.make_opsetid("custom", 1))
    before = made.SerializeToString()
    written = to_model(import_proto(made))
    assert made.SerializeToString() == before

    def by_name(node: onnx.NodeProto) -> dict[str, bytes]:
        return {
            each.name: each.SerializeToString()
            for each in node.attribute
            if each.type != AttributeProto.GRAPH
        }

    found = written.graph.node[-1]
    assert by_name(found) == by_name(node)
    found_body = next(each.g for each in found.attribute if each.name == "body")
    assert by_name(found_body.node[0]) == by_name(inner)


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
    with pytest.raises(ValueError, match="too small"):
        quantize_weight(normal(K, N, std=1e-8))
    dead = np.concatenate([W, normal(K, N, std=1e-8)])  # some groups may be dead
    assert sqnr_db(dead, quantize_weight(dead, group_size=64).dequantize()) > 15
