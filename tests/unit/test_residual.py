"""Residual streams: what belongs to one, and every reason why one can't be rotated."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from qcompiler.analysis.foldable import find_fold_edges
from qcompiler.analysis.layers import find_layers
from qcompiler.analysis.residual import find_streams
from qcompiler.ir.io import import_proto
from qcompiler.ir.tensors import array
from qcompiler.numerics.rotation import rotation
from qcompiler.passes.rotate import Rotate
from qcompiler.passmanager import PassContext

HEADER = '<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>\n'
SHAPES = {
    "table": (6, 4),
    "flat": (4, 6),
    "one": (4,),
    "w": (4, 4),
    "wh": (4, 2),
    "wo": (2, 4),
    "number": (),
    "narrow": (1,),
}
PAIRS = np.array([[0, 1], [1, 2], [2, 3], [3, 0]])
NORM = "SimplifiedLayerNormalization <axis = -1, epsilon = 1e-5>"


def graph_of(body: str, outputs: str = "float[N, 2] y", inputs: str = "int64[N] ids"):
    """A graph with those of the constants above that it reads; weights of norms are ones."""
    model = onnx.parser.parse_model(f"{HEADER} g ({inputs}) => ({outputs}) {{ {body} }}")
    read = {name for node in model.graph.node for name in node.input}
    for name, shape in SHAPES.items():
        if name in read:
            values = np.ones(shape) if len(shape) == 1 else np.full(shape, 0.5)
            model.graph.initializer.append(numpy_helper.from_array(values.astype("f4"), name))
    if "pairs" in read:
        model.graph.initializer.append(numpy_helper.from_array(PAIRS, "pairs"))
    return import_proto(onnx.shape_inference.infer_shapes(model, data_prop=True))


def stream_of(*args: str):
    graph = graph_of(*args)
    streams = find_streams(graph, find_layers(graph)[0])
    assert len(streams) == 1
    return streams[0]


def test_a_stream_and_its_parts():
    stream = stream_of(f"""
        [embed] x = Gather(table, ids)
        [n1] h = {NORM} (x, one)
        [mix] a0 = MatMul(h, w)
        a = Add(a0, one)
        x2 = Add(x, a)
        shape = Shape(x2)
        size = Size(h)
        [n2] h2 = {NORM} (x2, one)
        [head] y = MatMul(h2, wh)
    """)
    assert stream.veto is None
    assert stream.channels == 4
    assert [linear.name for linear in stream.layers] == ["mix", "head"]
    assert [node.name for node in stream.tables] == ["embed"]
    found = sorted((str(use.constant.name), use.axis) for use in stream.uses)
    assert found == [("one", 0), ("table", 1), ("w", 0), ("w", 1), ("wh", 0)]
    assert sorted(len(uses) for uses in stream.constants()) == [1, 1, 1, 2]


ROUTED = """
    [up] u = MatMul(rows, wh)
    [down] d = MatMul(u, wo)
    put = PUT
    x2 = Add(x, put)
    [n2] h2 = NORM (x2, one)
    [head] y = MatMul(h2, wh)
