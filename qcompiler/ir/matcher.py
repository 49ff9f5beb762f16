"""Declared patterns over a graph: what a rewrite looks for, written as the expression it is.

    swish = op("Mul", var("x"), op("Sigmoid", var("x")), commutative=True)
    for match in find(swish, graph):
        x = match["x"]

A pattern is matched against the node that computes its outermost operator. A match is frozen and
owned by the caller; a mismatch says at which node it failed, and why.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import EllipsisType
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.ir.tensor import LazyValues

from qcompiler.ir.graph import consumers, is_graph_output, producer
from qcompiler.ir.order import topological
from qcompiler.ir.tensors import array

TOLERANCE = 1e-6
"""Relative tolerance for the value of a scalar constant or float attribute."""


@dataclass(frozen=True)
class Op:
    """A node by operator type; build it with `op`."""

    types: tuple[str, ...]
    inputs: tuple[Pattern, ...]
    rest: bool = False
    capture: str | None = None
    commutative: bool = False
    domain: str | None = None
    attrs: Mapping[str, Any] = field(default_factory=dict)
    only_use: bool = False
    output: int = 0


@dataclass(frozen=True)
class Var:
    """Any tensor; build it with `var`."""

    capture: str


@dataclass(frozen=True)
class Const:
    """A constant; build it with `const`."""

    capture: str | None
    rank: int | None
    value: float | None
    size: int | None


@dataclass(frozen=True)
class Either:
    """One of several patterns; build it with `either`."""

    options: tuple[Pattern, ...]


@dataclass(frozen=True)
class Absent:
    """An optional input that is not there; build it with `absent`."""


Pattern = Op | Var | Const | Either | Absent


def op(
    types: str | tuple[str, ...],
    *inputs: Pattern | EllipsisType,
    capture: str | None = None,
    commutative: bool = False,
    domain: str | None = None,
    attrs: Mapping[str, Any] | None = None,
    only_use: bool = False,
    rest: bool = False,
    output: int = 0,
) -> Op:
    """A node of one of `types` whose first inputs match `inputs`.

    Further inputs must be absent unless `rest` is set or `...` ends the list. `commutative` tries
    every order of the inputs. `domain` None takes any domain. `attrs` maps a name to the value
    wanted, None for "not set", or a set of such alternatives. `only_use`: nothing but the
    surrounding pattern reads the output, the graph's own outputs included. `output`: which of the
    node's outputs the surrounding pattern reads.
    """
    if inputs and inputs[-1] is ...:
        inputs, rest = inputs[:-1], True
    patterns = tuple(item for item in inputs if not isinstance(item, EllipsisType))
    if len(patterns) != len(inputs):
        raise ValueError("'...' stands only at the end of a pattern's inputs")
    return Op(
        types=(types,) if isinstance(types, str) else types,
        inputs=patterns,
        rest=rest,
        capture=capture,
        commutative=commutative,
        domain=domain,
        attrs=dict(attrs or {}),
        only_use=only_use,
        output=output,
    )


def var(capture: str) -> Var:
    """Any tensor. The same name twice in a pattern stands for the same tensor."""
    return Var(capture)


def const(
    capture: str | None = None,
    *,
    rank: int | None = None,
    value: float | None = None,
    size: int | None = None,
) -> Const:
    """An initializer or the output of a Constant node; `value`: a single element close to it."""
    return Const(capture, rank, value, size)


def either(*options: Pattern) -> Either:
    """Whichever of the patterns matches first."""
    return Either(options)


def absent() -> Absent:
    """An optional input the node does not have; for use within `either`."""
    return Absent()


@dataclass(frozen=True, eq=False)
class Match:
    """Where a pattern was found. Truthy."""

    nodes: tuple[gs.Node, ...]
    """Every matched node once, the outermost first."""
    tensors: Mapping[str, Any]
    captured: Mapping[str, gs.Node]

    @property
    def root(self) -> gs.Node:
        """The node that matched the outermost operator."""
        return self.nodes[0]

    def __getitem__(self, name: str) -> Any:
        """The tensor captured under a name (for an operator: the output the pattern reads)."""
        return self.tensors[name]

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def get(self, name: str) -> Any | None:
        """The tensor captured under a name, None if its alternative was not taken."""
        return self.tensors.get(name)

    def node(self, name: str) -> gs.Node:
        """The node captured under a name."""
        return self.captured[name]

    def array(self, name: str) -> np.ndarray[Any, Any]:
        """The values of the constant captured under a name."""
        values = constant_values(self.tensors[name])
        if values is None:
            raise KeyError(f"'{name}' did not capture a constant")
        return values


@dataclass(frozen=True)
class Mismatch:
    """Why a pattern does not match. Falsy."""

    reason: str

    def __bool__(self) -> bool:
        return False


def constant_values(tensor: Any) -> np.ndarray[Any, Any] | None:
    """The values of an initializer or of a Constant node's output; None for anything else."""
    if isinstance(tensor, gs.Constant):
        return array(tensor)
    node = producer(tensor, "Constant")
    if node is None:
        return None
    return next(
        (_attribute_array(name, value) for name, value in node.attrs.items() if "value" in name),
        None,
    )


