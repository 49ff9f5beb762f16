"""Foldable edges: where the inverse of an equalization scale can be absorbed upstream.

For layers that read X, scaling the rows of their weights by s needs X / s. Three producers can
give it for free:

    norm      X = norm(..) * w (+ b)      w / s, b / s; layers may read some of its rows
    up-down   X = act(gate) * (H·Wu)      columns of Wu / s
    v-o       X = attention(Q, K, H·Wv)   columns of Wv / s, equal for the heads of a group

Any other reader of X, and any writer that can't take the scale, vetoes the fold with its reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from qcompiler import ir
from qcompiler.analysis.layers import Layer
from qcompiler.analysis.layout import MOVES, PICKS, Heads, picked, value_columns
from qcompiler.analysis.norms import scaling_of
from qcompiler.analysis.rows import origin, readers_of_rows

_FUSED_ATTENTION = ("GroupQueryAttention", "MultiHeadAttention", "Attention")


@dataclass(frozen=True)
class Absorber:
    """A constant that takes the inverse scale along its last axis, at `columns` [start, stop)."""

    node: gs.Node
    input: int
    columns: tuple[int, int] | None = None


@dataclass(frozen=True)
class FoldEdge:
    """Layers that read one activation, and what absorbs the inverse scale (or the veto)."""

    kind: str
    x: Any
    readers: tuple[Layer, ...]
    absorbers: tuple[Absorber, ...] = ()
    veto: str | None = None
    ties: NDArray[np.int64] | None = None
    """[K] index of the absorber's column for each channel of X; None where it is the identity.
    Channels with one index must share a scale (heads that share one value head)."""
    head: int | None = None
    """Of a v-o edge, channels of a head where each head is a run of X's channels, so that the rows
    of ties [heads, head] are its columns; else None."""

    @property
    def name(self) -> str:
        """The activation's name."""
        return str(self.x.name)


def find_fold_edges(
    graph: gs.Graph, layers: Sequence[Layer], *, through_cache: bool = False
) -> list[FoldEdge]:
    """One edge for every activation that layers read, foldable or vetoed.

    `through_cache` allows v-o folds that rescale values handed out as a KV cache: the model's
    own decoding loop is unaffected, but `present.*.value` outputs change by the scale.
    """
    by_output = {id(layer.output): layer for layer in layers}
    groups: dict[int, list[Layer]] = {}
    for layer in layers:
        groups.setdefault(id(_absorbed(layer)), []).append(layer)
    edges: list[FoldEdge] = []
    for group in groups.values():
        x = _absorbed(group[0])
        edge = _edge(_Site(graph, x, tuple(group), by_output, through_cache))
        own = {id(layer.node) for layer in group}
        other = next((node for node, _ in _readers(edge) if id(node) not in own), None)
        if edge.veto is None and other is not None:
            edge = _vetoed(edge, f"{other.op} '{other.name}' reads the same activation unscaled")
        elif edge.veto is None and ir.is_graph_output(graph, x):
            edge = _vetoed(edge, "the activation is an output of the model")
        elif edge.veto is None and (tied := _tied_weight(group, own)) is not None:
            edge = _vetoed(edge, tied)
        edges.append(edge)
    return edges


def _absorbed(layer: Layer) -> Any:
    """What a layer reads, or the output of a norm that this is some rows of."""
    x = origin(layer.x)
    return x if scaling_of(x, layer.shape[0]) is not None else layer.x


def _readers(edge: FoldEdge) -> Iterator[tuple[gs.Node, Any]]:
    """The nodes that read what an edge scales."""
    if edge.kind == "norm":
        return readers_of_rows(edge.x)
    return ((node, edge.x) for node in ir.value_readers(edge.x))


def _tied_weight(group: Sequence[Layer], own: set[int]) -> str | None:
    """A weight that others read too would have to be stored twice."""
    for layer in group:
        for node in ir.consumers(layer.weight):
            if id(node) not in own:
                return f"the weight of '{layer.name}' is shared with '{node.name}'"
    return None


