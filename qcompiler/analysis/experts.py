"""Experts: matrices of one constant [E, .., ..], of which a row meets one, or all.

    MoE(X, router, W1, b1, W2, b2)                 ONNX Runtime's operator
    MatMul(X[S, 1, K], W[E, K, N][ids])            each row by the matrix it was routed to
    MatMul(W[E, N, K][ids], X[S, K, 1])
    MatMul(X[.., E, T, K], W[E, K, N])             each matrix by rows of its own
    MatMul(X[.., T, K], W[E, K, N])                each matrix by all rows

And experts that are layers: what a layer reads may be some of the rows of a tensor, chosen by data.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import onnx_graphsurgeon as gs

from qcompiler import ir
from qcompiler.analysis.layers import FLOAT_TYPES
from qcompiler.analysis.rows import moved_rows

ACTIVATIONS = ("relu", "gelu", "silu", "swiglu", "identity")
"""Of MoE; `gelu` is the one of tanh."""

ENOUGH = 2
"""Rows that calibration should have for each channel of a layer's input."""

_MOVES = ("Reshape", "Squeeze", "Unsqueeze", "Flatten", "Transpose", "Cast", "Identity")
_INPUTS = 8


class NotExpertsError(Exception):
    """Why matrices that look like those of experts can't become layers."""

    def __init__(self, holder: gs.Node, reason: str) -> None:
        """`holder`: the node that reads the constant."""
        super().__init__(reason)
        self.holder = str(holder.name)


@dataclass(frozen=True)
class FusedExperts:
    """ONNX Runtime's MoE: y = Σ p_e · fc2_e(act(fc1_e(x))) over the k experts of largest p_e."""

    node: gs.Node
    x: Any
    """[.., H]."""
    router: Any
    """[T, E]: logits."""
    up: gs.Constant
    """[E, I, H]; [E, 2 I, H] for swiglu, rows of gate and up in turn."""
    up_bias: gs.Constant | None
    """[E, I] or [E, 2 I]."""
    down: gs.Constant
    """[E, H, I]."""
    down_bias: gs.Constant | None
    """[E, H]."""
    activation: str

    @property
    def count(self) -> int:
        """The number of experts."""
        return int(self.up.shape[0])

    @property
    def width(self) -> int:
        """H."""
        return int(self.down.shape[1])

    @property
    def slots(self) -> int:
        """The experts of a token."""
        return int(self.setting("k", 1))

    def setting(self, name: str, default: Any = None) -> Any:
        """An attribute of the node."""
        return ir.attribute(self.node, name, default)


def fused_experts(node: gs.Node) -> FusedExperts | None:
    """The experts within an operator; None for other nodes.

    NotExpertsError says why they stay there.
    """
    if node.op != "MoE" or node.domain != "com.microsoft":
        return None
    given = [None if tensor.is_empty() else tensor for tensor in node.inputs]
    given += [None] * (_INPUTS - len(given))
    x, router, up, up_bias, down, down_bias, *third = given
    activation = str(ir.attribute(node, "activation_type", "relu"))
    gated = activation == "swiglu"
    if any(each is not None for each in third):
        raise NotExpertsError(
            node, "it has a third matrix, for which ONNX Runtime has no CPU kernel"
        )
    if activation not in ACTIVATIONS:
        raise NotExpertsError(node, f"its activation '{activation}' is not known here")
    if gated and ir.attribute(node, "swiglu_fusion", 0) != 1:
        raise NotExpertsError(node, "only swiglu with gate and up in turn has a CPU kernel")
    if ir.attribute(node, "use_sparse_mixer", 0):
        raise NotExpertsError(node, "it routes by a sparse mixer")
    constants = (each for each in (up_bias, down_bias) if each is not None)
    if up is None or down is None or not all(map(_is_floats, (up, down, *constants))):
        raise NotExpertsError(node, "its weights are not constants of floats")
    experts, hidden, inner = (int(size) for size in down.shape)
    if ir.tensor_rank(x) is None or ir.tensor_rank(router) != 2:
        raise NotExpertsError(node, "its input is not known to be rows, with as many of scores")
    if tuple(up.shape) != (experts, inner * (2 if gated else 1), hidden):
        raise NotExpertsError(node, "its weights are not stored as [experts, outputs, inputs]")
    return FusedExperts(node, x, router, up, up_bias, down, down_bias, activation)


