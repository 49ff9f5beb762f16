"""lower-attention: ONNX Runtime's decoder attention becomes the op library's.

    com.microsoft::GroupQueryAttention(QKV, , , past_key, past_value, lengths, cosines, sines)
        ->  ai.qcompiler::GroupQueryAttention(QKV, past_key, past_value, lengths, cosines, sines)

The same operator, in float32 as before, with a faster kernel. Only the form that this kernel
supports is replaced: packed queries, keys and values, rotary embedding, causal. Anything else
stays, and the remark says why.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler import ir, ops
from qcompiler.passmanager import Fact, Numerics, Pass, PassContext, PassResult
from qcompiler.remarks import LeftAlone, Lowered, Remark

OP = "GroupQueryAttention"

_READ = ("num_heads", "kv_num_heads", "scale")
_FIXED: dict[str, tuple[Any, ...]] = {
    "do_rotary": (1,),
    "rotary_interleaved": (0,),
    "local_window_size": (-1,),
    "softcap": (0.0,),
    "smooth_softmax": (0, -1),
    "qk_output": (0,),
}
"""What other attributes may say."""

_PRESENT = (0, 3, 4, 5, 6, 7, 8)
"""Inputs the kernel reads: X, the caches, lengths, and the tables of the rotary embedding."""


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
                _lower(graph, node, namer)
                remarks.append(Lowered(layer=name, message=OP, op=OP))
            else:
                message = f"attention left to ONNX Runtime: {reason}"
                remarks.append(LeftAlone(layer=name, message=message))
        changed = any(remark.applied for remark in remarks)
        if changed:
            ir.remove_dead(graph)
        return PassResult(graph=graph, changed=changed, remarks=tuple(remarks))


def _veto(node: gs.Node) -> str | None:
    """Why the kernel can't take a node, or None."""
    given = [i for i, tensor in enumerate(node.inputs) if not tensor.is_empty()]
    if tuple(given) != _PRESENT:
        return "its inputs are not those of packed QKV with a cache and rotary embedding"
    if len(node.outputs) != 3 or any(tensor.is_empty() for tensor in node.outputs):
        return "its outputs are not the result and both caches"
    for name, value in node.attrs.items():
        if name not in _READ and value not in _FIXED.get(name, ()):
            return f"attribute {name}={value}"
    if not node.attrs.get("do_rotary"):
        return "it has no rotary embedding"
    if any(node.inputs[i].dtype not in (np.float32, None) for i in (0, 3, 4, 7, 8)):
        return "it is not in float32"
    channels = _channels(node)
    if channels is None or channels % ops.HEAD_STEP:
        return f"heads of {channels or 'unknown'} channels, not a multiple of {ops.HEAD_STEP}"
    return None


def _channels(node: gs.Node) -> int | None:
    """Channels of a head, where the width of X is known."""
    shape = node.inputs[0].shape
    width = shape[-1] if shape else None
    parts = int(node.attrs["num_heads"]) + 2 * int(node.attrs["kv_num_heads"])
    return width // parts if isinstance(width, int) and width % parts == 0 else None


def _lower(graph: gs.Graph, node: gs.Node, namer: ir.Namer) -> None:
    channels = _channels(node)
    assert channels is not None  # _veto asked
    attrs = {
        "num_heads": int(node.attrs["num_heads"]),
        "kv_num_heads": int(node.attrs["kv_num_heads"]),
        "scale": float(node.attrs.get("scale") or 1 / math.sqrt(channels)),
    }
    inputs = [node.inputs[i] for i in _PRESENT]
    outputs, name = list(node.outputs), node.name
    node.inputs.clear()
    node.outputs.clear()
    node.name = namer(f"{name}_ort")
    ir.add_node(graph, OP, name, inputs, outputs, attrs=attrs, domain=ops.DOMAIN)
