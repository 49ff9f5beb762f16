"""Residual streams: what a rotation of the hidden state between the blocks would have to touch.

    x = table[ids];  x = x + o_proj(..);  x = x + down_proj(..)     written
    norm(x) · W                                                     read

x ← x·R leaves a model as it was if everything that writes x turns with it (tables, columns and
biases ← ..·R) and everything that reads x turns back (rows ← Rᵀ·..). An RMS norm without channel
weights commutes with R, since the length of x stays; one that subtracts the mean does not. A stream
is all tensors that additions connect, and rows of these; anything else that touches them vetoes the
rotation with its reason.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler import ir
from qcompiler.analysis.layers import Layer
from qcompiler.analysis.norms import RMS_NORM, last_axis
from qcompiler.analysis.rows import moved_rows, origin, readers_of_rows
from qcompiler.analysis.tables import find_tables
from qcompiler.ir.matcher import find

_RMS = ("SimplifiedLayerNormalization", "RMSNormalization")
_SKIP_RMS = "SkipSimplifiedLayerNormalization"
_SUM = 3
"""The output of the fused operator that is the sum."""
_CENTERING = {"LayerNormalization": 1, "SkipLayerNormalization": 2}
"""Norms that subtract the mean, and where they read their weight."""


@dataclass(frozen=True)
class ConstantUse:
    """A constant that a node reads, one axis of which lies along the stream."""

    node: gs.Node
    input: int
    axis: int

    @property
    def constant(self) -> gs.Constant:
        """What the node reads there now."""
        return self.node.inputs[self.input]


@dataclass(frozen=True)
class StreamNorm:
    """An RMS norm that reads the stream."""

    node: gs.Node
    """The node that multiplies by the weight."""
    input: int
    """Where it reads the weight."""
    x: Any
    """What it normalizes: a sum of the stream, or in a fused norm its first term."""
    readers: tuple[Layer, ...] = ()

    @property
    def weight(self) -> gs.Constant:
        """The weight [channels]."""
        return self.node.inputs[self.input]

    @property
    def output(self) -> Any:
        """What readers of the norm see."""
        return self.node.outputs[0]


@dataclass(frozen=True)
class ResidualStream:
    """One stream: its size, what turns with it, or the veto."""

    channels: int
    layers: tuple[Layer, ...]
    """The layers that write or read it, in graph order."""
    tables: tuple[gs.Node, ...]
    """The look-ups that write it."""
    uses: tuple[ConstantUse, ...] = ()
    scaled: tuple[StreamNorm, ...] = ()
    """Norms whose weights could not be folded: a table shares the weight of the layer behind."""
    veto: str | None = None

    def constants(self) -> list[list[ConstantUse]]:
        """The uses, together where they are of one constant; these agree in their axes."""
        groups: dict[int, list[ConstantUse]] = {}
        for use in self.uses:
            groups.setdefault(id(use.constant), []).append(use)
        return list(groups.values())


def find_streams(graph: gs.Graph, layers: Sequence[Layer]) -> list[ResidualStream]:
    """Every residual stream that a norm reads, in graph order.

    Norms are those of `fuse-norm`, and RMS norms spelled out in standard operators.
    """
    norms, inside = _find_norms(graph)
    starts = [(norm.x, norm.weight) for norm in norms]
    for node in graph.nodes:
        if node.op in _CENTERING:
            starts.append((node.inputs[0], node.inputs[_CENTERING[node.op]]))
    seen: set[int] = set()
    streams: list[ResidualStream] = []
    for x, weight in starts:
        if id(x) not in seen:
            walk = _Walk(graph, layers, norms, inside)
            channels = math.prod(weight.shape) if ir.is_constant(weight) else 0
            streams.append(walk.follow(x, channels))
            seen |= walk.seen
    return streams


def _find_norms(graph: gs.Graph) -> tuple[list[StreamNorm], set[int]]:
    """RMS norms over the last axis, and the nodes that spelled-out ones are made of."""
    norms: list[StreamNorm] = []
    for node in graph.nodes:
        if node.op == _SKIP_RMS:
            norms.append(StreamNorm(node, 2, node.inputs[0]))
        elif node.op in _RMS:
            axis, rank = ir.attribute(node, "axis", -1), ir.tensor_rank(node.inputs[0])
            if axis == -1 or (rank is not None and axis == rank - 1):
                norms.append(StreamNorm(node, 1, node.inputs[0]))
    inside: set[int] = set()
    for found in find(RMS_NORM, graph):
        position = next((i for i in (0, 1) if found.root.inputs[i] is found["weight"]), None)
        if position is not None and last_axis(found, "variance") and _is_variable(found["x"]):
            norms.append(StreamNorm(found.root, position, found["x"]))
            inside |= {id(node) for node in found.nodes}
    return norms, inside


def _is_variable(tensor: Any) -> bool:
    return not ir.is_constant(tensor)


def _label(node: gs.Node) -> str:
    return f"{node.op} '{node.name}'"


def _sum(node: gs.Node) -> tuple[list[int], list[Any]] | None:
    """The positions of the terms an addition adds, and the sum where it is given out."""
    if node.op == "Add" and not node.domain:
        return [0, 1], list(node.outputs)
    if node.op != _SKIP_RMS:
        return None
    terms = [i for i in (0, 1, 3) if i < len(node.inputs) and not node.inputs[i].is_empty()]
    return terms, [t for t in node.outputs[_SUM : _SUM + 1] if not t.is_empty()]


def _multiple(node: gs.Node) -> tuple[list[int], list[Any]] | None:
    """The position of what is multiplied by one constant number, and the product."""
    if node.op not in ("Mul", "Div") or node.domain:
        return None
    variable = [i for i in (0, 1) if _is_variable(node.inputs[i])]
    if len(variable) != 1 or (node.op == "Div" and variable != [0]):
        return None
    factor = node.inputs[1 - variable[0]]
    return (variable, list(node.outputs)) if math.prod(factor.shape) == 1 else None


class _Walk:
    """One stream, followed from tensor to tensor; the first veto is kept."""

    def __init__(
        self,
        graph: gs.Graph,
        layers: Sequence[Layer],
        norms: Sequence[StreamNorm],
        inside: set[int],
    ) -> None:
        self._graph = graph
        self._nodes = {id(node) for node in graph.nodes}
        self._layers = layers
        self._writers = {id(layer.output): layer for layer in layers}
        self._by_node = {id(layer.node): layer for layer in layers}
        self._tables = {id(table.gather): table for table in find_tables(graph)}
        self._norms = norms
        self._inside = inside
        self._queue: list[Any] = []
        self._touched: set[int] = set()
        self._looked_up: dict[int, gs.Node] = {}
        self._uses: dict[tuple[int, int, int], ConstantUse] = {}
        self._scaled: list[StreamNorm] = []
        self._channels = 0
        self._veto: str | None = None
        self.seen: set[int] = set()

    def follow(self, start: Any, channels: int) -> ResidualStream:
        """The stream that a tensor belongs to."""
        self._channels = channels
        self._push(start)
        while self._queue:
            tensor = self._queue.pop(0)
            self._written(tensor)
            for node in ir.value_readers(tensor):
                self._read(node, tensor)
            if ir.is_graph_output(self._graph, tensor):
                self._refuse(f"'{tensor.name}' is an output of the model")
        for norm in self._norms:
            if id(norm.x) in self.seen:
                self._behind(norm)
        self._check_sharing()
        return ResidualStream(
            channels=self._channels,
            layers=tuple(each for each in self._layers if id(each.node) in self._touched),
            tables=tuple(self._looked_up.values()),
            uses=tuple(self._uses.values()),
            scaled=tuple(self._scaled),
            veto=self._veto,
        )

    def _refuse(self, reason: str) -> None:
        self._veto = self._veto or reason

    def _push(self, tensor: Any) -> None:
        """Another tensor of the stream; as wide, since the width of whatever writes is checked."""
        if id(tensor) in self.seen:
            return
        self.seen.add(id(tensor))
        self._queue.append(tensor)

    def _use(self, node: gs.Node, position: int, axis: int) -> None:
        use = ConstantUse(node, position, axis)
        self._uses[id(node), position, axis] = use
        if use.constant.shape[axis] != self._channels:
            self._refuse(f"'{use.constant.name}' does not fit the stream")

    def _written(self, tensor: Any) -> None:
        """What computes a tensor of the stream."""
        node, layer = ir.producer(tensor), self._writers.get(id(tensor))
        if node is None:
            self._refuse(f"'{tensor.name}' is an input of the model")
        elif layer is not None:
            self._touched.add(id(layer.node))
            self._use(layer.node, layer.kind.weight, layer.axes[1])
            if layer.bias_place is not None:
                self._use(*layer.bias_place, 0)
        elif id(node) in self._tables:
            self._looked_up[id(node)] = node
            transposed = self._tables[id(node)].transposed
            source = ir.producer(node.inputs[0], "Transpose") if transposed else None
            self._use(*((node, 0, 1) if source is None else (source, 0, 0)))
        elif not self._joins(node) or (node.op == _SKIP_RMS and tensor is node.outputs[0]):
            self._refuse(f"{_label(node)} writes to the residual stream")

    def _read(self, node: gs.Node, tensor: Any) -> None:
        """What a node makes of a tensor of the stream."""
        layer = self._by_node.get(id(node))
        if id(node) not in self._nodes:
            self._refuse(f"{_label(node)} reads the residual stream from a subgraph")
        elif layer is not None and layer.x is tensor:
            self._touched.add(id(node))
            self._use(node, layer.kind.weight, layer.axes[0])
        elif node.op in _CENTERING:
            self._refuse(f"{_label(node)} subtracts the mean, which a rotation does not keep")
        elif id(node) in self._inside:
            self._check_inside(node)
        elif self._is_norm(node, tensor):
            pass  # norms are looked at once the whole stream is known
        elif not self._joins(node):
            self._refuse(f"{_label(node)} reads the residual stream")

    def _check_inside(self, node: gs.Node) -> None:
        """Only a norm may see what it makes of each channel; the lengths it computes stay."""
        tensor = node.outputs[0]
        looked = any(id(reader) not in self._inside for reader in ir.value_readers(tensor))
        if looked or ir.is_graph_output(self._graph, tensor):
            self._refuse(f"{_label(node)}, a part of a norm, is read elsewhere")

    def _is_norm(self, node: gs.Node, tensor: Any) -> bool:
        return node.op in _RMS and any(n.node is node and n.x is tensor for n in self._norms)

    def _joins(self, node: gs.Node) -> bool:
        """Whether a node adds to the stream, scales it or moves rows; its tensors belong to it."""
        found = _sum(node) or _multiple(node) or moved_rows(node)
        if found is None:
            return False
        positions, total = found
        for position in positions:
            term = node.inputs[position]
            if _is_variable(term):
                self._push(term)
            elif len(term.shape):
                self._use(node, position, len(term.shape) - 1)
            else:
                self._refuse(f"{_label(node)} adds one number to all channels")
        for tensor in total:
            self._push(tensor)
        return True

    def _behind(self, norm: StreamNorm) -> None:
        """The layers behind a norm, and whether its weight lets a rotation pass."""
        weight, output = norm.weight, norm.output
        readers = tuple(each for each in self._layers if origin(each.x) is output)
        for layer in readers:
            self._touched.add(id(layer.node))
            self._use(layer.node, layer.kind.weight, layer.axes[0])
        own = {id(layer.node) for layer in readers}
        others = (n for n, _ in readers_of_rows(output) if id(n) not in own)
        other = next(others, None)
        if other is not None:
            self._refuse(f"{_label(other)} reads the norm '{norm.node.name}', too")
        elif ir.is_graph_output(self._graph, output):
            self._refuse(f"'{output.name}' is an output of the model")
        elif not ir.is_constant(weight) or math.prod(weight.shape) != self._channels:
            self._refuse(f"the weight of the norm '{norm.node.name}' is not one constant vector")
        elif np.all(ir.array(weight) == 1.0):
            return
        elif readers and all(self._has_table(layer) for layer in readers):
            self._scaled.append(StreamNorm(norm.node, norm.input, norm.x, readers))
        else:
            self._refuse(f"the norm '{norm.node.name}' has weights; put 'fold-norm' before")

    def _has_table(self, layer: Layer) -> bool:
        """Whether embeddings are looked up in a layer's weight."""
        return any(table.constant is layer.weight for table in self._tables.values())

    def _check_sharing(self) -> None:
        """Every reader of a matrix must see it turned, and turned alike; vectors are copied."""
        turned: dict[int, tuple[gs.Constant, dict[int, set[int]]]] = {}
        for use in self._uses.values():
            if len(use.constant.shape) < 2:
                continue
            _, axes = turned.setdefault(id(use.constant), (use.constant, {}))
            axes.setdefault(id(use.node), set()).add(use.axis)
        for constant, axes in turned.values():
            first = next(iter(axes.values()))
            for node in ir.consumers(constant):
                if axes.get(id(node)) != first:
                    self._refuse(f"'{constant.name}' is shared with {_label(node)}")
        for gather in self._looked_up.values():
            for node in ir.consumers(gather.inputs[0]):
                if id(node) not in self._looked_up and not ir.is_constant(gather.inputs[0]):
                    self._refuse(f"'{gather.inputs[0].name}' is shared with {_label(node)}")
