"""Nodes of every op, some of them mutated: models of one node, what is fed, what should come out.

A case is a function of a seed and its number. `linear_cases` and `float_cases` make valid nodes;
the mutations here know nothing of any op.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from single_node import narrowed, with_function

from qcompiler import ops

Values = dict[str, np.ndarray]

INTEGERS = (0, 1, -1, 2, 3, 7, 16, 31, 32, 33, 64, 128, 256, 300, 301)
INTEGERS += (2**28, 2**28 + 1, 2**31 - 1, 2**31, -(2**31), 2**62, 2**63 - 1, -(2**63))
# Of rows of X, down to denormals and up to where products overflow.
SIZES_OF_X = (1.0, 1.0, 1.0, 1e-3, 1e4, 1e-37, 1e-42, 1e32)
FLOATS = (0.0, -0.0, 1.0, -1.0, 1e-45, 1e-38, 1e-5, 1e30, 3.4e38, np.inf, -np.inf, np.nan)
HUGE = 2**40  # of a dimension, beside one of 0
STRUCTURES = (
    *("fewer inputs", "an input left out", "one more input", "inputs swapped"),
    *("fewer outputs", "one more output", "truncated constant", "no domain version"),
)


@dataclass(frozen=True)
class Wanted:
    """One output: its values, and by how much a result may differ from each.

    An infinite tolerance: anything may be there. `loose`: the tolerance of the function body where
    that is another, because ONNX Runtime's own operators are less exact. `exact`: the signs of
    zeros count too.
    """

    value: np.ndarray
    tolerance: np.ndarray | float
    loose: np.ndarray | float | None = None
    exact: bool = False

    def excess(self, found: np.ndarray, *, body: bool) -> str:
        """How `found` differs beyond the tolerance; "" where it does not."""
        if found.shape != self.value.shape:
            return f"shape {found.shape}, expected {self.value.shape}"
        tolerance = self.loose if body and self.loose is not None else self.tolerance
        with np.errstate(all="ignore"):
            a, b = found.astype(np.float64), self.value.astype(np.float64)
            same = (a == b) | (np.isnan(a) & np.isnan(b)) | np.isposinf(tolerance)
            wrong = ~(same | (np.abs(a - b) <= tolerance))
            if self.exact:
                wrong |= (a == 0) & (np.signbit(a) != np.signbit(b)) & ~np.isposinf(tolerance)
        if not wrong.any():
            return ""
        at = tuple(int(i) for i in np.argwhere(wrong)[0])
        limit = np.broadcast_to(tolerance, wrong.shape)[at]
        return f"{wrong.sum()} values differ, first {at}: {a[at]}, expected {b[at]} ± {limit:.3g}"


Judge = Callable[[Mapping[str, Any], Values], list[Wanted] | None]


@dataclass
class NodeCase:
    """A node and what its runs get. Mutations change it in place and say so in `changes`.

    inputs: by name, in the node's order. constants: which of them are initializers. outputs: names,
    "" for one that is left out. judge(attributes, values): the outputs that are not left out, None
    where nothing is specified. vary(rng): valid values of other sizes for what a run may change.
    body_takes(fed): whether ONNX Runtime runs the function body. alias: one input's name is given
    twice, for another input too. in_place: inputs whose memory an output may have.
    """

    op_type: str
    attributes: dict[str, Any]
    inputs: Values
    constants: set[str]
    outputs: list[str]
    judge: Judge
    vary: Callable[[np.random.Generator], Values]
    bfloat16: bool = False
    body_takes: Callable[[Values], bool] = lambda _: True
    in_place: dict[str, str] = field(default_factory=dict)
    alias: tuple[str, str] | None = None
    structure: str = ""
    later: list[Values] = field(default_factory=list)
    changes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        tensors = ", ".join(
            f"{name} {t.dtype}{list(t.shape)}{' constant' if name in self.constants else ''}"
            for name, t in self.inputs.items()
        )
        kind = " bfloat16" if self.bfloat16 else ""
        changes = "; ".join(self.changes) or "as it is"
        return f"{self.op_type}{kind} {self.attributes} {tensors} -> {self.outputs}: {changes}"

    def runs(self) -> list[Values]:
        """What is fed to one session, run after run."""
        fed = {n: v for n, v in self.inputs.items() if n not in self.constants}
        if self.alias:
            fed.pop(self.alias[1], None)
        return [fed] + [fed | {n: v for n, v in run.items() if n in fed} for run in self.later]

    def wanted(self, fed: Values) -> list[Wanted] | None:
        """What a run should give; None where that is not specified."""
        if self.structure:
            return None
        values = self.inputs | fed
        if self.alias:
            values[self.alias[1]] = values[self.alias[0]]
        return self.judge(self.attributes, values)

    def model(self, *, functions: bool) -> onnx.ModelProto:
        """Its graph states no shapes: they must not shield the kernel."""
        names = list(self.inputs)
        if self.alias:
            names[names.index(self.alias[1])] = self.alias[0]
        attributes = {k: v for k, v in self.attributes.items() if v is not None}
        node = helper.make_node(
            self.op_type, names, self.outputs, name="layer0", domain=ops.DOMAIN, **attributes
        )
        tensors = [numpy_helper.from_array(self.inputs[n], n) for n in names if n in self.constants]
        fed = {n: self.inputs[n].dtype for n in names if n not in self.constants}
        first = next(iter(self.inputs.values())).dtype
        y_type = np.dtype(np.float32) if first.kind == "i" else first
        self._restructure(node, tensors)
        results = [_info(name, y_type) for name in node.output if name]
        graph = helper.make_graph(
            narrowed(node) if self.bfloat16 else [node],
            "case",
            [_info(name, dtype) for name, dtype in fed.items()],
            results,
            tensors,
        )
        attends = self.op_type.startswith("GroupQueryAttention")
        domains = {ops.CONTRIB_DOMAIN: 1} if attends else {}
        model = with_function(graph, self.op_type if functions else None, **domains)
        if self.structure == "no domain version":
            del model.opset_import[1:]
        return model

    def _restructure(self, node: onnx.NodeProto, tensors: list[TensorProto]) -> None:
        if self.structure == "fewer inputs":
            node.input.pop()
        elif self.structure == "an input left out":
            node.input[len(self.changes) % len(node.input)] = ""
        elif self.structure == "one more input":
            node.input.append(node.input[0])
        elif self.structure == "inputs swapped" and len(node.input) > 1:
            node.input[0], node.input[1] = node.input[1], node.input[0]
        elif self.structure == "fewer outputs":
            node.output.pop()
        elif self.structure == "one more output":
            node.output.append("more")
        elif self.structure == "truncated constant" and tensors:
            tensors[0].raw_data = tensors[0].raw_data[:-7]


def _info(name: str, dtype: np.dtype) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(dtype), None)


def pick(rng: np.random.Generator, choices: Any) -> Any:
    """One of them, as it is: numpy's own choice would make arrays of them."""
    return choices[int(rng.integers(len(choices)))]


