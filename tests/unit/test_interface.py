"""A compiled model has the interface of its source: types, texts, and what need not be fed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from command_line import qc
from odd_models import K, N, W, linear, model_of, normal
from onnx import TensorProto, ValueInfoProto, helper, numpy_helper

from qcompiler import ir
from qcompiler.ir.io import import_proto, to_model
from qcompiler.numerics.rounding import sqnr_db
from qcompiler.passes.import_model import ImportModel
from qcompiler.passmanager import PassContext

TARGETS = ["ort-custom", "cuda", "ort-contrib", "qdq"]
FLOATS = helper.make_tensor_type_proto(TensorProto.FLOAT, ["n", K])


def session(path: Path) -> ort.InferenceSession:
    return ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def compiled(model: onnx.ModelProto, folder: Path, *options: str) -> tuple[Path, Path]:
    """Source and result; the result keeps the source's interface and is valid."""
    source, result = folder / "m.onnx", folder / "o.onnx"
    source.write_bytes(model.SerializeToString())
    done = qc("compile", source, "-r", "rtn", "-o", result, *options)
    assert done.exit_code == 0, done.stderr
    onnx.checker.check_model(str(result), full_check=True)
    written = onnx.load(result, load_external_data=False).graph
    for mine, yours in ((written.input, model.graph.input), (written.output, model.graph.output)):
        assert [each.SerializeToString() for each in mine] == [
            each.SerializeToString() for each in yours
        ]
    return source, result


def adapter(**constants: np.ndarray) -> onnx.ModelProto:
    """x·w + x·a·b, where a and b are inputs with defaults."""
    made = model_of(
        "g (float[n, 64] x, float[64, r] a, float[r, 96] b, int64[2] shape, float unread)"
        " => (float[p, q] y) {"
        " [base] h = MatMul(x, w) [down] d = MatMul(x, a) [up] u = MatMul(d, b)"
        " s = Add(h, u) y = Reshape(s, shape) }",
        w=W,
        **constants,
    )
    made.graph.initializer.append(numpy_helper.from_array(np.array([-1, N]), "shape"))
    made.graph.initializer.append(numpy_helper.from_array(np.float32(1), "unread"))
    return made


EMPTY = {"a": np.zeros((K, 0), np.float32), "b": np.zeros((0, N), np.float32)}
GIVEN = {"a": normal(K, 8), "b": normal(8, N)}


@pytest.mark.parametrize("recipe", ["rtn", "w4a8"])
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("default", [EMPTY, GIVEN], ids=["empty", "given"])
def test_inputs_with_a_default(recipe: str, target: str, default: dict, tmp_path: Path) -> None:
    paths = compiled(adapter(**default), tmp_path, "-t", target, "-r", recipe)
    sessions = [session(path) for path in paths]
    names = [{each.name for each in s.get_overridable_initializers()} for s in sessions]
    assert names[0] == names[1] == {"a", "b", "shape", "unread"}
    x = normal(6, K, std=1.0)
    fed = {"a": normal(K, 5), "b": normal(5, N), "shape": np.array([2, 3 * N])}
    for feeds in ({"x": x}, {"x": x, **fed}):
        wanted, found = (s.run(None, feeds)[0] for s in sessions)
        assert wanted.shape == found.shape
        assert sqnr_db(wanted, found) > 15


def test_a_weight_that_may_be_fed_is_no_weight(tmp_path: Path) -> None:
    source = tmp_path / "m.onnx"
    source.write_bytes(adapter(**GIVEN).SerializeToString())
    done = qc("compile", source, "-r", "rtn", "--json")
    rows = {row["name"]: row for row in json.loads(done.stdout)["layers"]}
    assert rows["base"]["quantized"] and not rows["down"]["quantized"]
    assert rows["down"]["reason"] == rows["up"]["reason"] == "its weights are an input of the model"


@pytest.mark.parametrize("version", [3, 8])
def test_weights_listed_by_habit_are_weights(version: int, tmp_path: Path) -> None:
    made = model_of(
        "g (float[n, 64] x, float[64, 96] w, float[96] b, float[64, r] a, float[r, 96] c)"
        " => (float[n, 96] y) { h = MatMul(x, w) s = Add(h, b)"
        " d = MatMul(x, a) u = MatMul(d, c) y = Add(s, u) }",
        w=W,
        b=normal(N),
        a=EMPTY["a"],
        c=EMPTY["b"],
    )
    made.opset_import[0].version = 9
    made.ir_version = version
    source, result = tmp_path / "m.onnx", tmp_path / "o.onnx"
    source.write_bytes(made.SerializeToString())
    done = qc("compile", source, "-r", "rtn", "-o", result)
    assert done.exit_code == 0, done.stderr
    stay = {each.name for each in session(result).get_overridable_initializers()}
    assert stay == ({"a", "c"} if version > 3 else set())
    x = normal(5, K, std=1.0)
    wanted, found = (session(path).run(None, {"x": x})[0] for path in (source, result))
    assert sqnr_db(wanted, found) > 15


