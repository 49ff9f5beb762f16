"""The text form of a graph: what `--dump-ir` writes and golden tests compare.

    opset "" 21, com.microsoft 1
    input %x : float[batch, 8]
    output %y : float[batch, 4]
    init %w : int4[8, 4] = sha256:5f1c20aa min=-7 max=7 mean=0.25
    %y : float[batch, 4] = MatMul(%x, %w) {}  # node name
    function ai.qcompiler.LinearW4A8

Nodes come in topological order and initializers in the order they are first read, so the text
depends on the graph alone. `_` stands for an absent optional input or output.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.ir.tensor import LazyValues

from qcompiler.escapes import printable
from qcompiler.ir.graph import elem_type
from qcompiler.ir.order import topological
from qcompiler.ir.tensors import array, stored_type

FULL_ELEMENTS = 16
"""Constants up to this size are printed in full."""

EMPTY = '""'
_INDENT = "  "


def print_graph(graph: gs.Graph, *, float_digests: bool = True) -> str:
    """The graph as text, one line a node.

    Without `float_digests`, large float constants show their range and mean only, so that the text
    survives another machine's last bits.
    """
    return "\n".join(_Printer(float_digests).model(graph)) + "\n"


class _Printer:
    def __init__(self, float_digests: bool) -> None:
        self._float_digests = float_digests

    def model(self, graph: gs.Graph) -> Iterator[str]:
        imports = {"": graph.opset} | {
            entry.domain or "": entry.version for entry in graph.import_domains or ()
        }
        used = {node.domain for node in graph.nodes if node.domain}
        imports |= dict.fromkeys(used - set(imports), 1)
        yield "opset " + ", ".join(f"{key or EMPTY} {imports[key]}" for key in sorted(imports))
        yield from self._body(graph, frozenset())
        for function in sorted(f"{each.domain}.{each.name}" for each in graph.functions):
            yield f"function {function}"

    def _body(self, graph: gs.Graph, outside: frozenset[int]) -> Iterator[str]:
        for tensor in graph.inputs:
            yield f"input {_typed(tensor)}"
        for tensor in graph.outputs:
            yield f"output {_typed(tensor)}"
        order = topological(graph)
        seen = set(outside)
        for tensor in [*(t for node in order for t in node.inputs), *graph.outputs]:
            if isinstance(tensor, gs.Constant) and id(tensor) not in seen:
                seen.add(id(tensor))
                yield f"init {_typed(tensor)}{_stored(tensor)} = {self.values(tensor)}"
        for node in order:
            yield from self._node(node, frozenset(seen))

    def _node(self, node: gs.Node, outside: frozenset[int]) -> Iterator[str]:
        outputs = ", ".join(_typed(tensor) for tensor in node.outputs)
        inputs = ", ".join(_name(tensor) for tensor in node.inputs)
        domain = f"{node.domain}." if node.domain and node.domain != "ai.onnx" else ""
        line = f"{outputs} = {domain}{node.op}({inputs})"
        plain = {k: v for k, v in sorted(node.attrs.items()) if not isinstance(v, gs.Graph)}
        if plain:
            fields = ", ".join(f"{key}={self._attribute(value)}" for key, value in plain.items())
            line += f" {{{fields}}}"
        yield line + (f"  # {printable(node.name)}" if node.name else "")
        for key, value in sorted(node.attrs.items()):
            if isinstance(value, gs.Graph):
                yield f"{_INDENT}{key}:"
                for text in self._body(value, outside):
                    yield f"{_INDENT * 2}{text}"

    def _attribute(self, value: Any) -> str:
        if isinstance(value, LazyValues):
            value = gs.Constant("", value)
        if isinstance(value, gs.Constant):
            return f"{_type(value)} {self.values(value)}"
        if isinstance(value, gs.Node.AttributeRef):
            return f"@{value.name}"
        if isinstance(value, type):
            return str(np.dtype(value))
        if isinstance(value, str):
            return f'"{value}"'
        if isinstance(value, list | tuple):
            return "[" + ", ".join(self._attribute(item) for item in value) + "]"
        return _number(value) if isinstance(value, float) else str(value)

    def values(self, tensor: gs.Constant) -> str:
        """A constant's values in full, or their digest."""
        values = array(tensor)
        if values.size <= FULL_ELEMENTS:
            return _nested(values)
        return self._summary(values)

    def _summary(self, values: np.ndarray[Any, Any]) -> str:
        kind = values.dtype.kind
        if kind not in "fiubV":
            return f"{values.size} elements"
        floating = onnx.helper.np_dtype_to_tensor_dtype(values.dtype) in _FLOATS
        parts: list[str] = []
        if self._float_digests or not floating:
            digest = hashlib.sha256(values.tobytes()).hexdigest()
            parts.append(f"sha256:{digest[:8]}")
        wide = values.astype(np.float64 if floating else np.int64)
        parts.append(f"min={_number(wide.min())} max={_number(wide.max())}")
        parts.append(f"mean={_number(wide.mean())}")
        return " ".join(parts)


_FLOATS = frozenset(
    {
        onnx.TensorProto.FLOAT,
        onnx.TensorProto.DOUBLE,
        onnx.TensorProto.FLOAT16,
        onnx.TensorProto.BFLOAT16,
    }
)


def _name(tensor: Any) -> str:
    return "_" if tensor.is_empty() else f"%{printable(tensor.name)}"


def _type(tensor: Any) -> str:
    kind = elem_type(tensor)
    if kind == onnx.TensorProto.UNDEFINED:
        return "?"
    name = onnx.TensorProto.DataType.Name(kind).lower()
    if tensor.shape is None:
        return f"{name}[...]"
    dims = ("?" if dim is None else str(dim) for dim in tensor.shape)
    return f"{name}[{', '.join(dims)}]"


def _typed(tensor: Any) -> str:
    return "_" if tensor.is_empty() else f"{_name(tensor)} : {_type(tensor)}"


def _stored(tensor: gs.Constant) -> str:
    """The type a constant is stored in, where it is read in another."""
    kind = stored_type(tensor)
    if kind == elem_type(tensor):
        return ""
    return f" of {onnx.TensorProto.DataType.Name(kind).lower()}"


def _number(value: Any) -> str:
    value = float(value)
    if math.isfinite(value) and value == int(value) and abs(value) < 1e6:
        return str(int(value))
    return f"{value:.6g}"


def _nested(values: np.ndarray[Any, Any]) -> str:
    if values.ndim == 0:
        item = values.item()
        if isinstance(item, bytes | str):
            return repr(item)
        return _number(item) if not isinstance(item, bool) else str(item).lower()
    return "[" + ", ".join(_nested(item) for item in values) + "]"