def _attribute_array(name: str, value: Any) -> np.ndarray[Any, Any] | None:
    if name in ("value_float", "value_floats"):
        return np.asarray(value, np.float32)
    if name in ("value_int", "value_ints"):
        return np.asarray(value, np.int64)
    if isinstance(value, LazyValues):
        value = gs.Constant(name, value)
    if isinstance(value, gs.Constant):
        return array(value)
    return value if isinstance(value, np.ndarray) else None


def match(pattern: Op, node: gs.Node, graph: gs.Graph | None = None) -> Match | Mismatch:
    """Match a pattern whose outermost operator is `node`.

    Give the graph where the pattern uses `only_use`, so that graph outputs count as uses.
    """
    search = _Search(graph)
    if pattern.output >= len(node.outputs):
        return Mismatch(f"{_label(node)} has no output {pattern.output}")
    for state in search.node(pattern, node, node.outputs[pattern.output], _State()):
        return Match(state.nodes, state.tensors, state.captured)
    return Mismatch(search.reason)


def find(pattern: Op, graph: gs.Graph) -> list[Match]:
    """Every match in the graph, in topological order; of matches that share a node, the first."""
    found: list[Match] = []
    taken: set[int] = set()
    if not any(node.op in pattern.types for node in graph.nodes):
        return []
    for node in topological(graph):
        if node.op not in pattern.types or id(node) in taken:
            continue
        result = match(pattern, node, graph)
        if isinstance(result, Match) and not any(id(other) in taken for other in result.nodes):
            taken |= {id(other) for other in result.nodes}
            found.append(result)
    return found


@dataclass(frozen=True)
class _State:
    """What has been matched so far; a branch that fails leaves it untouched."""

    nodes: tuple[gs.Node, ...] = ()
    tensors: Mapping[str, Any] = field(default_factory=dict)
    captured: Mapping[str, gs.Node] = field(default_factory=dict)