def leading_sizes(large: bool, rng: np.random.Generator) -> tuple[int, ...]:
    """The dimensions of X or ids before the last of a layer."""
    if large:
        return (int(rng.integers(1, 150)),)
    return tuple(pick(rng, [0, 1, 1, 2, 3, 7]) for _ in range(rng.integers(0, 4)))


def reshaped(tensor: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The tensor cut, grown, flattened, turned, of another rank, empty, or empty and huge."""
    if not tensor.ndim or not tensor.size:
        return tensor.reshape((1, *tensor.shape))
    axis = int(rng.integers(tensor.ndim))
    size = tensor.shape[axis]
    how = int(rng.integers(11))
    if how < 5:
        length = (0, 1, size - 1, size + 1, 64)[how]
        return np.take(tensor, np.arange(length) % size, axis)
    if how == 5:
        return tensor.reshape((1, *tensor.shape))
    if how == 6:
        return tensor.reshape(-1)
    if how == 7:
        return np.ascontiguousarray(tensor.T)
    if how == 8:
        return np.asarray(tensor.reshape(-1)[0])
    if how == 9:
        return tensor.reshape(-1)[:1].reshape((1,) * tensor.ndim)
    shape = list(tensor.shape)
    shape[axis] = 0
    if tensor.ndim > 1:
        shape[(axis + 1) % tensor.ndim] = HUGE
    return np.zeros(shape, tensor.dtype)


def garbled(tensor: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Any bytes, or a few extreme values among those that were there."""
    if rng.random() < 0.3 or tensor.dtype == np.uint8:
        raw = rng.integers(0, 256, tensor.nbytes, dtype=np.uint8)
        return raw.view(tensor.dtype).reshape(tensor.shape)
    changed = np.array(tensor)
    if changed.size:
        choices = FLOATS if changed.dtype.kind == "f" else INTEGERS
        count = int(rng.integers(1, 4))
        with np.errstate(all="ignore"):
            values = np.array([pick(rng, choices) for _ in range(count)])
            if changed.dtype.kind == "i":
                limits = np.iinfo(changed.dtype)
                values = np.array([min(max(int(v), limits.min), limits.max) for v in values])
            changed.reshape(-1)[rng.integers(0, changed.size, count)] = values.astype(changed.dtype)
    return changed


def _change_values(case: NodeCase, rng: np.random.Generator) -> None:
    name = pick(rng, list(case.inputs))
    case.inputs[name] = garbled(case.inputs[name], rng)
    case.changes.append(f"other values in {name}")


def _change_shape(case: NodeCase, rng: np.random.Generator) -> None:
    name = pick(rng, list(case.inputs))
    case.inputs[name] = np.asarray(reshaped(case.inputs[name], rng))
    case.changes.append(f"another shape of {name}")


def _change_type(case: NodeCase, rng: np.random.Generator) -> None:
    name = pick(rng, list(case.inputs))
    kind = pick(rng, ["float32", "float16", "float64", "int8", "uint8", "int32", "int64", "bool"])
    with np.errstate(all="ignore"):
        case.inputs[name] = case.inputs[name].astype(kind)
    case.changes.append(f"another type of {name}")


def _change_attribute(case: NodeCase, rng: np.random.Generator) -> None:
    name = pick(rng, [*case.attributes, "another"])
    now = case.attributes.get(name)
    if isinstance(now, float):
        value = pick(rng, [*FLOATS, now * 1.5, 3, "text", None])
    elif isinstance(now, list):
        n = sum(now)
        value = pick(
            rng,
            [
                *([n, 0, 0], [0, n, 0], [n + 1, -1, 0], [n], n, None, [n - 1, 0, 1]),
                *([2**62, 2**62, n], [n, 0, 0, 0], [-(2**63), n, 0], [0.5, 0.5, 1.0]),
                *(now[::-1], [*now[1:], 32], [*now[1:], 33], [-1, *now[1:]]),
            ],
        )
    else:
        near = [now, now + 1, now - 1, *case.attributes.values()] if isinstance(now, int) else []
        value = pick(rng, [*near, *INTEGERS, *INTEGERS, None, 1.5, "text", [1, 2], np.nan])
    case.attributes[name] = value
    case.changes.append(f"{name}={value}")


def _change_structure(case: NodeCase, rng: np.random.Generator) -> None:
    case.structure = pick(rng, STRUCTURES)
    case.changes.append(case.structure)


def _change_alias(case: NodeCase, rng: np.random.Generator) -> None:
    names = list(case.inputs)
    if len(names) > 1 and case.alias is None:
        one, other = rng.permutation(len(names))[:2]
        case.alias = names[one], names[other]
        case.constants.discard(names[other])
        case.changes.append(f"{names[one]} is {names[other]} too")


def _change_constants(case: NodeCase, rng: np.random.Generator) -> None:
    """What was a constant is fed, or the reverse."""
    name = pick(rng, list(case.inputs))
    case.constants ^= {name}
    case.changes.append(f"{name} {'is' if name in case.constants else 'is not'} constant")


def _change_later(case: NodeCase, rng: np.random.Generator) -> None:
    """Another run of the session, of other sizes or with a malformed input."""
    values = case.vary(rng)
    if rng.random() < 0.5:
        name = pick(rng, list(values))
        change = garbled if rng.random() < 0.4 else reshaped
        values[name] = np.asarray(change(values[name], rng))
    case.later.append(values)
    case.changes.append(f"then { ({n: list(v.shape) for n, v in values.items()}) }")


_CHANGES: tuple[Callable[[NodeCase, np.random.Generator], None], ...] = (
    *(_change_values, _change_values, _change_shape, _change_shape, _change_attribute),
    *(_change_attribute, _change_later, _change_later, _change_constants, _change_alias),
    *(_change_structure, _change_type),
)


def mutate(case: NodeCase, rng: np.random.Generator) -> None:
    """Up to three things about the case changed; one case in eight stays as it is."""
    for _ in range(int(pick(rng, [0, 1, 1, 1, 2, 2, 2, 3]))):
        pick(rng, _CHANGES)(case, rng)
