"""lower-attention: ONNX Runtime's decoder attention becomes the op library's.

    com.microsoft::GroupQueryAttention(QKV, , , past_key, past_value, lengths, cosines, sines)
        ->  ai.qcompiler::GroupQueryAttention(QKV, past_key, past_value, lengths, cosines, sines)

    the same of (Q, K, V, ..)            ->  the same of Concat(Q, K, V)
    the same with sinks, or smooth       ->  GroupQueryAttentionSink(.., sinks)

The same operator, in float32 as before, with a faster kernel. Queries, keys and values that were
split from one tensor are read there. What the kernel doesn't support, such as no rotary embedding
or a cache that holds the last positions only, stays, and the remark says why.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler import ir, ops
from qcompiler.analysis.requirements import SINK_INPUT
from qcompiler.passmanager import Fact, Numerics, Pass, PassContext, PassResult
from qcompiler.remarks import LeftAlone, Lowered, Remark

OP = "GroupQueryAttention"
WITHSINK_INPUT = "GroupQueryAttentionSink"

_READ = ("num_heads", "kv_num_heads", "scale")
_FIXED: dict[str, tuple[Any, ...]] = {
    "do_rotary": (1,),
    "rotary_interleaved": (0,),
    "smooth_softmax": (0, -1, 1),
    "qk_output": (0,),
    "causal": (1,),
    "sliding_window_cache": (0,),
}
"""What other attributes may say."""

_NEEDED = (0, 3, 4, 5, 6, 7, 8)
"""Inputs the kernel reads: X, the caches, lengths, and the tables of the rotary embedding."""
_SEPARATE = (0, 1, 2)
"""Queries, keys and values."""
_OTHERS = {
    9: "position_ids",
    10: "attention_bias",
    12: "k_scale",
    13: "v_scale",
    14: "q_norm_weight",
    15: "k_norm_weight",
}
"""Inputs that the kernel doesn't know."""


@dataclass(frozen=True, kw_only=True)
class LowerAttention(Pass):
    """Replace decoder attention by the op of the library."""

    name: ClassVar[str] = "lower-attention"
    numerics: ClassVar[Numerics] = Numerics.EXACT
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.IMPORTED})

    def run(self, graph: gs.Graph, ctx: PassContext) -> PassResult:
        namer = ir.Namer(graph)
        remarks: list[Remark] = []
        for node in list(graph.nodes):
            if node.op != OP or node.domain == ops.DOMAIN:
                continue
            name, reason = node.name, _veto(node)
            if reason is None:
                op = _lower(graph, node, namer)
                remarks.append(Lowered(layer=name, message=op, op=op))
            else:
                message = f"attention left to ONNX Runtime: {reason}"
                remarks.append(LeftAlone(layer=name, message=message))
        changed = any(remark.applied for remark in remarks)
        if changed:
            ir.remove_dead(graph)
        return PassResult(graph=graph, changed=changed, remarks=tuple(remarks))


def _veto(node: gs.Node) -> str | None:
    """Why the kernel can't take a node, or None."""
    given = {i for i, tensor in enumerate(node.inputs) if not tensor.is_empty()}
    for place, name in _OTHERS.items():
        if place in given:
            return f"it reads {name}"
    if not node.attrs.get("do_rotary"):
        return "it has no rotary embedding"
    if given - {SINK_INPUT} not in (set(_NEEDED), {*_NEEDED, *_SEPARATE}):
        return "its inputs are not those of attention with a cache and rotary embedding"
    if len(node.outputs) != 3 or any(tensor.is_empty() for tensor in node.outputs):
        return "its outputs are not the result and both caches"
    for name, value in node.attrs.items():
        if not _takes(name, value):
            return f"attribute {name}={value}"
    floats = given - {5, 6}
    if any(node.inputs[i].dtype not in (np.float32, None) for i in floats):
        return "it is not in float32"
    channels = _channels(node)
    if channels is None or channels % ops.HEAD_STEP:
        return f"heads of {channels or 'unknown'} channels, not a multiple of {ops.HEAD_STEP}"
    return None


