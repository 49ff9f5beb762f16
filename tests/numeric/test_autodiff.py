"""Gradients of whole graphs: differences, in any stages, with bounded memory, or refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from block_models import MODELS, feeds
from gradient_checks import reference
from onnx import helper, numpy_helper
from test_stream import prepared
from threadpoolctl import threadpool_limits

from qcompiler import ir
from qcompiler.autodiff import backward, fisher_probe, gradients
from qcompiler.calibration import held
from qcompiler.calibration.stream import stream
from qcompiler.errors import CalibrationError
from qcompiler.ir.io import import_proto
from qcompiler.ir.order import topological

STEP = 1e-6
WHOLE = ("decoder", "encoder")
HEADER = '<ir_version: 10, opset_import: ["" : 21]>\n'


def floats_of(graph: Any, output: str) -> list[str]:
    """The float tensors between inputs and output, in order."""
    made = [tensor for node in topological(graph) for tensor in node.outputs]
    return [str(t.name) for t in made if t.dtype == np.float32 and t.name != output]


def seeds_for(output: np.ndarray, index: int) -> np.ndarray:
    return np.random.default_rng(index).standard_normal(output.shape).astype(np.float32)


def found_in(graph: Any, names: list[str], batches: list[Any]) -> dict[str, list[np.ndarray]]:
    output = str(graph.outputs[0].name)
    found = gradients(graph, names, output, batches, lambda i, y: seeds_for(y, i))
    return {name: [np.array(each) for each in values] for name, values in found}


def in_float64(model: onnx.ModelProto, moved: str) -> onnx.ModelProto:
    """The model in float64, with an input that is added to a tensor."""
    wide = onnx.ModelProto()
    wide.CopyFrom(model)
    graph = wide.graph
    for tensor in graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            values = numpy_helper.to_array(tensor).astype(np.float64)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    del graph.value_info[:]
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT:
            value.type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    nodes = list(graph.node)
    for at, node in enumerate(nodes):
        for attribute in node.attribute:
            if attribute.name == "to" and attribute.i in (1, 10):
                attribute.i = onnx.TensorProto.DOUBLE
        if moved in node.output:
            node.output[list(node.output).index(moved)] = "before"
            nodes.insert(at + 1, helper.make_node("Add", ["before", "moved"], [moved]))
            break
    for node in nodes:
        for attribute in node.attribute:
            if attribute.name == "to" and attribute.i in (1, 10):
                attribute.i = onnx.TensorProto.DOUBLE
    made = onnx.GraphProto(node=nodes)
    del graph.node[:]
    graph.node.extend(made.node)
    graph.input.append(helper.make_tensor_value_info("moved", onnx.TensorProto.DOUBLE, None))
    return wide


@pytest.mark.parametrize("name", WHOLE)
def test_gradients_are_those_of_differences(name: str) -> None:
    graph, _ = prepared(name, "import,canonicalize")
    model, batch = ir.to_model(graph), feeds(MODELS[name](), 0)
    names = floats_of(graph, str(graph.outputs[0].name))
    found = found_in(graph, names, [batch])
    assert list(found) == names[::-1]
    wide = {k: v.astype(np.float64) if v.dtype == np.float32 else v for k, v in batch.items()}
    draws = np.random.default_rng(1)
    for tensor in names[::2]:
        (gradient,) = found[tensor]
        run = reference(in_float64(model, tensor))
        direction = draws.standard_normal(gradient.shape)
        ends = [run.run(None, wide | {"moved": sign * STEP * direction})[0] for sign in (1, -1)]
        assert ends[0].dtype == np.float64
        change = (ends[0] - ends[1]) / (2 * STEP) * seeds_for(ends[0], 0)
        scale = np.abs(gradient * direction).sum()
        assert abs((gradient * direction).sum() - change.sum()) < 1e-5 * scale, tensor


@pytest.mark.parametrize("name", WHOLE)
def test_stages_do_not_matter(name: str, monkeypatch, tmp_path) -> None:
    graph, _ = prepared(name, "import,canonicalize")
    batches = [feeds(MODELS[name](), seed, batch=1 + seed) for seed in range(2)]
    names = floats_of(graph, str(graph.outputs[0].name))[::3]
    whole = None
    monkeypatch.setattr(held, "IN_MEMORY", 0)  # all in files
    for together in (1000, 3, 1):
        monkeypatch.setattr(backward, "_TOGETHER", together)
        with ir.spilling(_made(tmp_path / str(together)), 1):
            found = found_in(graph, names, batches)
        whole = whole or found
        for tensor in names:
            for one, other in zip(found[tensor], whole[tensor], strict=True):
                scale = np.abs(other).max()
                np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * scale, err_msg=tensor)
    some = found_in(graph, names[::4], batches)
    for tensor, values in some.items():
        for one, other in zip(values, whole[tensor], strict=True):
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * np.abs(other).max())


def _made(folder):
    folder.mkdir()
    return folder


def chain(depth: int, width: int = 4, inner: int = 256) -> Any:
    """Residual blocks that are narrow at the cuts and wide between."""
    draws = np.random.default_rng(0)
    lines, x = [], "x"
    model = onnx.ModelProto()
    stored = []
    for at in range(depth):
        for key, sizes in (("u", (width, inner)), ("d", (inner, width))):
            weight = draws.normal(0, sizes[0] ** -0.5, sizes).astype(np.float32)
            stored.append(numpy_helper.from_array(weight, f"{key}{at}"))
        lines.append(f"a{at} = MatMul({x}, u{at}) b{at} = Tanh(a{at}) c{at} = MatMul(b{at}, d{at})")
        lines.append(f"r{at} = Add({x}, c{at})")
        x = f"r{at}"
    text = f"g (float[n, {width}] x) => (float[n, {width}] {x}) {{ {' '.join(lines)} }}"
    model = onnx.parser.parse_model(HEADER + text)
    model.graph.initializer.extend(stored)
    return import_proto(onnx.shape_inference.infer_shapes(model))


def test_only_what_is_live_at_the_cuts_is_kept(monkeypatch) -> None:
    """Of 24 blocks in stages of 4: what the stages read, and less and less of it."""
    monkeypatch.setattr(backward, "_TOGETHER", 4)
    depth, rows = 24, 10
    kept: list[dict[str, Any]] = []
    forward = backward._forward

    def seen(*given: Any) -> Any:
        kept.append(forward(*given))
        return kept[-1]

    monkeypatch.setattr(backward, "_forward", seen)
    graph = chain(depth)
    x = np.random.default_rng(0).standard_normal((rows, 4)).astype(np.float32)
    names = [f"r{at}" for at in range(depth - 1)]
    left = []
    for _ in gradients(graph, names, f"r{depth - 1}", [{"x": x}], lambda _, y: y):
        left.append(sum(each[0].nbytes for each in kept[0].values()))
    assert left[0] == 6 * x.nbytes
    assert left == sorted(left, reverse=True)
    assert not kept[0]


def tiny(body: str, inputs: str = "float[2, 3] x", outputs: str = "float[2, 3] y", **weights: Any):
    model = onnx.parser.parse_model(f"{HEADER} g ({inputs}) => ({outputs}) {{ {body} }}")
    for name, values in weights.items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(values), name))
    return import_proto(onnx.shape_inference.infer_shapes(model))


X = np.asarray([[1, -2, 3], [-4, 5, 6]], np.float32)


def through(graph: Any, names: list[str], output: str = "y", feed: Any = None) -> dict[str, Any]:
    found = gradients(graph, names, output, [feed or {"x": X}], lambda _, y: np.ones_like(y))
    return {name: np.array(values[0]) for name, values in found}


def test_inputs_outputs_and_what_does_not_matter() -> None:
    graph = tiny(
        "a = Mul(x, x) b = Neg(a) y = Add(a, x) i = Cast <to = 7> (x) f = Cast <to = 1> (i) "
        "z = Add(b, y) w = Add(f, y)",
        inputs="float[2, 3] x, float[4] unread",
        outputs="float[2, 3] y, float[2, 3] z, float[2, 3] w",
    )
    feed = {"x": X, "unread": np.ones(4, np.float32)}
    found = through(graph, ["x", "y", "a", "b", "unread"], feed=feed)
    np.testing.assert_array_equal(found["x"], 2 * X + 1)
    np.testing.assert_array_equal(found["a"], np.ones_like(X))
    np.testing.assert_array_equal(found["y"], np.ones_like(X))
    np.testing.assert_array_equal(found["b"], np.zeros_like(X))
    np.testing.assert_array_equal(found["unread"], np.zeros(4))
    found = through(graph, ["x", "f"], "w", feed)
    np.testing.assert_array_equal(found["x"], 2 * X + 1)
    np.testing.assert_array_equal(found["f"], np.ones_like(X))


def test_half_precision_has_gradients_in_float32() -> None:
    w, v = np.asarray([[1, 2], [0, -1], [3, 1]]), np.asarray([[2, 0, 1], [1, -1, 3]])
    graph = tiny(
        "a = MatMul(x, w) b = Relu(a) y = MatMul(b, v)",
        *("float16[2, 3] x", "float16[2, 3] y"),
        w=w.astype(np.float16),
        v=v.astype(np.float16),
    )
    found = through(graph, ["a", "b"], feed={"x": X.astype(np.float16)})
    of_b = np.ones((2, 3)) @ v.T
    for values in found.values():
        assert values.dtype == np.float32
    np.testing.assert_array_equal(found["b"], of_b)
    np.testing.assert_array_equal(found["a"], of_b * (X @ w > 0))


def test_random_numbers_are_the_same_on_the_way_back() -> None:
    graph = tiny("r = RandomNormalLike(x) a = Mul(x, r) y = Mul(a, r) z = Mul(r, r)")
    feeds = [{"x": X}, {"x": X + 1}]
    found = dict(gradients(graph, ["x", "a"], "y", feeds, lambda _, y: np.ones_like(y)))
    for of_x, of_a in zip(found["x"], found["a"], strict=True):
        np.testing.assert_allclose(of_x, np.square(of_a), rtol=1e-6)
    assert not np.array_equal(found["a"][0], found["a"][1])
    ((*results,),) = stream(graph, ["y"], feeds)
    for y, feed, of_x in zip(results, feeds, found["x"], strict=True):
        np.testing.assert_allclose(y, feed["x"] * of_x, rtol=1e-5)


@pytest.mark.parametrize(
    ("graph", "names", "message"),
    [
        (
            lambda: tiny("a = MatMul(x, w) y = Det(a)", outputs="float y", w=np.ones((3, 2), "f4")),
            ["a"],
            r"Det 'y': .* no rule",
        ),
        (lambda: tiny("y = Neg(x)"), ["a"], "computes no tensor 'a'"),
        (
            lambda: tiny("i = Cast <to = 7> (x) y = Cast <to = 1> (i)"),
            ["i"],
            "'i' holds no floats",
        ),
        (lambda: tiny("a = Sub(x, x) y = Sqrt(a)"), ["a"], "gradient at 'a' is not finite"),
        (
            lambda: tiny("r = Dropout(x, ratio, yes) y = Neg(r)", ratio=np.float32(0.5), yes=True),
            ["x"],
            "Dropout 'r': it may drop values",
        ),
    ],
    ids=["operator", "unknown", "integers", "infinite", "dropout"],
)
def test_refusals(graph: Any, names: list[str], message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        through(graph(), names)


def branching(read: str) -> Any:
    """y = x² + (a branch that gives a tensor of the graph around it)."""
    then = helper.make_node("Identity", [read], ["t"])
    other = helper.make_node("Neg", [read], ["e"])
    graphs = {
        f"{key}_branch": helper.make_graph([node], key, [], [onnx.ValueInfoProto(name=end)])
        for key, node, end in (("then", then, "t"), ("else", other, "e"))
    }
    nodes = [
        helper.make_node("Mul", ["x", "x"], ["a"]),
        helper.make_node("If", ["yes"], ["c"], name="fork", **graphs),
        helper.make_node("Add", ["a", "c"], ["y"]),
    ]
    value = helper.make_tensor_value_info
    given = [value("x", 1, [2, 3]), value("other", 1, [2, 3]), value("yes", 9, [])]
    graph = helper.make_graph(nodes, "g", given, [value("y", 1, [2, 3])])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return import_proto(onnx.shape_inference.infer_shapes(model))


def test_branches_are_refused_where_a_gradient_would_go_through() -> None:
    feed = {"x": X, "other": X, "yes": np.asarray(True)}
    with pytest.raises(CalibrationError, match="If 'fork'"):
        through(branching("a"), ["a"], feed=feed)
    beside = through(branching("other"), ["a", "x", "c"], feed=feed)
    np.testing.assert_array_equal(beside["x"], 2 * X)
    np.testing.assert_array_equal(beside["c"], np.ones_like(X))


def test_seeds_have_the_sizes_of_the_output() -> None:
    with pytest.raises(ValueError, match=r"\(6,\).*\(2, 3\)"):
        list(gradients(tiny("y = Neg(x)"), ["x"], "y", [{"x": X}], lambda _, y: y.ravel()))


def test_probe_has_the_covariance_of_fisher() -> None:
    logits = np.asarray([1.0, -0.5, 2.0, 0.0, -3.0], np.float32)
    p = np.exp(logits) / np.exp(logits).sum()
    draws = 40_000
    u = fisher_probe(3)(0, np.tile(logits, (4, draws // 4, 1))).reshape(draws, -1)
    assert u.dtype == np.float32
    expected = np.diag(p) - np.outer(p, p)
    products = u[:, :, None] * u[:, None, :]
    deviation = products.std(0) / np.sqrt(draws)
    assert (np.abs(products.mean(0) - expected) < 5 * deviation + 1e-9).all()
    assert (np.abs(u.mean(0)) < 5 * u.std(0) / np.sqrt(draws)).all()


def test_probe_depends_on_seed_and_feed_alone() -> None:
    logits = np.random.default_rng(0).standard_normal((2, 70, 33)).astype(np.float32)
    once = fisher_probe(1)(2, logits)
    with threadpool_limits(1):
        again = fisher_probe(1)(2, logits)
    assert once.tobytes() == again.tobytes()
    assert not np.array_equal(once, fisher_probe(1)(3, logits))
    assert not np.array_equal(once, fisher_probe(2)(2, logits))
    np.testing.assert_allclose(once.sum(-1), 0, atol=1e-6)
    assert np.isfinite(fisher_probe(0)(0, logits * 1e4)).all()
