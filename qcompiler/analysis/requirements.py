"""What nodes ask of ONNX Runtime, where that is more than any version that targets name has."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import onnx_graphsurgeon as gs

from qcompiler import ir, ops

SINKS = "1.23"
"""Before, GroupQueryAttention has no input `head_sink`."""
WINDOWS = "1.24"
"""Before, a row of GroupQueryAttention sees one key more than the window holds."""
QUANTIZED_EXPERTS = "1.31"
"""Before, QMoE has no `accuracy_level`: it multiplies floats, which takes longer than the integers
of one MatMulNBits an expert."""
SINK_INPUT = 11
"""Of com.microsoft's GroupQueryAttention."""
_WINDOW = {ops.DOMAIN: "window", ops.CONTRIB_DOMAIN: "local_window_size"}


def required_versions(graph: gs.Graph) -> Iterator[str]:
    """Versions of ONNX Runtime from which on attention and experts run, and run right, by node."""
    for each in ir.graphs(graph):
        for node in each.nodes:
            if node.op == "QMoE" and "accuracy_level" in node.attrs:
                yield QUANTIZED_EXPERTS
            if node.op not in ("GroupQueryAttention", "GroupQueryAttentionSink"):
                continue
            if node.op == "GroupQueryAttentionSink" or _has_sinks(node):
                yield SINKS
            window: Any = node.attrs.get(_WINDOW.get(str(node.domain), ""), -1)
            if window > 0:
                yield WINDOWS


def _has_sinks(node: gs.Node) -> bool:
    contrib = node.domain == ops.CONTRIB_DOMAIN
    return contrib and ir.given(node.inputs, SINK_INPUT) is not None