def _takes(name: str, value: Any) -> bool:
    """Whether the op has what an attribute says."""
    if name == "local_window_size":
        return bool(value == -1 or 0 < value <= ops.MOST_WINDOW)
    if name == "softcap":
        return bool(0 <= value < math.inf)
    return name in _READ or value in _FIXED.get(name, ())


def _channels(node: gs.Node) -> int | None:
    """Channels of a head, where the width of the queries is known, or that of the caches."""
    parts = int(node.attrs["num_heads"])
    if node.inputs[1].is_empty():
        parts += 2 * int(node.attrs["kv_num_heads"])
    for place, heads in ((0, parts), (3, 1)):
        shape = node.inputs[place].shape
        width = shape[-1] if shape else None
        if isinstance(width, int):
            return width // heads if width % heads == 0 else None
    return None


def _lower(graph: gs.Graph, node: gs.Node, namer: ir.Namer) -> str:
    """Put our op in a node's place. Returns its type."""
    channels, read = _channels(node), node.attrs.get
    assert channels is not None  # _veto asked
    heads = int(node.attrs["num_heads"])
    attrs = {
        "num_heads": heads,
        "kv_num_heads": int(node.attrs["kv_num_heads"]),
        "scale": float(read("scale") or 1 / math.sqrt(channels)),
        "window": int(read("local_window_size", -1)),
        "softcap": float(read("softcap", 0.0)),
    }
    x = node.inputs[0] if node.inputs[1].is_empty() else _packed(graph, node, namer)
    inputs = [x, *(node.inputs[i] for i in _NEEDED[1:])]
    if (sink := ir.given(node.inputs, SINK_INPUT)) is not None:
        inputs.append(sink)
    elif read("smooth_softmax") == 1:
        zeros = np.zeros(heads, np.float32)
        inputs.append(ir.constant(namer(f"{node.name}_sinks"), zeros))
    op = WITHSINK_INPUT if len(inputs) > len(_NEEDED) else OP
    outputs, name = list(node.outputs), node.name
    node.inputs.clear()
    node.outputs.clear()
    node.name = namer(f"{name}_ort")
    ir.add_node(graph, op, name, inputs, outputs, attrs=attrs, domain=ops.DOMAIN)
    return op


def _packed(graph: gs.Graph, node: gs.Node, namer: ir.Namer) -> Any:
    """Queries, keys and values of a node as one tensor."""
    parts = [node.inputs[i] for i in _SEPARATE]
    source = ir.producer(parts[0])
    if source is not None and _gives(source, parts):
        if source.op == "Split" and not source.domain and source.attrs.get("axis", 0) in (-1, 2):
            return source.inputs[0]
        alone = not any(_read_elsewhere(graph, part) for part in parts)
        if source.domain == ops.DOMAIN and "splits" in source.attrs and alone:
            return _joined(source, namer)
    packed = _like(parts, namer(f"{node.name}_qkv"))
    ir.add_node(graph, "Concat", namer(f"{node.name}_Concat"), parts, [packed], attrs={"axis": 2})
    return packed


def _gives(source: gs.Node, parts: list[Any]) -> bool:
    """Whether these are all that a node gives, in this order."""
    same = len(source.outputs) == len(parts)
    return same and all(a is b for a, b in zip(source.outputs, parts, strict=True))


def _read_elsewhere(graph: gs.Graph, tensor: Any) -> bool:
    """Whether a tensor has more readers than one node."""
    return len(ir.consumers(tensor)) > 1 or ir.is_graph_output(graph, tensor)


def _joined(linear: gs.Node, namer: ir.Namer) -> Any:
    """The only output of a linear op of ours that had three."""
    packed = _like(linear.outputs, namer(f"{linear.name}_qkv"))
    linear.attrs["splits"] = [sum(linear.attrs["splits"]), 0, 0]
    linear.outputs = [packed, gs.Variable.empty(), gs.Variable.empty()]
    return packed


def _like(parts: Any, name: str) -> gs.Variable:
    """A tensor for these [B, S, ..] side by side."""
    shapes = [part.shape for part in parts]
    shape = None
    if all(each and isinstance(each[-1], int) for each in shapes):
        shape = [*shapes[0][:-1], sum(each[-1] for each in shapes)]
    return gs.Variable(name, dtype=parts[0].dtype, shape=shape)
