"""rotate: orthogonal matrices between layers spread outliers over all channels, at no cost.

The residual stream, rotated by one matrix R (`residual`):

    x = table[ids]; x += H·Wo + b          ->   x = (table·R)[ids]; x += H·(Wo·R) + b·R
    layer_norm(x) of such a stream         ->   rms_norm(x), (table - mean)·R, (Wo - mean)·R, ..
    norm(x) · 1 -> linears W               ->   norm(x) · 1 -> linears Rᵀ·W
    h = norm(x) · w -> head, its weight    ->   h = norm(x) · c; h + h·M -> head, its weight
    x = norm(table[ids]) · w               ->   the same, before the stream (BLOOM)
    Eᵀ tied to the table E                      (E·R)ᵀ still tied; M = Rᵀ·diag(w/c - 1)·R

The values of each head, rotated by one matrix R for each key/value head (`heads`):

    attention(Q, K, H·Wv + b) -> linears W   ->   attention(Q, K, H·(Wv·R) + b·R) -> linears Rᵀ·W

Norms must not scale channels, so put `fold-norm` before it. Where norms subtract the mean of the
stream, what is written to it loses its mean first, and they become RMS norms. It comes before
`plan-weights` and `calibrate`, because layers and activations change here. Source: QuaRot, arXiv
2404.00456, and SpinQuant, arXiv 2405.16406, without the rotations they compute at run time; norms
without a mean: SliceGPT, arXiv 2401.15024.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from qcompiler import ir
from qcompiler.analysis.foldable import FoldEdge, find_fold_edges
from qcompiler.analysis.layers import find_layers
from qcompiler.analysis.residual import ResidualStream, find_streams
from qcompiler.analysis.stream_norms import StreamNorm
from qcompiler.analysis.tables import find_tables, looked_up
from qcompiler.numerics.rotation import (
    Float,
    Kind,
    conjugated,
    has_hadamard,
    resolve,
    rotation,
    turned,
)
from qcompiler.passmanager import Fact, Numerics, Pass, PassContext, PassResult
from qcompiler.remarks import Rotated


@dataclass(frozen=True, kw_only=True)
class Rotate(Pass):
    """Rotate the residual stream and the values of attention heads, folded into the weights."""

    name: ClassVar[str] = "rotate"
    numerics: ClassVar[Numerics] = Numerics.EXACT
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.CANONICAL})
    # It changes activations that were measured, and may add a layer that nobody has planned.
    forbids: ClassVar[frozenset[Fact]] = frozenset(
        {Fact.WEIGHTS_PLANNED, Fact.CALIBRATED, Fact.WEIGHTS_QUANTIZED}
    )

    residual: bool = True
    heads: bool = True
    kind: Kind = "auto"
    """Hadamard with random signs, or any orthogonal matrix; auto: Hadamard where one exists."""
    seed: int = 0
    through_cache: bool = False
    """Also rotate heads whose values go into a KV cache; `present.*.value` outputs change."""

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, as {self.seed} is")

    def run(self, graph: gs.Graph, ctx: PassContext) -> PassResult:
        layers, _ = find_layers(graph)
        work = _Work(graph, self.kind, self.seed)
        if self.residual:
            for index, stream in enumerate(find_streams(graph, layers)):
                work.stream(stream, index)
        if self.heads:
            edges = find_fold_edges(graph, layers, through_cache=self.through_cache)
            for index, edge in enumerate(each for each in edges if each.kind == "v-o"):
                work.heads(edge, index)
        sought = {"residual stream": self.residual, "value heads": self.heads}
        names = [layer.name for layer in layers] + [table.name for table in find_tables(graph)]
        work.explain(names, [what for what, wanted in sought.items() if wanted])
        if work.changed:
            ir.remove_dead(graph)
        return PassResult(graph=graph, changed=work.changed, remarks=tuple(work.remarks))


class _Work:
    """The rotations of one graph."""

    def __init__(self, graph: gs.Graph, kind: Kind, seed: int) -> None:
        self._graph = graph
        self._kind: Kind = kind
        self._seed = seed
        self._namer = ir.Namer(graph)
        self.changed = False
        self.remarks: list[Rotated] = []

    def stream(self, stream: ResidualStream, index: int) -> None:
        """Turn a residual stream, or say of each of its layers why not."""
        nodes = [*stream.tables, *(layer.node for layer in stream.layers)]
        names = [str(node.name) for node in nodes]
        reason = stream.veto or self._lacking(stream.channels)
        if reason is not None:
            self._say(names, False, f"residual stream not rotated: {reason}")
            return
        matrix = rotation(stream.channels, self._kind, (self._seed, 0, index))
        for norm in stream.scaled:
            self._scale_behind(norm, matrix)
        tied: list[gs.Node] = []
        for uses in stream.constants():
            old = uses[0].constant
            values = ir.array(old)
            written = {use.axis for use in uses if use.writes} if stream.centers else set()
            if written and not all(use.writes for use in uses):
                # A head reads the table as it is. Rows lose their means once they are looked up.
                written = set()
                tied += [each for each in stream.tables if _table_of(each) is old]
            for axis in sorted({use.axis for use in uses}):
                values = turned(
                    _centered(values, axis) if axis in written else values, matrix, axis
                )
            new = self._constant(old, values)
            for use in uses:
                use.node.inputs[use.input] = new
        for norm in stream.norms if stream.centers else ():
            _stop_centering(norm)
        for node in tied:
            self._center_behind(node, matrix)
        self.changed = True
        what = f"residual stream rotated, {self._describe(stream.channels)}"
        self._say(names, True, what)

    def _scale_behind(self, norm: StreamNorm, matrix: Float) -> None:
        """Scale by the norm's weight in a small layer, which can do so between rotated vectors."""
        old = norm.weight
        behind = norm.readers[0] if norm.readers else norm.node
        values = ir.array(old)
        # What all channels have in common needs no matrix. In one it would be a diagonal so large
        # that whoever rounds columns loses the rest.
        common, square = _split(values, matrix)
        written = not norm.readers and norm.centers  # to a stream without a mean
        if written:
            square = square - _mean_taken(values / common, matrix)
        norm.node.inputs[norm.input] = ir.constant(
            self._namer(f"{old.name}_common"), np.full_like(values, common)
        )
        x, name = norm.output, self._namer(f"{behind.name}/rotate")
        part, output = (
            gs.Variable(self._namer(f"{x.name}_{suffix}"), x.dtype, x.shape)
            for suffix in ("turned", "rotated")
        )
        for node in ir.consumers(x):  # the layers, and what chooses rows for them
            ir.rewire_input(node, x, output)
        weight = self._constant(old, square.astype(values.dtype))
        ir.add_node(self._graph, "MatMul", name, [x, weight], [part])
        if norm.bias is not None:
            shift = ir.array(norm.bias).reshape(-1)
            shift = _centered(shift, 0) if written else shift
            bias = self._constant(norm.bias, turned(shift, matrix, 0))
            shifted = gs.Variable(self._namer(f"{x.name}_shifted"), x.dtype, x.shape)
            ir.add_node(self._graph, "Add", self._namer(f"{name}/Bias"), [part, bias], [shifted])
            part = shifted
        ir.add_node(self._graph, "Add", self._namer(f"{name}/Add"), [x, part], [output])
        message = f"rotates the norm's weight, which '{behind.name}' can't take: its own is tied"
        if not norm.readers:
            message = "rotates the norm's weight, which nothing behind it can take"
        self._say([name], True, message)

    def _center_behind(self, node: gs.Node, matrix: Float) -> None:
        """Take off the mean, which lies along one direction of rotated vectors."""
        output, name = node.outputs[0], str(node.name)
        size = len(matrix)
        ones = turned(np.full(size, size**-0.5), matrix, 0).astype(ir.array(_table_of(node)).dtype)
        along = ir.constant(self._namer(f"{output.name}_mean"), ones)
        last = ir.constant(self._namer(f"{output.name}_last"), np.asarray([-1], np.int64))
        whole = gs.Variable(self._namer(f"{output.name}_whole"), output.dtype, output.shape)
        node.outputs[0] = whole

        def added(op: str, inputs: list[Any], given: Any = None, **attrs: Any) -> Any:
            made = given or gs.Variable(self._namer(f"{output.name}_{op}"), output.dtype)
            ir.add_node(self._graph, op, self._namer(f"{name}/{op}"), inputs, [made], attrs=attrs)
            return made

        length = added("ReduceSum", [added("Mul", [whole, along]), last], keepdims=1)
        added("Sub", [whole, added("Mul", [length, along])], output)

    def heads(self, edge: FoldEdge, index: int) -> None:
        """Turn the values of each head, or say of the layers behind why not."""
        readers = [reader.name for reader in edge.readers]
        columns, reason = _head_columns(edge)
        if columns is None or (reason := self._lacking(columns.shape[1])) is not None:
            self._say(readers, False, f"heads not rotated: {reason}")
            return
        size = columns.shape[1]
        owners, group = np.unique(columns, axis=0, return_inverse=True)
        turns = [rotation(size, self._kind, (self._seed, 1, index, g)) for g in range(len(owners))]
        for absorber in edge.absorbers:
            old = absorber.node.inputs[absorber.input]
            values = np.array(ir.array(old))
            start = (absorber.columns or (0, 0))[0]
            for owned, matrix in zip(owners, turns, strict=True):
                part = start + owned
                values[..., part] = turned(values[..., part], matrix, values.ndim - 1)
            absorber.node.inputs[absorber.input] = self._constant(old, values)
        made: dict[int, gs.Constant] = {}
        for reader in edge.readers:
            old = reader.weight
            if id(old) not in made:
                values = np.array(reader.matrix())
                for head, owner in enumerate(group.reshape(-1)):
                    rows = slice(head * size, (head + 1) * size)
                    values[rows] = turned(values[rows], turns[owner], 0)
                made[id(old)] = self._constant(old, values)
            reader.put(made[id(old)])
        self.changed = True
        writer = edge.absorbers[0].node.name
        what = f"value heads rotated ({len(owners)}), {self._describe(size)}"
        self._say([writer, *readers], True, what)

    def explain(self, names: Sequence[str], sought: Sequence[str]) -> None:
        """Say of layers and tables that nothing has been said of what was not found there."""
        said = {remark.layer for remark in self.remarks}
        if sought:
            reason = f"not rotated: no {' and no '.join(sought)} that can be rotated reach it"
            self._say([name for name in names if name not in said], False, reason)

    def _lacking(self, size: int) -> str | None:
        if self._kind == "hadamard" and not has_hadamard(size):
            return f"there is no Hadamard matrix of size {size} here"
        return None

    def _describe(self, size: int) -> str:
        return f"{resolve(size, self._kind)} {size}"

    def _constant(self, old: gs.Constant, values: NDArray[Any]) -> gs.Constant:
        name = str(old.name)
        return ir.constant(self._namer(name if name.endswith("_rot") else f"{name}_rot"), values)

    def _say(self, layers: list[str], applied: bool, message: str) -> None:
        self.remarks += [Rotated(layer=each, applied=applied, message=message) for each in layers]