"""
TAKE = "rows = GatherND(h, places)"
FILL = "z = ConstantOfShape(size)"
ZEROS = f"size = Shape(x) {FILL}"


def routed(take: str, put: str):
    """The stream through a layer that reads some rows of a norm, and is added to these."""
    body = f"x = Gather(table, ids) [n1] h = NORM (x, one) {take} {ROUTED}"
    body = body.replace("PUT", put).replace("NORM", "LayerNormalization")
    inputs = "int64[N] ids, int64[M, 1] places, float[N, 4] outside"
    return stream_of(body, "float[N, 2] y", inputs)


@pytest.mark.parametrize(
    ("take", "put"),
    [
        (f"{TAKE} {ZEROS}", 'ScatterND <reduction = "add"> (z, places, d)'),
        (f"{TAKE} {ZEROS}", "ScatterND(z, places, d)"),
        (f"{TAKE} t = Mul(x, number)", 'ScatterND <reduction = "add"> (t, places, d)'),
        (f"{TAKE} {ZEROS} s = ScatterND(z, places, d)", "Add(z, s)"),
        (
            f"size = Shape(x) i = Expand(places, size) rows = GatherElements(h, i) {FILL}",
            'ScatterElements <reduction = "add"> (z, i, d)',
        ),
    ],
)
def test_rows_are_taken_and_put_back(take: str, put: str):
    stream = routed(take, put)
    assert stream.veto is None
    assert [layer.name for layer in stream.layers] == ["up", "down", "head"]
    assert {(use.node.name, use.axis) for use in stream.uses if use.node.op == "MatMul"} == {
        *(("up", 0), ("down", 1), ("head", 0))
    }


ONES = "size = Shape(x) z = ConstantOfShape <value = float[1] {1}> (size)"
COLUMNS = "ScatterElements <axis = 1> (z, i, d)"
MAX = 'ScatterND <reduction = "max"> (z, places, d)'


@pytest.mark.parametrize(
    ("take", "put", "reason"),
    [
        (f"{TAKE} {ZEROS}", MAX, "ScatterND '' writes to the residual stream"),
        (f"{TAKE} {ZEROS} e = GatherND(outside, pairs)", "ScatterND(z, pairs, e)", "writes"),
        (f"{TAKE} {ZEROS} i = Expand(places, size)", COLUMNS, "ScatterElements '' writes"),
        (f"{TAKE} {ONES}", "ScatterND(z, places, d)", "ConstantOfShape '' writes"),
        (TAKE, "ScatterND(outside, places, d)", "'outside' is an input of the model"),
        (f"{TAKE} {ZEROS} r = Relu(z)", "ScatterND(r, places, d)", "Relu '' writes"),
    ],
)
def test_rows_that_are_not_understood(take: str, put: str, reason: str):
    veto = routed(take, put).veto
    assert veto is not None
    assert reason in veto


def test_a_stream_that_begins_with_a_norm():
    graph = graph_of(
        f"""
        [e] x = Gather(table, ids)
        [front] s = {NORM} (x, one)
        [n] h = {NORM} (s, one)
        [f] y = MatMul(h, wh)
        """,
        "float[N, 2] y",
    )
    (stream,) = find_streams(graph, find_layers(graph)[0])
    assert stream.veto is None
    assert [norm.node.name for norm in stream.norms] == ["front", "n"]
    assert [table.name for table in stream.tables] == ["e"]


def test_two_streams():
    graph = graph_of(
        f"""
        [e1] x1 = Gather(table, ids)
        [n1] h1 = {NORM} (x1, one)
        [f1] y = MatMul(h1, wh)
        t = Transpose <perm = [1, 0]> (flat)
        [e2] x2 = Gather(t, ids)
        [n2] h2 = {NORM} (x2, one)
        [f2] z = MatMul(h2, w)
        """,
        "float[N, 2] y, float[N, 4] z",
    )
    streams = find_streams(graph, find_layers(graph)[0])
    assert [stream.veto for stream in streams] == [None, None]
    assert [[linear.name for linear in stream.layers] for stream in streams] == [["f1"], ["f2"]]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("r = Relu(x) h = NORM (r, one)", "Relu '' writes to the residual stream"),
        ("r = Mul(x, one) h = NORM (r, one)", "Mul '' writes to the residual stream"),
        ("r = Div(number, x) h = NORM (r, one)", "Div '' writes to the residual stream"),
        ("r = Add(x, number) h = NORM (r, one)", "adds one number to all channels"),
        ("r = Add(x, narrow) h = NORM (r, one)", "'narrow' does not fit the stream"),
        (
            "a = Add(x, x) n = NORM (a, one) s = Add(x, n) h = NORM (s, one)",
            "writes to the residual stream",
        ),
        ("h = NORM (x, one) [other] r = Tanh(h)", "Tanh 'other' reads the norm '', too"),
        ("h = NORM (x, one) [other] r = Tanh(x)", "Tanh 'other' reads the residual stream"),
        ("h = NORM (x, one) [other] r = MatMul(table, h)", "MatMul 'other' reads the norm"),
        ("h = NORM (x, one) [other] r = Tanh(table)", "'table' is shared with Tanh 'other'"),
        ("h = NORM (x, one) v = Gather(w, ids) u = MatMul(h, w)", "'w' is shared with Gather ''"),
    ],
)
def test_vetoes(body: str, reason: str):
    body = body.replace("NORM", NORM)
    stream = stream_of(f"[embed] x = Gather(table, ids) {body} y = MatMul(h, wh)")
    assert stream.veto is not None
    assert reason in stream.veto


def test_a_branch_that_reads_the_stream():
    stream = stream_of(
        f"""
        x = Gather(table, ids)
        h = {NORM} (x, one)
        y = MatMul(h, wh)
        z = If (flag) <
            then_branch = yes () => (float[N, 4] t) {{ [inner] t = Add(x, one) }},
            else_branch = no () => (float[N, 4] e) {{ e = Abs(table) }}
        >
        """,
        "float[N, 2] y, float[N, 4] z",
        "int64[N] ids, bool flag",
    )
    assert stream.veto == "Add 'inner' reads the residual stream from a subgraph"


def test_a_stream_that_comes_from_outside():
    stream = stream_of(f"h = {NORM} (x, one) y = MatMul(h, wh)", "float[N, 2] y", "float[N, 4] x")
    assert stream.veto == "'x' is an input of the model"


@pytest.mark.parametrize(
    ("split", "back", "head"),
    [
        ([0, 2, 1, 3], [0, 2, 1, 3], 2),  # heads side by side, as everywhere
        ([0, 2, 1, 3], [0, 2, 3, 1], None),  # their channels interleaved afterwards
    ],
)
def test_heads_are_runs_of_channels(split, back, head):
    model = onnx.parser.parse_model(f"""{HEADER}
        g (float[1, S, 4] x, float[1, 2, S, S] p) => (float[1, S, 4] y) {{
            v = MatMul(x, w)
            v4 = Reshape(v, parts)
            vt = Transpose <perm = {split}> (v4)
            m = MatMul(p, vt)
            mt = Transpose <perm = {back}> (m)
            o = Reshape(mt, join)
            y = MatMul(o, w2)
        }}""")
    for name, values in (
        ("w", np.ones((4, 4), np.float32)),
        ("w2", np.ones((4, 4), np.float32)),
        ("parts", np.array([0, 0, 2, 2])),
        ("join", np.array([0, -1, 4])),
    ):
        model.graph.initializer.append(numpy_helper.from_array(values, name))
    graph = import_proto(onnx.shape_inference.infer_shapes(model, data_prop=True))
    edge = next(e for e in find_fold_edges(graph, find_layers(graph)[0]) if e.kind == "v-o")
    assert edge.veto is None
    assert edge.head == head


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_narrow_weights_are_rounded_once(dtype):
    body = f"x = Gather(table, ids) h = {NORM} (x, one) [head] y = MatMul(h, wh)"
    model = onnx.parser.parse_model(f"{HEADER} g (int64[N] ids) => (float16[N, 2] y) {{ {body} }}")
    random = np.random.default_rng(0)
    weights = {
        "table": random.standard_normal((6, 4)).astype(dtype),
        "one": np.ones(4, dtype),
        "wh": random.standard_normal((4, 2)).astype(dtype),
    }
    model.graph.initializer.extend(numpy_helper.from_array(w, name) for name, w in weights.items())
    graph = Rotate(kind="random", seed=5).run(import_proto(model), PassContext()).graph
    found = {name: array(t) for name, t in graph.tensors().items() if name.endswith("_rot")}
    matrix = rotation(4, "random", (5, 0, 0))
    exact = {
        "table_rot": weights["table"].astype(float) @ matrix,
        "wh_rot": matrix.T @ weights["wh"].astype(float),
    }
    assert set(found) == set(exact)
    for name, values in found.items():
        assert values.dtype == dtype
        np.testing.assert_array_equal(values, exact[name].astype(dtype))