@dataclass(frozen=True)
class RoutedProduct:
    """A product of each row by the matrix that it was routed to."""

    node: gs.Node
    lookup: gs.Node
    """What looks up the matrices."""
    x: Any
    """[S, 1, K], or [S, K, 1] where the product has it on the right."""
    axis: int
    """The axis of X, and of the product, that has size 1."""
    ids: Any
    """[S], or [S, 1]: the number of each row's matrix."""
    weight: gs.Constant
    """[E, K, N] or [E, N, K]."""
    transposed: bool
    """Whether it is the latter."""

    @property
    def count(self) -> int:
        """The number of experts."""
        return int(self.weight.shape[0])

    @property
    def shape(self) -> tuple[int, int]:
        """(K, N)."""
        first, second = (int(size) for size in self.weight.shape[1:])
        return (second, first) if self.transposed else (first, second)


def routed_product(node: gs.Node) -> RoutedProduct | None:
    """The product by looked-up matrices that a node is; None for other nodes."""
    if node.op != "MatMul" or node.domain:
        return None
    for position in (0, 1):
        found = _looked_up(node.inputs[position])
        if found is None:
            continue
        lookup, turned = found
        if len(ir.consumers(lookup.outputs[0])) > 1:
            raise NotExpertsError(lookup, "other nodes read the matrices it looks up")
        x = node.inputs[1 - position]
        axis = 1 if position == 1 else 2
        if ir.tensor_rank(x) != 3 or x.shape[axis] != 1:
            raise NotExpertsError(lookup, "several rows meet one looked-up matrix")
        ids = lookup.inputs[1]
        if not _chosen(ids):
            raise NotExpertsError(lookup, "they are looked up by numbers that no TopK chose")
        transposed = turned == (position == 1)
        return RoutedProduct(node, lookup, x, axis, ids, lookup.inputs[0], transposed)
    return None


def routed_bias(product: RoutedProduct) -> tuple[Any, gs.Node] | None:
    """The sum of a routed product and of biases that are looked up as its matrices are, and what
    looks them up in a constant [E, N]."""
    output, squeezed = product.node.outputs[0], None
    for node in ir.consumers(output):
        squeezed = node.outputs[0] if node.op == "Squeeze" else None
    readers = [] if squeezed is None else ir.consumers(squeezed)
    if len(ir.consumers(output)) != 1 or len(readers) != 1 or readers[0].op != "Add":
        return None
    lookup, ids = product.lookup, product.ids
    for term in readers[0].inputs:
        found = ir.producer(term, lookup.op)
        if found is None or found.inputs[1] is not ids or found.attrs != lookup.attrs:
            continue
        table = found.inputs[0]
        if _is_floats(table) and tuple(table.shape) == (product.count, product.shape[1]):
            return readers[0].outputs[0], found
    return None


def _looked_up(tensor: Any) -> tuple[gs.Node, bool] | None:
    """The node that looks up matrices of a constant for each row, and whether they are turned."""
    node, turned = ir.producer(tensor), False
    if node is not None and node.op == "Transpose" and ir.attribute(node, "perm") == [0, 2, 1]:
        node, turned = ir.producer(node.inputs[0]), True
    if node is None or node.domain or node.op not in ("Gather", "GatherND"):
        return None
    data, ids = node.inputs
    if not _is_floats(data) or len(data.shape) != 3 or ir.is_constant(ids):
        return None
    if node.op == "Gather":
        fits = ir.attribute(node, "axis", 0) == 0 and ir.tensor_rank(ids) == 1
    else:
        last = ids.shape[-1] if ir.tensor_rank(ids) == 2 else None
        fits = ir.attribute(node, "batch_dims", 0) == 0 and last == 1
    return (node, turned) if fits else None


def _chosen(ids: Any) -> bool:
    """Whether numbers come from a TopK, which gives none below zero."""
    node = ir.producer(ids)
    while node is not None and node.op in _MOVES and not node.domain:
        ids = node.inputs[0]
        node = ir.producer(ids)
    return node is not None and node.op == "TopK" and ids is node.outputs[1]


@dataclass(frozen=True)
class BatchedProduct:
    """A product by each matrix of a constant [E, K, N]."""

    node: gs.Node
    x: Any
    weight: gs.Constant
    shares: bool
    """Whether each matrix meets all of X, not a part of it."""


