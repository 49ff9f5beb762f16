"""fuse-norm: decomposed normalizations become one node.

    w * (x * (1 / sqrt(mean(x^2) + eps)))           ->  SimplifiedLayerNormalization(x, w)
    (x - mean(x)) / sqrt(var(x) + eps) * w + b      ->  LayerNormalization(x, w, b)

The first is ONNX Runtime's operator, so targets for any runtime use `standard_only`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler import ir
from qcompiler.ir.matcher import Match, Op, const, either, find, op, var
from qcompiler.passmanager import Fact, Numerics, Pass, PassContext, PassResult


def _power(x: Any) -> Any:
    """x squared, either way it is written."""
    return either(op("Pow", x, const(value=2.0)), op("Mul", x, x))


def _mean(x: Any, capture: str) -> Op:
    return op("ReduceMean", x, ..., capture=capture, attrs={"keepdims": {1, None}})


def _root(x: Any) -> Op:
    shifted = op("Add", _mean(_power(x), "variance"), const("epsilon", size=1), commutative=True)
    return op("Sqrt", shifted)


def _scaled(x: Any) -> Any:
    """x / sqrt(..), either way it is written."""
    return either(
        op("Mul", x, op("Reciprocal", _root(x)), commutative=True),
        op("Mul", x, op("Div", const(value=1.0), _root(x)), commutative=True),
        op("Div", x, _root(x)),
    )


_RMS_NORM = op("Mul", _scaled(var("x")), const("weight", rank=1), commutative=True)
_CENTERED = op("Sub", var("x"), _mean(var("x"), "mean"))
_LAYER_NORM = op(
    "Add",
    op("Mul", _scaled(_CENTERED), const("weight", rank=1), commutative=True),
    const("bias", rank=1),
    commutative=True,
)


@dataclass(frozen=True, kw_only=True)
class FuseNorm(Pass):
    """Recognise decomposed RMSNorm and LayerNorm and fuse each into one node."""

    name: ClassVar[str] = "fuse-norm"
    numerics: ClassVar[Numerics] = Numerics.EXACT
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.IMPORTED})

    standard_only: bool = False
    """Emit only operators of the ONNX standard."""

    def run(self, graph: gs.Graph, ctx: PassContext) -> PassResult:
        namer = ir.Namer(graph)
        changed = False
        for found in find(_LAYER_NORM, graph):
            inputs = [found["x"], found["weight"], found["bias"]]
            if _last_axis(found, "variance") and _last_axis(found, "mean"):
                _replace(graph, found, "LayerNormalization", inputs, namer)
                changed = True
        for found in [] if self.standard_only else find(_RMS_NORM, graph):
            inputs = [found["x"], found["weight"]]
            if _last_axis(found, "variance") and found["x"].dtype == np.float32:
                _replace(graph, found, "SimplifiedLayerNormalization", inputs, namer)
                changed = True
        if changed:
            ir.remove_dead(graph)
        return PassResult(graph=graph, changed=changed)


def _last_axis(found: Match, capture: str) -> bool:
    node = found.node(capture)
    axes = node.attrs.get("axes")
    if axes is None and len(node.inputs) > 1 and ir.is_constant(node.inputs[1]):
        axes = ir.array(node.inputs[1]).tolist()
    rank = ir.tensor_rank(found["x"])
    return list(axes or []) in ([-1], [] if rank is None else [rank - 1])


def _replace(
    graph: gs.Graph, found: Match, op_type: str, inputs: list[Any], namer: ir.Namer
) -> None:
    root = found.root
    output = root.outputs[0]
    name = root.name
    root.inputs.clear()
    root.outputs.clear()
    root.name = namer(f"{name}_decomposed")
    attrs = {
        "axis": -1,
        "epsilon": float(found.array("epsilon").reshape(-1)[0]),
        "stash_type": 1,
    }
    ir.add_node(graph, op_type, name, inputs, [output], attrs=attrs)
