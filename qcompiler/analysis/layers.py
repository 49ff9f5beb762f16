"""Layers: products of an activation by a matrix of weights, however an operator spells them.

    rows(X) [T, K] · matrix() [K, N]  (+ bias [N])

A `Kind` says how one operator lays out its operands; whoever looks at layers asks the layer and
never the operator. Another operator is another row of `_KINDS`.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from qcompiler import ir, ops
from qcompiler.ir.interface import has_default
from qcompiler.ir.order import topological

FLOAT_TYPES = frozenset(
    {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16}
)


@dataclass(frozen=True)
class Kind:
    """How an operator of ONNX's own domain lays out a layer: inputs by position."""

    op: str
    x: int = 0
    weight: int = 1
    bias: int | None = None
    """Its own bias; None where an Add behind it is the bias."""
    transposes: str | None = None
    """The attribute that says whether the weight is stored as [N, K]."""
    refuses: tuple[str, ...] = ()
    """Attributes that, where set, make it something else."""
    scales: tuple[str, str] | None = None
    """Attributes that scale the product, and the bias."""

    def fits(self, node: gs.Node) -> bool:
        """Whether a node of this operator is a layer, whatever its weight is."""
        if any(node.attrs.get(name, 0) for name in self.refuses):
            return False
        bias = None if self.bias is None else ir.given(node.inputs, self.bias)
        return bias is None or ir.is_constant(bias)


_KINDS = {
    kind.op: kind
    for kind in (
        Kind("MatMul"),
        Kind("Gemm", bias=2, transposes="transB", refuses=("transA",), scales=("alpha", "beta")),
    )
}


@dataclass(frozen=True)
class Layer:
    """One layer of a graph: a node that multiplies X by weights, and its bias."""

    node: gs.Node
    kind: Kind
    bias_node: gs.Node | None = None
    """The Add that is its bias, where the node itself has none."""

    @property
    def name(self) -> str:
        """The layer's name: that of its node, which no pass changes."""
        return str(self.node.name)

    @property
    def x(self) -> Any:
        """The activation the layer reads."""
        return self.node.inputs[self.kind.x]

    @property
    def weight(self) -> Any:
        """The tensor of weights as the node reads it: a constant, or a dequantized one."""
        return self.node.inputs[self.kind.weight]

    @property
    def output(self) -> Any:
        """What readers of the layer see: after the bias where there is one."""
        return (self.bias_node or self.node).outputs[0]

    @property
    def axes(self) -> tuple[int, int]:
        """The axes of the weight along input and output channels."""
        stored_nk = self.kind.transposes and self.node.attrs.get(self.kind.transposes, 0)
        return (1, 0) if stored_nk else (0, 1)

    @property
    def shape(self) -> tuple[int, int]:
        """(K, N)."""
        sizes = self.weight.shape
        rows, columns = (int(sizes[axis]) for axis in self.axes)
        return rows, columns

    @property
    def bias_place(self) -> tuple[gs.Node, int] | None:
        """The node that reads the bias, and the position of it; None without one."""
        if self.bias_node is not None:
            constant = ir.is_constant(self.bias_node.inputs[0])
            return self.bias_node, 0 if constant else 1
        at = self.kind.bias
        return None if at is None or ir.given(self.node.inputs, at) is None else (self.node, at)

    @property
    def bias(self) -> gs.Constant | None:
        """The bias as it is stored, None without one."""
        place = self.bias_place
        return None if place is None else place[0].inputs[place[1]]

    @property
    def is_plain(self) -> bool:
        """Whether the weight is stored as `matrix` gives it, be it a constant or not."""
        return self.axes == (0, 1) and self.scale == 1.0

    @property
    def scale(self) -> float:
        """What the node multiplies its product by."""
        return self._factor(0)

    def matrix(self) -> NDArray[Any]:
        """The weights [K, N] as the layer multiplies by them, in the type they are stored in."""
        values = ir.array(self.weight)
        if self.axes == (1, 0):
            values = values.T
        return values if self.scale == 1.0 else values * np.asarray(self.scale, values.dtype)

    def shift(self) -> NDArray[Any] | None:
        """The bias as the layer adds it, [N] or what broadcasts to [T, N]; None without one."""
        bias = self.bias
        if bias is None:
            return None
        values = ir.array(bias)
        shift = np.asarray(values * np.asarray(self._factor(1), values.dtype))
        if shift.ndim == 2 and shift.shape[0] == 1:
            shift = shift[0]
        return np.full(self.shape[1], shift.reshape(-1)[0]) if shift.size == 1 else shift

    def _factor(self, which: int) -> float:
        names = self.kind.scales
        return 1.0 if names is None else float(ir.attribute(self.node, names[which], 1.0))

    def rows(self, values: NDArray[Any]) -> NDArray[Any]:
        """Values of X as the rows [T, K] that meet the matrix."""
        return values.reshape(-1, self.shape[0])

    def read(self, x: Any) -> None:
        """Make the layer read another activation."""
        self.node.inputs[self.kind.x] = x

    def put(self, matrix: Any) -> None:
        """Make the layer read another tensor [K, N] of weights, multiplied as it is."""
        self.node.inputs[self.kind.weight] = matrix
        names = (self.kind.transposes, self.kind.scales and self.kind.scales[0])
        for name in filter(None, names):
            self.node.attrs.pop(name, None)


