"""plan-weights: which layers and tables get which format.

This is the one place where a recipe names its formats. Layers whose result is an output of the
model (the language-model head), and those that only such layers read, have a width of their own.
Tables have a format of their own, which a head tied to a table shares. `allocate-bits` may choose
other formats later. Passes that round or search read the plan.

The graph is not changed; the decisions travel in the context.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import onnx_graphsurgeon as gs

from qcompiler import ir
from qcompiler.analysis.experts import is_router
from qcompiler.analysis.layers import Layer, find_layers, is_head
from qcompiler.analysis.tables import Table, find_tables
from qcompiler.formats import GRIDS, Bits, GridName, GroupSize, LayerPlan, WeightFormat
from qcompiler.passmanager import (
    Fact,
    Numerics,
    Pass,
    PassContext,
    PassResult,
    excluding_pattern,
    require_matches,
)
from qcompiler.remarks import LeftAlone, Planned, Remark

if TYPE_CHECKING:
    from qcompiler.targets import Target


@dataclass(frozen=True, kw_only=True)
class PlanWeights(Pass):
    """Choose the formats of the weights of linear layers and of embedding tables."""

    name: ClassVar[str] = "plan-weights"
    numerics: ClassVar[Numerics] = Numerics.EXACT
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.CANONICAL})
    provides: ClassVar[frozenset[Fact]] = frozenset({Fact.WEIGHTS_PLANNED})
    forbids: ClassVar[frozenset[Fact]] = frozenset({Fact.WEIGHTS_QUANTIZED})

    bits: Bits = 4
    group_size: GroupSize = 128
    """Input channels that share a scale; of 8 bits, a whole column does."""
    symmetric: bool = True
    """Without zero points, as 8 bits are in any case."""
    grid: GridName = "even"
    """Which whole numbers codes are: all of them, or some with zero points of their own; `bits` are
    those of the grid. Heads and tables are even."""
    head_bits: Bits = 8
    """Bits of layers whose result is an output of the model (the language-model head), and of those
    that only such layers read, such as the one that `rotate` puts before a head."""
    table_bits: Bits = 8
    """Less than 8 bits are asymmetric. A head tied to the table has the same format."""
    table_group_size: GroupSize = 64
    """64 divides the hidden size of nearly every model. Sharing with the head can need that."""
    min_channels: int = 32
    """Layers with fewer input channels are left in float, because there is nothing to gain."""
    min_rows: int = 1024
    """Tables with fewer rows (positions, token types) are left in float."""

    def __post_init__(self) -> None:
        widths = sorted(bits for name, bits in GRIDS if name == self.grid)
        if widths and self.bits not in widths:
            some = " or ".join(map(str, widths))
            raise ValueError(f"grid '{self.grid}' has {some} bits, not {self.bits}")

    @property
    def linear(self) -> WeightFormat:
        """The format of most layers."""
        return WeightFormat.planned(
            self.bits, self.group_size, symmetric=self.symmetric, grid=self.grid
        )

    @property
    def head(self) -> WeightFormat:
        """The format of heads."""
        return WeightFormat.planned(self.head_bits, self.group_size, symmetric=self.symmetric)

    @property
    def table(self) -> WeightFormat:
        """The format of tables."""
        return WeightFormat.planned(self.table_bits, self.table_group_size, symmetric=False)

    def suited(self, target: Target) -> PlanWeights:
        free = self.grid in ("gaussian", "learned") and not target.grids
        return replace(
            self,
            grid="even" if free else self.grid,
            group_size=max(self.group_size, target.least_group(self.bits)),
            table_group_size=max(self.table_group_size, target.least_group(self.table_bits)),
        )

    def may_plan(self) -> Sequence[LayerPlan]:
        return [LayerPlan(weight=form) for form in (self.linear, self.head, self.table)]

    def run(self, graph: gs.Graph, ctx: PassContext) -> PassResult:
        graphs = ir.graphs(graph)
        require_matches(ctx, [node.name for each in graphs for node in each.nodes])
        layers, others = find_layers(graph)
        tables = find_tables(graph)
        remarks: list[Remark] = [LeftAlone(layer=o.name, message=o.reason) for o in others]
        said = {table.name: self._table(table, ctx) for table in tables}
        tied = {id(t.constant) for t in tables if t.ties and isinstance(said[t.name], Planned)}
        for layer in layers:
            said[layer.name] = self._linear(graph, layer, ctx, tied=id(layer.weight) in tied)
        remarks += [said[layer.name] for layer in layers]
        remarks += [said[table.name] for table in tables]
        planned = [remark for remark in remarks if isinstance(remark, Planned)]
        plan = {**ctx.plan, **{each.layer: LayerPlan(weight=each.weight) for each in planned}}
        return PassResult(graph=graph, changed=False, plan=plan, remarks=tuple(remarks))

    def _linear(
        self, graph: gs.Graph, layer: Layer, ctx: PassContext, *, tied: bool
    ) -> Planned | LeftAlone:
        pattern, shape = excluding_pattern(ctx, layer.name), layer.shape
        reason = None
        if pattern is not None:
            reason = f"excluded by pattern '{pattern}'"
        elif shape[0] < self.min_channels:
            reason = f"only {shape[0]} input channels"
        elif is_router(layer.output):
            reason = "it routes tokens to experts, and a wrong one costs more than its bytes"
        if reason is not None:
            return LeftAlone(layer=layer.name, message=reason, kind="linear", shape=shape)
        form = self.linear
        if tied:
            form = self.table
        elif is_head(graph, layer):
            form = self.head
        message = f"weights {form}"
        return Planned(layer=layer.name, message=message, shape=shape, weight=form)

    def _table(self, table: Table, ctx: PassContext) -> Planned | LeftAlone:
        pattern, shape = excluding_pattern(ctx, table.name), table.shape
        reason = None
        if pattern is not None:
            reason = f"excluded by pattern '{pattern}'"
        elif table.rows < self.min_rows:
            reason = f"a small table ({table.rows} rows), kept in float"
        elif ir.tensor_rank(table.gather.outputs[0]) == 1:  # ORT blocks no vectors
            reason = "it looks up a single row, kept in float"
        if reason is not None:
            return LeftAlone(layer=table.name, message=reason, kind="embedding", shape=shape)
        return Planned(
            layer=table.name,
            message=f"table {self.table}",
            kind="embedding",
            shape=shape,
            weight=self.table,
        )
