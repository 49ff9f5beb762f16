"""The pattern matcher: what matches, what does not, and the reason it gives."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest

from qcompiler.ir.matcher import (
    Match,
    Mismatch,
    absent,
    const,
    constant_values,
    either,
    find,
    match,
    op,
    var,
)


def graph_of(text: str) -> gs.Graph:
    return gs.import_onnx(
        onnx.parser.parse_model('<ir_version: 10, opset_import: ["" : 21]>\n' + text)
    )


def node_making(graph: gs.Graph, name: str) -> gs.Node:
    return graph.tensors()[name].inputs[0]


SWISH = op("Mul", var("x"), op("Sigmoid", var("x"), capture="gate"), commutative=True)


@pytest.mark.parametrize("order", ["a, s", "s, a"])
def test_commutative_operator_with_a_repeated_capture(order: str) -> None:
    graph = graph_of(f"g (float[4] a) => (float[4] y) {{ s = Sigmoid(a) y = Mul({order}) }}")
    found = match(SWISH, node_making(graph, "y"))
    assert isinstance(found, Match)
    assert found["x"] is graph.inputs[0]
    assert found.node("gate").op == "Sigmoid"
    assert found["gate"].name == "s"
    assert [node.op for node in found.nodes] == ["Mul", "Sigmoid"]
    assert found.root.outputs[0].name == "y"


def test_a_repeated_capture_must_be_the_same_tensor() -> None:
    graph = graph_of("g (float[4] a, float[4] b) => (float[4] y) { s = Sigmoid(b) y = Mul(a, s) }")
    found = match(SWISH, node_making(graph, "y"))
    assert not found
    assert isinstance(found, Mismatch)
    assert "'x' already is" in found.reason


def test_backtracking_reaches_into_nested_commutative_operators() -> None:
    pattern = op(
        "Add",
        op("Mul", const("k", value=3.0), var("x"), commutative=True),
        var("x"),
        commutative=True,
    )
    graph = graph_of(
        "g (float[4] a) => (float[4] y) <float k = {3.0}> { m = Mul(a, k) y = Add(a, m) }"
    )
    found = match(pattern, node_making(graph, "y"))
    assert found
    assert float(found.array("k")) == 3.0


@pytest.mark.parametrize(
    ("value", "matches"), [(0.044715, True), (0.04471500001, True), (0.0447, False)]
)
def test_scalar_constants_are_compared_to_six_digits(value: float, matches: bool) -> None:
    graph = graph_of(
        f"g (float[4] a) => (float[4] y)"
        f" {{ k = Constant <value_float = {value}> () y = Mul(a, k) }}"
    )
    pattern = op("Mul", var("x"), const("k", value=0.044715))
    found = match(pattern, node_making(graph, "y"))
    assert bool(found) is matches
    if isinstance(found, Mismatch):
        assert "not 0.044715" in found.reason


def test_constants_in_every_hiding_place() -> None:
    graph = graph_of(
        "g (float[2] a) => (float[2] y) <float[2] w = {1, 2}> {"
        " v = Constant <value = float[2] {3, 4}> () i = Constant <value_ints = [5, 6]> ()"
        " f = Constant <value_floats = [7.0, 8.0]> () n = Constant <value_int = 9> ()"
        " c = Cast <to = 1> (i) d = Cast <to = 1> (n)"
        " p = Add(a, w) q = Add(p, v) r = Add(q, c) s = Add(r, f) y = Add(s, d) }"
    )
    tensors = graph.tensors()
    for name, values in {"w": [1, 2], "v": [3, 4], "i": [5, 6], "f": [7, 8], "n": 9}.items():
        np.testing.assert_array_equal(constant_values(tensors[name]), values)
    assert constant_values(tensors["a"]) is None
    assert constant_values(tensors["c"]) is None


def test_constant_rank_and_size() -> None:
    graph = graph_of(
        "g (float[2] a) => (float[2] y) <float[2,2] w = {1, 2, 3, 4}> { y = MatMul(a, w) }"
    )
    node = node_making(graph, "y")
    assert match(op("MatMul", var("x"), const("w", rank=2, size=4)), node)
    wrong_rank = match(op("MatMul", var("x"), const("w", rank=1)), node)
    assert isinstance(wrong_rank, Mismatch) and "rank 2, not 1" in wrong_rank.reason
    wrong_size = match(op("MatMul", var("x"), const("w", size=3)), node)
    assert isinstance(wrong_size, Mismatch) and "4 elements" in wrong_size.reason
    not_scalar = match(op("MatMul", var("x"), const("w", value=1.0)), node)
    assert isinstance(not_scalar, Mismatch) and "not a scalar" in not_scalar.reason
    not_const = match(op("MatMul", const("w"), var("x")), node)
    assert isinstance(not_const, Mismatch) and "not a constant" in not_const.reason


def test_fewer_patterns_than_inputs_need_the_rest_to_be_absent() -> None:
    graph = graph_of(
        "g (float[2,4] x, float[4] w, float[4] b) => (float[2,4] y, float[2,4] z) {"
        " y = LayerNormalization(x, w, b) z = LayerNormalization(x, w) }"
    )
    with_bias, without = node_making(graph, "y"), node_making(graph, "z")
    two = op("LayerNormalization", var("x"), var("w"))
    assert match(two, without)
    refused = match(two, with_bias)
    assert isinstance(refused, Mismatch) and "more inputs than 2" in refused.reason
    assert match(op("LayerNormalization", var("x"), ...), with_bias)
    assert match(op("LayerNormalization", var("x"), rest=True), with_bias)
    three = op("LayerNormalization", var("x"), var("w"), var("b"))
    missing = match(three, without)
    assert isinstance(missing, Mismatch) and "input 2" in missing.reason
    optional = op("LayerNormalization", var("x"), var("w"), either(var("b"), absent()))
    assert match(optional, without).get("b") is None  # type: ignore[union-attr]
    assert match(optional, with_bias)["b"].name == "b"  # type: ignore[index]


def test_ellipsis_only_ends_a_pattern() -> None:
    with pytest.raises(ValueError, match="only at the end"):
        op("Add", ..., var("x"))


def test_attributes_with_defaults_and_alternatives() -> None:
    graph = graph_of(
        "g (float[2,4] x) => (float[2,4] y, float[2,4] z) {"
        " y = Softmax <axis = -1> (x) z = Softmax (x) }"
    )
    explicit, default = node_making(graph, "y"), node_making(graph, "z")
    assert match(op("Softmax", var("x"), attrs={"axis": -1}), explicit)
    refused = match(op("Softmax", var("x"), attrs={"axis": 1}), explicit)
    assert isinstance(refused, Mismatch) and "axis=-1" in refused.reason
    assert not match(op("Softmax", var("x"), attrs={"axis": -1}), default)
    either_way = op("Softmax", var("x"), attrs={"axis": {-1, None}})
    assert match(either_way, explicit) and match(either_way, default)


def test_domains() -> None:
    graph = gs.import_onnx(
        onnx.parser.parse_model(
            '<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>\n'
            "g (float[2] x) => (float[2] y) { y = com.microsoft.Gelu(x) }"
        )
    )
    node = node_making(graph, "y")
    assert match(op("Gelu", var("x")), node)
    assert match(op("Gelu", var("x"), domain="com.microsoft"), node)
    refused = match(op("Gelu", var("x"), domain=""), node)
    assert isinstance(refused, Mismatch) and "com.microsoft" in refused.reason


def test_only_use_counts_readers_and_graph_outputs() -> None:
    pattern = op("Mul", var("x"), op("Sigmoid", var("x"), only_use=True))
    shared = graph_of(
        "g (float[4] a) => (float[4] y, float[4] z) { s = Sigmoid(a) y = Mul(a, s) z = Neg(s) }"
    )
    refused = match(pattern, node_making(shared, "y"), shared)
    assert isinstance(refused, Mismatch) and "read by 2 nodes" in refused.reason
    exposed = graph_of(
        "g (float[4] a) => (float[4] y, float[4] s) { s = Sigmoid(a) y = Mul(a, s) }"
    )
    refused = match(pattern, node_making(exposed, "y"), exposed)
    assert isinstance(refused, Mismatch) and "output of the graph" in refused.reason
    alone = graph_of("g (float[4] a) => (float[4] y) { s = Sigmoid(a) y = Mul(a, s) }")
    assert match(pattern, node_making(alone, "y"), alone)


def test_the_reason_is_the_failure_that_got_furthest() -> None:
    graph = graph_of("g (float[4] a) => (float[4] y) { n = Neg(a) s = Sigmoid(n) y = Mul(n, s) }")
    pattern = op("Mul", var("x"), op("Sigmoid", op("Abs", var("x"))), commutative=True)
    found = match(pattern, node_making(graph, "y"))
    assert isinstance(found, Mismatch)
    assert "Neg" in found.reason and "is not Abs" in found.reason


def test_a_wrong_operator_is_told_with_every_one_that_would_do() -> None:
    graph = graph_of("g (float[4] a) => (float[4] y) { n = Neg(a) y = Exp(n) }")
    pattern = op("Exp", either(op("Abs", var("x")), op(("Log", "Abs"), var("x"))))
    found = match(pattern, node_making(graph, "y"))
    assert isinstance(found, Mismatch)
    assert found.reason == f"Neg '{node_making(graph, 'n').name}' is not Abs or Log"


def test_a_later_output_is_matched_only_when_asked_for() -> None:
    graph = graph_of(
        "g (float[4] a) => (float[2] y) { p, q = Split <num_outputs = 2> (a) y = Neg(q) }"
    )
    node = node_making(graph, "y")
    assert not match(op("Neg", op("Split", var("x"))), node)
    assert match(op("Neg", op("Split", var("x"), output=1)), node)


def test_find_is_topological_and_does_not_overlap() -> None:
    graph = graph_of(
        "g (float[4] x) => (float[4] y) { a = Relu(x) b = Relu(a) c = Relu(b) y = Neg(c) }"
    )
    graph.nodes.reverse()
    found = find(op("Relu", op("Relu", var("x"))), graph)
    assert [item.root.outputs[0].name for item in found] == ["b"]


def test_find_enters_through_any_input() -> None:
    graph = graph_of(
        "g (float[4] x) => (float[4] y) <float[4] k = {1, 2, 3, 4}> { a = Neg(x) y = Add(k, a) }"
    )
    (found,) = find(op("Add", var("c"), op("Neg", var("x")), commutative=True), graph)
    assert found["c"].name == "k"
