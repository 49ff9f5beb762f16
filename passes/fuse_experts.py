"""fuse-experts: experts that split-experts took apart become one operator again, on their codes.

    for each expert e  MatMulNBits(act(MatMulNBits(X_e, W1_e)), W2_e), the sum of p · ..
        ->  com.microsoft.QMoE(X, router, W1, scales, bias, W2, scales, bias[, zero points])

ONNX Runtime's operator finds the experts of a token by itself and runs no others. The codes are the
same, and with accuracy_level 4 so is what becomes of activations: int8 a row and block. Where the
layers of the experts differ in form, or ONNX Runtime has no such kernel, they stay a MatMulNBits
each, and a remark says why.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from qcompiler import ir, ops
from qcompiler.analysis.requirements import QUANTIZED_EXPERTS
from qcompiler.formats import Granularity
from qcompiler.ir.matcher import (
    Match,
    Op,
    Pattern,
    absent,
    const,
    either,
    find,
    match,
    op,
    var,
)
from qcompiler.passmanager import Fact, Numerics, Pass, PassContext, PassResult
from qcompiler.remarks import LeftAlone, Lowered, Remark
from qcompiler.versions import installed

OP = "QMoE"

_WIDTHS = (4, 8)
"""Bits that its CPU kernel has integer products for."""


def _times(a: Pattern, b: Pattern) -> Op:
    return op("Mul", a, b, commutative=True)


def _choice(output: int, capture: str) -> Op:
    """The shares of a token's experts, or their numbers."""
    scores = op("Softmax", var("router"), attrs={"axis": -1}, capture="scores")
    return op("TopK", scores, const("slots"), output=output, capture=capture)


_SHARES = _choice(0, "shares")
_TOTAL = op("ReduceSum", _SHARES, const(), capture="normalized")
_WEIGHTS = op("Unsqueeze", either(op("Div", _SHARES, _TOTAL), _SHARES), const())
_IDS = op("Reshape", _choice(1, "ids"), const())
_ORDER = op("TopK", _IDS, ..., output=1, attrs={"axis": 0, "largest": 0}, capture="order")
_BACK = op("TopK", _ORDER, ..., output=1, attrs={"axis": 0, "largest": 0})
_TAKEN = op("Gather", var("x"), op("Div", _ORDER, const()))
_HITS = op("Equal", op("Unsqueeze", _IDS, const()), const())
_SIZES = op("ReduceSum", op("Cast", _HITS), const())
_BY_SLOT = op("Reshape", op("Gather", op("Concat", ..., capture="joined"), _BACK), const())
_SUM = op("ReduceSum", _times(_BY_SLOT, _WEIGHTS), const(), attrs={"keepdims": 0})

_GATE, _UP = var("gate"), var("up")
_SWISH = _times(_GATE, op("Sigmoid", either(_times(_GATE, const("alpha", size=1)), _GATE)))
_SWIGLU = _times(_SWISH, _UP)
_SILU = _times(_UP, op("Sigmoid", _UP))
_CLAMPED_ABOVE = op("Clip", _GATE, absent(), const("limit", size=1))
_CLAMPED = op("Clip", _UP, const("low", size=1), const("limit", size=1))
_SHIFTED = op("Add", _UP, const("beta", size=1), commutative=True)


@dataclass(frozen=True, kw_only=True)
class FuseExperts(Pass):
    """Put the MatMulNBits of all experts of a token into one QMoE."""

    name: ClassVar[str] = "fuse-experts"
    numerics: ClassVar[Numerics] = Numerics.EXACT
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.LOWERED})

    def run(self, graph: gs.Graph, ctx: PassContext) -> PassResult:
        namer = ir.Namer(graph)
        remarks: list[Remark] = []
        for found in find(_SUM, graph):
            layers = _layers(found)
            if not layers:
                continue
            try:
                remarks += _fuse(graph, _experts(found), namer)
            except _NotFusedError as reason:
                message = f"not one {OP} for all experts: {reason}"
                remarks += [LeftAlone(layer=layer, message=message) for layer in layers]
        changed = any(remark.applied for remark in remarks)
        if changed:
            ir.remove_dead(graph)
        return PassResult(graph=graph, changed=changed, remarks=tuple(remarks))


class _NotFusedError(Exception):
    """Why experts stay a layer each."""


