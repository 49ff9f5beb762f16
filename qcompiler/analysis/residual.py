"""Residual streams: what a rotation of the hidden state between the blocks would have to touch.

    x = table[ids];  x = x + o_proj(..);  x = x + down_proj(..)     written
    x = concat(class row, conv(image))                              written, too
    norm(x) · W                                                     read

x ← x·R leaves a model as it was if everything that writes x turns with it (tables, columns and
biases ← ..·R) and everything that reads x turns back (rows ← Rᵀ·..). An RMS norm without channel
weights commutes with R, since the length of x stays. One that subtracts the mean is an RMS norm
where there is no mean to subtract: everything that writes x may write x - mean(x) (tables, columns
and biases less their means), if nothing but such norms reads it. A stream is all tensors that
additions connect, and rows of these; anything else that touches them vetoes the rotation with its
reason.
"""

from __future__ import annotations

import math
from collections.abc import Container, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler import ir
from qcompiler.analysis.layers import Layer
from qcompiler.analysis.rows import is_zeros, moved_rows, origin, readers_of_rows
from qcompiler.analysis.stream_norms import (
    SUM,
    StreamNorm,
    find_norms,
    is_norm,
    is_norm_of_sum,
    summed,
)
from qcompiler.analysis.tables import find_tables


@dataclass(frozen=True)
class ConstantUse:
    """A constant that a node reads, one axis of which lies along the stream."""

    node: gs.Node
    input: int
    axis: int
    writes: bool
    """Whether it is written to the stream, or reads it."""

    @property
    def constant(self) -> gs.Constant:
        """What the node reads there now."""
        return self.node.inputs[self.input]


@dataclass(frozen=True)
class ResidualStream:
    """One stream: its size, what turns with it, or the veto."""

    channels: int
    layers: tuple[Layer, ...]
    """The layers that write or read it, in graph order."""
    tables: tuple[gs.Node, ...]
    """The look-ups that write it."""
    uses: tuple[ConstantUse, ...] = ()
    norms: tuple[StreamNorm, ...] = ()
    """The norms that read it."""
    scaled: tuple[StreamNorm, ...] = ()
    """Norms whose weights can't be folded: a table shares the weight of the layer behind, or the
    stream begins behind them, and there are no `readers`."""
    veto: str | None = None

    @property
    def centers(self) -> bool:
        """Whether its norms subtract the mean."""
        return any(norm.centers for norm in self.norms)

    def constants(self) -> list[list[ConstantUse]]:
        """The uses, together where they are of one constant; these agree in their axes."""
        groups: dict[int, list[ConstantUse]] = {}
        for use in self.uses:
            groups.setdefault(id(use.constant), []).append(use)
        return list(groups.values())


def find_streams(
    graph: gs.Graph, layers: Sequence[Layer], folded: Container[int] = ()
) -> list[ResidualStream]:
    """Every residual stream that a norm reads, in graph order.

    Norms are those of `fuse-norm`, and RMS norms spelled out in standard operators. `folded`:
    identities of nodes that multiply by a norm's weight, to be taken as if it were 1.
    """
    norms, inside = find_norms(graph)
    found: list[tuple[set[int], ResidualStream]] = []
    for norm in norms:
        if not any(id(norm.x) in seen for seen, _ in found):
            walk = _Walk(graph, layers, norms, inside, folded)
            channels = math.prod(norm.weight.shape) if ir.is_constant(norm.weight) else 0
            stream = walk.follow(norm.x, channels)
            # What a norm reads in front of a stream is a part of that.
            found = [(seen, each) for seen, each in found if not seen <= walk.seen]
            found.append((walk.seen, stream))
    return [stream for _, stream in found]


def _is_variable(tensor: Any) -> bool:
    return not ir.is_constant(tensor)


def _label(node: gs.Node) -> str:
    return f"{node.op} '{node.name}'"


def _multiple(node: gs.Node) -> tuple[list[int], list[Any]] | None:
    """The position of what is multiplied by one constant number, and the product."""
    if node.op not in ("Mul", "Div") or node.domain:
        return None
    variable = [i for i in (0, 1) if _is_variable(node.inputs[i])]
    if len(variable) != 1 or (node.op == "Div" and variable != [0]):
        return None
    factor = node.inputs[1 - variable[0]]
    return (variable, list(node.outputs)) if math.prod(factor.shape) == 1 else None


