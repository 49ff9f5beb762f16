"""What a model's integer and text inputs are looked up in, as far as its graph tells.

Inputs are followed through operators that keep their values. What indexes a table is below its
number of rows; what is compared or becomes a float is a mask or a length; and tables of positions
bound the length of a text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from qcompiler import ops
from qcompiler.functions import inlined
from qcompiler.protos import all_graphs, all_nodes, all_tensors

_WHOLE_NUMBERS = frozenset(
    {
        *(TensorProto.INT8, TensorProto.INT16, TensorProto.INT32, TensorProto.INT64),
        *(TensorProto.UINT8, TensorProto.UINT16, TensorProto.UINT32, TensorProto.UINT64),
    }
)
_KEEPING = frozenset(
    {
        *("Cast", "Reshape", "Unsqueeze", "Squeeze", "Identity", "Transpose", "Expand", "Flatten"),
        *("Slice", "Split", "Gather", "GatherElements", "Tile", "Pad", "Clip", "Mod", "Abs"),
    }
)
"""Operators whose results are values of their first input, or within its range."""
_MIXING = frozenset({"Concat", "Where", "Min", "Max", "Mul"})
"""Operators whose results are in the range of any input that is followed."""
_COMPARING = frozenset({"Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Not"})
_SHAPELESS = frozenset({"Identity", "Cast", "DequantizeLinear"})
_TABLE = 16
"""A constant that is cut to the length of a text has at least so many places."""
_EMBEDDED = {0: 2, 1: 4, 8: 3}
"""Inputs of EmbedLayerNormalization that are ids, and the tables they index."""
_ROTARY = {
    "RotaryEmbedding": {"com.microsoft": 2, "": 1},
    "GroupQueryAttention": {"com.microsoft": 7, ops.DOMAIN: 5},
    "GroupQueryAttentionSink": {ops.DOMAIN: 5},
}
"""Where operators read their cache [positions, ...] of cosines."""
_WORDS = ("cats_strings", "keys_strings")
"""Attributes of ai.onnx.ml's operators that list the words an input may be."""


@dataclass(frozen=True)
class Lookups:
    """What the inputs of a model index."""

    rows: Mapping[str, int] = field(default_factory=dict)
    """By input: the rows of the smallest table that it indexes."""
    words: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """By input of text: the words that the model knows."""
    compared: frozenset[str] = frozenset()
    """Inputs that are compared, or become floats, and index nothing."""
    positions: int | None = None
    """The most tokens that the tables of positions hold; None without such."""

    @classmethod
    def of(cls, model: onnx.ModelProto) -> Lookups:
        """Read a loaded model (external data not needed)."""
        if any(function.domain != ops.DOMAIN for function in model.functions):
            model = inlined(model)
        reader = _Reader.of(model)
        for node in all_nodes(model):
            reader.read(node)
        return cls(
            dict(reader.rows),
            dict(reader.words),
            frozenset(reader.compared - reader.rows.keys() - {_COUNTED}),
            min(reader.positions, default=None),
        )


@dataclass(frozen=True)
class _Origin:
    """An input, or a row of positions, and what was added to it since."""

    name: str
    shift: int = 0


_COUNTED = ""
"""Name of an origin that is no input: the positions 0 .. T - 1."""


