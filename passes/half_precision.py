"""half-precision: what was left in float32 is computed in float16, for GPUs.

    LinearW4A8(X [float32])                 ->  LinearW4A8(Cast(X) [float16])
    Cast(LinearW4A8(Cast(X [float16])))     ->  LinearW4A8(X), in models of float16

Norms, attention and what is done to their results are converted too. Key and value caches become
float16, also as inputs and outputs of the model. Every other input and output keeps its type. What
computes an output stays in float32, and so do masks, positions, tables of rotary embeddings, and
nodes with a constant that float16 can't hold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from qcompiler import ir, ops
from qcompiler.passmanager import Fact, Numerics, Pass, PassContext, PassResult
from qcompiler.remarks import LeftAlone

HALF = np.dtype(np.float16)
FLOAT = np.dtype(np.float32)

ATTENTION = "GroupQueryAttention"
_CACHES_IN, _CACHES_OUT = (3, 4), (1, 2)


@dataclass(frozen=True)
class _Typed:
    """The inputs and outputs of an operator that share one type; None: all of them."""

    inputs: tuple[int, ...] | None = None
    outputs: tuple[int, ...] | None = None


_MATMUL = _Typed(inputs=(0,))
_NORM = _Typed(outputs=(0,))

_ALWAYS: dict[tuple[str, str], _Typed] = {
    **{
        (ops.DOMAIN, ops.linear_op(bits, levels=levels, static=static)): _MATMUL
        for bits, levels in ops.FORMS
        for static in (False, True)
    },
    (ops.CONTRIB_DOMAIN, "MatMulNBits"): _Typed(inputs=(0, 2, 5)),
    (ops.CONTRIB_DOMAIN, ATTENTION): _Typed(inputs=(0, 1, 2, 3, 4, 7, 8)),
    (ops.CONTRIB_DOMAIN, "SkipSimplifiedLayerNormalization"): _Typed(outputs=(0, 3)),
    (ops.CONTRIB_DOMAIN, "SkipLayerNormalization"): _Typed(outputs=(0, 3)),
    ("", "SimplifiedLayerNormalization"): _NORM,
    ("", "LayerNormalization"): _NORM,
}
"""Computed in float16 wherever they stand; sums inside are float32 in all of them."""

_FOLLOWING = frozenset(
    ("", name)
    for name in (
        *("Add", "Sub", "Mul", "Div", "Neg", "Sigmoid", "Tanh", "Relu", "Gelu", "Erf"),
        *("Transpose", "Reshape", "Split", "Concat", "Slice", "Squeeze", "Unsqueeze", "Expand"),
        "Identity",
    )
) | {
    (ops.CONTRIB_DOMAIN, name)
    for name in ("RotaryEmbedding", "QuickGelu", "BiasGelu", "FastGelu", "Gelu")
}
"""Computed in float16 where all that they read is there in float16."""

_PRODUCT = ("", "MatMul")
"""In float16 where one factor is: attention weights, times values."""


@dataclass(frozen=True, kw_only=True)
class HalfPrecision(Pass):
    """Compute in float16 what quantization left in float32."""

    name: ClassVar[str] = "half-precision"
    numerics: ClassVar[Numerics] = Numerics.LOSSY
    runs_in_bodies: ClassVar[bool] = False
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.IMPORTED})

    def run(self, graph: gs.Graph, ctx: PassContext) -> PassResult:
        ir.sort_nodes(graph)
        converter = _Converter(graph)
        remarks: list[LeftAlone] = []
        for node in list(graph.nodes):
            reason = converter.visit(node)
            if reason is not None and node.op == ATTENTION:
                message = f"attention left in float32, which ONNX Runtime runs on the CPU: {reason}"
                remarks.append(LeftAlone(layer=node.name, message=message))
        if converter.changed:
            converter.widen()
            ir.remove_dead(graph)
        return PassResult(graph=graph, changed=converter.changed, remarks=tuple(remarks))


class _Converter:
    """Walks a graph in order; remembers which tensors are there in float16."""

    def __init__(self, graph: gs.Graph) -> None:
        self._graph = graph
        self._namer = ir.Namer(graph)
        self._halves: dict[int, Any] = {}  # by the float32 tensor's identity
        self._made: list[Any] = []
        """Results that were float32, in order."""
        self._reads: set[tuple[int, int]] = set()
        """(node, input) pairs that want float16."""
        self._narrowed: list[Any] = []
        """What was cast: keeps alive what identities above belong to."""
        self.changed = False

    def visit(self, node: gs.Node) -> str | None:
        """Turn a node to float16 if it is one of those; why not, if it is and can't be."""
        if node.op == "Cast":
            self._skip_cast(node)
            return None
        typed = self._typed(node)
        if typed is None:
            return None
        inputs = _chosen(node.inputs, typed.inputs)
        outputs = _chosen(node.outputs, typed.outputs)
        caches = self._caches(node)
        results = [node.outputs[i] for i in outputs if not _among(caches, node.outputs[i])]
        there = all(self._was_half(node.inputs[i]) for i in inputs)
        if there or any(tensor.dtype == HALF for tensor in results):
            return None
        if not all(node.inputs[i].dtype in (FLOAT, HALF) for i in inputs):
            return "an input is not known to be float32"
        if any(ir.is_graph_output(self._graph, tensor) for tensor in results):
            return "it gives an output of the model"
        if any(not tensor.is_empty() for i, tensor in enumerate(node.outputs) if i not in outputs):
            return "more than its result is read"
        constants = [node.inputs[i] for i in inputs if ir.is_constant(node.inputs[i])]
        exactly = _kind(node) not in _ALWAYS
        if not all(_fits(constant, exactly=exactly) for constant in constants):
            return "float16 can't hold a constant of it"
        for tensor in caches:
            tensor.dtype = HALF
        for i in inputs:
            node.inputs[i] = self._half(node.inputs[i])
            self._reads.add((id(node), i))
        for tensor in results:
            tensor.dtype = HALF
            self._halves[id(tensor)] = tensor
        self._made += results
        self.changed = True
        return None

    def _skip_cast(self, cast: gs.Node) -> None:
        """Let those who read a Cast to float16 read what is there in float16 already."""
        tensor, narrow = cast.inputs[0], cast.outputs[0]
        if narrow.dtype != HALF or id(tensor) not in self._halves:
            return
        if ir.is_graph_output(self._graph, narrow):
            return
        half = self._halves[id(tensor)]
        for reader in ir.consumers(narrow):
            for i, read in enumerate(reader.inputs):
                if read is narrow:
                    reader.inputs[i] = half
                    self._reads.add((id(reader), i))
        self.changed = True

    def widen(self) -> None:
        """Give float32 to the readers of results that need it."""
        for tensor in self._made:
            wide = None
            for reader in ir.consumers(tensor):
                for i, read in enumerate(reader.inputs):
                    if read is not tensor or (id(reader), i) in self._reads:
                        continue
                    wide = self._cast(tensor, FLOAT) if wide is None else wide
                    reader.inputs[i] = wide

    def _typed(self, node: gs.Node) -> _Typed | None:
        """The part of a node that would be float16, None where it stays as it is."""
        kind = _kind(node)
        if kind in _ALWAYS:
            return _ALWAYS[kind]
        given = [t for t in node.inputs if not t.is_empty() and not ir.is_constant(t)]
        there = [self._is_half(tensor) for tensor in given if tensor.dtype in (FLOAT, HALF)]
        follows = (kind in _FOLLOWING and all(there)) or (kind == _PRODUCT and any(there))
        if not there or not follows or any(tensor.dtype is None for tensor in given):
            return None
        floats = (i for i, tensor in enumerate(node.inputs) if tensor.dtype in (FLOAT, HALF))
        return _Typed(inputs=tuple(floats))

    def _caches(self, node: gs.Node) -> list[Any]:
        """Key and value caches of an attention that are inputs and outputs of the model."""
        if node.op != ATTENTION or len(node.outputs) <= max(_CACHES_OUT):
            return []
        past = [node.inputs[i] for i in _CACHES_IN]
        present = [node.outputs[i] for i in _CACHES_OUT]
        private = all(
            _among(self._graph.inputs, tensor)
            and [id(reader) for reader in ir.consumers(tensor)] == [id(node)]
            for tensor in past
        )
        given_out = all(
            ir.is_graph_output(self._graph, tensor) and not ir.consumers(tensor)
            for tensor in present
        )
        return [*past, *present] if private and given_out else []

    def _is_half(self, tensor: Any) -> bool:
        return tensor.dtype == HALF or id(tensor) in self._halves

    def _was_half(self, tensor: Any) -> bool:
        return tensor.dtype == HALF and id(tensor) not in self._halves

    def _half(self, tensor: Any) -> Any:
        if tensor.dtype == HALF:
            return tensor
        if id(tensor) not in self._halves:
            self._narrowed.append(tensor)
            cast = ir.producer(tensor, "Cast")
            if cast is not None and self._was_half(cast.inputs[0]):
                half: Any = cast.inputs[0]
            elif ir.is_constant(tensor):
                values = ir.array(tensor).astype(HALF)
                half = ir.constant(self._namer(f"{tensor.name}_float16"), values)
            else:
                half = self._cast(tensor, HALF)
            self._halves[id(tensor)] = half
        return self._halves[id(tensor)]

    def _cast(self, tensor: Any, dtype: np.dtype[Any]) -> gs.Variable:
        name = f"{tensor.name}_{dtype.name}"
        made = gs.Variable(self._namer(name), dtype, tensor.shape)
        to = int(onnx.helper.np_dtype_to_tensor_dtype(dtype))
        ir.add_node(
            self._graph, "Cast", self._namer(f"{name}/Cast"), [tensor], [made], attrs={"to": to}
        )
        return made


def _kind(node: gs.Node) -> tuple[str, str]:
    return node.domain or "", node.op


def _among(tensors: Sequence[Any], tensor: Any) -> bool:
    """Whether a tensor is one of those, not one that compares equal."""
    return any(each is tensor for each in tensors)


def _chosen(tensors: Any, typed: tuple[int, ...] | None) -> list[int]:
    """Places of the tensors given that are typed together."""
    places = range(len(tensors)) if typed is None else typed
    return [i for i in places if ir.given(tensors, i) is not None]


def _fits(constant: gs.Constant, *, exactly: bool) -> bool:
    """Whether float16 holds a constant: nothing overflows, nor (`exactly`) becomes zero."""
    values = ir.array(constant)
    with np.errstate(over="ignore"):
        half = values.astype(HALF)
    held = np.isfinite(half) | ~np.isfinite(values)
    if exactly:
        held &= (half != 0) | (values == 0)
    return bool(held.all())
