"""The verifier accepts what ONNX Runtime runs and names the node of every other graph."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest

from qcompiler.errors import PassError
from qcompiler.instruments import DumpInstrument, VerifyInstrument
from qcompiler.ir.tensors import array, constant
from qcompiler.ir.verifier import skeleton, verify
from qcompiler.passmanager import Numerics, Pass, PassContext, PassManager, PassResult
from qcompiler.remarks import Remark

MODEL = """
<ir_version: 10, opset_import: ["" : 21]>
g (float[N, 4] x) => (float[N, 4] y) <float[4, 4] w> {
    [one] h = MatMul(x, w)
    [two] y = Relu(h)
}
"""


def small() -> gs.Graph:
    graph = gs.import_onnx(onnx.parser.parse_model(MODEL))
    weight = graph.tensors()["w"]
    graph.nodes[0].inputs[1] = constant(weight.name, np.eye(4, dtype=np.float32))
    return graph


def test_a_valid_graph_passes_in_any_node_order() -> None:
    graph = small()
    verify(graph)


def test_contrib_operators_in_the_default_domain_pass() -> None:
    graph = gs.import_onnx(
        onnx.parser.parse_model(
            '<ir_version: 10, opset_import: ["" : 21]>\n'
            "g (float[N, 2] x) => (float[N, 2] y) <float[2] w = {1, 2}> {"
            " y = SimplifiedLayerNormalization <axis = -1> (x, w) }"
        )
    )
    verify(graph)


def duplicate_nodes(graph: gs.Graph) -> None:
    graph.nodes[1].name = "one"


def duplicate_tensors(graph: gs.Graph) -> None:
    graph.outputs[0].name = "h"


def dangling(graph: gs.Graph) -> None:
    graph.nodes[1].inputs[0] = gs.Variable("nowhere", np.float32)


def dangling_output(graph: gs.Graph) -> None:
    graph.outputs.append(gs.Variable("never", np.float32, (1,)))


def cycle(graph: gs.Graph) -> None:
    graph.nodes[0].inputs[0] = graph.nodes[1].outputs[0]


def impostor(graph: gs.Graph) -> None:
    graph.nodes[1].inputs[0] = gs.Variable("x", np.float32, ("N", 4))


def unknown_operator(graph: gs.Graph) -> None:
    graph.nodes[1].op = "Rellu"


def bad_attribute(graph: gs.Graph) -> None:
    graph.nodes[1].attrs["slope"] = 0.5


def wrong_type(graph: gs.Graph) -> None:
    graph.nodes[0].inputs[1] = constant("v", np.ones((4, 4), np.int32))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (duplicate_nodes, "two nodes are named 'one'"),
        (duplicate_tensors, "two tensors are named 'h'"),
        (dangling, "node 'two' .Relu. reads 'nowhere', which nothing computes"),
        (dangling_output, "gives out 'never'"),
        (cycle, "node 'one' .MatMul. lies on or behind a cycle"),
        (impostor, "second tensor named 'x'"),
        (unknown_operator, "Rellu"),
        (bad_attribute, "slope"),
        (wrong_type, "one"),
    ],
)
def test_a_damaged_graph_is_refused_by_name(
    damage: Callable[[gs.Graph], None], message: str
) -> None:
    graph = small()
    damage(graph)
    with pytest.raises(PassError, match=message):
        verify(graph)


def test_subgraphs_are_checked_and_see_outer_tensors() -> None:
    text = """
    <ir_version: 10, opset_import: ["" : 21]>
    g (float[2] x, bool c) => (float[2] z) {
        h = Neg(x)
        z = If (c) <
            then_branch = yes () => (float[2] p) { [inner] p = Neg(h) },
            else_branch = no () => (float[2] q) { q = Abs(x) }
        >
    }
    """
    graph = gs.import_onnx(onnx.parser.parse_model(text))
    verify(graph)
    inner = next(n for n in graph.nodes[1].attrs["then_branch"].nodes if n.name == "inner")
    inner.inputs[0] = gs.Variable("lost", np.float32)
    with pytest.raises(PassError, match=r"inner.*lost"):
        verify(graph)


def test_verifying_leaves_the_weights_alone() -> None:
    graph = small()
    big = np.ones((4, 1000), np.float32)
    weight = constant("big", big)
    graph.outputs[0].shape = ("N", 1000)
    out = graph.outputs[0]
    out.inputs.clear()
    hidden = gs.Variable("r", np.float32)
    graph.nodes[1].outputs.append(hidden)
    graph.nodes.append(gs.Node("MatMul", "three", inputs=[hidden, weight], outputs=[out]))
    verify(graph)
    assert array(weight) is big


def test_skeleton_turns_large_initializers_into_inputs() -> None:
    model = onnx.parser.parse_model(MODEL)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((40, 40)), "large"))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(2), "little"))
    skeleton(model)
    assert [entry.name for entry in model.graph.initializer] == ["little"]
    assert "large" in [entry.name for entry in model.graph.input]


class Breaker(Pass):
    """Duplicates a node name."""

    name = "break-it"
    numerics = Numerics.EXACT

    def run(self, graph: gs.Graph, ctx: PassContext) -> PassResult:
        duplicate_nodes(graph)
        remark = Remark(layer="one", applied=False, message="broken on purpose")
        return PassResult(graph=graph, changed=True, remarks=(remark,))


def test_the_verify_instrument_names_the_pass() -> None:
    manager = PassManager([Breaker()], [VerifyInstrument()])
    with pytest.raises(PassError, match="pass 'break-it': two nodes are named 'one'"):
        manager.run(small(), PassContext())


def test_the_dump_says_what_the_pass_did(tmp_path) -> None:  # type: ignore[no-untyped-def]
    manager = PassManager([Breaker()], [DumpInstrument(tmp_path / "ir")])
    manager.run(small(), PassContext())
    text = (tmp_path / "ir" / "000_break-it.qir").read_text()
    assert "// - one: broken on purpose" in text
    assert "%y : float[N, 4] = Relu(%h)" in text