def test_a_lost_input_is_said(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    made = linear(w=W)
    made.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [K, N]))
    (tmp_path / "m.onnx").write_bytes(made.SerializeToString())
    graph = ir.read_model(tmp_path / "m.onnx")
    assert [each.name for each in graph.inputs] == ["x"]
    assert caplog.messages == [
        "1 initializers of the model are inputs too; they are weights, and no inputs any more"
    ]


def described() -> list[ValueInfoProto]:
    """Values of every type, and everything that can be said of a tensor."""
    numbers = helper.make_tensor_type_proto(TensorProto.INT64, [])
    said = helper.make_tensor_value_info("said", TensorProto.FLOAT, ["n", None, 3, 0])
    said.doc_string = "what it is"
    said.type.denotation = "IMAGE"
    said.type.tensor_type.shape.dim[0].denotation = "DATA_BATCH"
    said.metadata_props.add(key="who", value="me")
    kinds = {
        "list": helper.make_sequence_type_proto(FLOATS),
        "lists": helper.make_sequence_type_proto(helper.make_sequence_type_proto(FLOATS)),
        "map": helper.make_map_type_proto(TensorProto.STRING, numbers),
        "maps": helper.make_sequence_type_proto(
            helper.make_map_type_proto(TensorProto.STRING, numbers)
        ),
        "maybe": helper.make_optional_type_proto(FLOATS),
        "sparse": helper.make_sparse_tensor_type_proto(TensorProto.FLOAT, [3, 4]),
    }
    odd = [helper.make_value_info(name, kind, doc_string="odd") for name, kind in kinds.items()]
    return [
        said,
        *odd,
        helper.make_tensor_value_info("open", TensorProto.BFLOAT16, None),
        helper.make_tensor_value_info("scalar", TensorProto.BOOL, []),
    ]


def described_model(opset: int) -> onnx.ModelProto:
    """A custom node between them; its subgraph gives one out too, and a value within has a type."""
    made = linear(w=W)
    made.opset_import[0].version = opset
    made.opset_import.append(helper.make_opsetid("custom", 1))
    names = [each.name for each in described()]
    body = helper.make_graph([], "body", [], [described()[1]])
    made.graph.node.append(
        helper.make_node(
            "Foo", names, [f"{name}_out" for name in names], domain="custom", body=body
        )
    )
    made.graph.input.extend(described())
    for value in described():
        value.name += "_out"
        made.graph.output.append(value)
    inner = helper.make_node("Bar", ["x"], ["inner"], domain="custom")
    made.graph.node.append(inner)
    made.graph.value_info.append(
        helper.make_value_info("inner", helper.make_optional_type_proto(FLOATS))
    )
    return made


def interface(model: onnx.ModelProto) -> list[bytes]:
    body = next(
        each.g for node in model.graph.node for each in node.attribute if each.name == "body"
    )
    values = [*model.graph.input, *model.graph.output, *body.output]
    return [each.SerializeToString(deterministic=True) for each in values]


@pytest.mark.parametrize("opset", [17, 21])
def test_every_type_and_text_survives(opset: int) -> None:
    made = described_model(opset)
    before = made.SerializeToString()
    graph = import_proto(made)
    assert made.SerializeToString() == before
    assert interface(to_model(graph)) == interface(made)
    assert interface(to_model(graph.copy())) == interface(made), "passes copy graphs"
    imported = ImportModel().run(graph, PassContext()).graph
    assert interface(to_model(imported)) == interface(made)


@pytest.mark.parametrize("opset", [17, 21])
def test_shapes_of_outputs_are_those_of_the_source(opset: int, tmp_path: Path) -> None:
    made = model_of(
        "g (float[n, 64] x) => (float[p, q] y, float z) {"
        " h = MatMul(x, w) y = Relu(h) z = MatMul(y, v) }",
        w=W,
        v=normal(N, N),
    )
    made.opset_import[0].version = opset
    made.graph.output[0].type.tensor_type.shape.dim[0].ClearField("value")
    made.graph.output[1].type.tensor_type.ClearField("shape")
    graph = ImportModel().run(import_proto(made), PassContext()).graph
    assert [each.shape for each in graph.outputs] == [["n", N], ["n", N]], "passes see more"
    written = to_model(graph)
    assert list(written.graph.output) == list(made.graph.output)


