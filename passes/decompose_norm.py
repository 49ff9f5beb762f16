"""decompose-norm: a norm that ONNX has no operator for is spelled out, as ONNX Runtime fuses it.

    SimplifiedLayerNormalization(x, w)  ->  x / sqrt(mean(x^2) + eps) * w

ONNX Runtime knows the operator in ONNX's own domain, where ONNX does not. `fuse-norm` makes it for
the passes that follow, and ONNX Runtime makes it again when it loads the model. A model that came
with it keeps it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from qcompiler import ir
from qcompiler.passmanager import Fact, Numerics, Pass, PassContext, PassResult

_OP = "SimplifiedLayerNormalization"
_FLOAT = np.dtype(np.float32)


@dataclass(frozen=True, kw_only=True)
class DecomposeNorm(Pass):
    """Spell out the norms of the last axis that the source had spelled out."""

    name: ClassVar[str] = "decompose-norm"
    numerics: ClassVar[Numerics] = Numerics.EXACT
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.IMPORTED})

    def run(self, graph: gs.Graph, ctx: PassContext) -> PassResult:
        norms = [node for node in graph.nodes if _is_norm(node)]
        if not norms or _OP in ctx.borrowed:
            return PassResult(graph=graph, changed=False)
        namer = ir.Namer(graph)
        for node in norms:
            _spell_out(graph, node, namer)
        ir.remove_dead(graph)
        return PassResult(graph=graph, changed=True)


def _is_norm(node: gs.Node) -> bool:
    plain = node.op == _OP and not node.domain and len(node.outputs) == 1
    return plain and ir.attribute(node, "axis", -1) == -1


def _spell_out(graph: gs.Graph, node: gs.Node, namer: ir.Namer) -> None:
    """In float32, whatever the type of x; the product with w in the type of x."""
    x, weight = node.inputs
    output, base = node.outputs[0], node.name
    epsilon = np.asarray(ir.attribute(node, "epsilon", 1e-5), _FLOAT)
    row = None if x.shape is None else [*x.shape[:-1], 1]

    def add(op: str, inputs: list[Any], shape: Any, dtype: Any = _FLOAT, **attrs: Any) -> Any:
        made = gs.Variable(namer(f"{output.name}_{op}"), dtype, shape)
        ir.add_node(graph, op, namer(f"{base}/{op}"), inputs, [made], attrs=attrs)
        return made

    def constant(what: str, values: Any) -> gs.Constant:
        return ir.constant(namer(f"{output.name}_{what}"), values)

    node.inputs.clear()
    node.outputs.clear()
    node.name = namer(f"{base}_fused")
    wide = x
    rank = ir.tensor_rank(x)
    if ir.producer(x, "DequantizeLinear") is not None and rank is not None:
        # ONNX Runtime gives each reader of a DequantizeLinear one of its own; then it sees no norm.
        wide = add("Reshape", [x, constant("shape", np.zeros(rank, np.int64))], x.shape)
    if x.dtype != _FLOAT:
        wide = add("Cast", [x], x.shape, to=int(onnx.TensorProto.FLOAT))
    square = add("Pow", [wide, constant("two", np.asarray(2, _FLOAT))], x.shape)
    axes = constant("axes", np.asarray([-1], np.int64))
    mean = add("ReduceMean", [square, axes], row, keepdims=1)
    root = add("Sqrt", [add("Add", [mean, constant("epsilon", epsilon)], row)], row)
    scaled = add("Div", [wide, root], x.shape)
    if x.dtype != _FLOAT:
        to = int(onnx.helper.np_dtype_to_tensor_dtype(x.dtype))
        scaled = add("Cast", [scaled], x.shape, x.dtype, to=to)
    ir.add_node(graph, "Mul", base, [scaled, weight], [output])