def _table_of(node: gs.Node) -> gs.Constant:
    """The constant that a look-up reads."""
    source = looked_up(node)
    assert source is not None  # tables of streams are look-ups
    return source[0]


def _centered(values: NDArray[Any], axis: int) -> NDArray[Any]:
    """Values less their mean along an axis, in their type."""
    mean = np.mean(values, axis=axis, keepdims=True, dtype=np.float64)
    return (values - mean).astype(values.dtype)


_CENTERLESS = {
    "LayerNormalization": "SimplifiedLayerNormalization",
    "SkipLayerNormalization": "SkipSimplifiedLayerNormalization",
}


def _stop_centering(norm: StreamNorm) -> None:
    """Make a norm of values without a mean one that looks for none; its bias is zero."""
    node = norm.node
    node.op = _CENTERLESS[node.op]
    if norm.bias_input is not None:
        del node.inputs[norm.bias_input]
    while node.op == "SimplifiedLayerNormalization" and len(node.outputs) > 1:
        node.outputs.pop()


def _split(values: NDArray[Any], matrix: Float) -> tuple[float, Float]:
    """c and M with c · (1 + M) = Rᵀ · diag(values) · R; c is the mean, where they vary less."""
    scales = values.reshape(-1).astype(np.float64)
    common = float(scales.mean()) if abs(scales.mean()) > scales.std() else 1.0
    return common, conjugated(scales / common - 1.0, matrix)


def _mean_taken(weight: NDArray[Any], matrix: Float) -> Float:
    """Rᵀ · w · 1ᵀ/n · R: of rotated rows h·R, the rotated mean of h·diag(w)."""
    scales = weight.reshape(-1).astype(np.float64)
    ones = np.full(len(scales), 1 / len(scales))
    return np.outer(turned(scales, matrix, 0), turned(ones, matrix, 0))


def _head_columns(edge: FoldEdge) -> tuple[NDArray[np.int64] | None, str | None]:
    """[heads, size]: the columns of V that each head of the output averages; or why not."""
    if edge.veto is not None:
        return None, edge.veto
    if edge.ties is None or edge.head is None:
        return None, "its channels are not whole heads in order"
    columns = edge.ties.reshape(-1, edge.head)
    if np.unique(columns, axis=0).size != np.unique(columns).size:
        return None, "its heads share parts of their values"
    return columns, None
