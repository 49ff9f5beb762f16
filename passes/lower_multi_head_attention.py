"""lower-multi-head-attention: an encoder's attention, in any of its forms, becomes one op.

    heads(X) = Transpose(Reshape(X, [B, S, H, d]), [0, 2, 1, 3]), and back

    back(Softmax(c * heads(Q) heads(K)^T [+ mask]) heads(V))
        ->  MultiHeadAttention(Q, K, V, mask)

Computed in float32, as before. The scale may be applied to the scores or to either factor. A Where
may turn rows that are NaN into zeros. Of any other product of a softmax by values, a remark says
where it departs from this.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler import ir, ops
from qcompiler.ir.matcher import Match, Mismatch, Op, Pattern, const, either, find, match, op, var
from qcompiler.passmanager import Fact, Numerics, Pass, PassContext, PassResult
from qcompiler.remarks import LeftAlone, Lowered, Remark

OP = "MultiHeadAttention"


def _heads(name: str) -> Op:
    split = op("Reshape", var(name), ...)
    return op("Transpose", split, attrs={"perm": [0, 2, 1, 3]}, capture=f"{name}_heads")


def _turned(name: str) -> Pattern:
    """The heads of K, channels before keys."""
    split = op("Reshape", var(name), ...)
    at_once = op("Transpose", split, attrs={"perm": [0, 2, 3, 1]})
    after = op("Transpose", _heads(name), attrs={"perm": [0, 1, 3, 2]})
    flat = op("Reshape", _heads(name), ..., capture="flat")
    as_three = op("Transpose", flat, attrs={"perm": [0, 2, 1]})
    return either(at_once, after, op("Reshape", as_three, ...))


def _scaled(x: Pattern, name: str) -> Pattern:
    factor = op("Mul", x, const(f"{name}_factor", size=1), commutative=True)
    return either(factor, op("Div", x, const(f"{name}_divisor", size=1)), x)


_SCORES = _scaled(
    op("MatMul", _scaled(_heads("q"), "q"), _scaled(_turned("k"), "k"), capture="scores"), "scores"
)
_SOFTMAX = op(
    "Softmax",
    either(op("Add", _SCORES, var("mask"), commutative=True), _SCORES),
    attrs={"axis": {-1, 3, None}},
    capture="weights",
)
_GUARDED = op("Where", op("IsNaN", var("weights"), capture="guard"), const(value=0.0), _SOFTMAX)
_PRODUCT = op("MatMul", either(_GUARDED, _SOFTMAX), _heads("v"), capture="product")
ATTENTION = op("Reshape", op("Transpose", _PRODUCT, attrs={"perm": [0, 2, 1, 3]}), ...)

_CARRIERS = ("Cast", "Dropout", "Identity", "Reshape", "Transpose", "Where")
"""What may stand between a softmax and the product with the values."""

_ONE_OPERATOR = ("MultiHeadAttention", "DecoderMaskedMultiHeadAttention", "Attention")


@dataclass(frozen=True, kw_only=True)
class LowerMultiHeadAttention(Pass):
    """Replace an encoder's attention by the op of the library."""

    name: ClassVar[str] = "lower-multi-head-attention"
    numerics: ClassVar[Numerics] = Numerics.EXACT
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.IMPORTED})

    def run(self, graph: gs.Graph, ctx: PassContext) -> PassResult:
        namer = ir.Namer(graph)
        remarks: list[Remark] = []
        matches = find(ATTENTION, graph)
        missed = {**_whole(graph), **_missed(graph, matches)}
        for found in matches:
            name, reason = found.node("product").name, _veto(found)
            if reason is None:
                _lower(graph, found, name, namer)
                remarks.append(Lowered(layer=name, message=OP, op=OP))
            else:
                missed[name] = reason
        remarks += [
            LeftAlone(layer=name, message=f"attention left to ONNX Runtime: {reason}")
            for name, reason in missed.items()
        ]
        changed = any(remark.applied for remark in remarks)
        if changed:
            ir.remove_dead(graph)
        return PassResult(graph=graph, changed=changed, remarks=tuple(remarks))


def _whole(graph: gs.Graph) -> dict[str, str]:
    """Nodes that are attention already, with the reason why they stay."""
    # com.microsoft's Attention multiplies by weights too, which is said of it elsewhere.
    return {
        str(node.name): f"{node.op} is one operator already"
        for node in graph.nodes
        if node.op in _ONE_OPERATOR
        and node.domain != ops.DOMAIN
        and not (node.op == "Attention" and node.domain)
    }


