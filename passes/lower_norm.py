"""lower-norm: a residual sum and the norm that reads it become one op of the library.

    s = Add(x, skip); y = LayerNormalization(s, w, b)         ->  y, s = AddLayerNormalization(..)
    s = Add(x, skip); y = SimplifiedLayerNormalization(s, w)  ->  y, s = AddRMSNormalization(..)
    s = Add(x, skip); y = RMSNormalization(s, w)              ->  the same
    y, s = SkipSimplifiedLayerNormalization(x, skip, w)       ->  the same

Computed in float32, as before. The second output is '' where only the norm reads the sum.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler import ir, ops
from qcompiler.passmanager import Fact, Numerics, Pass, PassContext, PassResult

_AFTER_ADD = {
    "LayerNormalization": ("AddLayerNormalization", 3),
    "SimplifiedLayerNormalization": ("AddRMSNormalization", 2),
    "RMSNormalization": ("AddRMSNormalization", 2),
}
"""Norms behind an Add: the op that takes both, and how many inputs the norm must have."""

_FUSED = "SkipSimplifiedLayerNormalization"
_SUM = 3
"""The output of the fused operator that is the sum."""


@dataclass(frozen=True)
class _Found:
    op_type: str
    x: Any
    skip: Any
    parameters: list[Any]
    y: Any
    total: Any
    """The sum where something else reads it, else None."""


@dataclass(frozen=True, kw_only=True)
class LowerNorm(Pass):
    """Replace norms of residual sums by ops of the library."""

    name: ClassVar[str] = "lower-norm"
    numerics: ClassVar[Numerics] = Numerics.EXACT
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.IMPORTED})

    def run(self, graph: gs.Graph, ctx: PassContext) -> PassResult:
        namer = ir.Namer(graph)
        changed = False
        for node in list(graph.nodes):
            found = _fused(node) if node.op == _FUSED else _behind_add(graph, node)
            if found is None or not _plain(found):
                continue
            _replace(graph, node, found, namer)
            changed = True
        if changed:
            ir.remove_dead(graph)
        return PassResult(graph=graph, changed=changed)


def _fused(node: gs.Node) -> _Found | None:
    """ONNX Runtime's operator with the inputs and outputs that the op has too."""
    given = [tensor for tensor in node.inputs if not tensor.is_empty()]
    outputs = [None if tensor.is_empty() else tensor for tensor in node.outputs]
    outputs += [None] * (_SUM + 1 - len(outputs))
    if len(given) != 3 or outputs[0] is None or any(outputs[1:_SUM]):
        return None
    x, skip, weight = given
    return _Found("AddRMSNormalization", x, skip, [weight], outputs[0], outputs[_SUM])


def _behind_add(graph: gs.Graph, node: gs.Node) -> _Found | None:
    """A norm over the last axis of a sum."""
    if node.op not in _AFTER_ADD or node.domain == ops.DOMAIN:
        return None
    op_type, count = _AFTER_ADD[node.op]
    add = ir.producer(node.inputs[0], "Add")
    if add is None or len(node.inputs) != count or len(node.outputs) != 1:
        return None
    total = add.outputs[0]
    rank = ir.tensor_rank(total)
    axis = node.attrs.get("axis", -1)
    if axis != -1 and (rank is None or axis != rank - 1):
        return None
    others = len(ir.consumers(total)) > 1 or ir.is_graph_output(graph, total)
    parameters = list(node.inputs[1:])
    x, skip = add.inputs
    return _Found(op_type, x, skip, parameters, node.outputs[0], total if others else None)


def _plain(found: _Found) -> bool:
    """Float32 throughout, two summands of one known shape, vectors for weight and bias."""
    x, skip = found.x, found.skip
    shapes = x.shape is not None and skip.shape is not None and len(x.shape) > 0
    if not shapes or list(x.shape) != list(skip.shape) or None in x.shape:
        return False
    vectors = all(list(each.shape or []) == [x.shape[-1]] for each in found.parameters)
    return vectors and all(each.dtype == np.float32 for each in (x, skip, *found.parameters))


def _replace(graph: gs.Graph, node: gs.Node, found: _Found, namer: ir.Namer) -> None:
    epsilon = float(node.attrs.get("epsilon", 1e-5))
    name, node.name = node.name, namer(f"{node.name}_ort")
    add = ir.producer(found.total, "Add") if found.total is not None else None
    for old in (node, add):
        if old is not None:
            old.outputs.clear()
    node.inputs.clear()
    if add is not None:
        add.inputs.clear()
    total = gs.Variable.empty() if found.total is None else found.total
    inputs = [found.x, found.skip, *found.parameters]
    ir.add_node(
        graph,
        found.op_type,
        name,
        inputs,
        [found.y, total],
        attrs={"epsilon": epsilon},
        domain=ops.DOMAIN,
    )
