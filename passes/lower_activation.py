"""lower-activation: the activation function of an MLP becomes one op of the library.

    gate * Sigmoid(gate) * up                ->  SwiGLU(gate, up)
    Gelu(x), x * (1 + Erf(x / sqrt(2))) / 2  ->  Gelu(x), or GeluTanh(x) for its tanh form

Computed in float32, as before.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler import ir, ops
from qcompiler.ir.matcher import Match, Op, const, either, find, op, var
from qcompiler.passmanager import Fact, Numerics, Pass, PassContext, PassResult


def _times(a: Any, b: Any) -> Op:
    return op("Mul", a, b, commutative=True)


SWIGLU = _times(_times(var("gate"), op("Sigmoid", var("gate"))), var("up"))

_ROOT = math.sqrt(2)
_ERF = op(
    "Erf",
    either(op("Div", var("x"), const(value=_ROOT)), _times(var("x"), const(value=1 / _ROOT))),
)
_SHARE = op("Add", _ERF, const(value=1.0), commutative=True)
_HALF = const(value=0.5)

_ACTIVATIONS: tuple[tuple[Op, str, tuple[str, ...]], ...] = (
    (SWIGLU, "SwiGLU", ("gate", "up")),
    (op("Gelu", var("x"), attrs={"approximate": {None, "none"}}), "Gelu", ("x",)),
    (op("Gelu", var("x"), attrs={"approximate": "tanh"}), "GeluTanh", ("x",)),
    (_times(_times(var("x"), _SHARE), _HALF), "Gelu", ("x",)),
    (_times(_times(var("x"), _HALF), _SHARE), "Gelu", ("x",)),
    (_times(var("x"), _times(_SHARE, _HALF)), "Gelu", ("x",)),
)


@dataclass(frozen=True, kw_only=True)
class LowerActivation(Pass):
    """Replace SwiGLU and GELU by ops of the library."""

    name: ClassVar[str] = "lower-activation"
    numerics: ClassVar[Numerics] = Numerics.EXACT
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.IMPORTED})

    def run(self, graph: gs.Graph, ctx: PassContext) -> PassResult:
        namer = ir.Namer(graph)
        changed = False
        for pattern, op_type, names in _ACTIVATIONS:
            for found in find(pattern, graph):
                inputs = [found[name] for name in names]
                if found.root.domain != ops.DOMAIN and _plain(inputs):
                    _replace(graph, found, op_type, inputs, namer)
                    changed = True
        if changed:
            ir.remove_dead(graph)
        return PassResult(graph=graph, changed=changed)


def _plain(inputs: list[Any]) -> bool:
    """Float32, and where there are two, of one known shape."""
    shapes = [None if each.shape is None else list(each.shape) for each in inputs]
    known = all(shape is not None and None not in shape for shape in shapes)
    alike = len(inputs) == 1 or (known and shapes[0] == shapes[1])
    return alike and all(each.dtype == np.float32 for each in inputs)


def _replace(
    graph: gs.Graph, found: Match, op_type: str, inputs: list[Any], namer: ir.Namer
) -> None:
    root, output = found.root, found.root.outputs[0]
    name, root.name = root.name, namer(f"{root.name}_ort")
    root.inputs.clear()
    root.outputs.clear()
    ir.add_node(graph, op_type, name, inputs, [output], attrs={}, domain=ops.DOMAIN)