@dataclass(frozen=True)
class _Reader:
    """What is known on the way through the nodes."""

    origins: dict[str, _Origin]
    sizes: dict[str, Sequence[int]]
    """Shapes of constants."""
    values: Mapping[str, np.ndarray[Any, Any]]
    """Constants of a few numbers."""
    rows: dict[str, int] = field(default_factory=dict)
    words: dict[str, Sequence[str]] = field(default_factory=dict)
    compared: set[str] = field(default_factory=set)
    positions: list[int] = field(default_factory=list)
    lengths: set[str] = field(default_factory=set)
    """What is computed from shapes, as the number of cached positions is."""

    @classmethod
    def of(cls, model: onnx.ModelProto) -> _Reader:
        stored = {tensor.name for tensor in model.graph.initializer}
        inputs = [value for value in model.graph.input if value.name not in stored]
        kinds = {*_WHOLE_NUMBERS, TensorProto.STRING, TensorProto.BOOL}
        followed = [v.name for v in inputs if v.type.tensor_type.elem_type in kinds]
        constants = dict(_constants(model))
        return cls(
            {name: _Origin(name) for name in followed},
            {name: tuple(tensor.dims) for name, tensor in constants.items()},
            {name: numpy_helper.to_array(tensor) for name, tensor in _small(constants)},
        )

    def read(self, node: onnx.NodeProto) -> None:
        """Learn from one node."""
        self._look_up(node)
        self._cut(node)
        self._constant(node)
        if node.op_type in ("Shape", "Size") or self._measured(node):
            self.lengths.update(node.output)
        origin = self._carried(node)
        if origin is not None:
            self.origins.update({name: origin for name in node.output if name})

    def _measured(self, node: onnx.NodeProto) -> bool:
        kept = node.op_type in _KEEPING and len(node.input) > 0
        return kept and node.input[0] in self.lengths

    def _carried(self, node: onnx.NodeProto) -> _Origin | None:
        """What the results of a node come from; notes what is compared."""
        found = [self.origins.get(name) for name in node.input]
        first = found[0] if found else None
        if node.op_type in _COMPARING or (node.op_type == "Cast" and not _to_whole(node)):
            self.compared.update(each.name for each in found if each is not None)
            return None
        if node.op_type in _KEEPING:
            return first
        if node.op_type in _MIXING:
            several = [each for each in found if each is not None]
            # Positions that a mask is multiplied into are positions.
            return min(several, key=lambda each: each.name != _COUNTED, default=None)
        if node.op_type in ("Add", "Sub") and len(found) == 2:
            return self._shifted(node, found)
        if node.op_type == "Range":
            return _Origin(_COUNTED, self._number(node.input[0]) or 0)
        # Ones that are added up: 1 .. T.
        return _Origin(_COUNTED, 1) if node.op_type == "CumSum" else None

    def _shifted(self, node: onnx.NodeProto, found: Sequence[_Origin | None]) -> _Origin | None:
        for origin, other in zip(found, reversed(node.input), strict=True):
            number = self._number(other)
            if origin is not None and number is not None:
                sign = -1 if node.op_type == "Sub" else 1
                return _Origin(origin.name, origin.shift + sign * number)
            # Counted from behind the cached ones, of which there may be none.
            if origin is not None and origin.name == _COUNTED and other in self.lengths:
                return origin
        return None

    def _look_up(self, node: onnx.NodeProto) -> None:
        """Tables that are indexed."""
        if node.op_type in ("Gather", "GatherBlockQuantized"):
            axis = _integer(node, "axis", _integer(node, "gather_axis", 0))
            self._index(node.input[1], self.sizes.get(node.input[0]), axis)
        elif node.op_type == "GatherND" and not _integer(node, "batch_dims", 0):
            self._index(node.input[1], self.sizes.get(node.input[0]), 0)
        elif node.op_type == "OneHot":
            depth = self._number(node.input[1])
            self._index(node.input[0], None if depth is None else (depth,), 0)
        elif node.op_type == "EmbedLayerNormalization":
            for ids, table in _EMBEDDED.items():
                if ids < len(node.input):
                    self._index(node.input[ids], self.sizes.get(node.input[table]), 0)
            self.positions.extend(self.sizes.get(node.input[3], ())[:1])
        cache = _ROTARY.get(node.op_type, {}).get(node.domain)
        if cache is not None and cache < len(node.input):
            self.positions.extend(self.sizes.get(node.input[cache], ())[:1])
        origin = self.origins.get(node.input[0]) if node.input else None
        for attribute in node.attribute:
            if origin is not None and attribute.name in _WORDS and attribute.strings:
                self.words[origin.name] = [word.decode() for word in attribute.strings]

    def _index(self, ids: str, table: Sequence[int] | None, axis: int) -> None:
        origin = self.origins.get(ids)
        if origin is None or not table or not -len(table) <= axis < len(table):
            return
        rows = int(table[axis]) - origin.shift
        if rows < 1:
            return
        if origin.name == _COUNTED or "position" in origin.name:
            self.positions.append(rows)
        if origin.name != _COUNTED:
            self.rows[origin.name] = min(rows, self.rows.get(origin.name, rows))

    def _cut(self, node: onnx.NodeProto) -> None:
        """Constants that are cut to a computed length: positions, rotary caches, causal masks."""
        if node.op_type != "Slice" or len(node.input) < 3 or node.input[2] in self.sizes:
            return
        sizes = self.sizes.get(node.input[0])
        if not sizes:
            return
        axis = self._number(node.input[3]) if len(node.input) > 3 else 0
        if axis is not None and -len(sizes) <= axis < len(sizes) and sizes[axis] >= _TABLE:
            self.positions.append(int(sizes[axis]))
            self.origins[node.output[0]] = _Origin(_COUNTED)

    def _constant(self, node: onnx.NodeProto) -> None:
        """Constants that are another one turned, or in another type."""
        sizes = self.sizes.get(node.input[0]) if node.input else None
        if sizes is None:
            return
        if node.op_type in _SHAPELESS:
            self.sizes[node.output[0]] = sizes
        elif node.op_type == "Transpose":
            given = (list(a.ints) for a in node.attribute if a.name == "perm")
            order = next(given, list(range(len(sizes)))[::-1])
            if sorted(order) == list(range(len(sizes))):  # else ONNX Runtime will say so
                self.sizes[node.output[0]] = [sizes[axis] for axis in order]

    def _number(self, name: str) -> int | None:
        """The value of a constant that is one whole number."""
        value = self.values.get(name)
        one = value is not None and value.size == 1 and value.dtype.kind in "iu"
        return int(value.reshape(-1)[0]) if one and value is not None else None


def _constants(model: onnx.ModelProto) -> Iterator[tuple[str, TensorProto]]:
    """Initializers and constants by the names that nodes read them under."""
    for tensor in all_tensors(model):
        if tensor.name:
            yield tensor.name, tensor
    for graph in all_graphs(model):
        for sparse in graph.sparse_initializer:  # its values have its name and their size
            yield sparse.values.name, TensorProto(dims=sparse.dims)
    for node in all_nodes(model):
        if node.op_type == "Constant":
            for attribute in node.attribute:
                if attribute.name == "value":
                    yield node.output[0], attribute.t
                elif attribute.name in ("value_int", "value_ints"):
                    numbers = np.array(attribute.ints or attribute.i, np.int64)
                    yield node.output[0], numpy_helper.from_array(numbers)


def _small(constants: Mapping[str, TensorProto]) -> Iterator[tuple[str, TensorProto]]:
    for name, tensor in constants.items():
        inside = tensor.data_location != TensorProto.EXTERNAL
        if inside and tensor.data_type in _WHOLE_NUMBERS and np.prod(tensor.dims, dtype=int) == 1:
            yield name, tensor


def _to_whole(node: onnx.NodeProto) -> bool:
    """Whether a Cast gives whole numbers."""
    return _integer(node, "to", TensorProto.UNDEFINED) in _WHOLE_NUMBERS


def _integer(node: onnx.NodeProto, name: str, otherwise: int) -> int:
    return next((each.i for each in node.attribute if each.name == name), otherwise)
