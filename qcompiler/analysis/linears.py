"""Linear layers: MatMul by a two-dimensional constant, and embedding look-ups beside them."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from typing import Any

import onnx
import onnx_graphsurgeon as gs

from qcompiler import ir, ops
from qcompiler.ir.order import topological

FLOAT_TYPES = frozenset(
    {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16}
)


def by_input(graph: gs.Graph, names: Container[str]) -> dict[str, list[str]]:
    """Names of those nodes of `names` that read one tensor first, by the tensor, in order."""
    groups: dict[str, list[str]] = {}
    for node in topological(graph):
        if node.name in names:
            groups.setdefault(str(node.inputs[0].name), []).append(str(node.name))
    return groups


@dataclass(frozen=True)
class Linear:
    """X[..., K] · W[K, N] (+ bias[N])."""

    node: gs.Node
    bias_node: gs.Node | None

    @property
    def name(self) -> str:
        """The layer's name: that of its MatMul, which no pass changes."""
        return self.node.name

    @property
    def x(self) -> Any:
        """The activation the layer reads."""
        return self.node.inputs[0]

    @property
    def weight(self) -> gs.Constant:
        """W, [K, N]."""
        return self.node.inputs[1]

    @property
    def bias(self) -> gs.Constant | None:
        """The bias [N], None without one."""
        if self.bias_node is None:
            return None
        return next(t for t in self.bias_node.inputs if ir.is_constant(t))

    @property
    def output(self) -> Any:
        """What readers of the layer see: after the bias where there is one."""
        return (self.bias_node or self.node).outputs[0]

    @property
    def shape(self) -> tuple[int, int]:
        """(K, N)."""
        rows, columns = self.weight.shape
        return int(rows), int(columns)


@dataclass(frozen=True)
class NotLinear:
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


def bias_of(graph: gs.Graph, node: gs.Node) -> gs.Node | None:
    """The Add of a constant vector that is the only reader of a node's output."""
    output = node.outputs[0]
    readers = ir.consumers(output)
    if len(readers) != 1 or readers[0].op != "Add" or ir.is_graph_output(graph, output):
        return None
    others = [t for t in readers[0].inputs if t is not output]
    if len(others) != 1 or not ir.is_constant(others[0]):
        return None
    size = node.inputs[1].shape[-1]
    return readers[0] if tuple(others[0].shape) == (size,) else None


def is_head(graph: gs.Graph, output: Any) -> bool:
    """Whether a layer's result is an output of the model, at most one product away."""
    if ir.is_graph_output(graph, output):
        return True
    products = [n for n in ir.consumers(output) if n.op == "MatMul" and n.inputs[0] is output]
    heads = [node for node in products if ir.is_graph_output(graph, node.outputs[0])]
    return bool(heads) and len(heads) == len(ir.consumers(output))


def find_linears(graph: gs.Graph) -> tuple[list[Linear], list[NotLinear]]:
    """Every linear layer in graph order, and every other matrix product with why it isn't one."""
    linears: list[Linear] = []
    others: list[NotLinear] = []
    for node in graph.nodes:
        if node.op == "MatMul" and not node.domain:
            weight = node.inputs[1]
            if is_weight(weight) and ir.tensor_rank(node.inputs[0]) == 1:
                others.append(NotLinear(node.name, "its input is one vector, not rows"))
            elif is_weight(weight) and not ir.is_constant(node.inputs[0]):
                linears.append(Linear(node, bias_of(graph, node)))
            elif ir.is_constant(weight):
                others.append(NotLinear(node.name, _unfit(node.inputs[0], weight)))
            elif ir.is_constant(node.inputs[0]):
                others.append(NotLinear(node.name, "its constant is the left operand"))
            elif _from_dequantize(weight):
                others.append(NotLinear(node.name, "its weight is quantized already"))
            else:
                others.append(NotLinear(node.name, "both operands are computed (attention)"))
        elif node.op in _REASONS or (node.domain == ops.DOMAIN and node.op in ops.OP_TYPES):
            others.append(NotLinear(node.name, _REASONS.get(node.op, _QUANTIZED)))
    for subgraph in graph.subgraphs(recursive=True):
        for node in subgraph.nodes:
            if node.op in ("MatMul", "Gemm") and any(ir.is_constant(t) for t in node.inputs):
                others.append(
                    NotLinear(node.name, "it lies in a subgraph (If, Loop or Scan), kept in float")
                )
    return linears, others


_QUANTIZED = "it is quantized already"
_FUSED = "ONNX Runtime's optimizer has fused it; start from the model before optimization"
_REASONS = {
    "Gemm": "its form (scaled, transposed input or computed bias) has no MatMul equivalent here",
    "Conv": "convolutions are not quantized",
    "MatMulInteger": _QUANTIZED,
    "MatMulIntegerToFloat": _QUANTIZED,
    "DynamicQuantizeMatMul": _QUANTIZED,
    "MatMulNBits": _QUANTIZED,
    "QLinearMatMul": _QUANTIZED,
    "FusedMatMul": _FUSED,
    "FusedGemm": _FUSED,
}


def _unfit(x: Any, weight: gs.Constant) -> str:
    """Why a MatMul by a constant is no linear layer."""
    if len(weight.shape) != 2:
        return "its weight is not two-dimensional"
    kind = ir.elem_type(weight)
    if kind not in FLOAT_TYPES:
        return f"its weight has type {onnx.TensorProto.DataType.Name(kind).lower()}"
    return "both operands are constants" if ir.is_constant(x) else "its weight is empty"


def _from_dequantize(tensor: Any) -> bool:
    node = ir.producer(tensor)
    while node is not None and node.op in ("Cast", "Transpose", "Reshape"):
        node = ir.producer(node.inputs[0])
    return node is not None and node.op == "DequantizeLinear"


def looked_up(node: gs.Node) -> tuple[Any, bool] | None:
    """What a Gather takes rows of, and whether it does behind a Transpose; None for other nodes."""
    if node.op != "Gather" or node.domain or node.attrs.get("axis", 0) != 0:
        return None
    source = node.inputs[0]
    transpose = ir.producer(source, "Transpose")
    if transpose is None:
        return source, False
    if list(ir.attribute(transpose, "perm", [1, 0])) != [1, 0]:
        return None
    return transpose.inputs[0], True


def find_tables(graph: gs.Graph) -> list[tuple[gs.Node, Any, bool]]:
    """Embedding look-ups: (Gather node, table constant, whether it reads the table transposed)."""
    found = [(node, looked_up(node)) for node in graph.nodes]
    return [(node, *source) for node, source in found if source and is_weight(source[0])]
