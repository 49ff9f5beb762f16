"""quantize-weights: float weights become group-wise integers behind a DequantizeLinear.

    MatMul(X, W[K, N])  ->  MatMul(X, DequantizeLinear(codes, scales[G, N], zeros?, axis=0))

float16 and bfloat16 layers are computed in float32 between two casts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from qcompiler import ir
from qcompiler.analysis.linears import Linear, find_linears
from qcompiler.analysis.qdq import insert_weight_dq
from qcompiler.numerics.rounding import QuantizedWeight, Search, quantize_weight, sqnr_db
from qcompiler.passmanager import Fact, Numerics, Pass, PassContext, PassResult, Remark

GroupSize = Literal[32, 64, 128, 256]
Bits = Literal[4, 8]


@dataclass(frozen=True, kw_only=True)
class QuantizeWeights(Pass):
    """Round the weights of planned linear layers to 4 or 8 bits in groups of input channels."""

    name: ClassVar[str] = "quantize-weights"
    numerics: ClassVar[Numerics] = Numerics.LOSSY
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.CANONICAL, Fact.PLANNED})
    provides: ClassVar[frozenset[Fact]] = frozenset({Fact.WEIGHTS_QUANTIZED})

    bits: Bits = 4
    group_size: GroupSize = 128
    symmetric: bool = True
    search: Search = "none"
    """Range of a group: as found, least weight error ("mse"), least output error ("output")."""
    head_bits: Bits = 8
    """Bits of layers whose result is an output of the model (the language-model head)."""
    min_channels: int = 32
    """Layers with fewer input channels are left alone: nothing to gain."""

    def run(self, graph: gs.Graph, ctx: PassContext) -> PassResult:
        linears, _ = find_linears(graph)
        linears = [linear for linear in linears if linear.name in ctx.plan]
        namer = ir.Namer(graph)
        done: dict[int, tuple[Any, dict[str, Any]]] = {}
        remarks: list[Remark] = []
        for index, linear in enumerate(linears):
            ctx.tick("quantizing weights", index, len(linears))
            weight = linear.weight
            if linear.shape[0] < self.min_channels:
                reason = f"only {linear.shape[0]} input channels"
                remarks.append(Remark(layer=linear.name, applied=False, message=reason))
                continue
            if id(weight) not in done:
                try:
                    done[id(weight)] = self._quantize(graph, linear, ctx, namer)
                except ValueError as error:
                    message = str(error)
                    remarks.append(Remark(layer=linear.name, applied=False, message=message))
                    continue
            dequantized, data = done[id(weight)]
            _use(graph, linear, dequantized, namer)
            kind = "asymmetric" if data["symmetric"] is False else "symmetric"
            message = f"int{data['bits']} {kind}, group {data['group_size']}"
            remarks.append(Remark(layer=linear.name, applied=True, message=message, data=data))
        ctx.tick("quantizing weights", len(linears), len(linears))
        if done:
            ir.remove_dead(graph)
        return PassResult(graph=graph, changed=bool(done), remarks=tuple(remarks))

    def _quantize(
        self, graph: gs.Graph, linear: Linear, ctx: PassContext, namer: ir.Namer
    ) -> tuple[Any, dict[str, Any]]:
        importance = None
        if ctx.statistics is not None and linear.x.name in ctx.statistics.tensors:
            importance = ctx.statistics.tensors[linear.x.name].mean_square
        values = np.asarray(ir.array(linear.weight), np.float32)
        head = ir.is_graph_output(graph, linear.output)
        quantized = quantize_weight(
            values,
            bits=self.head_bits if head else self.bits,
            group_size=self.group_size,
            symmetric=self.symmetric,
            search=self.search,
            importance=importance,
        )
        data = describe(quantized, values, linear.weight, kind="linear")
        return insert_weight_dq(graph, quantized, str(linear.weight.name), namer), data


def describe(
    quantized: QuantizedWeight, values: Any, source: gs.Constant, *, kind: str
) -> dict[str, Any]:
    """What the report says of one quantized weight; `values` is its float [K, N] form."""
    rows, columns = quantized.codes.shape
    return {
        "kind": kind,
        "K": rows,
        "N": columns,
        "bits": quantized.bits,
        "group_size": quantized.group_size,
        "symmetric": quantized.zero_points is None,
        "sqnr_db": chunked_sqnr_db(values, quantized),
        "bytes_before": ir.nbytes(source),
        "bytes_after": quantized.nbytes(),
    }


def chunked_sqnr_db(values: Any, quantized: QuantizedWeight) -> float:
    """Signal-to-noise of a weight, over at most 4096 evenly spaced columns: memory stays small."""
    step = max(1, values.shape[1] // 4096)
    part = QuantizedWeight(
        quantized.codes[:, ::step],
        quantized.scales[:, ::step],
        None if quantized.zero_points is None else quantized.zero_points[:, ::step],
        quantized.bits,
        quantized.group_size,
    )
    return sqnr_db(values[:, ::step], part.dequantize())


def _use(graph: gs.Graph, linear: Linear, dequantized: Any, namer: ir.Namer) -> None:
    """Make a layer read the dequantized weight, in float32 whatever type it had."""
    node = linear.node
    source = ir.elem_type(linear.weight)
    node.inputs[1] = dequantized
    if source == onnx.TensorProto.FLOAT:
        return
    x, y = node.inputs[0], node.outputs[0]
    wide = gs.Variable(namer(f"{x.name}_float"), np.dtype(np.float32), x.shape)
    narrow = gs.Variable(namer(f"{y.name}_float"), np.dtype(np.float32), y.shape)
    ir.add_node(
        graph,
        "Cast",
        namer(f"{node.name}/CastIn"),
        [x],
        [wide],
        attrs={"to": onnx.TensorProto.FLOAT},
    )
    node.inputs[0] = wide
    node.outputs = [narrow]
    ir.add_node(graph, "Cast", namer(f"{node.name}/CastOut"), [narrow], [y], attrs={"to": source})