def _embedding(graph: gs.Graph, node: gs.Node) -> list[tuple[gs.Node, int, int]] | None:
    """Node, input and axis of the constants that write rows by themselves; None for other nodes.

    A row for all samples, as that of a class: Expand(c[.., channels]). Patches of an image, or
    frames of sound: Transpose(Reshape(Conv(x, W[channels, ..], b[channels]))) or without Reshape.
    """
    if node.domain:
        return None
    if node.op == "Expand" and ir.is_constant(node.inputs[0]):
        sizes, made = node.inputs[0].shape, node.outputs[0].shape
        whole = bool(len(sizes)) and bool(made) and sizes[-1] == made[-1]
        return [(node, 0, len(sizes) - 1)] if whole else None
    if node.op != "Transpose" or ir.attribute(node, "perm") != [0, 2, 1]:
        return None
    source, inner = ir.producer(node.inputs[0]), [node.inputs[0]]
    if source is not None and source.op == "Reshape" and not source.domain:
        inner.append(source.inputs[0])
        source = ir.producer(source.inputs[0])
    alone = all(len(ir.value_readers(t)) == 1 and not ir.is_graph_output(graph, t) for t in inner)
    if source is None or source.op != "Conv" or not alone or ir.attribute(source, "group", 1) != 1:
        return None
    given = [at for at in (1, 2) if ir.given(source.inputs, at) is not None]
    leads = [None if t.shape is None else list(t.shape[:2]) for t in inner]
    kept = leads[0] is not None and None not in leads[0] and leads[0] == leads[-1]
    if not kept or not all(ir.is_constant(source.inputs[at]) for at in given):
        return None
    return [(source, at, 0) for at in given]


