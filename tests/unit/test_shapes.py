"""What import makes of shapes that ONNX's inference leaves open."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnxruntime as ort
import pytest
from odd_models import model_of, normal
from onnx import helper

from qcompiler import ir
from qcompiler.ir.io import import_proto
from qcompiler.passes.import_model import ImportModel
from qcompiler.passmanager import PassContext


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


# The sizes of x's two first axes, as exporters read them.
SIZES = """
    shape = Shape(x)
    b0 = Gather(shape, i0)
    s0 = Gather(shape, i1)
    b = Unsqueeze(b0, first)
    s = Unsqueeze(s0, first)
"""
INDICES = {"i0": np.int64(0), "i1": np.int64(1), "first": ints(0)}

ATTENTION = (
    "g (float[batch, seq, 64] x) => (float[batch, seq, 64] y) {"
    + SIZES
    + """
    apart = Concat <axis = 0> (b, s, rest, width)
    q = MatMul(x, wq)
    k = MatMul(x, wk)
    v = MatMul(x, wv)
    q4 = Reshape(q, apart)
    k4 = Reshape(k, apart)
    v4 = Reshape(v, apart)
    qh = Transpose <perm = [0, 2, 1, 3]> (q4)
    kh = Transpose <perm = [0, 2, 3, 1]> (k4)
    vh = Transpose <perm = [0, 2, 1, 3]> (v4)
    scores = MatMul(qh, kh)
    places = Range(i0, s0, i1)
    seen = Unsqueeze(places, axes)
    all = Concat <axis = 0> (b, one, s, s)
    mask = Expand(seen, all)
    bias = Cast <to = 1> (mask)
    masked = Add(scores, bias)
    weights = Softmax <axis = -1> (masked)
    heads = MatMul(weights, vh)
    back = Transpose <perm = [0, 2, 1, 3]> (heads)
    together = Concat <axis = 0> (b, s, rest)
    joined = Reshape(back, together)
    out = MatMul(joined, wo)
    y = Add(out, x)
}"""
)

CHUNKS = """
g (float[batch, seq, 64] x) => (float[batch, seq, 64] y) {
    u = MatMul(x, wi)
    shape = Shape(u)
    size = Gather(shape, last)
    more = Add(size, one)
    half = Div(more, two)
    full = Mul(half, two)
    gate = Slice(u, first, half, last)
    up = Slice(u, half, full, last)
    act = Relu(gate)
    product = Mul(act, up)
    y = MatMul(product, wo)
}"""

POSITIONS = (
    "g (float[batch, seq, 64] x) => (float[batch, seq, 64] y) {"
    + SIZES
    + """
    ids = Slice(numbers, first, s, axis)
    found = Gather(table, ids)
    h = Add(x, found)
    y = Relu(h)
}"""
)

EXPANDED = (
    "g (float[batch, seq, 64] x) => (float[batch, seq, 64] y) {"
    + SIZES
    + """
    count = Shape(x)
    ones = ConstantOfShape <value = int64[1] {1}> (three)
    negative = Mul(ones, rest)
    wanted = Concat <axis = 0> (b, rest, width)
    keep = Equal(wanted, negative)
    target = Where(keep, ones, wanted)
    wide = Expand(row, target)
    y = Add(x, wide)
}"""
)

LOOP = """
g (float[n, 64] x) => (float[n, 96] y) {
    carried = Loop (trips, yes, x) <
        body = step (int64 i, bool c, float[n, 64] a) => (bool d, float[n, 64] b) {
            d = Identity(c)
            b = Relu(a)
        }
    >
    h = Relu(carried)
    y = MatMul(h, w)
}"""

ROTARY = """
g (float[batch, seq, 64] x) => (float[batch, seq, 64] y) {
    low = Slice(x, first, half, last)
    high = Slice(x, half, end, last)
    minus = Neg(high)
    turned = Concat <axis = -1> (minus, low)
    y = Mul(x, turned)
}"""

UNKNOWABLE = (
    "g (float[batch, seq, 64] x) => (float[p, 64] y) {"
    + SIZES
    + """
    flat = Reshape(x, rows)
    some = Concat <axis = 0> (b, rest)
    h = Reshape(flat, some)
    true = Cast <to = 9> (s)
    one = Cast <to = 7> (true)
    begin = Sub(s, one)
    tail = Slice(x, begin, s, axis)
    least = Slice(x, first, two, axis)
    z = Reshape(tail, rows)
    w = Reshape(least, rows)
    back = Reshape(h, rows)
    y = Concat <axis = 0> (z, w, back)
}"""
)

# A model, its weights, and what the sizes of some tensors are.
CASES = {
    "as many channels as the weight has rows": (
        "g (float[batch, seq, 64] x) => (float[batch, seq, 96] y) {"
        + SIZES
        + "open = Concat <axis = 0> (b, s, rest) h = Reshape(x, open) y = MatMul(h, w) }",
        INDICES | {"rest": ints(-1), "w": normal(64, 96)},
        {"h": ["batch", "seq", 64]},
    ),
    "rows of two axes": (
        "g (float[batch, seq, 64] x) => (float[c, 64] y) { h = Reshape(x, t) y = Relu(h) }",
        {"t": ints(-1, 64)},
        {},
    ),
    "attention": (
        ATTENTION,
        INDICES
        | {name: normal(64, 64) for name in ("wq", "wk", "wv", "wo")}
        | {"rest": ints(-1), "width": ints(16), "one": ints(1), "axes": ints(0, 1, 2)},
        {
            "qh": ["batch", 4, "seq", 16],
            "scores": ["batch", 4, "seq", "seq"],
            "bias": ["batch", 1, "seq", "seq"],
            "weights": ["batch", 4, "seq", "seq"],
            "joined": ["batch", "seq", 64],
            "out": ["batch", "seq", 64],
        },
    ),
    "chunks": (
        CHUNKS,
        {"wi": normal(64, 128), "wo": normal(64, 64)}
        | {"one": ints(1), "two": ints(2), "first": ints(0), "last": ints(-1)},
        {"gate": ["batch", "seq", 64], "up": ["batch", "seq", 64], "product": ["batch", "seq", 64]},
    ),
    "positions": (
        POSITIONS,
        INDICES | {"numbers": np.arange(16)[None], "table": normal(16, 64), "axis": ints(1)},
        {"h": ["batch", "seq", 64]},
    ),
    "expanded": (
        EXPANDED,
        INDICES | {"three": ints(3), "rest": ints(-1), "width": ints(64), "row": normal(64)},
        {"target": [3], "wide": ["batch", 1, 64]},
    ),
    "parts replaced": (
        "g (float[batch, seq, 64] x) => (float[batch, seq, 64] y) { "
        "a = com.microsoft.QuickGelu(x) size = Shape(a) zeros = ConstantOfShape(size) "
        "part = Gather(x, first) "
        'sum = ScatterND <reduction = "add"> (zeros, at, part) '
        "all = ScatterElements(sum, cell, one) y = Relu(all) }",
        {"first": ints(0), "at": ints(0)[None], "cell": ints(0)[None, None]}
        | {"one": np.ones((1, 1, 1), np.float32)},
        {"sum": ["batch", "seq", 64], "all": ["batch", "seq", 64]},
    ),
    "halves in turn": (
        ROTARY,
        {"first": ints(0), "half": ints(32), "end": ints(2**63 - 1), "last": ints(-1)},
        {"low": ["batch", "seq", 32], "turned": ["batch", "seq", 64]},
    ),
    "what depends on values": (
        UNKNOWABLE,
        INDICES | {"rest": ints(-1), "rows": ints(-1, 64), "two": ints(2), "axis": ints(1)},
        {},
    ),
    "an operator that ONNX does not know": (
        "g (float[n, 64] x) => (float[n, 96] y) "
        "{ a = com.microsoft.QuickGelu(x) h = Relu(a) y = MatMul(h, w) }",
        {"w": normal(64, 96)},
        {"a": ["n", 64], "h": ["n", 64]},
    ),
    "a loop": (
        LOOP,
        {"trips": np.int64(3), "yes": np.array(True), "w": normal(64, 96)},
        {"carried": ["carried.0", 64], "h": ["carried.0", 64]},
    ),
}


def imported(text: str, weights: dict[str, np.ndarray]) -> gs.Graph:
    made = model_of(text, **weights)
    made.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return ImportModel().run(import_proto(made), PassContext()).graph


@pytest.mark.parametrize("name", CASES)
def test_sizes(name: str) -> None:
    text, weights, wanted = CASES[name]
    tensors = imported(text, weights).tensors()
    for tensor, shape in wanted.items():
        assert list(tensors[tensor].shape) == shape, tensor
        assert tensors[tensor].dtype is not None


@pytest.mark.parametrize("name", CASES)
def test_what_is_stated_holds(name: str) -> None:
    """Numbers are what a run gives, and a name is one number in it."""
    text, weights, _ = CASES[name]
    graph = imported(text, weights)
    stated = {
        tensor.name: tensor.shape
        for tensor in graph.tensors().values()
        if not ir.is_constant(tensor) and ir.producer(tensor) is not None
    }
    model = ir.to_model(graph)
    given = {output.name for output in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=n) for n in stated if n not in given)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    rank = len(session.get_inputs()[0].shape)
    for sizes in ((2, 5), (1, 1), (3, 1), (1, 7)):
        x = normal(*sizes[: rank - 1], 64, std=1.0)
        names: dict[str, int] = {}
        for output, value in zip(session.get_outputs(), session.run(None, {"x": x}), strict=True):
            for size, real in zip(stated[output.name], np.shape(value), strict=True):
                assert size == real or names.setdefault(size, real) == real, output.name


def test_a_model_that_only_others_can_run_is_left_as_it_is() -> None:
    made = model_of(
        "g (float[n, 64] x) => (float[n, 96] y) { h = Relu(x) y = MatMul(h, w) }", w=normal(64, 96)
    )
    made.graph.node[0].domain = "custom"
    made.opset_import.append(helper.make_opsetid("custom", 1))
    graph = ImportModel().run(import_proto(made), PassContext()).graph
    assert graph.tensors()["h"].shape is None


def test_names_that_the_model_gives_stay() -> None:
    """They may be used loosely, as here for a batch and for channels."""
    graph = imported(
        "g (float[n, n] x) => (float[m, 96] y) { h = Relu(x) y = MatMul(h, w) }",
        {"w": normal(64, 96)},
    )
    assert list(graph.inputs[0].shape) == ["n", "n"]
    assert list(graph.outputs[0].shape) == ["m", 96]
    assert list(graph.tensors()["h"].shape) == ["n", "n"]


def test_long_chains() -> None:
    """Counters of an unrolled loop: nothing is as deep as they are long."""
    steps = 3000
    lines = [f"c{i + 1} = Add(c{i}, one)" for i in range(steps)]
    text = (
        "g (float[n, 64] x) => (float[m, 64] y) { shape = Shape(x) c0 = Gather(shape, zero) "
        + " ".join(lines)
        + f" t = Concat <axis = 0> (c{steps}, rest) y = Expand(x, t) }}"
    )
    imported(text, {"one": ints(1), "zero": ints(0), "rest": ints(64)})


def test_names_that_the_version_converter_makes_up_are_settled() -> None:
    text, weights, wanted = CASES["attention"]
    made = model_of(text, **weights)
    made.opset_import[0].version = 17
    tensors = ImportModel().run(import_proto(made), PassContext()).graph.tensors()
    assert list(tensors["scores"].shape) == wanted["scores"]
