"""quantize-embedding: embedding tables become codes, one copy for a table tied to the head.

    Gather(E[N, K], ids)             ->  DequantizeLinear(Gather(codes[N, K], ids),
                                                          Unsqueeze(Gather(scales[N], ids), -1))
    Gather(Transpose(W[K, N]), ids)  ->  the same over Transpose(codes[K, N]), which the head
    MatMul(X, W)                         reads too: MatMul(X, DequantizeLinear(codes, scales))

So only the rows that are looked up are dequantized, each by one scale. ONNX's Gather takes no 4-bit
types, so tables of less than 8 bits are dequantized before the look-up, until a target lowers them.

    Gather(E[N, K], ids)             ->  Gather(DequantizeLinear(codes[N, K], scales, zeros), ids)
    Gather(Transpose(W[K, N]), ids)  ->  Gather(Transpose(DequantizeLinear(codes[K, N], ..)), ids)
    MatMul(X, W)                         MatMul(X, the same DequantizeLinear)
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from qcompiler import ir
from qcompiler.analysis.layers import Layer, find_layers
from qcompiler.analysis.qdq import insert_dq, weight_constants
from qcompiler.analysis.rounded import Judgement, better_codes, described
from qcompiler.analysis.tables import Table, find_tables
from qcompiler.errors import CalibrationError
from qcompiler.formats import WeightFormat
from qcompiler.numerics.descent import descend
from qcompiler.numerics.gptq import Moments, gptq, moments
from qcompiler.numerics.rounding import QuantizedWeight, Search, quantize_weight
from qcompiler.passmanager import Fact, Numerics, Pass, PassContext, PassResult
from qcompiler.remarks import Remark

_LOOKED_UP = 0.05
"""What errors of the rows that a tied table is looked up for count, beside those of the head's
output: a share of a mean channel's. Without it GPTQ moves them to where no output sees them, but
the layers that read the embeddings do. Measured (docs/recipes.md)."""


@dataclass(frozen=True, kw_only=True)
class QuantizeEmbedding(Pass):
    """Quantize embedding tables, and the heads tied to them, along rows."""

    name: ClassVar[str] = "quantize-embedding"
    numerics: ClassVar[Numerics] = Numerics.LOSSY
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.CANONICAL, Fact.WEIGHTS_PLANNED})
    forbids: ClassVar[frozenset[Fact]] = frozenset({Fact.WEIGHTS_QUANTIZED})

    search: Search = "none"
    rounding: Literal["nearest", "gptq"] = "nearest"
    """Of a table tied to a head."""
    sweeps: int = 0
    """Of GPTQ: rounds of coordinate descent afterwards, over codes and ranges."""

    def __post_init__(self) -> None:
        if self.sweeps < 0:
            raise ValueError(f"sweeps must not be negative, as {self.sweeps} is")

    def without_data(self) -> QuantizeEmbedding:
        return replace(self, rounding="nearest")

    def run(self, graph: gs.Graph, ctx: PassContext) -> PassResult:
        namer = ir.Namer(graph)
        remarks: list[Remark] = []
        for table in find_tables(graph):
            form = ctx.plan[table.name].weight if table.name in ctx.plan else None
            if form is not None:
                remarks += self._rewrite(graph, table, form, ctx, namer)
        if remarks:
            ir.remove_dead(graph)
        return PassResult(graph=graph, changed=bool(remarks), remarks=tuple(remarks))

    def _rewrite(
        self, graph: gs.Graph, table: Table, form: WeightFormat, ctx: PassContext, namer: ir.Namer
    ) -> list[Remark]:
        weight, base = table.matrix(), str(table.constant.name)
        heads = [
            layer
            for layer in find_layers(graph)[0]
            if table.ties and layer.weight is table.constant and layer.name in ctx.plan
        ]
        found = self._moments(graph, heads[0], ctx) if heads else None
        quantized, judged = self._rounded(weight, form, found)
        constants = weight_constants(quantized, base, namer)
        if not table.transposed:
            constants = [
                ir.constant(each.name, np.ascontiguousarray(ir.array(each).T)) for each in constants
            ]
        dequantized = None
        if heads or form.narrow:
            axis = 0 if table.transposed else 1
            dequantized = insert_dq(graph, constants, form, base, namer, axis)
        told = described(table.name, quantized, weight, kind="embedding")
        told = replace(told, message=f"int{form.bits} table", tied=bool(heads))
        remarks: list[Remark] = [told]
        for head in heads:
            head.put(dequantized)
            shared = replace(
                told,
                layer=head.name,
                kind="linear",
                message=f"{form.in_words()}, tied to '{table.name}'",
                bytes_after=0,
            )
            remarks.append(judged.tell(shared))
        if form.narrow:
            self._look_up_after(graph, table.gather, dequantized, table.transposed, namer)
        else:
            self._look_up_before(graph, table, constants, namer)
        return remarks

    def _rounded(
        self, weight: Any, form: WeightFormat, found: Moments | None
    ) -> tuple[QuantizedWeight, Judgement]:
        """A table as [K, N], and what to say of a head that has it too."""
        if found is None:
            return quantize_weight(weight, form, search=self.search), Judgement(self.rounding)
        counts = found.grounded(_LOOKED_UP)
        nearest = quantize_weight(weight, form, search=self.search, importance=counts.mean_square)
        return better_codes(
            self.rounding,
            weight,
            nearest,
            found,
            lambda: self._for_both(weight, nearest, counts),
        )

    def _for_both(self, weight: Any, nearest: QuantizedWeight, found: Moments) -> QuantizedWeight:
        """Codes for the head's output and for look-ups."""
        chosen = gptq(weight, nearest, found)
        return descend(weight, chosen, found, sweeps=self.sweeps) if self.sweeps else chosen

    def _moments(self, graph: gs.Graph, head: Layer, ctx: PassContext) -> Moments | None:
        """Of the input of a head tied to a table, where rounding looks at it."""
        if self.rounding == "nearest":
            return None
        (values,) = ctx.data.stream(graph, [str(head.x.name)])
        try:
            return moments(map(head.rows, values))
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
        table: Table,
        constants: list[gs.Constant],
        namer: ir.Namer,
    ) -> None:
        """Gather rows of 8-bit codes and their scales, then dequantize just those."""
        gather, channels = table.gather, table.shape[0]
        name, ids, output = gather.name, gather.inputs[1], gather.outputs[0]
        lead = None if output.shape is None else list(output.shape)[:-1]
        _detach(gather, namer)

        def added(op_type: str, suffix: str, inputs: list[Any], *last: int, **attrs: Any) -> Any:
            shape = None if lead is None else [*lead, *last]
            made = gs.Variable(namer(f"{output.name}_{suffix}"), inputs[0].dtype, shape)
            ir.add_node(graph, op_type, namer(f"{name}/{suffix}"), inputs, [made], attrs=attrs)
            return made

        codes, scales = constants
        if table.transposed:
            codes = _flipped(graph, codes, namer(f"{name}/Transpose"), namer)
        picked = added("Gather", "codes", [codes, ids], channels, axis=0)
        steps = added("Gather", "scales", [scales, ids], axis=0)
        last = ir.constant(namer(f"{name}_last"), np.asarray([-1], np.int64))
        steps = added("Unsqueeze", "scales_apart", [steps, last], 1)
        rank = ir.tensor_rank(picked)
        ir.add_node(
            graph,
            "DequantizeLinear",
            name,
            [picked, steps],
            [_widened(graph, output, name, namer)],
            attrs={"axis": -1 if rank is None else rank - 1, "block_size": channels},
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