@dataclass(frozen=True)
class NotLayer:
    """A matrix product the compiler leaves alone, and why."""

    name: str
    reason: str


def is_weight(tensor: Any) -> bool:
    """Whether a tensor is a two-dimensional floating-point initializer."""
    return (
        ir.is_constant(tensor)
        and len(tensor.shape) == 2
        and ir.elem_type(tensor) in FLOAT_TYPES
        and min(tensor.shape) > 0
    )


def layer_of(graph: gs.Graph, node: gs.Node) -> Layer | None:
    """The layer a node is by its form, whatever its weights are; None for other nodes."""
    kind = None if node.domain else _KINDS.get(node.op)
    if kind is None or not kind.fits(node):
        return None
    return Layer(node, kind, None if kind.bias is not None else _bias_of(graph, node, kind))


def _bias_of(graph: gs.Graph, node: gs.Node, kind: Kind) -> gs.Node | None:
    """The Add of a constant vector that is the only reader of a node's output."""
    output, sizes = node.outputs[0], node.inputs[kind.weight].shape
    readers = ir.consumers(output)
    if len(readers) != 1 or readers[0].op != "Add" or ir.is_graph_output(graph, output):
        return None
    others = [t for t in readers[0].inputs if t is not output]
    if len(others) != 1 or not ir.is_constant(others[0]) or not sizes:
        return None
    return readers[0] if tuple(others[0].shape) == (sizes[-1],) else None


def by_input(graph: gs.Graph, names: Container[str]) -> dict[str, list[str]]:
    """Names of those layers of `names` that read one tensor, by the tensor, in order."""
    groups: dict[str, list[str]] = {}
    for node in topological(graph):
        layer = layer_of(graph, node) if node.name in names else None
        if layer is not None:
            groups.setdefault(str(layer.x.name), []).append(layer.name)
    return groups


def reader_of(graph: gs.Graph, tensor: Any) -> Layer | None:
    """The first layer that reads a tensor as its activation."""
    layers = (layer_of(graph, node) for node in ir.consumers(tensor))
    return next(
        (
            layer
            for layer in layers
            if layer is not None and layer.x is tensor and len(layer.weight.shape or ()) == 2
        ),
        None,
    )


def with_bias(graph: gs.Graph, layer: Layer, namer: ir.Namer) -> Layer:
    """The layer with a bias: the one it has, or a new one of zeros."""
    if layer.bias_place is not None:
        return layer
    node = layer.node
    dtype = ir.array(layer.weight).dtype if ir.is_constant(layer.weight) else np.float32
    zeros = ir.constant(namer(f"{node.name}_bias"), np.zeros(layer.shape[1], dtype))
    if layer.kind.bias is not None:
        while len(node.inputs) > layer.kind.bias:  # an empty one
            node.inputs.pop()
        node.inputs.append(zeros)
        return layer
    output = node.outputs[0]
    product = gs.Variable(namer(f"{output.name}_product"), output.dtype, output.shape)
    node.outputs.clear()
    node.outputs.append(product)
    add = ir.add_node(graph, "Add", namer(f"{node.name}/Bias"), [product, zeros], [output])
    return replace(layer, bias_node=add)


_POINTWISE = frozenset({"Add", "Sub", "Mul", "Div", "Neg", "Cast", "Tanh", "Clip", "Identity"})
"""What a head's result may go through on its way out: scales, caps, biases, casts."""


def is_head(graph: gs.Graph, layer: Layer) -> bool:
    """Whether a layer's result becomes an output of the model, at most one product away.

    On the way it may be combined with constants, value by value, and with the layer's own input, as
    behind the layer that `rotate` puts before a head.
    """
    left = [(layer.output, 1)]
    while left:
        tensor, products = left.pop()
        if ir.is_graph_output(graph, tensor):
            continue
        readers = ir.value_readers(tensor)
        if not readers:
            return False
        for node in readers:
            reader = layer_of(graph, node)
            if reader is not None and reader.x is tensor and products:
                left.append((reader.node.outputs[0], products - 1))
            elif _is_pointwise(node, (tensor, layer.x)):
                left.append((node.outputs[0], products))
            else:
                return False
    return True


def _is_pointwise(node: gs.Node, given: tuple[Any, ...]) -> bool:
    """Whether a node does something to each value of one of the tensors given, and no others."""
    if node.op not in _POINTWISE or node.domain:
        return False
    others = (each for each in node.inputs if not ir.is_constant(each) and not each.is_empty())
    return all(any(each is tensor for tensor in given) for each in others)


