"""What a model stores: every constant, its bytes as they are stored, and the nodes that use it.

A node that reads nothing but constants (a Transpose, a Cast, a DequantizeLinear) uses none: whoever
reads what it gives does. What a product of constants gives counts only for those that nobody reads
otherwise: the others are still there beside it. Vectors and small constants (norm
weights, biases, axes) are one figure, but for those of a node that has a row in the report anyway.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.ir.tensor import LazyValues

from qcompiler import ir
from qcompiler.analysis.layers import (
    FLOAT_TYPES,
    QUANTIZED,
    has_reason,
    kept_because,
    weight_position,
)
from qcompiler.ir.matcher import constant_values
from qcompiler.ir.order import needed, topological

LARGE = 1024
"""Elements from which a constant of codes, or one with more than one axis, is large."""

LONG = 1 << 16
"""Elements from which a vector is large."""

CODES = "quantized already"
"""The `sort` of what the source stores as codes."""

INDICES = "indices and masks"
"""The `sort` of integers and truth values."""

SMALL = "vectors and small constants"
"""What everything else is called in figures."""

_Types = onnx.TensorProto

_Key = int | str
"""Of a constant: its name where no other has it, else its id."""

_OUTPUT = -1
"""The `input` of a use that hands a constant out."""

_RANDOM = ("RandomNormal", "RandomUniform", "Multinomial", "Bernoulli")


@dataclass(frozen=True)
class Use:
    """A node that computes with a constant, and where it reads it."""

    node: gs.Node
    input: int

    @property
    def is_weight(self) -> bool:
        """Whether it is the place of a layer's weight or of a table."""
        return weight_position(self.node) == self.input


@dataclass
class StoredConstant:
    """A constant of a graph, and the nodes that use it, in order; none where an output is all."""

    name: str
    nbytes: int
    elem_type: int
    shape: tuple[int, ...]
    own: dict[int, Use] = field(default_factory=dict[int, Use])
    """The first use by each node, by the node's id."""
    multiplied: dict[int, Use] = field(default_factory=dict[int, Use])
    """The same of its products with other constants."""

    @property
    def uses(self) -> list[Use]:
        """One by each node, in order."""
        return list((self.own or self.multiplied).values())

    @property
    def sort(self) -> str | None:
        """`CODES` or `INDICES`, by the type; None for weights."""
        if self.elem_type in (_Types.UNDEFINED, _Types.STRING, _Types.BOOL):
            return INDICES
        dtype = onnx.helper.tensor_dtype_to_np_dtype(self.elem_type)
        if dtype.itemsize == 1:  # int8 and all that is narrower, float8 too
            return CODES
        return INDICES if dtype.kind in "iu" else None

    @property
    def is_large(self) -> bool:
        """Whether it is more than a vector or a few numbers."""
        size = math.prod(self.shape)
        matrix = self.sort == CODES or sum(axis > 1 for axis in self.shape) > 1
        return size >= LONG or (size >= LARGE and matrix)


@dataclass(frozen=True, kw_only=True)
class Holding:
    """Bytes of one constant, and the nodes that use it by name, with their operators."""

    nbytes: int
    readers: Mapping[str, str]
    sort: str | None = None
    """`CODES` or `INDICES`; None for weights."""


@dataclass(frozen=True, kw_only=True)
class Inventory:
    """The constants of a model as its file stores them, each counted once."""

    holdings: tuple[Holding, ...]
    """Large ones, weights and tables of any size, and all that other products, and nodes that read
    a large one, read."""
    small_bytes: int
    """All others."""

    @property
    def nbytes(self) -> int:
        """Of all constants."""
        return self.small_bytes + sum(each.nbytes for each in self.holdings)

    def shares(self, name: Callable[[Holding], str]) -> dict[str, int]:
        """Bytes by what `name` calls the holdings, the most first; `SMALL` for the rest."""
        found = Counter({SMALL: self.small_bytes})
        for each in self.holdings:
            found[name(each)] += each.nbytes
        return {what: size for what, size in found.most_common() if size}

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


def held_alone(graph: gs.Graph) -> set[str]:
    """Names that one constant has, in the graph and its bodies."""
    found: dict[str, set[int]] = {}
    for each in ir.graphs(graph):
        read: list[Any] = [*each.outputs, *(t for node in each.nodes for t in node.inputs)]
        for tensor in read:
            if ir.is_constant(tensor):
                found.setdefault(str(tensor.name), set()).add(id(tensor))
    return {name for name, which in found.items() if len(which) == 1}


def find_stored(
    graph: gs.Graph, names: Container[str], alone: Container[str] = ()
) -> list[StoredConstant]:
    """Of the constants of those names every one that an output of the graph needs, in the order of
    use, bodies included.

    `alone`: names that the source has once; what it reads in several bodies is written into each.
    """
    walk = _Walk(alone)
    walk.follow(graph, needed(graph), None)
    return [each for each in walk.stored.values() if each.name in names]


