"""What a gradient can reach."""

from __future__ import annotations

from collections.abc import Set

import onnx

from qcompiler.autodiff.kinds import MAYBE_FLOAT, Kinds
from qcompiler.protos import reads


def depends(node: onnx.NodeProto, found: Set[str]) -> bool:
    """Whether a node reads one of some tensors."""
    return not found.isdisjoint(reads(node))


def active(graph: onnx.GraphProto, sources: Set[str], kinds: Kinds) -> set[str]:
    """The tensors of floats that depend on `sources` by way of floats; nodes are in order."""
    found = {name for name in sources if kinds.elem(name) in MAYBE_FLOAT}
    for node in graph.node:
        if depends(node, found):
            outputs = filter(None, node.output)
            found.update(name for name in outputs if kinds.elem(name) in MAYBE_FLOAT)
    return found