def _missed(graph: gs.Graph, matches: Sequence[Match]) -> dict[str, str]:
    """Products of a softmax by computed values that are in no match, and where each departs."""
    taken = {id(node) for found in matches for node in found.nodes}
    softmaxes = [node for node in graph.nodes if node.op == "Softmax" and id(node) not in taken]
    products = filter(None, map(_product_behind, softmaxes))
    return {str(node.name): _departure(node, graph) for node in products}


def _product_behind(softmax: gs.Node) -> gs.Node | None:
    """The product of what a softmax gives by something computed, with carriers in between."""
    waiting = list(softmax.outputs)
    while waiting:
        tensor = waiting.pop(0)
        for node in ir.consumers(tensor):
            if node.op in ("MatMul", "Einsum"):
                if node.inputs[0] is tensor and not any(map(ir.is_constant, node.inputs)):
                    return node
            elif node.op in _CARRIERS:
                waiting += node.outputs
    return None


def _departure(product: gs.Node, graph: gs.Graph) -> str:
    """Where the attention around a product is another than the pattern's."""
    inner = match(_PRODUCT, product, graph)
    if isinstance(inner, Mismatch):
        return inner.reason
    node = product
    for wanted in ("Transpose", "Reshape"):
        readers = ir.consumers(node.outputs[0])
        following = next((reader for reader in readers if reader.op == wanted), None)
        if following is None:
            # A Shape only looks at sizes.
            named = [f"{r.op} '{r.name}'" for r in readers if r.op != "Shape"]
            others = ", ".join(named)
            return f"no {wanted} follows {node.op} '{node.name}', but {others or 'nothing'}"
        node = following
    outer = match(ATTENTION, node, graph)
    return outer.reason if isinstance(outer, Mismatch) else "it shares nodes with another attention"


def _veto(found: Match) -> str | None:
    """Why the kernel can't take it, or None."""
    tensors = [found["q"], found["k"], found["v"], found.root.outputs[0]]
    if any(t.dtype != np.float32 for t in tensors):
        return "it is not in float32"
    q, k, v, y = (_dims(t) for t in tensors)
    heads, values = _dims(found["q_heads"]), _dims(found["v_heads"])
    scores = _dims(found["scores"])
    if not (len(q) == len(k) == len(v) == len(y) == 3 and len(heads) == len(values) == 4):
        return "the shapes of its tensors are not known"
    count, channels = heads[1], heads[3]
    if not isinstance(count, int) or not isinstance(channels, int):
        return "the number of heads and channels is not known"
    width = count * channels
    if q != [q[0], q[1], width] or k != [q[0], k[1], width] or v != k or y != q:
        return "its queries, keys, values and result differ in width or batch"
    if heads != [q[0], count, q[1], channels] or values != [q[0], count, k[1], channels]:
        return "its heads are not cut from the last axis"
    if scores != [q[0], count, q[1], k[1]]:
        return "its scores are not queries by keys"
    if "flat" in found and _dims(found["flat"])[1:] != [k[1], channels]:
        return "its keys are not turned head by head"
    if channels % ops.HEAD_STEP:
        return f"heads of {channels} channels, not a multiple of {ops.HEAD_STEP}"
    mask = found.get("mask")
    if mask is None:
        return None
    dims = _dims(mask)
    if len(dims) != 4 or mask.dtype != np.float32:
        return "its mask is not a float32 tensor of four axes"
    if dims[3] != k[1] or any(d not in (1, full) for d, full in zip(dims, scores, strict=True)):
        return f"its mask has shape {dims}, which may not be that of the scores"
    return None


def _dims(tensor: Any) -> list[Any]:
    """The shape, empty where any of it is not known."""
    shape = tensor.shape
    return [] if shape is None or any(d in (None, "") for d in shape) else list(shape)


def _lower(graph: gs.Graph, found: Match, name: str, namer: ir.Namer) -> None:
    root, output = found.root, found.root.outputs[0]
    found.node("product").name = namer(f"{name}_ort")
    root.inputs.clear()
    root.outputs.clear()
    mask = found.get("mask")
    if mask is None:
        mask = ir.constant(namer(f"{name}_mask"), np.zeros(1, np.float32))
    scale = 1.0
    for part in ("q", "k", "scores"):
        if f"{part}_factor" in found:
            scale *= found.array(f"{part}_factor").item()
        elif f"{part}_divisor" in found:
            scale /= found.array(f"{part}_divisor").item()
    attrs = {
        "num_heads": _dims(found["q_heads"])[1],
        "scale": float(scale),
        "nan_is_zero": int("guard" in found),
    }
    inputs = [found["q"], found["k"], found["v"], mask]
    ir.add_node(graph, OP, name, inputs, [output], attrs=attrs, domain=ops.DOMAIN)