def inventory(stored: Sequence[StoredConstant]) -> Inventory:
    """What the constants come to, by the names that their readers have now."""
    beside = {
        id(use.node)
        for each in stored
        for use in each.uses
        if (each.is_large and not _is_matrix(each, use)) or _is_product(use)
    }
    coded = _coded(stored)
    counted: list[Holding] = []
    small = 0
    for each in stored:
        uses = [
            use
            for use in each.uses
            if each.is_large or _is_matrix(each, use) or id(use.node) in beside
        ]
        if not uses:
            small += each.nbytes
            continue
        codes = any(id(use.node) in coded for use in uses)
        readers = {str(use.node.name): str(use.node.op) for use in uses}
        sort = CODES if codes else each.sort
        counted.append(Holding(nbytes=each.nbytes, readers=readers, sort=sort))
    return Inventory(holdings=tuple(counted), small_bytes=small)


def kept(stored: Sequence[StoredConstant]) -> dict[str, str]:
    """Nodes that use large constants, and of which no search for layers and tables speaks, by
    name, with the reason why these stay as they are."""
    coded = _coded(stored)
    reasons: dict[str, str] = {}
    for each in stored:
        for use in each.uses if each.is_large else ():
            if has_reason(use.node) or _is_matrix(each, use):
                continue
            reason = kept_because(use.node)
            if id(use.node) in coded:
                reason = QUANTIZED
            elif each.sort == INDICES:
                kind = _Types.DataType.Name(each.elem_type).lower()
                reason = f"its constant holds {kind} values, no weights"
            reasons.setdefault(str(use.node.name), reason)
    return reasons


def _is_product(use: Use) -> bool:
    """Whether the node is a product of another kind than a layer, which has one weight."""
    return has_reason(use.node) and weight_position(use.node) is None


def _is_matrix(stored: StoredConstant, use: Use) -> bool:
    """Whether a constant is the weight of a layer or a table, of whatever size."""
    return use.is_weight and len(stored.shape) == 2 and stored.elem_type in FLOAT_TYPES


def _coded(stored: Sequence[StoredConstant]) -> set[int]:
    """Nodes that use constants of codes: what else they read belongs to these."""
    return {
        id(use.node)
        for each in stored
        for use in each.uses
        if (each.is_large and each.sort == CODES) or kept_because(use.node) == QUANTIZED
    }


def _stored(name: str, values: gs.Constant) -> StoredConstant:
    size, kind, shape = ir.nbytes(values), ir.elem_type(values), tuple(values.shape)
    return StoredConstant(name, size, kind, shape)


def _joined(behind: Sequence[Mapping[_Key, bool] | None], *, multiplied: bool) -> dict[_Key, bool]:
    """Keys of what several tensors are made of; not multiplied where one way to it is without."""
    keys: dict[_Key, bool] = {}
    for each in behind:
        for key, before in (each or {}).items():
            keys[key] = keys.get(key, True) and (before or multiplied)
    return keys


class _Walk:
    """Follows constants through nodes that read nothing else, to those that use them."""

    def __init__(self, alone: Container[str]) -> None:
        self.stored: dict[_Key, StoredConstant] = {}
        self._alone = alone
        self._behind: dict[int, dict[_Key, bool]] = {}
        """Keys of the constants that a tensor is made of, for tensors made of nothing else; whether
        they were multiplied by others."""

    def follow(self, graph: gs.Graph, live: set[int] | None, owner: gs.Node | None) -> None:
        """Of a graph the nodes in `live` (None: all); `owner`: the node whose body it is."""
        for node in topological(graph):
            if live is not None and id(node) not in live:
                continue
            for body in node.subgraphs(recursive=False) if node.attrs else ():
                self.follow(body, None, node)
            behind = [self._constants(tensor) for tensor in node.inputs]
            if node.op == "Constant" and not node.domain:
                self._behind[id(node.outputs[0])] = {self._store_node(node): False}
            elif self._is_fixed(node, behind):
                made_of = _joined(behind, multiplied=has_reason(node))
                self._behind.update((id(output), made_of) for output in node.outputs)
            else:
                for position, keys in enumerate(behind):
                    self._used(keys, Use(node, position))
        for output in graph.outputs:
            user = owner or ir.producer(output)
            if user is not None:
                self._used(self._constants(output), Use(user, _OUTPUT))

    def _constants(self, tensor: Any) -> dict[_Key, bool] | None:
        """Keys of the constants that a tensor is made of; None where it is made of others too."""
        if not ir.is_constant(tensor):
            return self._behind.get(id(tensor))
        name = str(tensor.name)
        key = name if name in self._alone else id(tensor)
        if key not in self.stored:
            self.stored[key] = _stored(name, tensor)
        return {key: False}

    def _store_node(self, node: gs.Node) -> int:
        """The value of a Constant node."""
        value, output = ir.attribute(node, "value"), node.outputs[0]
        values = value if isinstance(value, LazyValues) else constant_values(output)
        if not isinstance(value, gs.Constant):
            value = gs.Constant(str(output.name), np.empty(0) if values is None else values)
        self.stored[id(node)] = _stored(str(output.name), value)
        return id(node)

    def _is_fixed(self, node: gs.Node, behind: Sequence[dict[_Key, bool] | None]) -> bool:
        if all(each is None for each in behind):
            return False
        given = [each for each, t in zip(behind, node.inputs, strict=True) if not t.is_empty()]
        if node.op.startswith(_RANDOM) or any(True for _ in node.subgraphs()):
            return False
        return bool(given) and None not in given

    def _used(self, keys: Mapping[_Key, bool] | None, use: Use) -> None:
        for key, multiplied in (keys or {}).items():
            stored = self.stored[key]
            uses = stored.multiplied if multiplied else stored.own
            uses.setdefault(id(use.node), use)
