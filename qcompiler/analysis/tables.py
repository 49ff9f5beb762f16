"""Embedding tables: constants whose rows a Gather looks up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from qcompiler import ir
from qcompiler.analysis.layers import is_weight


@dataclass(frozen=True)
class Table:
    """A look-up of rows of a constant."""

    gather: gs.Node
    constant: gs.Constant
    transposed: bool
    """Whether the Gather reads it behind a Transpose, as it does where a head has the same."""

    @property
    def name(self) -> str:
        """The look-up's name."""
        return str(self.gather.name)

    @property
    def ties(self) -> bool:
        """Whether layers that read the constant can share its codes."""
        return self.transposed and ir.elem_type(self.constant) == onnx.TensorProto.FLOAT

    @property
    def rows(self) -> int:
        """How many there are to look up."""
        return int(self.constant.shape[1 if self.transposed else 0])

    @property
    def shape(self) -> tuple[int, int]:
        """(K, N) of the matrix whose columns are the rows."""
        channels = int(self.constant.shape[0 if self.transposed else 1])
        return channels, self.rows

    def matrix(self) -> NDArray[np.float32]:
        """The matrix [K, N] whose columns are the rows, as a layer tied to the table has it."""
        stored = np.asarray(ir.array(self.constant), np.float32)
        return stored if self.transposed else stored.T


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


def find_tables(graph: gs.Graph) -> list[Table]:
    """Every embedding look-up, in graph order."""
    found = [(node, looked_up(node)) for node in graph.nodes]
    return [Table(node, *source) for node, source in found if source and is_weight(source[0])]