def find_layers(graph: gs.Graph) -> tuple[list[Layer], list[NotLayer]]:
    """Every layer in graph order, and every other matrix product with why it isn't one."""
    layers: list[Layer] = []
    others: list[NotLayer] = []
    for node in graph.nodes:
        layer = layer_of(graph, node)
        reason = _reason(node) if layer is None else _unfit(layer)
        if layer is not None and reason is None:
            layers.append(layer)
        elif reason is not None:
            others.append(NotLayer(str(node.name), reason))
    return layers, others


QUANTIZED = "it is quantized already"
_FUSED = "ONNX Runtime's optimizer has fused it; start from the model before optimization"
_CONVOLUTION = "convolutions are not quantized"
_RECURRENT = "recurrent weights are not quantized"
_ROTARY = "its tables of rotary embeddings are not quantized"

_PRODUCTS = {
    "Gemm": "its form (scaled, transposed input or computed bias) has no MatMul equivalent here",
    "Conv": _CONVOLUTION,
    "ConvTranspose": _CONVOLUTION,
    "FusedConv": _CONVOLUTION,
    "LSTM": _RECURRENT,
    "GRU": _RECURRENT,
    "RNN": _RECURRENT,
    "MatMulInteger": QUANTIZED,
    "MatMulIntegerToFloat": QUANTIZED,
    "DynamicQuantizeMatMul": QUANTIZED,
    "DynamicQuantizeLSTM": QUANTIZED,
    "MatMulNBits": QUANTIZED,
    "MatMulBnb4": QUANTIZED,
    "QLinearMatMul": QUANTIZED,
    "QLinearConv": QUANTIZED,
    "QGemm": QUANTIZED,
    "QAttention": QUANTIZED,
    "QMoE": QUANTIZED,
    "FusedMatMul": _FUSED,
    "FusedGemm": _FUSED,
}
"""Why operators that multiply matrices are no layers, whatever they read."""

_USERS = {
    "Einsum": "products written as Einsum are not quantized",
    "MoE": "experts within one operator are not quantized",
    "Attention": _FUSED,
    "EmbedLayerNormalization": _FUSED,
    "GroupQueryAttention": _ROTARY,
    "RotaryEmbedding": _ROTARY,
    "Gather": "only rows of a two-dimensional table of floats are looked up as codes",
}
"""Why what other operators read stays as it is."""


def kept_because(node: gs.Node) -> str:
    """Why the large constants that a node reads stay as they are, if no layer or table reads
    them."""
    known = _reason(node) or _USERS.get(node.op)
    return known or f"constants that {node.op} reads are not quantized"


def has_reason(node: gs.Node) -> bool:
    """Whether `find_layers` speaks of a node, as a layer or as another matrix product."""
    return (not node.domain and node.op in _KINDS) or _reason(node) is not None


def weight_position(node: gs.Node) -> int | None:
    """Where a layer or a table look-up reads its weights, by operator; None for other nodes."""
    if node.domain:
        return None
    if node.op == "Gather":
        return 0 if ir.attribute(node, "axis", 0) == 0 else None
    return _KINDS[node.op].weight if node.op in _KINDS else None


def _reason(node: gs.Node) -> str | None:
    """Why a node that multiplies matrices is no layer; None for nodes that don't."""
    if node.domain == ops.DOMAIN and node.op in ops.OP_TYPES:
        return QUANTIZED
    return _PRODUCTS.get(node.op)


def _unfit(layer: Layer) -> str | None:
    """Why a product is no layer that could be quantized; None if it is one."""
    x, weight = layer.x, layer.weight
    if is_weight(weight) and ir.tensor_rank(x) == 1:
        return "its input is one vector, not rows"
    if is_weight(weight) and not ir.is_constant(x):
        return None
    if ir.is_constant(weight):
        return _unfit_weight(x, weight)
    if ir.is_constant(x):
        return "its constant is the left operand"
    if _from_dequantize(weight):
        return "its weight is quantized already"
    if has_default(weight):
        return "its weights are an input of the model"
    if _is_fixed(weight):
        return "its weight is computed from constants, and takes more room than they do"
    return "both operands are computed (attention)"


def _unfit_weight(x: Any, weight: gs.Constant) -> str:
    if len(weight.shape) != 2:
        return "its weight is not two-dimensional"
    kind = ir.elem_type(weight)
    if kind not in FLOAT_TYPES:
        return f"its weight has type {onnx.TensorProto.DataType.Name(kind).lower()}"
    return "both operands are constants" if ir.is_constant(x) else "its weight is empty"


def _is_fixed(tensor: Any) -> bool:
    """Whether a tensor is computed from constants alone."""
    waiting, seen = [tensor], {id(tensor)}
    while waiting:
        each = waiting.pop()
        node = ir.producer(each)
        if not ir.is_constant(each) and (node is None or not node.inputs):
            return False
        for source in node.inputs if node is not None else ():
            if not source.is_empty() and id(source) not in seen:
                seen.add(id(source))
                waiting.append(source)
    return True


def _from_dequantize(tensor: Any) -> bool:
    node = ir.producer(tensor)
    while node is not None and node.op in ("Cast", "Transpose", "Reshape"):
        node = ir.producer(node.inputs[0])
    return node is not None and node.op == "DequantizeLinear"
