"""Element types and sizes of the tensors of a model, as far as they can be told."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import onnx
from onnx import TensorProto, defs

from qcompiler.ir import shapes

Sizes = tuple[int | str | None, ...]
"""Of a tensor: each a number, a symbol for one not known, or nothing."""

MAYBE_FLOAT = frozenset(
    {
        *(TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE),
        TensorProto.UNDEFINED,
    }
)
"""Element types of tensors that can have a gradient; UNDEFINED is one not known."""

_LIKE_X = frozenset({"SimplifiedLayerNormalization"})
"""Operators that ONNX does not know, in its own domain: the first output has the sizes of x."""


class Kinds:
    """What a graph states of its tensors."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._elem: dict[str, int] = {}
        self._sizes: dict[str, Sizes] = {}
        for value in (*graph.value_info, *graph.output, *graph.input):
            kind = value.type.tensor_type
            if kind.elem_type:
                self._elem[value.name] = kind.elem_type
            if kind.HasField("shape"):
                self._sizes[value.name] = tuple(map(_size, kind.shape.dim))
        for tensor in graph.initializer:
            self._elem[tensor.name] = tensor.data_type
            self._sizes[tensor.name] = tuple(tensor.dims)

    def elem(self, name: str) -> int:
        """The ONNX element type, UNDEFINED where it is not known."""
        return self._elem.get(name, TensorProto.UNDEFINED)

    def sizes(self, name: str) -> Sizes | None:
        """The sizes; None where not even the rank is known."""
        return self._sizes.get(name)


def _size(dim: onnx.TensorShapeProto.Dimension) -> int | str | None:
    return dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None


def inferred(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model's skeleton with what ONNX infers from its inputs.

    What it states already counts where ONNX can't tell, without its symbols: these may stand for
    other numbers than those of the inputs.
    """
    made = onnx.ModelProto()
    made.CopyFrom(model)
    stated = {value.name: value for value in model.graph.value_info}
    del made.graph.value_info[:]
    for node in made.graph.node:
        if not node.domain and node.op_type in _LIKE_X:
            _state(made.graph, stated, node.output[1:])
            node.op_type = "Identity"
            del node.input[1:], node.output[1:], node.attribute[:]
        elif node.domain or not defs.has(node.op_type):
            _state(made.graph, stated, node.output)
    made = shapes.inferred(made)
    known = {value.name for value in made.graph.value_info}
    _state(made.graph, stated, [name for name in stated if name not in known])
    return made


def _state(
    graph: onnx.GraphProto, stated: Mapping[str, onnx.ValueInfoProto], names: Iterable[str]
) -> None:
    for name in names:
        if name in stated:
            value = graph.value_info.add()
            value.CopyFrom(stated[name])
            for dim in value.type.tensor_type.shape.dim:
                dim.ClearField("dim_param")