def _vetoed(edge: FoldEdge, reason: str) -> FoldEdge:
    return FoldEdge(edge.kind, edge.x, edge.readers, veto=reason)


@dataclass(frozen=True)
class _Site:
    """An activation, and what there is to find an absorber for it."""

    graph: gs.Graph
    x: Any
    readers: tuple[Layer, ...]
    by_output: dict[int, Layer]
    through_cache: bool

    @property
    def channels(self) -> int:
        """Of the activation."""
        return self.readers[0].shape[0]

    def veto(self, kind: str, reason: str) -> FoldEdge:
        """The edge that nothing absorbs."""
        return FoldEdge(kind, self.x, self.readers, veto=reason)


def _edge(site: _Site) -> FoldEdge:
    x, node = site.x, ir.producer(site.x)
    if node is None:
        return site.veto("none", "the activation is an input of the model")
    scaling = scaling_of(x, site.channels)
    if isinstance(scaling, str):
        return site.veto("norm", scaling)
    if scaling is not None:
        absorbers = tuple(Absorber(node, position) for position in scaling.parameters)
        return FoldEdge("norm", x, site.readers, absorbers)
    if node.op == "Mul":
        for operand in (node.inputs[1], node.inputs[0]):
            up = site.by_output.get(id(operand))
            if up is not None and up.shape[1] == site.channels:
                return _columns(site, "up-down", up)
        return site.veto("none", "no operand of its product is a linear layer")
    if _is_attention(node) and x is node.outputs[0]:
        return _plain_attention(site, node)
    if node.op in _FUSED_ATTENTION and x is node.outputs[0]:
        return _fused_attention(site, node)
    if node.op in ("Reshape", "Transpose"):
        return _plain_attention(site, node)
    return site.veto("none", f"{node.op} '{node.name}' can't absorb a scale")


def _columns(
    site: _Site,
    kind: str,
    writer: Layer,
    columns: tuple[int, int] | None = None,
    ties: NDArray[np.int64] | None = None,
    head: int | None = None,
) -> FoldEdge:
    """An edge whose inverse scale goes into (a range of) the columns of an earlier layer."""
    output = writer.output
    if ir.is_graph_output(site.graph, output):
        return site.veto(kind, f"'{writer.name}' is an output of the model")
    if columns is None and _uses(output) != 1:
        return site.veto(kind, f"the output of '{writer.name}' has other readers")
    absorbers = [Absorber(writer.node, writer.kind.weight, columns)]
    if writer.bias_place is not None:
        absorbers.append(Absorber(*writer.bias_place, columns))
    return FoldEdge(kind, site.x, site.readers, tuple(absorbers), ties=ties, head=head)