def batched_product(node: gs.Node) -> BatchedProduct | None:
    """The product by several matrices at once that a node is; None for other nodes."""
    if node.op != "MatMul" or node.domain or ir.is_constant(node.inputs[0]):
        return None
    x, weight = node.inputs
    if not _is_floats(weight) or len(weight.shape) != 3 or weight.shape[0] == 1:
        return None
    rank = ir.tensor_rank(x)
    if rank is None or rank < 2:
        return None
    parts = 1 if rank == 2 else x.shape[-3]
    if parts not in (1, weight.shape[0]):
        return None
    return BatchedProduct(node, x, weight, shares=parts == 1)


def _is_floats(tensor: Any) -> bool:
    return ir.is_constant(tensor) and ir.elem_type(tensor) in FLOAT_TYPES and 0 not in tensor.shape


@dataclass(frozen=True)
class RoutedRows:
    """Rows that data chooses: no two runs of a model need choose the same."""

    whole: Any
    """The tensor that they, or what they are computed from, are rows of."""
    alike: bool
    """Whether they are its rows, with nothing computed between, and experts have not computed it
    each in its own way."""


_BY_ROW = frozenset(
    {
        "Add",
        "Cast",
        "Clip",
        "Div",
        "Elu",
        "Erf",
        "Exp",
        "Gelu",
        "HardSwish",
        "Identity",
        "LeakyRelu",
        "Max",
        "MatMul",
        "Min",
        "Mul",
        "Neg",
        "Pow",
        "Relu",
        "Sigmoid",
        "Slice",
        "Softplus",
        "Split",
        "Sqrt",
        "Sub",
        "Swish",
        "Tanh",
    }
)
"""Operators whose result has the rows of what they read."""


def routed_rows(x: Any) -> RoutedRows | None:
    """Where the rows of a tensor come from, if data chooses them; None for other tensors."""
    direct = True
    node = ir.producer(x)
    while node is not None and not node.domain:
        if _chooses(node):
            whole = node.inputs[0]
            return RoutedRows(whole, direct and not _by_experts(whole))
        variable = [t for t in node.inputs if not t.is_empty() and not ir.is_constant(t)]
        if node.op not in _BY_ROW or not variable:
            return None
        direct = False
        node = ir.producer(variable[0])
    return None


def _by_experts(whole: Any) -> bool:
    """Whether rows were put together behind experts."""
    node = ir.producer(whole)
    while node is not None and not node.domain:
        if node.op == "Concat":
            return True
        variable = [t for t in node.inputs if not t.is_empty() and not ir.is_constant(t)]
        found = moved_rows(node)
        if found is not None:
            node = ir.producer(node.inputs[found[0][0]])
        elif variable and node.op in _BY_ROW:
            node = ir.producer(variable[0])
        else:
            return False
    return False


def _chooses(node: gs.Node) -> bool:
    """Whether a node takes rows by sizes or places that are computed from values."""
    if ir.attribute(node, "axis", 0) != 0 or len(node.inputs) < 2:
        return False
    if node.op == "Split":
        return not ir.is_constant(node.inputs[1])
    return node.op in ("Gather", "GatherND") and _from_nonzero(node.inputs[1])


def _from_nonzero(places: Any) -> bool:
    """Whether places are those where a condition holds."""
    node = ir.producer(places)
    while node is not None and node.op in (*_MOVES, "Gather", "GatherND", "Slice", "Split"):
        node = ir.producer(node.inputs[0])
    return node is not None and node.op == "NonZero"


_BEFORE_CHOICE = frozenset({"Add", "Cast", "Div", "Mul", "Reshape", "Sigmoid", "Softmax", "Sub"})
_STEPS = 64
"""Nodes to look at behind a choice."""


def is_router(output: Any) -> bool:
    """Whether the largest of a layer's results say which rows go where."""
    waiting, seen = [output], 0
    while waiting and seen < _STEPS:
        tensor = waiting.pop()
        for node in ir.consumers(tensor):
            seen += 1
            if node.op == "TopK" and tensor is node.inputs[0] and _routes(node.outputs[1]):
                return True
            if node.op in _BEFORE_CHOICE and not node.domain:
                waiting += node.outputs
    return False


def _routes(chosen: Any) -> bool:
    """Whether numbers decide how rows are taken."""
    waiting, seen = [chosen], 0
    while waiting and seen < _STEPS:
        tensor = waiting.pop(0)
        for node in ir.consumers(tensor):
            seen += 1
            if node.op == "NonZero" or (node.op == "Split" and tensor is not node.inputs[0]):
                return True
            waiting += [each for each in node.outputs if ir.elem_type(each) not in FLOAT_TYPES]
    return False
