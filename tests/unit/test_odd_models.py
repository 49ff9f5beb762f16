"""Odd models compile to what the source computes, and keep what the compiler does not know."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from command_line import qc
from odd_models import SQUARE, K, N, W, linear, model_of, no_rank_input, normal, open_rank
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from qcompiler import ops
from qcompiler.ir.io import import_proto, to_model
from qcompiler.numerics.rounding import sqnr_db
from qcompiler.session import create_session


def run(path: Path, feeds: dict) -> list[np.ndarray]:
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {k: v for k, v in feeds.items() if k in inputs(session)})


def inputs(session: ort.InferenceSession) -> set[str]:
    return {each.name for each in session.get_inputs()}


def is_valid(path: Path) -> bool:
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError):
        return False
    return True


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
    told = "1 initializers of the model are inputs too; they are weights, and no inputs any more\n"
    assert done.stderr in ("", told if "weight is input" in name else "")
    if is_valid(source):
        assert is_valid(result)
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


LOOP = """
g (float[n, 64] x) => (float[n, 96] y) {
    h = MatMul(x, v)
    f = Loop (trips, yes, h) <
        body = step (int64 i, bool c, float[n, 64] a) => (bool d, float[n, 64] b) {
            d = Identity(c)
            b = Relu(a)
        }
    >
    y = MatMul(f, w)
}
"""
RANKS = """
g (float[n, 64] x, bool c) => (float[n, 96] y) {
    h = MatMul(x, v)
    f = If (c) <
        then_branch = yes () => (float[n, 64] p) { p = Relu(h) },
        else_branch = no () => (float[1, n, 64] q) { q = Unsqueeze(h, first) }
    >
    y = MatMul(f, w)
}
"""
CONTRIB = """
g (float[n, 64] x) => (float[n, 96] y) {
    h = MatMul(x, v)
    a = com.microsoft.QuickGelu(h)
    s = SimplifiedLayerNormalization <axis = -1, epsilon = 0.00001, stash_type = 1> (a, g)
    y = MatMul(s, w)
}
"""
COMPUTED = """
g (float[n, 64] x) => (float[n, 96] y) {
    h = MatMul(x, v)
    shape = Shape(h)
    chosen = Compress <axis = 0> (shape, both)
    r = Reshape(h, chosen)
    y = MatMul(r, w)
}
"""
SQUARES = {"v": normal(K, K), "w": W}
UNKNOWN = {
    "a loop": model_of(LOOP, trips=np.int64(2), yes=np.array(True), **SQUARES),
    "branches of two ranks": model_of(RANKS, first=np.array([0]), **SQUARES),
    "operators that ONNX does not know": model_of(CONTRIB, g=np.ones(K, np.float32), **SQUARES),
    "a computed shape": model_of(COMPUTED, both=np.array([True, True]), **SQUARES),
}
for model in UNKNOWN.values():
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
UNKNOWN["branches of two ranks"].graph.output[0].type.tensor_type.ClearField("shape")


@pytest.mark.parametrize("recipe", ["rtn", "w4a8"])
@pytest.mark.parametrize("name", UNKNOWN)
def test_layers_behind_what_hides_the_shape(name: str, recipe: str, tmp_path: Path) -> None:
    """They become ops, which compute the same with the library and without it."""
    source, result = tmp_path / "m.onnx", tmp_path / "o.onnx"
    source.write_bytes(UNKNOWN[name].SerializeToString())
    done = qc("compile", source, "-o", result, "-r", recipe)
    assert done.exit_code == 0, done.stderr
    compiled = [node.op_type for node in onnx.load(result).graph.node]
    assert len([op_type for op_type in compiled if ops.width_of(op_type)]) == 2
    assert not {"MatMul", "QuantizeLinear", "DequantizeLinear"} & set(compiled)
    feeds = {"x": normal(3, K, std=1.0), "c": np.array(False)}
    (wanted,) = run(source, feeds)
    kept = {name: feeds[name] for name in inputs(create_session(source))}
    for library in (True, False):
        (found,) = create_session(result, library=library).run(None, kept)
        assert found.shape == wanted.shape
        assert sqnr_db(wanted, found) > 15


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
