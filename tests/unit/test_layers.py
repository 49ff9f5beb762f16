"""Layers: one set of questions, whatever the operator is."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnxruntime as ort
import pytest

from qcompiler import ir
from qcompiler.analysis.layers import find_layers, layer_of, reader_of
from qcompiler.ir.io import import_proto

K, N, T = 6, 4, 5

RNG = np.random.default_rng(0)
X = RNG.standard_normal((T, K)).astype(np.float32)


def graph_of(nodes: str, **constants: np.ndarray) -> gs.Graph:
    """Nodes that make y of x [T, K], and constants."""
    model = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : 21]> g (float[T, {K}] x) => (float[T, {N}] y) '
        f"{{ {nodes} }}"
    )
    for name, values in constants.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    return import_proto(model)


def run(graph: gs.Graph) -> np.ndarray:
    model = ir.to_model(graph).SerializeToString()
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": X})[0]


def weight(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


SPELLINGS = {
    "product": ("y = MatMul(x, w)", {"w": weight(K, N)}),
    "product and bias": ("h = MatMul(x, w) y = Add(h, b)", {"w": weight(K, N), "b": weight(N)}),
    "bias first": ("h = MatMul(x, w) y = Add(b, h)", {"w": weight(K, N), "b": weight(N)}),
    "Gemm": ("y = Gemm(x, w)", {"w": weight(K, N)}),
    "Gemm, transposed": ("y = Gemm <transB = 1> (x, w)", {"w": weight(N, K)}),
    "Gemm with everything": (
        "y = Gemm <alpha = 0.5, beta = 2.0, transB = 1> (x, w, b)",
        {"w": weight(N, K), "b": weight(N)},
    ),
    "Gemm, a row as bias": ("y = Gemm(x, w, b)", {"w": weight(K, N), "b": weight(1, N)}),
    "Gemm, one number as bias": ("y = Gemm(x, w, b)", {"w": weight(K, N), "b": weight(1)}),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_layer_is_what_it_computes(spelling: str) -> None:
    text, constants = SPELLINGS[spelling]
    graph = graph_of(text, **constants)
    (layer,), others = find_layers(graph)
    assert others == []
    assert layer.shape == (K, N)
    assert layer.x.name == "x" and layer.output.name == "y"
    shift = layer.shift()
    assert (shift is None) == ("b" not in constants)
    expected = layer.rows(X[None]) @ layer.matrix() + (0.0 if shift is None else shift)
    np.testing.assert_allclose(run(graph), expected, rtol=1e-5, atol=1e-5)
    reader = reader_of(graph, layer.x)
    assert reader is not None and reader.node is layer.node


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_another_matrix_takes_the_place_of_the_weights(spelling: str) -> None:
    text, constants = SPELLINGS[spelling]
    graph = graph_of(text, **constants)
    (layer,), _ = find_layers(graph)
    matrix, shift = weight(K, N), layer.shift()
    layer.put(ir.constant("other", matrix))
    np.testing.assert_array_equal(layer.matrix(), matrix)
    expected = X @ matrix + (0.0 if shift is None else shift)
    np.testing.assert_allclose(run(graph), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("nodes", "reason"),
    [
        ("t = Transpose <perm = [1, 0]> (x) y = Gemm <transA = 1> (t, w)", "its form"),
        ("b = ReduceSum(x) y = Gemm(x, w, b)", "its form"),
        ("y = MatMul(x, three)", "not two-dimensional"),
        ("h = MatMul(left, w) y = Add(h, h)", "both operands are constants"),
        ("h = MatMul(x, w) t = Transpose <perm = [1, 0]> (h) y = MatMul(h, t)", "attention"),
        ("h = Cast <to = 11> (x) y = MatMul(h, double)", "type double"),
    ],
)
def test_other_products_say_why_they_are_none(nodes: str, reason: str) -> None:
    constants = {
        "w": weight(K, N),
        "three": weight(1, K, N),
        "left": weight(T, K),
        "double": weight(K, N).astype(np.float64),
    }
    graph = graph_of(nodes, **constants)
    _, others = find_layers(graph)
    assert reason in others[-1].reason


def test_other_nodes_are_no_layers() -> None:
    graph = graph_of("h = Relu(x) y = MatMul(h, w)", w=weight(K, N))
    assert layer_of(graph, graph.nodes[0]) is None
    graph.nodes[1].domain = "somewhere.else"
    assert layer_of(graph, graph.nodes[1]) is None


def test_a_weight_made_of_constants_is_no_attention() -> None:
    shape = {"row": weight(1, N), "size": np.array([K, N])}
    graph = graph_of("w = Expand(row, size) y = MatMul(x, w)", **shape)
    assert "computed from constants" in find_layers(graph)[1][0].reason
    graph = graph_of("row = ReduceSum(x) w = Expand(row, size) y = MatMul(x, w)", **shape)
    assert "attention" in find_layers(graph)[1][0].reason
