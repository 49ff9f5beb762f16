"""lower-gate: the gate of an MLP becomes one op of the library.

    gate * Sigmoid(gate) * up  ->  SwiGLU(gate, up)

In float32 as before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler import ir, ops
from qcompiler.ir.matcher import Match, find, op, var
from qcompiler.passmanager import Fact, Numerics, Pass, PassContext, PassResult

SWIGLU = op(
    "Mul",
    op("Mul", var("gate"), op("Sigmoid", var("gate")), commutative=True),
    var("up"),
    commutative=True,
)


@dataclass(frozen=True, kw_only=True)
class LowerGate(Pass):
    """Hand gated activations to the op library."""

    name: ClassVar[str] = "lower-gate"
    numerics: ClassVar[Numerics] = Numerics.EXACT
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.IMPORTED})

    def run(self, graph: gs.Graph, ctx: PassContext) -> PassResult:
        namer = ir.Namer(graph)
        changed = False
        for found in find(SWIGLU, graph):
            if not _plain(found):
                continue
            root, output = found.root, found.root.outputs[0]
            name, root.name = root.name, namer(f"{root.name}_ort")
            root.inputs.clear()
            root.outputs.clear()
            inputs = [found["gate"], found["up"]]
            ir.add_node(graph, "SwiGLU", name, inputs, [output], attrs={}, domain=ops.DOMAIN)
            changed = True
        if changed:
            ir.remove_dead(graph)
        return PassResult(graph=graph, changed=changed)


def _plain(found: Match) -> bool:
    """Float32, and two tensors of one known shape."""
    gate, up = found["gate"], found["up"]
    shapes = gate.shape is not None and up.shape is not None
    same = shapes and list(gate.shape) == list(up.shape) and None not in gate.shape
    return same and gate.dtype == up.dtype == np.float32
