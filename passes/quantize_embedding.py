"""quantize-embedding: look-up tables in 8 bits, one copy for a table tied to the head.

    Gather(E[N, K], ids)             ->  DequantizeLinear(Gather(codes[N, K], ids),
                                                          Gather(scales[N, G], ids), axis=-1)
    Gather(Transpose(W[K, N]), ids)  ->  the same over Transpose(codes[K, N]), which the head
    MatMul(X, W)                         reads too: MatMul(X, DequantizeLinear(codes, scales))

Only the rows that are looked up are ever dequantized.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from qcompiler import ir
from qcompiler.analysis.linears import find_linears, find_tables
from qcompiler.analysis.qdq import weight_constants
from qcompiler.numerics.rounding import Search, quantize_weight
from qcompiler.passes.quantize_weights import describe
from qcompiler.passmanager import (
    Fact,
    Numerics,
    Pass,
    PassContext,
    PassResult,
    Remark,
    excluding_pattern,
)


@dataclass(frozen=True, kw_only=True)
class QuantizeEmbedding(Pass):
    """Quantize embedding tables, and the heads tied to them, to 8 bits in groups along a row."""

    name: ClassVar[str] = "quantize-embedding"
    numerics: ClassVar[Numerics] = Numerics.LOSSY
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.CANONICAL})

    group_size: Literal[32, 64, 128, 256] = 64
    """64 divides the hidden size of nearly every model, which sharing with the head can need."""
    search: Search = "none"
    min_rows: int = 1024
    """Tables with fewer rows (positions, token types) are left in float."""

    def run(self, graph: gs.Graph, ctx: PassContext) -> PassResult:
        namer = ir.Namer(graph)
        remarks: list[Remark] = []
        changed = False
        for gather, table, transposed in find_tables(graph):
            rows = int(table.shape[1 if transposed else 0])
            pattern = excluding_pattern(ctx, gather.name)
            reason = None
            if pattern is not None:
                reason = f"excluded by pattern '{pattern}'"
            elif rows < self.min_rows:
                reason = f"a small table ({rows} rows), kept in float"
            elif ir.tensor_rank(gather.outputs[0]) == 1:  # ORT blocks no vectors
                reason = "it looks up a single row, kept in float"
            if reason is not None:
                data = {"kind": "embedding"}
                remarks.append(Remark(layer=gather.name, applied=False, message=reason, data=data))
                continue
            remarks += self._rewrite(graph, gather, table, transposed, ctx, namer)
            changed = True
        if changed:
            ir.remove_dead(graph)
        return PassResult(graph=graph, changed=changed, remarks=tuple(remarks))

    def _rewrite(
        self,
        graph: gs.Graph,
        gather: gs.Node,
        table: Any,
        transposed: bool,
        ctx: PassContext,
        namer: ir.Namer,
    ) -> list[Remark]:
        stored = np.asarray(ir.array(table), np.float32)
        weight = stored if transposed else stored.T
        quantized = quantize_weight(weight, bits=8, group_size=self.group_size, search=self.search)
        base = str(table.name)
        codes, scales = weight_constants(quantized, base, namer)
        if not transposed:
            codes = ir.constant(codes.name, np.ascontiguousarray(ir.array(codes).T))
            scales = ir.constant(scales.name, np.ascontiguousarray(ir.array(scales).T))
        data = describe(quantized, weight, table, kind="embedding")
        linears = [
            linear
            for linear in find_linears(graph)[0]
            if linear.weight is table and linear.name in ctx.plan
        ]
        same_type = ir.elem_type(table) == onnx.TensorProto.FLOAT
        tied = bool(transposed and linears and same_type)
        remarks = [
            Remark(
                layer=gather.name, applied=True, message="int8 table", data=data | {"tied": tied}
            )
        ]
        if tied:
            output = gs.Variable(namer(f"{base}_dq"), np.dtype(np.float32), list(weight.shape))
            ir.add_node(
                graph,
                "DequantizeLinear",
                namer(f"{base}_DequantizeLinear"),
                [codes, scales],
                [output],
                attrs={"axis": 0, "block_size": self.group_size},
            )
            shared = data | {"kind": "linear", "tied": True, "bytes_before": 0, "bytes_after": 0}
            for linear in linears:
                linear.node.inputs[1] = output
                message = f"int8 symmetric, group {self.group_size}, tied to '{gather.name}'"
                remarks.append(
                    Remark(layer=linear.name, applied=True, message=message, data=shared)
                )
        self._lookup(graph, gather, codes, scales, transposed, namer)
        return remarks

    def _lookup(
        self,
        graph: gs.Graph,
        gather: gs.Node,
        codes: Any,
        scales: Any,
        transposed: bool,
        namer: ir.Namer,
    ) -> None:
        """Gather rows of codes and scales, then dequantize just those."""
        ids, output = gather.inputs[1], gather.outputs[0]
        name = gather.name
        lead = None if output.shape is None else list(output.shape)[:-1]

        def row(table: Any, dtype: Any, suffix: str) -> gs.Variable:
            if transposed:
                flipped = gs.Variable(
                    namer(f"{table.name}_nk"), np.dtype(dtype), list(table.shape)[::-1]
                )
                ir.add_node(
                    graph,
                    "Transpose",
                    namer(f"{name}/Transpose{suffix}"),
                    [table],
                    [flipped],
                    attrs={"perm": [1, 0]},
                )
                table = flipped
            shape = None if lead is None else [*lead, table.shape[1]]
            rows = gs.Variable(namer(f"{output.name}_{suffix}"), np.dtype(dtype), shape)
            ir.add_node(
                graph, "Gather", namer(f"{name}/{suffix}"), [table, ids], [rows], attrs={"axis": 0}
            )
            return rows

        picked, steps = row(codes, np.int8, "codes"), row(scales, np.float32, "scales")
        wanted = ir.elem_type(output)
        narrow = wanted not in (onnx.TensorProto.FLOAT, onnx.TensorProto.UNDEFINED)
        wide = output
        gather.inputs.clear()
        gather.outputs.clear()
        if narrow:
            wide = gs.Variable(namer(f"{output.name}_float"), np.dtype(np.float32), output.shape)
        rank = ir.tensor_rank(picked)
        ir.add_node(
            graph,
            "DequantizeLinear",
            name,
            [picked, steps],
            [wide],
            attrs={"axis": -1 if rank is None else rank - 1, "block_size": self.group_size},
        )
        gather.name = namer(f"{name}_float")
        if narrow:
            ir.add_node(
                graph, "Cast", namer(f"{name}/CastOut"), [wide], [output], attrs={"to": wanted}
            )