@dataclass(frozen=True)
class _Linear:
    """A layer of an expert: y = x · W + b."""

    x: Any
    node: gs.Node
    bias: gs.Constant | None

    def setting(self, name: str) -> int:
        """An attribute of the node."""
        return int(ir.attribute(self.node, name, 0))

    @property
    def codes(self) -> NDArray[np.uint8]:
        """[N, K · bits / 8]."""
        return ir.array(self.node.inputs[1]).reshape(self.setting("N"), -1)

    @property
    def scales(self) -> NDArray[np.float32]:
        """[N, G]."""
        return ir.array(self.node.inputs[2]).reshape(self.setting("N"), -1)

    @property
    def zeros(self) -> NDArray[np.uint8] | None:
        """[N, ceil(G · bits / 8)]; None where symmetric."""
        zeros = ir.given(self.node.inputs, 3)
        return None if zeros is None else ir.array(zeros).reshape(self.setting("N"), -1)

    @property
    def middles(self) -> NDArray[np.uint8]:
        """The zero points of a symmetric weight, packed."""
        bits, groups = self.setting("bits"), self.setting("K") // self.setting("block_size")
        byte = 0x88 if bits == 4 else 0x80  # 8 twice, or 128
        return np.full((self.setting("N"), -(-groups * bits // 8)), byte, np.uint8)

    @property
    def shift(self) -> NDArray[np.float32]:
        """[N]."""
        width = self.setting("N")
        if self.bias is None:
            return np.zeros(width, np.float32)
        return np.broadcast_to(ir.array(self.bias).astype(np.float32), (width,))


@dataclass(frozen=True)
class _Activation:
    """What is between the layers of an expert."""

    kind: str
    settings: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class _Expert:
    first: tuple[_Linear, ...]
    """The up projection, or gate and up."""
    activation: _Activation
    down: _Linear


@dataclass(frozen=True)
class _Experts:
    """All that one operator holds."""

    found: Match
    name: str
    x: Any
    """[T, H]."""
    experts: tuple[_Expert, ...]


def _layers(found: Match) -> list[str]:
    """The layers that expert after expert is made of, as far as they can be followed."""
    names: dict[str, None] = {}
    for output in found.node("joined").inputs:
        waiting, passed = [output], []
        while waiting:
            node = ir.producer(waiting.pop())
            if node is None or node.op == "Split":
                continue
            if node.op == "MatMulNBits":
                passed.append(str(node.name))
            waiting += [each for each in node.inputs if not ir.is_constant(each)]
        names |= dict.fromkeys(reversed(passed))
    return list(names)


def _experts(found: Match) -> _Experts:
    """The experts behind a sum of shares, all alike."""
    if not installed(QUANTIZED_EXPERTS):
        raise _NotFusedError(f"it takes ONNX Runtime {QUANTIZED_EXPERTS} or later")
    x, parts = _taken(found)
    experts = tuple(map(_expert, found.node("joined").inputs))
    read = [[layer.x for layer in each.first] for each in experts]
    if len(parts) != len(read) or any(
        x is not part for part, given in zip(parts, read, strict=True) for x in given
    ):
        raise _NotFusedError("its rows are not those that the router chose")
    _require_alike(experts)
    name, _, _ = str(experts[0].down.node.name).rpartition("/experts.")
    return _Experts(found, name or OP, x, experts)


def _taken(found: Match) -> tuple[Any, Sequence[Any]]:
    """What the experts read [T, H], and the rows of each."""
    for token in ir.consumers(found["order"]):
        for gather in ir.consumers(token.outputs[0]):
            for split in ir.consumers(gather.outputs[0]) if match(_TAKEN, gather) else ():
                sizes = ir.producer(split.inputs[1])
                if split.op == "Split" and sizes is not None and match(_SIZES, sizes):
                    return gather.inputs[0], split.outputs
    raise _NotFusedError("its rows are not taken by expert")


def _expert(output: Any) -> _Expert:
    down = _linear(output)
    activation, inputs = _activation(down.x)
    return _Expert(tuple(map(_linear, inputs)), activation, down)


def _linear(output: Any) -> _Linear:
    """The layer that gives a tensor, with its bias."""
    node, bias = ir.producer(output), None
    if node is not None and node.op == "Add":
        bias, output = sorted(node.inputs, key=ir.is_constant, reverse=True)
        node = ir.producer(output)
    if node is None or node.op != "MatMulNBits" or not (bias is None or ir.is_constant(bias)):
        raise _NotFusedError("some of their layers are in float")
    return _Linear(node.inputs[0], node, bias)


def _activation(output: Any) -> tuple[_Activation, tuple[Any, ...]]:
    """The activation function that gives a tensor, and what it reads."""
    node = ir.producer(output)
    if node is None:
        raise _NotFusedError("they have no layer before the last")
    if isinstance(found := match(_SWIGLU, node), Match):
        return _swiglu(found)
    if isinstance(found := match(_SILU, node), Match):
        return _Activation("silu"), (found["up"],)
    if node.op == "Gelu" and ir.attribute(node, "approximate") == "tanh":
        return _Activation("gelu"), (node.inputs[0],)
    if node.op == "Relu":
        return _Activation("relu"), (node.inputs[0],)
    return _Activation("identity"), (output,)


def _swiglu(found: Match) -> tuple[_Activation, tuple[Any, ...]]:
    """gate · sigmoid(alpha · gate) · (up + beta), where both may be clamped."""
    settings = {"activation_alpha": 1.0, "activation_beta": 0.0}
    gate, up = found["gate"], found["up"]
    if "alpha" in found:
        settings["activation_alpha"] = found.array("alpha").item()
    if shifted := _behind(_SHIFTED, up):
        settings["activation_beta"], up = shifted.array("beta").item(), shifted["up"]
    above, both = _behind(_CLAMPED_ABOVE, gate), _behind(_CLAMPED, up)
    if above and both:
        settings["swiglu_limit"] = limit = above.array("limit").item()
        if both.array("limit").item() != limit or both.array("low").item() != -limit:
            raise _NotFusedError("gate and up are clamped at different limits")
        gate, up = above["gate"], both["up"]
    return _Activation("swiglu", tuple(settings.items())), (gate, up)


def _behind(pattern: Op, tensor: Any) -> Match | None:
    """The match of a pattern at what gives a tensor."""
    node = ir.producer(tensor)
    found = None if node is None else match(pattern, node)
    return found if isinstance(found, Match) else None


def _require_alike(experts: Sequence[_Expert]) -> None:
    """_NotFusedError where one operator can't hold these layers."""
    layers = [layer for each in experts for layer in (*each.first, each.down)]
    if len({each.activation for each in experts}) > 1:
        raise _NotFusedError("they have different activation functions")
    if len({(each.setting("bits"), each.setting("block_size")) for each in layers}) > 1:
        raise _NotFusedError("they differ in bits or in groups")
    bits, block = layers[0].setting("bits"), layers[0].setting("block_size")
    if bits not in _WIDTHS:
        raise _NotFusedError("its kernel takes 4 or 8 bits")
    if any(each.setting("K") % block for each in layers):
        raise _NotFusedError(f"groups of {block} channels do not divide theirs")


def _fuse(graph: gs.Graph, all_of: _Experts, namer: ir.Namer) -> list[Remark]:
    """Put the operator in the place of the sum. Returns what became of each layer."""
    found, experts, root = all_of.found, all_of.experts, all_of.found.root
    name = namer(all_of.name)
    firsts, downs = [e.first for e in experts], [(e.down,) for e in experts]
    constants = [
        [_stacked(layers, part, namer(f"{name}/{which}_{part}")) for part in _PARTS]
        for which, layers in (("fc1", firsts), ("fc2", downs))
    ]
    (up, up_scales, up_bias, up_zeros), (down, down_scales, down_bias, down_zeros) = constants
    none, output = gs.Variable.empty(), root.outputs[0]
    root.outputs.clear()
    inputs = [all_of.x, found["router"], up, up_scales, up_bias, down, down_scales, down_bias]
    inputs += [none, none, none, up_zeros, down_zeros]
    if "normalized" not in found:
        # By itself it makes the shares of the chosen add up to 1.
        inputs += [none, found["scores"]]
    attrs = _attributes(found, experts[0])
    ir.add_node(graph, OP, name, inputs, [output], attrs=attrs, domain=ops.CONTRIB_DOMAIN)
    return [
        Lowered(
            layer=str(layer.node.name),
            message=f"{OP}; ONNX Runtime quantizes its input per block",
            op=OP,
            activation=Granularity.PER_GROUP,
        )
        for expert in experts
        for layer in (*expert.first, expert.down)
    ]


def _attributes(found: Match, expert: _Expert) -> dict[str, Any]:
    attrs: dict[str, Any] = {
        "k": int(found.array("slots").item()),
        "activation_type": expert.activation.kind,
        "normalize_routing_weights": int("normalized" in found),
        "expert_weight_bits": expert.down.setting("bits"),
        "block_size": expert.down.setting("block_size"),
        "accuracy_level": expert.down.setting("accuracy_level"),
        "weights_prepacked": 0,
        **dict(expert.activation.settings),
    }
    if expert.activation.kind == "swiglu":
        attrs["swiglu_fusion"] = 1  # rows of gate and up in turn
    return attrs


_PARTS = ("codes", "scales", "bias", "zeros")


def _stacked(experts: Sequence[tuple[_Linear, ...]], part: str, name: str) -> Any:
    """One part of the layers of all experts [E, N, ..], rows of gate and up in turn; nothing where
    no layer has it."""
    layers = [layer for each in experts for layer in each]
    if part == "bias" and all(each.bias is None for each in layers):
        return gs.Variable.empty()
    if part == "zeros" and all(each.zeros is None for each in layers):
        return gs.Variable.empty()
    read: dict[str, Callable[[_Linear], NDArray[Any]]] = {
        "codes": lambda each: each.codes,
        "scales": lambda each: each.scales,
        "bias": lambda each: each.shift,
        "zeros": lambda each: each.middles if each.zeros is None else each.zeros,
    }
    values = [np.stack([read[part](layer) for layer in each], axis=1) for each in experts]
    return ir.constant(name, np.stack([each.reshape(-1, *each.shape[2:]) for each in values]))
