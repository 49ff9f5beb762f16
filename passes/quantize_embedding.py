"""quantize-embedding: look-up tables in 8 or 4 bits, one copy for a table tied to the head.

    Gather(E[N, K], ids)             ->  DequantizeLinear(Gather(codes[N, K], ids),
                                                          Gather(scales[N, G], ids), axis=-1)
    Gather(Transpose(W[K, N]), ids)  ->  the same over Transpose(codes[K, N]), which the head
    MatMul(X, W)                         reads too: MatMul(X, DequantizeLinear(codes, scales))

Only the rows that are looked up are ever dequantized. Not so in 4 bits, which ONNX's Gather does
not know: until a target lowers them, they are dequantized before the look-up.

    Gather(E[N, K], ids)             ->  Gather(DequantizeLinear(codes[N, K], scales, zeros), ids)
    Gather(Transpose(W[K, N]), ids)  ->  Gather(Transpose(DequantizeLinear(codes[K, N], ..)), ids)
    MatMul(X, W)                         MatMul(X, the same DequantizeLinear)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from qcompiler import ir
from qcompiler.analysis.linears import Linear, find_linears, find_tables
from qcompiler.analysis.qdq import insert_dq, weight_constants
from qcompiler.errors import CalibrationError
from qcompiler.numerics.gptq import Moments, gptq, improved, moments
from qcompiler.numerics.rounding import QuantizedWeight, Search, quantize_weight
from qcompiler.passes.quantize_weights import better_rounded, describe, fallen_back
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
    """Quantize embedding tables, and the heads tied to them, in groups along a row."""

    name: ClassVar[str] = "quantize-embedding"
    numerics: ClassVar[Numerics] = Numerics.LOSSY
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.CANONICAL})

    bits: Literal[4, 8] = 8
    """4 where size counts most: asymmetric groups, and a head tied to the table has them too."""
    group_size: Literal[32, 64, 128, 256] = 64
    """64 divides the hidden size of nearly every model, which sharing with the head can need."""
    search: Search = "none"
    rounding: Literal["nearest", "gptq"] = "nearest"
    """Of a table tied to a head."""
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
        linears = [
            linear
            for linear in find_linears(graph)[0]
            if linear.weight is table and linear.name in ctx.plan
        ]
        same_type = ir.elem_type(table) == onnx.TensorProto.FLOAT
        tied = bool(transposed and linears and same_type)
        found = self._moments(graph, linears[0], ctx) if tied else None
        quantized, judged = self._rounded(weight, found)
        base = str(table.name)
        constants = weight_constants(quantized, base, namer)
        if not transposed:
            constants = [
                ir.constant(each.name, np.ascontiguousarray(ir.array(each).T)) for each in constants
            ]
        dequantized = None
        if tied or self.bits == 4:
            axis = 0 if transposed else 1
            dequantized = insert_dq(graph, constants, self.group_size, base, namer, axis)
        data = describe(quantized, weight, table, kind="embedding")
        message = f"int{self.bits} table"
        remarks = [
            Remark(layer=gather.name, applied=True, message=message, data=data | {"tied": tied})
        ]
        if tied:
            shared = data | {"kind": "linear", "tied": True, "bytes_before": 0, "bytes_after": 0}
            symmetry = "symmetric" if quantized.zero_points is None else "asymmetric"
            for linear in linears:
                linear.node.inputs[1] = dequantized
                message = f"int{self.bits} {symmetry}, group {self.group_size}"
                message += f", tied to '{gather.name}'"
                remark = Remark(layer=linear.name, applied=True, message=message, data=shared)
                remarks.append(judged(remark))
        if self.bits == 4:
            self._look_up_after(graph, gather, dequantized, transposed, namer)
        else:
            codes, scales = constants
            self._look_up_before(graph, gather, codes, scales, transposed, namer)
        return remarks

    def _rounded(
        self, weight: Any, found: Moments | None
    ) -> tuple[QuantizedWeight, Callable[[Remark], Remark]]:
        """A table as [K, N], and what to say of a head that has it too."""
        nearest = quantize_weight(
            weight,
            bits=self.bits,
            group_size=self.group_size,
            symmetric=self.bits == 8,
            search=self.search,
            importance=None if found is None else found.mean_square,
        )
        if found is None:
            return nearest, lambda remark: remark
        try:
            chosen, before, after = improved(
                weight, nearest, found, lambda: gptq(weight, nearest, found)
            )
        except ValueError as reason:
            return nearest, partial(fallen_back, reason=reason)
        return chosen, partial(better_rounded, rounding=self.rounding, before=before, after=after)

    def _moments(self, graph: gs.Graph, head: Linear, ctx: PassContext) -> Moments | None:
        """Of the input of a head tied to a table, where rounding looks at it."""
        if self.rounding == "nearest":
            return None
        if ctx.stream is None:
            raise CalibrationError("rounding 'gptq' needs data; give --calib SRC")
        (values,) = ctx.stream(graph, [str(head.x.name)])
        try:
            return moments(values)
        except ValueError as error:
            raise CalibrationError(f"layer '{head.name}': {error}") from None

    def _look_up_after(
        self, graph: gs.Graph, gather: gs.Node, table: Any, transposed: bool, namer: ir.Namer
    ) -> None:
        """Gather rows of the dequantized table."""
        name, ids, output = gather.name, gather.inputs[1], gather.outputs[0]
        _detach(gather, namer)
        if transposed:
            table = _flipped(graph, table, namer(f"{name}/Transpose"), namer)
        rows = _widened(graph, output, name, namer)
        ir.add_node(graph, "Gather", name, [table, ids], [rows], attrs={"axis": 0})

    def _look_up_before(
        self,
        graph: gs.Graph,
        gather: gs.Node,
        codes: Any,
        scales: Any,
        transposed: bool,
        namer: ir.Namer,
    ) -> None:
        """Gather rows of codes and scales, then dequantize just those."""
        name, ids, output = gather.name, gather.inputs[1], gather.outputs[0]
        lead = None if output.shape is None else list(output.shape)[:-1]
        _detach(gather, namer)

        def row(table: Any, suffix: str) -> gs.Variable:
            if transposed:
                table = _flipped(graph, table, namer(f"{name}/Transpose{suffix}"), namer)
            shape = None if lead is None else [*lead, table.shape[1]]
            rows = gs.Variable(namer(f"{output.name}_{suffix}"), table.dtype, shape)
            ir.add_node(
                graph, "Gather", namer(f"{name}/{suffix}"), [table, ids], [rows], attrs={"axis": 0}
            )
            return rows

        picked, steps = row(codes, "codes"), row(scales, "scales")
        rank = ir.tensor_rank(picked)
        ir.add_node(
            graph,
            "DequantizeLinear",
            name,
            [picked, steps],
            [_widened(graph, output, name, namer)],
            attrs={"axis": -1 if rank is None else rank - 1, "block_size": self.group_size},
        )


def _detach(gather: gs.Node, namer: ir.Namer) -> None:
    """Leave a node's tensors and name to what takes its place."""
    gather.inputs.clear()
    gather.outputs.clear()
    gather.name = namer(f"{gather.name}_float")


def _flipped(graph: gs.Graph, table: Any, name: str, namer: ir.Namer) -> gs.Variable:
    """A table [K, N] as [N, K]."""
    flipped = gs.Variable(namer(f"{table.name}_nk"), table.dtype, list(table.shape)[::-1])
    ir.add_node(graph, "Transpose", name, [table], [flipped], attrs={"perm": [1, 0]})
    return flipped


def _widened(graph: gs.Graph, output: Any, name: str, namer: ir.Namer) -> Any:
    """The float32 tensor to write for `output`: itself, or what a Cast narrows to its type."""
    wanted = ir.elem_type(output)
    if wanted in (onnx.TensorProto.FLOAT, onnx.TensorProto.UNDEFINED):
        return output
    wide = gs.Variable(namer(f"{output.name}_float"), np.dtype(np.float32), output.shape)
    ir.add_node(graph, "Cast", namer(f"{name}/CastOut"), [wide], [output], attrs={"to": wanted})
    return wide
