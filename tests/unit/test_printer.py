"""The text form of a graph."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import onnx_graphsurgeon as gs

from qcompiler.ir.printer import print_graph
from qcompiler.ir.tensors import constant

MODEL = """
<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>
g (float[N, 4] x, bool c) => (float[N, 2] y, float[N, 4] z)
<float[4, 2] w = {1, 2, 3, 4, 5, 6, 7, 0.125}> {
    [last] y = MatMul(h, w)
    [first] h, , s = com.microsoft.SkipSimplifiedLayerNormalization <epsilon = 1e-5> (x, x, gamma)
    gamma = Constant <value_floats = [1.0, 2.0, 3.0, 4.0]> ()
    z = If (c) <
        then_branch = yes () => (float[N, 4] p) { p = Neg(x) },
        else_branch = no () => (float[N, 4] q) <float[1] two = {2}> { q = Mul(x, two) }
    >
}
"""

EXPECTED = """\
opset "" 21, com.microsoft 1
input %x : float[N, 4]
input %c : bool[]
output %y : float[N, 2]
output %z : float[N, 4]
init %w : float[4, 2] = [[1, 2], [3, 4], [5, 6], [7, 0.125]]
%gamma : ? = Constant() {value_floats=[1, 2, 3, 4]}
%h : ?, _, %s : ? = com.microsoft.SkipSimplifiedLayerNormalization(%x, %x, %gamma) \
{epsilon=1e-05}  # first
%y : float[N, 2] = MatMul(%h, %w)  # last
%z : float[N, 4] = If(%c)
  else_branch:
    output %q : float[N, 4]
    init %two : float[1] = [2]
    %q : float[N, 4] = Mul(%x, %two)
  then_branch:
    output %p : float[N, 4]
    %p : float[N, 4] = Neg(%x)
"""


def test_print_is_topological_and_complete() -> None:
    graph = gs.import_onnx(onnx.parser.parse_model(MODEL))
    order = [node.op for node in graph.nodes]
    assert print_graph(graph) == EXPECTED
    assert [node.op for node in graph.nodes] == order, "printing must not reorder the graph"


def graph_with(values: np.ndarray) -> gs.Graph:
    weight = constant("w", values)
    x, y = gs.Variable("x", np.float32, ("N", 8)), gs.Variable("y", np.float32, None)
    node = gs.Node("Foo", "foo", inputs=[x, weight], outputs=[y])
    return gs.Graph([node], [x], [y], opset=21)


def init_line(graph: gs.Graph, **options: bool) -> str:
    return next(line for line in print_graph(graph, **options).splitlines() if "init" in line)


def test_four_bit_values_are_shown() -> None:
    small = np.array([[-8, 7], [0, 3]], ml_dtypes.int4)
    assert init_line(graph_with(small)) == "init %w : int4[2, 2] = [[-8, 7], [0, 3]]"


def test_large_values_are_digested_and_any_change_shows() -> None:
    values = (np.arange(40) % 15).astype(ml_dtypes.uint4).reshape(5, 8)
    line = init_line(graph_with(values))
    assert line.startswith("init %w : uint4[5, 8] = sha256:")
    assert line.endswith("min=0 max=14 mean=6.375")
    swapped = values.copy()
    swapped[0, :2] = swapped[0, 1::-1]
    assert init_line(graph_with(swapped)) != line


def test_float_digests_can_be_left_out_but_integers_keep_theirs() -> None:
    floats = graph_with(np.linspace(-1, 1, 33, dtype=np.float32))
    assert "sha256" in init_line(floats)
    assert init_line(floats, float_digests=False) == "init %w : float[33] = min=-1 max=1 mean=0"
    integers = graph_with(np.arange(33, dtype=np.int8))
    assert "sha256" in init_line(integers, float_digests=False)


def test_empty_float16_and_non_finite_constants() -> None:
    assert init_line(graph_with(np.zeros((0, 3), np.float32))).endswith("float[0, 3] = []")
    assert init_line(graph_with(np.float16([0.5]))).endswith("float16[1] = [0.5]")
    assert init_line(graph_with(np.float32([np.inf, np.nan]))).endswith("[inf, nan]")
