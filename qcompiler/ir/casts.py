"""Constants that are read wider than they are stored, in and out of a model.

initializer E (float16), Cast(E) -> E'   <->   one constant E', `CastValues`
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterable, Iterator, Mapping
from typing import Any

import onnx
import onnx_graphsurgeon as gs
from onnx import helper

from qcompiler.ir.tensors import CastValues
from qcompiler.ir.walk import proto_graphs


@contextlib.contextmanager
def without_casts(
    constants: Iterable[gs.Constant],
) -> Generator[dict[str, int], None, None]:
    """Constants with such of them as they are stored, for as long as it lasts.

    Yields the element type each is read in, by name.
    """
    saved: list[tuple[gs.Constant, CastValues, Any]] = []
    try:
        for tensor in constants:
            values = tensor._values
            if isinstance(values, CastValues):
                saved.append((tensor, values, tensor._export_dtype))
                tensor._values, tensor._export_dtype = values.stored, None
        yield {tensor.name: int(values.tensor.data_type) for tensor, values, _ in saved}
    finally:
        for tensor, values, kind in saved:
            tensor._values, tensor._export_dtype = values, kind


def write_casts(graph: onnx.GraphProto, kinds: Mapping[str, int]) -> None:
    """Put a Cast behind each initializer named in `kinds`, in subgraphs too."""
    if not kinds:
        return
    taken = set(_names(graph))
    for each in proto_graphs(graph):
        casts: list[onnx.NodeProto] = []
        for initializer in each.initializer:
            if initializer.name in kinds:
                name, count = f"{initializer.name}_stored", 0
                while name in taken:
                    count += 1
                    name = f"{initializer.name}_stored_{count}"
                taken.add(name)
                wide, initializer.name = initializer.name, name
                casts.append(helper.make_node("Cast", [name], [wide], name, to=kinds[wide]))
        if casts:
            nodes = [*casts, *each.node]
            del each.node[:]
            each.node.extend(nodes)


def _names(graph: onnx.GraphProto) -> Iterator[str]:
    for each in proto_graphs(graph):
        for value in (*each.input, *each.initializer):
            yield value.name
        for node in each.node:
            yield node.name
            yield from node.output
