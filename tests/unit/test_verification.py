"""A compiled model that is broken is refused, and nothing of it is left."""

from __future__ import annotations

import numpy as np
import odd_models as odd
import onnx
import pytest
import tiny_models as tiny
from onnx import TensorProto, helper, numpy_helper

import qcompiler
from qcompiler.analysis.reach import reach
from qcompiler.errors import VerificationError
from qcompiler.ir.io import import_proto
from qcompiler.report import summary

RECIPE = """
name = "strict"
min_sqnr_db = {least}
[[pass]]
name = "import"
[[pass]]
name = "canonicalize"
[[pass]]
name = "plan-weights"
[[pass]]
name = "plan-activations"
[[pass]]
name = "quantize-weights"
[[pass]]
name = "insert-qdq"
"""


@pytest.fixture
def model(tmp_path):
    rng = np.random.default_rng(0)
    weight = numpy_helper.from_array(rng.standard_normal((64, 48)).astype(np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], "linear")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 48])],
        [weight],
    )
    path = tmp_path / "model.onnx"
    opsets = [helper.make_opsetid("", 21)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


def recipe(folder, least: float):
    path = folder / "strict.toml"
    path.write_text(RECIPE.format(least=least), encoding="utf-8")
    return path


def test_too_noisy_is_refused(model, tmp_path):
    before = {path.name for path in tmp_path.iterdir()} | {"strict.toml"}
    with pytest.raises(VerificationError, match=r"dB.*--force") as caught:
        qcompiler.compile(model, recipe=recipe(tmp_path, 60.0))
    assert "60.0 dB" in str(caught.value)
    assert {path.name for path in tmp_path.iterdir()} == before


def test_force_writes_it_and_says_how_bad_it_is(model, tmp_path):
    result = qcompiler.compile(model, recipe=recipe(tmp_path, 60.0), force=True)
    assert result.output.is_file()
    assert 5 < result.report.verification["sqnr_db"] < 40


def test_good_enough_passes(model, tmp_path):
    result = qcompiler.compile(model, recipe=recipe(tmp_path, 5.0))
    assert result.report.verification["held_back"]
    assert result.report.verification["finite"]


def compiled(text: str, path, recipe, **weights):
    made = odd.model_of(text, **weights)
    made.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
    onnx.save(made, path)
    return qcompiler.compile(path, recipe=recipe, calib_samples=4)


def outputs_of(result) -> dict:
    found = result.report.verification["outputs"]
    return {output["name"]: (output["role"], output["sqnr_db"]) for output in found}


CHAOTIC = "a = MatMul(x, w) b = Mul(a, big) s = Sin(b) chaotic = MatMul(s, w)"
SQUARE = np.random.default_rng(1).normal(0, 0.125, (64, 64)).astype("f4")


@pytest.mark.parametrize("order", ["exact, chaotic", "chaotic, exact", "fine, chaotic"])
def test_the_worst_output_decides(tmp_path, order):
    outputs = ", ".join(f"float[n, 64] {name}" for name in order.split(", "))
    text = f"g (float[n, 64] x) => ({outputs}) {{ exact = Neg(x) fine = MatMul(x, w) {CHAOTIC} }}"
    with pytest.raises(VerificationError, match=r"'chaotic', less than the 9\.0 dB"):
        compiled(text, tmp_path / "m.onnx", recipe(tmp_path, 9.0), w=SQUARE, big=np.float32(60))


def test_a_constant_output_is_exact(tmp_path):
    text = "g (float[n, 64] x) => (float[n, 64] y, float[64, 64] w) { y = MatMul(x, w) }"
    found = outputs_of(compiled(text, tmp_path / "m.onnx", recipe(tmp_path, 5.0), w=SQUARE))
    assert (found["y"][0], found["w"]) == ("judged", ("exact", np.inf))


def test_every_output_is_told(tmp_path):
    text = """
    g (float[n, 64] x) => (float[n, 64] exact, int64[n] label, float[n, 64] y, float total) {
        exact = Neg(x) y = MatMul(x, w)
        label = ArgMax <axis = 1, keepdims = 0> (y)
        total = ReduceSum <keepdims = 0> (y)
    }"""
    result = compiled(text, tmp_path / "m.onnx", recipe(tmp_path, 5.0), w=SQUARE)
    found = outputs_of(result)
    roles = {name: role for name, (role, _) in found.items()}
    assert roles == {"exact": "exact", "label": "labels", "y": "judged", "total": "beside"}
    assert found["exact"][1] == np.inf
    assert result.report.verification["sqnr_db"] == found["y"][1] > 15
    assert result.report.verification["worst_sample_db"] <= found["y"][1]
    told = "\n".join(summary(result.report))
    assert f"signal-to-noise of the output {found['y'][1]:.1f} dB (worst sample" in told
    assert "no quantized layer reaches: exact" in told


@pytest.mark.parametrize(
    ("kind", "last"),
    [
        ("int64[n]", "label = ArgMax <axis = 1, keepdims = 0> (y)"),
        ("seq(float[n, 64])", "label = SequenceConstruct(y, x)"),
    ],
)
def test_floats_before_other_outputs_are_judged(tmp_path, kind, last):
    text = f"g (float[n, 64] x) => ({kind} label) {{ y = MatMul(x, w) {last} }}"
    result = compiled(text, tmp_path / "m.onnx", recipe(tmp_path, 5.0), w=SQUARE)
    found = outputs_of(result)
    assert found["y"][0] == "judged" and found["y"][1] > 15
    assert found["label"][0] in ("labels", "skipped")


def test_floats_before_a_map():
    text = """g (float[n, 64] x) => (seq(map(int64, float)) chances, float[n, 64] z) {
        y = MatMul(x, w) p = Softmax(y) chances = ai.onnx.ml.ZipMap <classlabels_int64s = [0]> (p)
        z = Neg(x)
    }"""
    model = odd.model_of(text, w=SQUARE)
    model.graph.node[0].name = "layer"
    model.graph.value_info.append(helper.make_tensor_value_info("p", TensorProto.FLOAT, None))
    graph = import_proto(model)
    found = reach(graph, {"layer"})
    assert (found.outputs, found.before) == ({"chances"}, {"chances": ("p",)})
    assert reach(graph, {"layer", "nowhere"}).outputs == {"chances", "z"}


DRAWS = {
    "normal": "r = RandomNormalLike(a)",
    "uniform": "r = RandomUniformLike(a)",
    "bernoulli": "q = Sigmoid(a) r = Bernoulli(q)",
    "dropout": "t = Constant <value = bool {1}> () r = Dropout(a, half, t)",
}


@pytest.mark.parametrize("draw", DRAWS)
def test_both_draw_the_same_numbers(tmp_path, draw):
    """With draws of its own on each side, no more than 3 dB."""
    body = f"a = MatMul(x, w) {DRAWS[draw]} y = MatMul(r, w)"
    text = f"g (float[n, 64] x) => (float[n, 64] y) {{ {body} }}"
    result = compiled(
        text, tmp_path / "m.onnx", recipe(tmp_path, 5.0), w=SQUARE, half=np.float32(0.5)
    )
    assert result.report.verification["sqnr_db"] > 12
    nodes = [*onnx.load(tmp_path / "m.strict.onnx").graph.node]
    drawing = [node for node in nodes if node.op_type in ("RandomNormalLike", "Bernoulli")]
    assert not any(a.name == "seed" for node in drawing for a in node.attribute)


def test_functions_draw_the_same_numbers_inlined(tmp_path):
    text = """<ir_version: 10, opset_import: ["" : 21, "own" : 1]>
    g (float[n, 64] x) => (float[n, 64] y) {
        a = MatMul(x, w)
        b = own.noisy(a)
        c = own.noisy(b)
        y = MatMul(c, w)
    }
    <domain: "own", opset_import: ["" : 21]>
    noisy (v) => (u) { r = RandomNormalLike(v) u = Mul(v, r) }"""
    made = onnx.parser.parse_model(text)
    made.graph.initializer.append(numpy_helper.from_array(SQUARE, "w"))
    onnx.save(made, tmp_path / "m.onnx")
    result = qcompiler.compile(tmp_path / "m.onnx", recipe=recipe(tmp_path, 5.0), calib_samples=4)
    assert result.report.verification["sqnr_db"] > 12


def test_random_operators_leave_the_same_bytes(tmp_path):
    text = """g (float[n, 64] x) => (float[n, 64] y) {
        a = MatMul(x, w) r = RandomNormalLike(a) b = Add(a, r) y = MatMul(b, w)
    }"""
    files = []
    for run in ("first", "second"):
        folder = tmp_path / run
        folder.mkdir()
        files.append(compiled(text, folder / "m.onnx", "w4a8", w=SQUARE).files)
    first, second = ([file.read_bytes() for file in each] for each in files)
    assert first == second


FOLDED = """g (float[n, 64] x, float[n, 64] z) => (float[n, 64] y) {
    far = Mul(x, far_off) a = Add(far, z) b = MatMul(a, w) y = Sin(b)
}"""


def given(folder, x) -> dict:
    z = np.random.default_rng(2).normal(0, 0.1, (40, 64)).astype("f4")
    np.savez(folder / "given.npz", x=x, z=z)
    return {"calib": folder / "given.npz", "recipe": "fptq"}


def test_a_result_that_works_on_its_own_data_only_is_refused(tmp_path):
    onnx.save(odd.model_of(FOLDED, w=SQUARE, far_off=np.float32(100)), tmp_path / "m.onnx")
    options = given(tmp_path, np.zeros((40, 64), "f4"))
    with pytest.raises(VerificationError, match=r"like that of --calib only.*random: 2 feeds"):
        qcompiler.compile(tmp_path / "m.onnx", **options)
    result = qcompiler.compile(tmp_path / "m.onnx", force=True, **options)
    assert "'x' never changes" in result.report.calibration
    found = result.report.verification
    assert found["sqnr_db"] > 10 and found["default_data"]["sqnr_db"] < 0
    assert any("on default data (random: 2 feeds" in line for line in summary(result.report))


def test_default_data_has_the_range_of_the_users(tmp_path):
    onnx.save(odd.model_of(FOLDED, w=SQUARE, far_off=np.float32(100)), tmp_path / "m.onnx")
    x = np.random.default_rng(3).normal(0, 1e-3, (40, 64)).astype("f4")
    found = qcompiler.compile(tmp_path / "m.onnx", **given(tmp_path, x)).report.verification
    assert found["sqnr_db"] > 10 and found["default_data"]["sqnr_db"] > 10


def test_default_data_that_does_not_suit_the_model_is_no_fault(tmp_path):
    text = """g (float[n, 64] x, string[n] word) => (float[n, 64] y, string[n] same) {
        y = MatMul(x, w) same = Identity(word)
    }"""
    onnx.save(odd.model_of(text, w=SQUARE), tmp_path / "m.onnx")
    x = np.random.default_rng(3).normal(0, 1, (40, 64)).astype("f4")
    np.savez(tmp_path / "given.npz", x=x, word=np.array(["a"] * 40))
    result = qcompiler.compile(
        tmp_path / "m.onnx", recipe="w4a8-fast", calib=tmp_path / "given.npz"
    )
    told = result.report.verification["default_data"]["source"]
    assert told.startswith("not checked on default data: input 'word' can't be drawn")
    assert told in summary(result.report)


def test_data_that_no_pass_has_seen_has_broken_nothing(model, tmp_path):
    np.savez(tmp_path / "given.npz", x=np.random.default_rng(3).normal(0, 1, (40, 64)))
    result = qcompiler.compile(model, recipe="rtn", calib=tmp_path / "given.npz")
    assert result.report.verification["default_data"] is None


@pytest.mark.parametrize(("base", "role"), [("fptq", "skipped"), ("w4a8-fast", "state")])
def test_caches_do_not_decide(tmp_path, base, role):
    """`fptq` even scales what is in them."""
    model = tiny.decoder(tiny.embedding(scale=0.2))
    folder = tiny.save(model, tmp_path / "d", config=tiny.CONFIG)
    path = tmp_path / "small.toml"
    path.write_text(
        f'base = "{base}"\n[[pass]]\nname = "plan-weights"\nmin_channels = 1\nmin_rows = 1'
    )
    options = {"calib_samples": 2, "calib_length": 16, "calib": "random-tokens"}
    result = qcompiler.compile(folder, recipe=path, **options)
    found = outputs_of(result)
    assert found["logits"][0] == "judged" and found["present.0.key"][0] == role
    assert result.report.verification["sqnr_db"] == found["logits"][1]
    told = [line for line in summary(result.report) if "caches that" in line]
    assert told == [] if role == "skipped" else "2, each with" in told[0]