SEQUENCES = """
g (float[n, 64] x, seq(float[m, 64]) more) => (float[n, 96] y, seq(float[p, 96]) all) {
    first = Constant <value_int = 0> ()
    one = SequenceAt(more, first)
    s = Add(x, one)
    y = MatMul(s, w)
    all = SequenceConstruct(y, y)
}
"""
MAYBE = """
g (float[n, 64] x, optional(float[n, 64]) extra) => (float[n, 96] y) {
    has = OptionalHasElement(extra)
    z = If (has) <
        then_branch = yes () => (float[n, 64] p) { e = OptionalGetElement(extra) p = Add(x, e) },
        else_branch = no () => (float[n, 64] q) { q = Identity(x) }
    >
    y = MatMul(z, w)
}
"""


def mapped() -> onnx.ModelProto:
    made = model_of("g (float[n, 64] x) => () { h = MatMul(x, w) p = Softmax(h) }", w=W)
    names = [f"class {i}" for i in range(N)]
    made.graph.node.append(
        helper.make_node("ZipMap", ["p"], ["y"], domain="ai.onnx.ml", classlabels_strings=names)
    )
    made.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
    kind = helper.make_map_type_proto(
        TensorProto.STRING, helper.make_tensor_type_proto(TensorProto.FLOAT, [])
    )
    made.graph.output.append(helper.make_value_info("y", helper.make_sequence_type_proto(kind)))
    return made


ODD = {"sequences": model_of(SEQUENCES, w=W), "optional": model_of(MAYBE, w=W), "maps": mapped()}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", ODD)
def test_what_is_no_tensor_comes_in_and_goes_out(name: str, target: str, tmp_path: Path) -> None:
    paths = compiled(ODD[name], tmp_path, "-t", target, "--no-verify")
    x = normal(5, K, std=1.0)
    feeds = {"x": x, "more": [x, x], "extra": x}
    wanted, found = (
        s.run(None, {each.name: feeds[each.name] for each in s.get_inputs()})
        for s in map(session, paths)
    )
    if name == "maps":
        wanted, found = (
            [np.array([list(row.values()) for row in each[0]])] for each in (wanted, found)
        )
    assert sqnr_db(np.asarray(wanted[0]), np.asarray(found[0])) > 15
    if name == "sequences":
        assert [each.shape for each in wanted[1]] == [each.shape for each in found[1]]


NAMED = """
<ir_version: 10, opset_import: ["ai.onnx" : 17, "local" : 1]>
g (float[n, 64] x, bool c) => (float[n, 96] y) {
    h = local.Half(x)
    r = ai.onnx.Identity(h)
    s = If (c) <
        then_branch = yes () => (float[n, 64] p) {
            m = ai.onnx.ReduceMean <axes = [1]> (r) p = ai.onnx.Add(r, m)
        },
        else_branch = no () => (float[n, 64] q) { q = ai.onnx.Neg(r) }
    >
    t = ai.onnx.Add(r, s)
    y = ai.onnx.MatMul(t, w)
}
<domain: "local", opset_import: ["" : 17]>
Half (a) => (b) {
    k = Constant <value_float = 0.5> ()
    b = Mul(a, k)
}
"""


@pytest.mark.parametrize("target", TARGETS)
def test_the_other_name_of_the_domain(target: str, tmp_path: Path) -> None:
    made, plain = (onnx.parser.parse_model(text) for text in (NAMED, NAMED.replace("ai.onnx.", "")))
    assert made.graph.node[-1].domain == "ai.onnx"
    for each in (made, plain):
        each.graph.initializer.append(numpy_helper.from_array(W, "w"))
    (tmp_path / "plain.onnx").write_bytes(plain.SerializeToString())
    _, result = compiled(made, tmp_path, "-t", target, "--no-verify")
    for branch in (True, False):
        feeds = {"x": normal(5, K, std=1.0), "c": np.array(branch)}
        paths = (tmp_path / "plain.onnx", result)
        wanted, found = (session(path).run(None, feeds)[0] for path in paths)
        assert sqnr_db(wanted, found) > 15
