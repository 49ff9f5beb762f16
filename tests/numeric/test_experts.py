"""Experts as layers: the same outputs, and calibration on the tokens that reach them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from stock_runtime import open_session

from qcompiler.calibration.supply import FeedData
from qcompiler.inspection import inspect
from qcompiler.ir import to_model
from qcompiler.ir.io import import_proto
from qcompiler.numerics.rounding import sqnr_db
from qcompiler.passmanager import PassContext, PassManager
from qcompiler.recipe import load, parse_pipeline
from qcompiler.remarks import Divided, Folded, LeftAlone, Rotated, Rounded
from qcompiler.report.build import account

EXACT = 1e-5
"""Of the largest output."""

EXPERTS, HIDDEN, INNER = 4, 64, 32
HEADER = '<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>\n'

SWIGLU = 'activation_type = "swiglu", swiglu_fusion = 1'
FORMS = {
    "relu": 'k = 2, activation_type = "relu"',
    "gelu": 'k = 1, activation_type = "gelu"',
    "silu, normalized": 'k = 3, activation_type = "silu", normalize_routing_weights = 1',
    "identity": 'k = 4, activation_type = "identity"',
    "swiglu": f"k = 2, {SWIGLU}",
    "swiglu of GPT-OSS": f"k = 2, {SWIGLU}, normalize_routing_weights = 1, "
    "activation_alpha = 1.702, activation_beta = 1.0, swiglu_limit = 0.5",
}

ROUTED = """
    best, chosen = TopK(scores, two)
    shares = Softmax <axis = -1> (best)
    ids = Reshape(chosen, all)
    wide0 = Unsqueeze(x, middle)
    wide1 = Expand(wide0, slots)
    rows = Reshape(wide1, matrix)
    column = Unsqueeze(rows, two)
    w_up = Gather(up, ids)
    [up_product] h0 = MatMul(w_up, column)
    h1 = Squeeze(h0, two)
    h = Relu(h1)
    row = Unsqueeze(h, middle)
    w_down = Gather(down_kn, ids)
    [down_product] d0 = MatMul(row, w_down)
    d1 = Squeeze(d0, middle)
    d2 = Reshape(d1, by_slot)
    share = Unsqueeze(shares, two)
    d3 = Mul(d2, share)
    out = ReduceSum <keepdims = 0> (d3, middle)
