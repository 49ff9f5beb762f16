"""split-experts: each expert's matrix becomes a layer of its own.

    MoE(X, router, W1, W2)         ->  p, ids = TopK(Softmax(router), k); for each expert e
                                       MatMul(act(MatMul(X_e, W1_e)), W2_e); the sum of p · ..
    MatMul(X, W[E, K, N][ids])     ->  MatMul(X_e, W_e) for each e
    MatMul(X, W[E, K, N])          ->  MatMul(X_e, W_e) for each e; Concat

X_e are the rows routed to an expert, and may be none: rows are put in the order of their experts,
split, and put back behind them. In the last form the matrices share X or each has a part of it. The
layers are named after the node: `/mlp/MoE/experts.3/up_proj`, `/mlp/MatMul/experts.3`. Experts of
another form stay as they are, and a remark says why.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from qcompiler import ir
from qcompiler.analysis.experts import (
    BatchedProduct,
    FusedExperts,
    NotExpertsError,
    RoutedProduct,
    batched_product,
    fused_experts,
    routed_bias,
    routed_product,
)
from qcompiler.ir.tensors import CastValues, stored_values
from qcompiler.passmanager import Fact, Numerics, Pass, PassContext, PassResult
from qcompiler.remarks import Divided, LeftAlone, Remark

_FLOAT = np.dtype(np.float32)
_INT = np.dtype(np.int64)
_Types = onnx.TensorProto


@dataclass(frozen=True, kw_only=True)
class SplitExperts(Pass):
    """Turn experts within one constant into one MatMul an expert, on the rows routed to it."""

    name: ClassVar[str] = "split-experts"
    numerics: ClassVar[Numerics] = Numerics.EXACT
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.IMPORTED})

    def run(self, graph: gs.Graph, ctx: PassContext) -> PassResult:
        splitter = _Splitter(graph)
        divided: list[Remark] = []
        left: dict[str, Remark] = {}
        for node in list(graph.nodes):
            try:
                divided += splitter.split(node)
            except NotExpertsError as reason:
                message = f"its experts are not split: {reason}"
                left[reason.holder] = LeftAlone(layer=reason.holder, message=message)
        if divided:
            ir.remove_dead(graph)
        remarks = (*divided, *left.values())
        return PassResult(graph=graph, changed=bool(divided), remarks=remarks)


class _Splitter:
    """Splits nodes of one graph; rows that are routed alike are put in order once."""

    def __init__(self, graph: gs.Graph) -> None:
        self._graph = graph
        self._namer = ir.Namer(graph)
        self._routes: dict[tuple[int, int], _Routes] = {}

    def split(self, node: gs.Node) -> list[Divided]:
        """What became of a node; nothing where it holds no experts."""
        fused = fused_experts(node)
        if fused is not None:
            return [self._fused(fused)]
        routed = routed_product(node)
        if routed is not None:
            return self._routed(routed)
        batched = batched_product(node)
        return [] if batched is None else [self._batched(batched)]

    def _emitter(self, base: str) -> _Emitter:
        return _Emitter(self._graph, self._namer, base)

    def _put(self, old: Any, made: Any) -> None:
        """Let a tensor take the place of another, whose sizes may have names."""
        if old.shape is not None:
            sizes = zip(old.shape, made.shape, strict=True)
            made.shape = [other if size is None else size for size, other in sizes]
        if old.inputs:
            old.inputs[0].outputs.clear()
        ir.replace_uses(self._graph, old, made)

    def _fused(self, found: FusedExperts) -> Divided:
        base = str(found.node.name)
        emit = self._emitter(base)
        x, width, slots = found.x, found.width, found.slots
        chosen, ids = _routing(emit, found)
        routes = _Routes(emit, emit.reshaped(ids, [-1]), found.count)
        token = emit("Div", [routes.order, emit.constant("slots", slots)], [None], _INT)
        flat = emit.reshaped(emit.wide(x), [-1, width])
        rows = emit("Gather", [flat, token], [None, width], axis=0)
        layers: list[str] = []
        parts: list[Any] = []
        for expert, part in enumerate(routes.parted(emit, rows)):
            one = self._emitter(f"{base}/experts.{expert}")
            parts.append(_expert(one, found, expert, part))
            layers += one.layers
        by_slot = emit.reshaped(routes.joined(emit, parts), [-1, slots, width])
        share = emit("Unsqueeze", [chosen, emit.constant("axes", [2])], [None, slots, 1])
        weighted = emit("Mul", [by_slot, share], [None, slots, width])
        axes = emit.constant("axes", [1])
        total = emit("ReduceSum", [weighted, axes], [None, width], keepdims=0)
        sizes = emit("Shape", [x], [len(x.shape)], _INT)
        self._put(found.node.outputs[0], emit.like(x, emit("Reshape", [total, sizes], x.shape)))
        return _divided(base, layers)

    def _routed(self, found: RoutedProduct) -> list[Divided]:
        emit = self._emitter(str(found.node.name))
        rows, columns = found.shape
        key = id(found.ids), found.count
        if key not in self._routes:
            self._routes[key] = _Routes(emit, emit.reshaped(found.ids, [-1]), found.count)
        routes = self._routes[key]
        flat = emit.reshaped(found.x, [-1, rows])
        given = ir.producer(found.x, "Unsqueeze")
        if given is not None and _axes(given) == [found.axis]:
            flat = given.inputs[0]
        ordered = emit("Gather", [flat, routes.order], [None, rows], flat.dtype, axis=0)
        biased = routed_bias(found)
        shifts = None if biased is None else ir.array(biased[1].inputs[0])
        parts = [
            emit.layer(
                f"experts.{each}",
                part,
                _matrix(found.weight, each, found.transposed),
                None if shifts is None else shifts[each],
            )
            for each, part in enumerate(routes.parted(emit, ordered))
        ]
        joined = routes.joined(emit, parts)
        if biased is not None:
            self._put(biased[0], joined)
            holders = (found.lookup, biased[1])
            return [_divided(str(each.name), emit.layers) for each in holders]
        for reader in ir.consumers(found.node.outputs[0]):
            if reader.op == "Squeeze" and _axes(reader) == [found.axis]:
                self._put(reader.outputs[0], joined)
        shape: list[Any] = [None, columns]
        shape.insert(found.axis, 1)
        axes = emit.constant("axes", [found.axis])
        self._put(found.node.outputs[0], emit("Unsqueeze", [joined, axes], shape, flat.dtype))
        return [_divided(str(found.lookup.name), emit.layers)]

    def _batched(self, found: BatchedProduct) -> Divided:
        emit = self._emitter(str(found.node.name))
        x, count = found.x, int(found.weight.shape[0])
        if len(x.shape) == 2:
            x = emit("Unsqueeze", [x, emit.constant("axes", [0])], [1, *x.shape], x.dtype)
        one = [*x.shape[:-3], 1, *x.shape[-2:]]
        parts = [x] * count
        if not found.shares:
            attrs = {"axis": len(one) - 3, "num_outputs": count}
            parts = emit.several("Split", [x], [(one, x.dtype)] * count, **attrs)
        products = [
            emit.layer(f"experts.{each}", part, _matrix(found.weight, each, turned=False))
            for each, part in enumerate(parts)
        ]
        shape = [*one[:-3], count, one[-2], found.weight.shape[2]]
        self._put(
            found.node.outputs[0], emit("Concat", products, shape, x.dtype, axis=len(one) - 3)
        )
        return _divided(str(found.node.name), emit.layers)


def _axes(node: gs.Node) -> list[int] | None:
    """The axes that a Squeeze or Unsqueeze of three drops or adds; None where they are computed."""
    if len(node.inputs) < 2 or not ir.is_constant(node.inputs[1]):
        return None
    return [int(axis) % 3 for axis in ir.array(node.inputs[1]).reshape(-1)]


def _divided(holder: str, layers: Sequence[str]) -> Divided:
    return Divided(layer=holder, message=f"split into {len(layers)} layers", parts=tuple(layers))


class _Emitter:
    """Adds nodes under the name of another, and keeps the names of layers among them."""

    def __init__(self, graph: gs.Graph, namer: ir.Namer, base: str) -> None:
        self._graph = graph
        self._namer = namer
        self._base = base
        self.layers: list[str] = []

    def several(
        self, op: str, inputs: Sequence[Any], outputs: Sequence[tuple[Any, Any]], **attrs: Any
    ) -> list[Any]:
        """The outputs of a new node, of those shapes and types."""
        name = self._namer(f"{self._base}/{op}")
        made = [
            gs.Variable(self._namer(f"{name}/output_{at}"), dtype, shape)
            for at, (shape, dtype) in enumerate(outputs)
        ]
        ir.add_node(self._graph, op, name, inputs, made, attrs=attrs)
        return made

    def __call__(
        self, op: str, inputs: Sequence[Any], shape: Any, dtype: Any = _FLOAT, **attrs: Any
    ) -> Any:
        """The output of a new node."""
        return self.several(op, inputs, [(shape, dtype)], **attrs)[0]

    def constant(self, what: str, values: Any, dtype: Any = _INT) -> gs.Constant:
        """A small constant."""
        return ir.constant(self._namer(f"{self._base}/{what}"), np.asarray(values, dtype))

    def reshaped(self, x: Any, sizes: list[int]) -> Any:
        """A tensor in another shape, -1 for what is left."""
        shape = [None if size < 0 else size for size in sizes]
        return self("Reshape", [x, self.constant("shape", sizes)], shape, x.dtype)

    def wide(self, x: Any) -> Any:
        """A tensor in float32."""
        return self("Cast", [x], x.shape, to=_Types.FLOAT) if x.dtype != _FLOAT else x

    def like(self, x: Any, wide: Any) -> Any:
        """A tensor of float32 in the type of another."""
        if x.dtype == _FLOAT:
            return wide
        return self("Cast", [wide], wide.shape, x.dtype, to=ir.elem_type(x))

    def layer(
        self, what: str, x: Any, weight: gs.Constant, bias: NDArray[Any] | None = None
    ) -> Any:
        """A layer on rows, in the type of these."""
        name = self._namer(f"{self._base}/{what}")
        self.layers.append(name)
        shape = [*x.shape[:-1], weight.shape[1]]
        weight.name = self._namer(f"{name}/weight")
        product = gs.Variable(self._namer(f"{name}/output_0"), x.dtype, shape)
        ir.add_node(self._graph, "MatMul", name, [x, weight], [product])
        if bias is None:
            return product
        return self("Add", [product, self.constant("bias", bias, x.dtype)], shape, x.dtype)


class _Routes:
    """The order of rows in which those of one expert follow one another."""

    def __init__(self, emit: _Emitter, ids: Any, count: int) -> None:
        """`ids` [S]: the expert of each row."""
        if ids.dtype != _INT:
            ids = emit("Cast", [ids], [None], _INT, to=_Types.INT64)
        self._rows = emit("Shape", [ids], [1], _INT)
        self.order = self._sorted(emit, ids)
        """[S]: the row at each place."""
        self._back = self._sorted(emit, self.order)
        column = emit("Unsqueeze", [ids, emit.constant("axes", [1])], [None, 1], _INT)
        experts = emit.constant("experts", np.arange(count))
        hits = emit("Equal", [column, experts], [None, count], np.dtype(bool))
        ones = emit("Cast", [hits], [None, count], _INT, to=_Types.INT64)
        axes = emit.constant("axes", [0])
        self._sizes = emit("ReduceSum", [ones, axes], [count], _INT, keepdims=0)

    def _sorted(self, emit: _Emitter, numbers: Any) -> Any:
        """Where the numbers of a vector are, the least first."""
        outputs = [([None], _INT)] * 2
        return emit.several("TopK", [numbers, self._rows], outputs, axis=0, largest=0)[1]

    def parted(self, emit: _Emitter, ordered: Any) -> list[Any]:
        """The rows of each expert, of all rows in order."""
        outputs = [(ordered.shape, ordered.dtype)] * int(self._sizes.shape[0])
        return emit.several("Split", [ordered, self._sizes], outputs, axis=0)

    def joined(self, emit: _Emitter, parts: Sequence[Any]) -> Any:
        """All rows in the order they came in."""
        shape, dtype = parts[0].shape, parts[0].dtype
        ordered = emit("Concat", parts, shape, dtype, axis=0)
        return emit("Gather", [ordered, self._back], shape, dtype, axis=0)


def _matrix(weight: gs.Constant, expert: int, turned: bool, rows: Any = slice(None)) -> gs.Constant:
    """One of the matrices [K, N] of a constant; of one that is turned, some rows [N, K] of it."""

    def move(values: NDArray[Any]) -> NDArray[Any]:
        one = values[expert, rows]
        return one.T if turned else one

    return ir.rearranged(f"{weight.name}.{expert}", weight, move)


def _routing(emit: _Emitter, found: FusedExperts) -> tuple[Any, Any]:
    """For each token the shares of its experts [T, k], and their numbers."""
    outputs = [([None, found.slots], dtype) for dtype in (_FLOAT, _INT)]
    shares = emit("Softmax", [emit.wide(found.router)], [None, found.count], axis=-1)
    count = emit.constant("slots", [found.slots])
    chosen, ids = emit.several("TopK", [shares, count], outputs, axis=-1)
    if found.setting("normalize_routing_weights", 0):
        axes = emit.constant("axes", [1])
        total = emit("ReduceSum", [chosen, axes], [None, 1], keepdims=1)
        chosen = emit("Div", [chosen, total], [None, found.slots])
    return chosen, ids


def _expert(emit: _Emitter, found: FusedExperts, expert: int, x: Any) -> Any:
    """One expert on its rows [S_e, H]."""

    def layer(what: str, x: Any, which: str, rows: Any = slice(None)) -> Any:
        weight, bias = found.up, found.up_bias
        if which == "down":
            weight, bias = found.down, found.down_bias
        shift = None if bias is None else ir.array(bias)[expert, rows]
        return emit.layer(what, x, _wide(_matrix(weight, expert, True, rows)), shift)

    if found.activation == "swiglu":
        gate = layer("gate_proj", x, "up", slice(0, None, 2))
        up = layer("up_proj", x, "up", slice(1, None, 2))
        return layer("down_proj", _swiglu(emit, found, gate, up), "down")
    h = layer("up_proj", x, "up")
    if found.activation == "silu":
        h = emit("Mul", [h, emit("Sigmoid", [h], h.shape)], h.shape)
    elif found.activation == "gelu":
        h = emit("Gelu", [h], h.shape, approximate="tanh")
    elif found.activation == "relu":
        h = emit("Relu", [h], h.shape)
    return layer("down_proj", h, "down")


def _swiglu(emit: _Emitter, found: FusedExperts, gate: Any, up: Any) -> Any:
    """gate · sigmoid(alpha · gate) · (up + beta), both clamped where there is a limit."""
    shape = gate.shape
    limit = found.setting("swiglu_limit")
    if limit is not None:
        high = emit.constant("limit", limit, _FLOAT)
        low = emit.constant("limit", -limit, _FLOAT)
        gate = emit("Clip", [gate, gs.Variable.empty(), high], shape)
        up = emit("Clip", [up, low, high], shape)
    alpha, beta = found.setting("activation_alpha", 1.0), found.setting("activation_beta", 0.0)
    steep = gate
    if alpha != 1.0:
        steep = emit("Mul", [gate, emit.constant("alpha", alpha, _FLOAT)], shape)
    if beta:
        up = emit("Add", [up, emit.constant("beta", beta, _FLOAT)], shape)
    swish = emit("Mul", [gate, emit("Sigmoid", [steep], shape)], shape)
    return emit("Mul", [swish, up], shape)


def _wide(weight: gs.Constant) -> gs.Constant:
    """A matrix read in float32, however it is stored."""
    if ir.elem_type(weight) == _Types.FLOAT:
        return weight
    return gs.Constant(str(weight.name), CastValues(stored_values(weight), _Types.FLOAT))
