"""What decoder attention and experts ask of ONNX Runtime."""

from __future__ import annotations

from typing import Any

import onnx_graphsurgeon as gs
import pytest

from qcompiler import ops
from qcompiler.analysis.requirements import required_versions
from qcompiler.formats import LayerPlan, WeightFormat
from qcompiler.targets import TARGETS

OURS, THEIRS = ops.DOMAIN, ops.CONTRIB_DOMAIN


def attention(
    domain: str, *, op: str = "GroupQueryAttention", inputs: int = 9, **attrs: Any
) -> Any:
    named = [gs.Variable(f"x{i}") for i in range(inputs)]
    return gs.Node(op, attrs=attrs, inputs=named, outputs=[gs.Variable("y")], domain=domain)


def without_sinks() -> Any:
    node = attention(THEIRS, inputs=12)
    node.inputs[11] = gs.Variable.empty()
    return node


@pytest.mark.parametrize(
    ("node", "versions", "minimum"),
    [
        (attention(THEIRS), [], "1.20"),
        (attention(OURS, window=-1), [], "1.20"),
        (attention(THEIRS, local_window_size=-1), [], "1.20"),
        (without_sinks(), [], "1.20"),
        (gs.Node("Relu"), [], "1.20"),
        (attention(THEIRS, local_window_size=4), ["1.24"], "1.24"),
        (attention(OURS, window=4), ["1.24"], "1.24"),
        (attention(THEIRS, inputs=12), ["1.23"], "1.23"),
        (attention(OURS, op="GroupQueryAttentionSink", window=-1), ["1.23"], "1.23"),
        (attention(OURS, op="GroupQueryAttentionSink", window=9), ["1.23", "1.24"], "1.24"),
        (gs.Node("QMoE", attrs={"accuracy_level": 4}), ["1.31"], "1.31"),
        (gs.Node("QMoE"), [], "1.20"),
    ],
)
def test_versions_of_nodes(node: gs.Node, versions: list[str], minimum: str) -> None:
    graph = gs.Graph(nodes=[node])
    assert list(required_versions(graph)) == versions
    plans = [LayerPlan(weight=WeightFormat(bits=4, group_size=32))]
    assert TARGETS["ort-custom"].minimum_for(plans, required_versions(graph)) == minimum


def test_a_target_that_needs_more_keeps_its_minimum() -> None:
    graph = gs.Graph(nodes=[attention(THEIRS, local_window_size=4)])
    plans = [LayerPlan(weight=WeightFormat(bits=2, group_size=32))]
    assert TARGETS["ort-contrib"].minimum_for(plans, required_versions(graph)) == "1.28"


def test_nodes_of_subgraphs_count() -> None:
    body = gs.Graph(nodes=[attention(OURS, window=4)])
    graph = gs.Graph(nodes=[gs.Node("If", attrs={"then_branch": body})])
    assert list(required_versions(graph)) == ["1.24"]