"""
INTEGERS = {
    "two": [2],
    "all": [-1],
    "middle": [1],
    "slots": [1, 2, 1],
    "matrix": [-1, HIDDEN],
    "by_slot": [-1, 2, HIDDEN],
    "width": [1, HIDDEN],
}


def model_of(body: str, *, gated: bool = False, leading: str = "n") -> onnx.ModelProto:
    """`body` computes `out` from `x` [.., 64] and `scores` [n, 4]; a layer follows."""
    rng = np.random.default_rng(0)
    inner = 2 * INNER if gated else INNER
    shapes = {
        "gate": (HIDDEN, EXPERTS),
        "up": (EXPERTS, inner, HIDDEN),
        "up_bias": (EXPERTS, inner),
        "down": (EXPERTS, HIDDEN, INNER),
        "down_kn": (EXPERTS, INNER, HIDDEN),
        "down_bias": (EXPERTS, HIDDEN),
        "last": (HIDDEN, 96),
    }
    values = {name: rng.standard_normal(shape) / 8 for name, shape in shapes.items()}
    model = onnx.parser.parse_model(
        f"{HEADER} g (float[{leading}, 64] x) => (float[{leading}, 96] y) {{"
        f"[router] scores0 = MatMul(x, gate) scores = Reshape(scores0, rows_of_scores) {body}"
        "[head] y = MatMul(out, last) }"
    )
    constants = {name: each.astype(np.float32) for name, each in values.items()}
    constants |= {name: np.asarray(each, np.int64) for name, each in INTEGERS.items()}
    constants["rows_of_scores"] = np.asarray([-1, EXPERTS], np.int64)
    read = {name for node in model.graph.node for name in node.input}
    stored = [numpy_helper.from_array(v, n) for n, v in constants.items() if n in read]
    model.graph.initializer.extend(stored)
    return model


def fused(attributes: str, inputs: str = "up, up_bias, down, down_bias") -> str:
    return f"[moe] out = com.microsoft.MoE <{attributes}> (x, scores, {inputs})"


def feeds(count: int, *shape: int) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(1)
    return [{"x": rng.standard_normal((*shape, HIDDEN)).astype(np.float32)} for _ in range(count)]


def run(model: onnx.ModelProto, feed: dict[str, np.ndarray]) -> np.ndarray:
    return open_session(model).run(None, feed)[0]


def compiled(model: onnx.ModelProto, passes, data: FeedData | None = None):
    """The graph behind a pipeline, and what its passes said."""
    manager = PassManager(passes)
    context = PassContext() if data is None else PassContext(data=data)
    graph, _ = manager.run(import_proto(model), context)
    return to_model(graph), manager.history


def split(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[Divided]]:
    made, history = compiled(model, parse_pipeline("import,fold-constants,split-experts"))
    said = [remark for step in history for remark in step.remarks]
    return made, [each for each in said if isinstance(each, Divided)]


def assert_same(one: onnx.ModelProto, other: onnx.ModelProto, *shapes: tuple[int, ...]) -> None:
    for shape in shapes:
        (feed,) = feeds(1, *shape)
        expected, actual = run(one, feed), run(other, feed)
        assert actual.shape == expected.shape
        assert np.abs(actual - expected).max() <= EXACT * np.abs(expected).max()


@pytest.mark.parametrize("form", FORMS)
def test_an_operator_with_experts_becomes_layers(form: str) -> None:
    model = model_of(fused(FORMS[form]), gated="swiglu" in form)
    made, (divided,) = split(model)
    assert len(divided.parts) == EXPERTS * (3 if "swiglu" in form else 2)
    assert not any(node.op_type == "MoE" for node in made.graph.node)
    assert_same(model, made, (7,), (1,))  # of one token most experts get none


def test_batches_and_experts_without_biases() -> None:
    model = model_of(fused(FORMS["relu"], "up, , down"), leading="b, n")
    made, _ = split(model)
    assert_same(model, made, (2, 5), (1, 1))


def test_products_by_looked_up_matrices_become_layers() -> None:
    model = model_of(ROUTED)
    made, divided = split(model)
    assert [len(each.parts) for each in divided] == [EXPERTS, EXPERTS]
    assert_same(model, made, (7,), (1,))


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ("k = 2, use_sparse_mixer = 1", "sparse mixer"),
        (f"k = 2, {SWIGLU.replace('1', '2')}", "in turn"),
        ('k = 2, activation_type = "tanh"', "'tanh'"),
    ],
)
def test_other_experts_stay_with_a_reason(attributes: str, reason: str) -> None:
    _, history = compiled(
        model_of(fused(attributes), gated="swiglu" in attributes), load("rtn").passes
    )
    layers, weights = account(history)
    (row,) = [layer for layer in layers if layer.name == "moe"]
    assert reason in str(row.reason)
    assert weights is not None
    assert row.bytes_before == weights.rest["MoE"] > 0


@pytest.mark.parametrize(
    "body", [fused(FORMS["silu, normalized"]), ROUTED], ids=["fused", "routed"]
)
def test_experts_are_rounded_on_their_own_tokens(body: str) -> None:
    model = model_of(body)
    data = FeedData(feeds(4, 200), "test")
    made, history = compiled(model, load("w4a8").passes, data)
    said = [remark for step in history for remark in step.remarks]
    rounded = {each.layer: each for each in said if isinstance(each, Rounded)}
    experts = [each for each in rounded.values() if "experts." in each.layer]
    assert len(experts) == 2 * EXPERTS
    assert all(each.rounding == "gptq" and each.fallback is None for each in experts)
    slots = 3 if body is not ROUTED else 2
    by_kind = [
        sum(each.tokens or 0 for each in experts if kind in each.layer) for kind in ("up", "down")
    ]
    assert by_kind == [800 * slots, 800 * slots]
    assert rounded["head"].rounding == "gptaq"
    assert rounded["head"].tokens is None
    assert any(isinstance(each, LeftAlone) and each.layer == "router" for each in said)
    (feed,) = feeds(1, 50)
    # 4 bits in groups of 16 and int8 inputs: each product keeps 20 dB, of which there are three.
    assert sqnr_db(run(model, feed), run(made, feed)) > 14.0
    layers, weights = account(history)
    assert weights is not None
    assert weights.bytes == sum(layer.bytes_before or 0 for layer in layers) + weights.rest.get(
        "vectors and small constants", 0
    )
    matrices = EXPERTS * INNER * HIDDEN * 2 * 4
    assert sum(layer.bytes_before or 0 for layer in layers if "experts." in layer.name) >= matrices


def test_an_expert_with_few_tokens_borrows_those_of_others() -> None:
    model = model_of(ROUTED)
    few = [{"x": each["x"][:10]} for each in feeds(4, 200)]  # 40 tokens, 80 rows of experts
    _, history = compiled(model, load("w4a8").passes, FeedData(few, "test"))
    said = [remark for step in history for remark in step.remarks]
    rounded = [each for each in said if isinstance(each, Rounded) and "experts." in each.layer]
    assert max(each.tokens or 0 for each in rounded) < HIDDEN
    ups = {each.rounding for each in rounded if "up" in each.layer}
    assert ups == {"gptq"}
    # What other experts have computed of their tokens says nothing of this one.
    downs = [each for each in rounded if "down" in each.layer]
    assert all((each.rounding == "gptq") == ((each.tokens or 0) >= INNER) for each in downs)
    assert "nearest" in {each.rounding for each in downs}


@pytest.mark.parametrize("recipe", ["aweq", "fptq", "smoothquant", "w4a8"])
def test_experts_that_no_token_reaches(recipe: str) -> None:
    model = model_of(fused('k = 1, activation_type = "relu"'))
    made, history = compiled(model, load(recipe).passes, FeedData(feeds(4, 1), "test"))
    said = [remark for step in history for remark in step.remarks]
    rounded = {each.layer: each for each in said if isinstance(each, Rounded)}
    assert len([name for name in rounded if "experts." in name]) == 2 * EXPERTS
    assert {each.rounding for each in rounded.values()} == {"nearest"}
    assert np.isfinite(run(made, feeds(1, 30)[0])).all()


def block(body: str) -> onnx.ModelProto:
    """Rows of a table, experts between two norms, and a head."""
    norm = "SimplifiedLayerNormalization <axis = -1, epsilon = 1e-5>"
    model = onnx.parser.parse_model(
        f"{HEADER} g (int64[b, n] ids) => (float[b, n, 96] y) {{"
        f"[embed] x0 = Gather(table, ids) [norm1] x = {norm} (x0, g)"
        f"[router] scores0 = MatMul(x, gate) scores = Reshape(scores0, rows_of_scores)"
        f"{body} x1 = Add(x0, out) [norm2] x2 = {norm} (x1, g) [head] y = MatMul(x2, last) }}"
    )
    rng = np.random.default_rng(5)
    constants = {each.name: each for each in model_of(fused(FORMS["relu"])).graph.initializer}
    extra = {"table": rng.standard_normal((40, HIDDEN)), "g": rng.uniform(0.5, 3, HIDDEN)}
    extra["zero"] = np.zeros(())
    for at in range(EXPERTS):
        extra[f"up{at}"] = rng.standard_normal((HIDDEN, INNER)) / 8
        extra[f"down{at}"] = rng.standard_normal((INNER, HIDDEN)) / 8
    constants |= {k: numpy_helper.from_array(v.astype(np.float32), k) for k, v in extra.items()}
    whole = {**INTEGERS, "one": [1]} | {f"e{at}": at for at in range(EXPERTS)}
    constants |= {k: numpy_helper.from_array(np.asarray(v), k) for k, v in whole.items()}
    read = {name for node in model.graph.node for name in node.input}
    model.graph.initializer.extend(each for name, each in constants.items() if name in read)
    return model


def unrolled(zeros: str, take: str, put: str) -> str:
    """Experts one by one, each on the tokens routed to it: `take` reads rows of `flat` at
    `places`, and `put` adds to the sum or replaces rows of it."""
    body = f"""
        best, chosen = TopK(scores, two)
        shares = Softmax <axis = -1> (best)
        share = Unsqueeze(shares, two)
        flat = Reshape(x, matrix)
        size = Shape(flat)
        sum0 = {zeros}
    """
    for at in range(EXPERTS):
        expert = f"""
            hit# = Equal(chosen, e#)
            found# = NonZero(hit#)
            places# = Transpose <perm = [1, 0]> (found#)
            tokens# = Gather <axis = 1> (places#, e0)
            token# = Unsqueeze(tokens#, one)
            wide# = Expand(token#, width)
            rows# = {take}
            [up#] u# = MatMul(rows#, up#) a# = Relu(u#) [down#] d# = MatMul(a#, down#)
            p# = GatherND(share, places#)
            part# = Mul(d#, p#)
        """
        body += expert.replace("#", str(at)) + put.replace("##", str(at + 1)).replace("#", str(at))
    return f"{body} shape = Shape(x) out = Reshape(sum{EXPERTS}, shape)"


TAKEN = "GatherND(flat, token#)"
ADDED = 'sum## = ScatterND <reduction = "add"> (sum#, token#, part#)'
UNROLLED = {
    "as torch exports them": unrolled("Expand(zero, size)", TAKEN, ADDED),
    "replaced": unrolled("ConstantOfShape(size)", TAKEN, "sum## = ScatterND(sum#, token#, part#)"),
    "replaced in the stream": unrolled(
        "Reshape(x0, matrix)", TAKEN, "sum## = ScatterND(sum#, token#, part#)"
    ),
    "added to zeros": unrolled(
        "ConstantOfShape(size)",
        TAKEN,
        "none# = ConstantOfShape(size) "
        "to# = ScatterND(none#, token#, part#) sum## = Add(sum#, to#)",
    ),
    "element by element": unrolled(
        "Expand(zero, size)",
        "GatherElements <axis = 0> (flat, wide#)",
        'sum## = ScatterElements <reduction = "add"> (sum#, wide#, part#)',
    ),
}
ROTATION = "import,fold-constants,split-experts,canonicalize,fold-norm,rotate"


def assert_rotated(model: onnx.ModelProto, ups: set[str], downs: set[str]) -> None:
    """All of a block, and that it computes what it did."""
    made, history = compiled(model, parse_pipeline(ROTATION))
    said = [remark for step in history for remark in step.remarks if remark.applied]
    folded = {each.layer for each in said if isinstance(each, Folded)}
    rotated = {each.layer for each in said if isinstance(each, Rotated)}
    assert folded == {"router", "head", *ups}
    assert rotated == {"embed", *folded, *downs}
    feed = {"ids": np.random.default_rng(2).integers(0, 40, (2, 9))}
    expected, actual = run(model, feed), run(made, feed)
    assert np.abs(actual - expected).max() <= EXACT * np.abs(expected).max()


def test_norms_fold_and_the_stream_rotates_through_experts() -> None:
    ups = {f"moe/experts.{each}/up_proj" for each in range(EXPERTS)}
    downs = {name.replace("up", "down") for name in ups}
    assert_rotated(block(fused(FORMS["silu, normalized"])), ups, downs)


@pytest.mark.parametrize("form", UNROLLED)
def test_the_stream_rotates_through_experts_one_by_one(form: str) -> None:
    names = [{f"{kind}{at}" for at in range(EXPERTS)} for kind in ("up", "down")]
    assert_rotated(block(UNROLLED[form]), *names)


def test_experts_picked_one_by_one_are_layers_too() -> None:
    body = "shares = Softmax <axis = -1> (scores) "
    for at in range(EXPERTS):
        body += f"""
            m{at} = Gather(up, i{at}) n{at} = Squeeze(m{at}, zero)
            t{at} = Transpose <perm = [1, 0]> (n{at}) [up{at}] h{at} = MatMul(x, t{at})
            r{at} = Relu(h{at}) k{at} = Gather(down_kn, i{at}) l{at} = Squeeze(k{at}, zero)
            [down{at}] d{at} = MatMul(r{at}, l{at}) s{at} = Gather <axis = 1> (shares, i{at})
            o{at} = Mul(d{at}, s{at})
        """
    model = model_of(body + "out = Sum(o0, o1, o2, o3)")
    for name, value in {"zero": 0, **{f"i{at}": at for at in range(EXPERTS)}}.items():
        model.graph.initializer.append(numpy_helper.from_array(np.array([value]), name))
    _, history = compiled(model, load("rtn").passes)
    layers, weights = account(history)
    named = {f"{which}{at}" for which in ("up", "down") for at in range(EXPERTS)}
    assert named <= {layer.name for layer in layers if layer.quantized}
    assert weights is not None
    assert weights.quantized_bytes >= 2 * EXPERTS * HIDDEN * INNER * 4


CONTRIB = (
    "import,fold-constants,split-experts,canonicalize,plan-weights{group_size=16,symmetric=false},"
    "plan-activations,quantize-weights,insert-qdq,lower-ort-contrib"
)


def nodes(model: onnx.ModelProto, op: str) -> list[str]:
    return [node.name for node in model.graph.node if node.op_type == op]


@pytest.mark.parametrize("form", FORMS)
def test_experts_on_codes_become_one_operator(form: str) -> None:
    model = model_of(fused(FORMS[form]), gated="swiglu" in form)
    apart, _ = compiled(model, parse_pipeline(CONTRIB))
    made, _ = compiled(model, parse_pipeline(f"{CONTRIB},fuse-experts"))
    assert len(nodes(apart, "MatMulNBits")) == 1 + EXPERTS * (3 if "swiglu" in form else 2)
    assert nodes(made, "QMoE") == ["moe"]
    assert nodes(made, "MatMulNBits") == ["head"]
    assert_same(apart, made, (7,), (1,))


@pytest.mark.parametrize(
    ("here", "said"),
    [("1.30.1", "it takes ONNX Runtime 1.31 or later"), ("1.31.0", "")],
)
def test_older_versions_keep_a_layer_an_expert(
    here: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qcompiler.versions.onnxruntime_here", lambda: here)
    model = model_of(fused(FORMS["relu"]))
    made, history = compiled(model, parse_pipeline(f"{CONTRIB},fuse-experts"))
    assert bool(nodes(made, "QMoE")) is not bool(said)
    left = [each for each in history[-1].remarks if isinstance(each, LeftAlone)]
    assert len(left) == (2 * EXPERTS if said else 0)
    assert all(each.message.endswith(said) for each in left)


@pytest.mark.parametrize(
    ("form", "said"),
    [
        ("group_size=32,bits=2", "its kernel takes 4 or 8 bits"),
        ("group_size=128", "groups of 128 channels do not divide theirs"),
    ],
)
def test_formats_without_a_kernel_stay_apart(form: str, said: str) -> None:
    passes = CONTRIB.replace("group_size=16", form) + ",fuse-experts"
    made, history = compiled(model_of(fused(FORMS["relu"])), parse_pipeline(passes))
    assert len(nodes(made, "MatMulNBits")) == 1 + 2 * EXPERTS
    messages = {each.message for each in history[-1].remarks}
    assert messages == {f"not one QMoE for all experts: {said}"}


def test_an_expert_with_a_layer_in_float_stays_apart() -> None:
    context = PassContext(exclude=("experts.2/down_proj",))
    manager = PassManager(parse_pipeline(f"{CONTRIB},fuse-experts"))
    graph, _ = manager.run(import_proto(model_of(fused(FORMS["silu, normalized"]))), context)
    assert not nodes(to_model(graph), "QMoE")
    messages = {each.message for each in manager.history[-1].remarks}
    assert messages == {"not one QMoE for all experts: some of their layers are in float"}


def test_inspect_shows_the_layers_of_an_operator(tmp_path: Path) -> None:
    made, _ = compiled(model_of(fused(FORMS["relu"])), parse_pipeline(f"{CONTRIB},fuse-experts"))
    onnx.save(made, tmp_path / "m.onnx")
    shown = [each for each in inspect(tmp_path / "m.onnx").layers if each.op == "QMoE"]
    assert [(each.name, each.K, each.N) for each in shown] == [
        ("moe/fc1", HIDDEN, EXPERTS * INNER),
        ("moe/fc2", INNER, EXPERTS * HIDDEN),
    ]
    assert {(each.scheme, each.activation) for each in shown} == {("int4 g16 asym", "per-group")}