class _Walk:
    """One stream, followed from tensor to tensor; the first veto is kept."""

    def __init__(
        self,
        graph: gs.Graph,
        layers: Sequence[Layer],
        norms: Sequence[StreamNorm],
        inside: set[int],
        folded: Container[int],
    ) -> None:
        self._graph = graph
        self._nodes = {id(node) for node in graph.nodes}
        self._layers = layers
        self._writers = {id(layer.output): layer for layer in layers}
        self._by_node = {id(layer.node): layer for layer in layers}
        self._tables = {id(table.gather): table for table in find_tables(graph)}
        self._norms = norms
        self._inside = inside
        self._folded = folded
        self._queue: list[Any] = []
        self._touched: set[int] = set()
        self._looked_up: dict[int, gs.Node] = {}
        self._uses: dict[tuple[int, int, int], ConstantUse] = {}
        self._scaled: list[StreamNorm] = []
        self._front: list[StreamNorm] = []
        self._unnormed: Layer | None = None
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
        norms = tuple(norm for norm in self._norms if id(norm.x) in self.seen)
        for norm in norms:
            self._behind(norm)
        self._check_means(norms)
        self._check_sharing()
        return ResidualStream(
            channels=self._channels,
            layers=tuple(each for each in self._layers if id(each.node) in self._touched),
            tables=tuple(self._looked_up.values()),
            uses=tuple(self._uses.values()),
            norms=norms,
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

    def _use(self, node: gs.Node, position: int, axis: int, *, writes: bool) -> None:
        use = ConstantUse(node, position, axis, writes)
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
            self._use(layer.node, layer.kind.weight, layer.axes[1], writes=True)
            if layer.bias_place is not None:
                self._use(*layer.bias_place, 0, writes=True)
        elif id(node) in self._tables:
            self._looked_up[id(node)] = node
            transposed = self._tables[id(node)].transposed
            source = ir.producer(node.inputs[0], "Transpose") if transposed else None
            self._use(*((node, 0, 1) if source is None else (source, 0, 0)), writes=True)
        elif (norm := self._in_front(node, tensor)) is not None:
            self._push(norm.x)
            self._front.append(norm)
        elif (places := _embedding(self._graph, node)) is not None:
            for place in places:
                self._use(*place, writes=True)
        elif not self._joins(node) or (is_norm_of_sum(node) and tensor is node.outputs[0]):
            self._refuse(f"{_label(node)} writes to the residual stream")

    def _read(self, node: gs.Node, tensor: Any) -> None:
        """What a node makes of a tensor of the stream."""
        layer = self._by_node.get(id(node))
        if id(node) not in self._nodes:
            self._refuse(f"{_label(node)} reads the residual stream from a subgraph")
        elif layer is not None and layer.x is tensor:
            self._touched.add(id(node))
            self._use(node, layer.kind.weight, layer.axes[0], writes=False)
            self._unnormed = self._unnormed or layer
        elif id(node) in self._inside:
            self._check_inside(node)
        elif self._is_norm(node, tensor):
            pass  # norms are looked at once the whole stream is known
        elif not self._joins(node):
            self._refuse(f"{_label(node)} reads the residual stream")

    def _in_front(self, node: gs.Node, tensor: Any) -> StreamNorm | None:
        """The norm of what is looked up, where the stream begins with it (BLOOM)."""
        if not is_norm(node) or is_norm_of_sum(node) or tensor is not node.outputs[0]:
            return None
        looked_up = ir.producer(node.inputs[0])
        if looked_up is None or id(looked_up) not in self._tables:
            return None
        return next((norm for norm in self._norms if norm.node is node), None)

    def _check_inside(self, node: gs.Node) -> None:
        """Only a norm may see what it makes of each channel; the lengths it computes stay."""
        tensor = node.outputs[0]
        looked = any(id(reader) not in self._inside for reader in ir.value_readers(tensor))
        if looked or ir.is_graph_output(self._graph, tensor):
            self._refuse(f"{_label(node)}, a part of a norm, is read elsewhere")

    def _is_norm(self, node: gs.Node, tensor: Any) -> bool:
        plain = is_norm(node) and not is_norm_of_sum(node)
        return plain and any(n.node is node and n.x is tensor for n in self._norms)

    def _joins(self, node: gs.Node) -> bool:
        """Whether a node adds to the stream, scales it or moves rows; its tensors belong to it."""
        found = summed(node) or _multiple(node) or moved_rows(node)
        if found is None:
            return False
        positions, total = found
        for position in positions:
            term = node.inputs[position]
            if _is_variable(term):
                if not is_zeros(term):  # zeros stay zeros, however they are rotated
                    self._push(term)
            elif len(term.shape):
                self._use(node, position, len(term.shape) - 1, writes=True)
            else:
                self._refuse(f"{_label(node)} adds one number to all channels")
        for tensor in total:
            self._push(tensor)
        return True

    def _behind(self, norm: StreamNorm) -> None:
        """The layers behind a norm, and whether its weight lets a rotation pass."""
        weight, output = norm.weight, norm.output
        if any(norm is front for front in self._front):
            if not ir.is_constant(weight) or math.prod(weight.shape) != self._channels:
                self._refuse(f"the weight of the norm '{norm.node.name}' is not one vector")
            elif self._shifts(norm) or np.any(ir.array(weight) != 1.0):
                self._scaled.append(norm)
            return
        readers = tuple(each for each in self._layers if origin(each.x) is output)
        for layer in readers:
            self._touched.add(id(layer.node))
            self._use(layer.node, layer.kind.weight, layer.axes[0], writes=False)
        own = {id(layer.node) for layer in readers}
        others = (n for n, _ in readers_of_rows(output) if id(n) not in own)
        other = next(others, None)
        if other is not None:
            self._refuse(f"{_label(other)} reads the norm '{norm.node.name}', too")
        elif ir.is_graph_output(self._graph, output):
            self._refuse(f"'{output.name}' is an output of the model")
        elif not ir.is_constant(weight) or math.prod(weight.shape) != self._channels:
            self._refuse(f"the weight of the norm '{norm.node.name}' is not one constant vector")
        elif id(norm.node) in self._folded:
            return
        elif readers and all(self._has_table(layer) for layer in readers):
            if self._shifts(norm) or np.any(ir.array(weight) != 1.0):
                self._scaled.append(replace(norm, readers=readers))
        elif np.any(ir.array(weight) != 1.0):
            self._refuse(f"the norm '{norm.node.name}' has weights; put 'fold-norm' before")
        elif self._shifts(norm):
            self._refuse(f"the norm '{norm.node.name}' has a bias that no layer behind it takes")

    def _shifts(self, norm: StreamNorm) -> bool:
        """Whether a norm has a bias that is not zero, or not known."""
        bias = norm.bias
        return bias is not None and (not ir.is_constant(bias) or bool(ir.array(bias).any()))

    def _check_means(self, norms: Sequence[StreamNorm]) -> None:
        """Where a norm subtracts the mean, nothing else may see that x has one."""
        centering = next((norm.node for norm in norms if norm.centers), None)
        if centering is None:
            return
        other = next((norm.node for norm in norms if not norm.centers), None)
        if self._unnormed is not None:
            other = self._unnormed.node
        if other is not None:
            self._refuse(f"{_label(centering)} subtracts the mean, and {_label(other)} sees it")
        for norm in norms:
            asked = norm.node.outputs[1:SUM]
            if any(each.outputs or ir.is_graph_output(self._graph, each) for each in asked):
                self._refuse(f"{_label(norm.node)} gives out the mean")
        shifted = (norm for norm in self._scaled if norm.bias is not None)
        if any(not ir.is_constant(norm.bias) for norm in shifted):
            self._refuse(f"the bias of {_label(centering)} is computed")

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