class _Search:
    """A backtracking search that remembers the failure that got furthest."""

    def __init__(self, graph: gs.Graph | None) -> None:
        self._graph = graph
        self._depth = -1
        self._reason = "no alternative matches"
        self._stranger: gs.Node | None = None
        self._wanted: dict[str, None] = {}

    @property
    def reason(self) -> str:
        """Of the failure that got furthest; of a wrong operator, with every one that would do."""
        if self._stranger is None:
            return self._reason
        return f"{_label(self._stranger)} is not {' or '.join(self._wanted)}"

    def _fail(self, state: _State, reason: str) -> None:
        if len(state.nodes) > self._depth:
            self._depth, self._reason, self._stranger = len(state.nodes), reason, None

    def _fail_operator(self, state: _State, node: gs.Node, types: tuple[str, ...]) -> None:
        if len(state.nodes) > self._depth:
            self._depth, self._stranger, self._wanted = len(state.nodes), node, {}
        if len(state.nodes) == self._depth and self._stranger is node:
            self._wanted |= dict.fromkeys(types)

    def tensor(self, pattern: Pattern, tensor: Any, where: str, state: _State) -> Iterator[_State]:
        """Every way the pattern matches a tensor; None or an empty name is an absent input."""
        if isinstance(pattern, Either):
            for option in pattern.options:
                yield from self.tensor(option, tensor, where, state)
        elif isinstance(pattern, Absent):
            if tensor is None or tensor.is_empty():
                yield state
            else:
                self._fail(state, f"{where} is there")
        elif tensor is None or tensor.is_empty():
            self._fail(state, f"{where} is absent")
        elif isinstance(pattern, Var):
            yield from self._bind(pattern.capture, tensor, where, state)
        elif isinstance(pattern, Const):
            yield from self._constant(pattern, tensor, where, state)
        else:
            node = producer(tensor)
            if node is None:
                self._fail(state, f"{where} ('{tensor.name}') is not computed by a node")
            else:
                yield from self.node(pattern, node, tensor, state)

    def _bind(self, name: str | None, tensor: Any, where: str, state: _State) -> Iterator[_State]:
        if name is None:
            yield state
        elif name not in state.tensors:
            tensors = {**state.tensors, name: tensor}
            yield _State(state.nodes, tensors, state.captured)
        elif state.tensors[name] is tensor:
            yield state
        else:
            other = state.tensors[name].name
            self._fail(state, f"{where} is '{tensor.name}', but '{name}' already is '{other}'")

    def _constant(self, pattern: Const, tensor: Any, where: str, state: _State) -> Iterator[_State]:
        if isinstance(tensor, gs.Constant):
            shape: tuple[int, ...] | None = tuple(tensor.shape)
        else:
            values = constant_values(tensor)
            shape = None if values is None else values.shape
        if shape is None:
            self._fail(state, f"{where} ('{tensor.name}') is not a constant")
            return
        size = math.prod(shape)
        if pattern.rank is not None and len(shape) != pattern.rank:
            self._fail(state, f"{where} has rank {len(shape)}, not {pattern.rank}")
        elif pattern.size is not None and size != pattern.size:
            self._fail(state, f"{where} has {size} elements, not {pattern.size}")
        elif pattern.value is not None and size != 1:
            self._fail(state, f"{where} is not a scalar")
        elif pattern.value is not None and not _close(_scalar(tensor), pattern.value):
            self._fail(state, f"{where} is {_scalar(tensor):g}, not {pattern.value:g}")
        else:
            yield from self._bind(pattern.capture, tensor, where, state)

    def node(self, pattern: Op, node: gs.Node, tensor: Any, state: _State) -> Iterator[_State]:
        """Every way the pattern matches a node whose output `tensor` the outer pattern reads."""
        if node.op not in pattern.types:
            self._fail_operator(state, node, pattern.types)
            return
        reason = self._node_mismatch(pattern, node, tensor)
        if reason is not None:
            self._fail(state, reason)
            return
        nodes, captured = state.nodes, dict(state.captured)
        if not any(other is node for other in nodes):
            nodes = (*nodes, node)
        if pattern.capture is not None and captured.setdefault(pattern.capture, node) is not node:
            self._fail(state, f"{_label(node)} is not the node '{pattern.capture}'")
            return
        start = _State(nodes, state.tensors, captured)
        label = _label(node)
        for bound in self._bind(pattern.capture, tensor, label, start):
            yield from self._inputs(pattern, node, bound)

    def _node_mismatch(self, pattern: Op, node: gs.Node, tensor: Any) -> str | None:
        label = _label(node)
        if pattern.domain is not None and _domain(node.domain) != _domain(pattern.domain):
            return f"{label} is of domain '{_domain(node.domain)}', not '{pattern.domain}'"
        if pattern.output >= len(node.outputs) or node.outputs[pattern.output] is not tensor:
            return f"'{tensor.name}' is not output {pattern.output} of {label}"
        for name, wanted in pattern.attrs.items():
            if not _attribute_matches(node.attrs.get(name), wanted):
                return f"{label} has {name}={node.attrs.get(name)!r}, not {wanted!r}"
        return self._other_use(label, tensor) if pattern.only_use else None

    def _other_use(self, label: str, tensor: Any) -> str | None:
        readers = len(consumers(tensor))
        if readers != 1:
            return f"the output of {label} is read by {readers} nodes, not by one"
        if self._graph is not None and is_graph_output(self._graph, tensor):
            return f"the output of {label} is an output of the graph"
        return None

    def _inputs(self, pattern: Op, node: gs.Node, state: _State) -> Iterator[_State]:
        given = list(node.inputs)
        extra = [tensor for tensor in given[len(pattern.inputs) :] if not tensor.is_empty()]
        if extra and not pattern.rest:
            self._fail(state, f"{_label(node)} has more inputs than {len(pattern.inputs)}")
            return
        given += [None] * (len(pattern.inputs) - len(given))
        read = given[: len(pattern.inputs)]
        orders = itertools.permutations(read) if pattern.commutative else iter([tuple(read)])
        for order in orders:
            yield from self._each(pattern, node, order, 0, state)

    def _each(
        self, pattern: Op, node: gs.Node, tensors: tuple[Any, ...], position: int, state: _State
    ) -> Iterator[_State]:
        if position == len(pattern.inputs):
            yield state
            return
        where = f"input {position} of {_label(node)}"
        for bound in self.tensor(pattern.inputs[position], tensors[position], where, state):
            yield from self._each(pattern, node, tensors, position + 1, bound)


def _label(node: gs.Node) -> str:
    return f"{node.op} '{node.name}'"


def _domain(domain: str | None) -> str:
    return "" if domain in (None, "ai.onnx") else str(domain)


def _scalar(tensor: Any) -> float:
    return float(np.asarray(constant_values(tensor)).reshape(-1)[0])


def _close(value: float, wanted: float) -> bool:
    return math.isclose(value, wanted, rel_tol=TOLERANCE)


def _attribute_matches(value: Any, wanted: Any) -> bool:
    if isinstance(wanted, set | frozenset):
        return any(_attribute_matches(value, option) for option in wanted)
    if isinstance(value, float) and isinstance(wanted, int | float):
        return _close(value, wanted)
    if isinstance(value, list | tuple) and isinstance(wanted, list | tuple):
        return list(value) == list(wanted)
    return bool(value == wanted)