def _head_ties(channels: int, value_channels: int, head: int) -> NDArray[np.int64] | None:
    """For each channel of the attention output the value channel it averages."""
    if channels % head or value_channels % head or channels % value_channels:
        return None
    repeat = channels // value_channels
    index = np.arange(channels)
    return (index // head // repeat) * head + index % head


def _fused_attention(site: _Site, node: gs.Node) -> FoldEdge:
    veto = partial(site.veto, "v-o")
    if node.op != "GroupQueryAttention":
        return veto(f"folding through {node.op} is not supported")
    heads, kv_heads = int(ir.attribute(node, "num_heads")), int(ir.attribute(node, "kv_num_heads"))
    head = site.channels // heads
    cached = any(ir.is_graph_output(site.graph, output) for output in node.outputs[1:])
    if cached and not site.through_cache:
        return veto("the values are handed out as KV cache, and folding would rescale them")
    value = node.inputs[2] if not node.inputs[2].is_empty() else node.inputs[0]
    found = _written(site, value)
    if found is None or _uses(value) != 1:
        return veto("the values don't come straight from a linear layer")
    writer, (_, stop) = found
    size = kv_heads * head
    columns = (stop - size, stop)
    ties = _head_ties(site.channels, size, head)
    return _columns(site, "v-o", writer, columns, ties, None if ties is None else head)


def _plain_attention(site: _Site, node: gs.Node) -> FoldEdge:
    """Reshape(Transpose(MatMul(P, V))) with V's heads split, and repeated where grouped; or with
    ONNX's Attention in place of the product."""
    veto, graph = partial(site.veto, "v-o"), site.graph
    after: list[Any] = []
    step: gs.Node | None = node
    while step is not None and step.op in ("Reshape", "Transpose"):
        after.insert(0, step.outputs[0])
        if after[1:] and (
            _uses(step.outputs[0]) != 1 or ir.is_graph_output(graph, step.outputs[0])
        ):
            return veto("its reshaped parts have other readers")
        step = ir.producer(step.inputs[0])
    product = None if step is None else _product(site, step)
    if isinstance(product, str):
        return veto(product)
    if step is None or product is None:
        return veto("it is reshaped from something that is not an attention product")
    if after and (_uses(step.outputs[0]) != 1 or ir.is_graph_output(graph, step.outputs[0])):
        return veto("the attention product has other readers")
    before: list[Any] = []
    tensor, heads = product
    while (written := _written(site, tensor)) is None:
        source = ir.producer(tensor)
        cached = source is not None and _appends_to_cache(graph, source)
        if source is None or not (cached or source.op in MOVES | PICKS):
            found = "an input" if source is None else f"{source.op} '{source.name}'"
            return veto(f"the values come from {found}, not straight from a linear layer")
        if not _apart(tensor):
            return veto("the values have other readers")
        if ir.is_graph_output(graph, tensor) and not site.through_cache:
            return veto("the values are handed out as KV cache, and folding would rescale them")
        before.insert(0, tensor)
        tensor = source.inputs[cached]
    writer, columns = written
    if not _apart(tensor):
        return veto(f"the output of '{writer.name}' has other readers")
    traced = value_columns(before, after, tensor, columns[1] - columns[0], heads)
    if traced is None or traced.columns.shape != (site.channels,):
        return veto("which value each output channel averages can't be told from the shapes")
    return _columns(site, "v-o", writer, columns, traced.columns, traced.head)


_ATTENTION_V, _ATTENTION_PAST, _ATTENTION_PRESENT = 2, 5, 2
"""Of ONNX's Attention: the inputs with values and with those of the past, the output with both."""


def _is_attention(node: gs.Node) -> bool:
    """Whether a node is ONNX's own Attention, since opset 23."""
    return node.op == "Attention" and not node.domain


def _product(site: _Site, node: gs.Node) -> tuple[Any, Heads | None] | str | None:
    """The values that a node averages, and the heads that it cuts them into; or why they can't be
    scaled. None where it averages none."""
    if node.op == "MatMul" and not ir.is_constant(node.inputs[1]):
        return node.inputs[1], None
    if not _is_attention(node):
        return None
    query, values = node.inputs[0], node.inputs[_ATTENTION_V]
    if ir.tensor_rank(values) == 4 and ir.tensor_rank(query) == 4:
        counts = query.shape[1], values.shape[1]
    else:
        counts = ir.attribute(node, "q_num_heads"), ir.attribute(node, "kv_num_heads")
    if not all(isinstance(count, int) and count > 0 for count in counts):
        return "the number of heads is not known"
    return _cached(site, node) or (values, Heads(*counts))


def _cached(site: _Site, node: gs.Node) -> str | None:
    """Why the cache that an Attention keeps of its values can't be scaled with them."""
    past = ir.given(node.inputs, _ATTENTION_PAST)
    present = ir.given(node.outputs, _ATTENTION_PRESENT)
    if present is not None and ir.consumers(present):
        return "the values are read in the cache, too"
    handed_out = present is not None and ir.is_graph_output(site.graph, present)
    if past is not None:
        fed = any(past is each for each in site.graph.inputs)
        if not fed or not handed_out or _uses(past) != 1:
            return "the cache of the values is not an input that is handed out again"
    if handed_out and not site.through_cache:
        return "the values are handed out as KV cache, and folding would rescale them"
    return None


def _written(site: _Site, tensor: Any) -> tuple[Layer, tuple[int, int]] | None:
    """The layer whose output a tensor is, or a part that is cut out of it, and its columns.

    None for any other tensor, and where others read the same of the whole that is cut.
    """
    writer = site.by_output.get(id(tensor))
    if writer is not None:
        return writer, (0, writer.shape[1])
    node = ir.producer(tensor)
    if node is None or node.op not in PICKS:
        return None
    writer = site.by_output.get(id(node.inputs[0]))
    if writer is None or not _apart(writer.output):
        return None
    shape = writer.output.shape
    if shape is None and ir.attribute(node, "axis", 0) != -1:
        return None  # which axis that is can't be told
    lead = [None] if shape is None else shape[:-1]
    found = picked(node, tensor, [*lead, writer.shape[1]])
    if found is None or found[0] != len(lead) or found[1].ndim != 1:
        return None
    start, size = int(found[1].min(initial=writer.shape[1])), found[1].size
    in_a_row = np.array_equal(found[1], np.arange(start, start + size))
    return (writer, (start, start + size)) if in_a_row and size else None


def _apart(tensor: Any) -> bool:
    """Whether no two readers of a tensor read the same of it."""
    readers = ir.value_readers(tensor)
    if _uses(tensor) <= 1:
        return True
    if tensor.shape is None or any(each.op not in PICKS - {"Split"} for each in readers):
        return False
    found = [picked(each, each.outputs[0], tensor.shape) for each in readers]
    parts = [part for part in found if part is not None]
    if len(parts) != len(readers) or len({axis for axis, _ in parts}) != 1:
        return False
    places = np.concatenate([np.ravel(taken) for _, taken in parts])
    return np.unique(places).size == places.size


def _appends_to_cache(graph: gs.Graph, node: gs.Node) -> bool:
    """Whether a Concat puts values behind those of an input, and hands all of them out."""
    return (
        node.op == "Concat"
        and len(node.inputs) == 2
        and any(node.inputs[0] is each for each in graph.inputs)
        and ir.is_graph_output(graph, node.outputs[0])
    )


def _uses(tensor: Any) -> int:
    """How often a tensor's values are read; twice by x * x."""
    return sum(map(ir.reads_values, tensor.outputs))


def fold(edge: FoldEdge, scale: NDArray[Any], namer: ir.Namer) -> None:
    """Scale the rows of the readers' weights by `scale` [K] and absorb its inverse upstream.

    Where heads share a value head, `scale` must already be equal over `edge.ties`.
    """
    if edge.veto is not None:
        raise ValueError(f"edge '{edge.name}' can't be folded: {edge.veto}")
    scale = np.asarray(scale, np.float32)
    inverse: NDArray[Any] = np.float32(1.0) / scale
    if edge.ties is not None:
        by_column = np.ones(int(edge.ties.max()) + 1, np.float32)
        by_column[edge.ties] = inverse
        inverse = by_column
    for absorber in edge.absorbers:
        old = absorber.node.inputs[absorber.input]
        values = np.array(ir.array(old), np.float32)
        start, _ = absorber.columns or (0, values.shape[-1])
        values[..., start : start + len(inverse)] *= inverse
        absorber.node.inputs[absorber.input] = _scaled(old, values, namer)
    replaced: dict[int, gs.Constant] = {}
    for layer in edge.readers:
        old = layer.weight
        if id(old) not in replaced:
            values = np.asarray(layer.matrix(), np.float32) * scale[:, None]
            replaced[id(old)] = _scaled(old, values, namer)
        layer.put(replaced[id(old)])


def _scaled(old: gs.Constant, values: NDArray[Any], namer: ir.Namer) -> gs.Constant:
    """A constant for `values` in the type that `old` has, named after it."""
    name = str(old.name)
    dtype = ir.array(old).dtype
    return ir.constant(namer(name if name.endswith("_eq") else f"{name}_eq"), values.astype(dtype))
