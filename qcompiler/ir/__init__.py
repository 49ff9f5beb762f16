"""The graph: reading, writing and changing it, and what is risky in graphsurgeon."""

from __future__ import annotations

from qcompiler.ir.graph import (
    Namer,
    add_node,
    attribute,
    cast_type,
    consumers,
    elem_type,
    given,
    is_graph_output,
    producer,
    reads_values,
    remove_dead,
    remove_nodes,
    replace_uses,
    rewire_input,
    tensor_rank,
    value_readers,
)
from qcompiler.ir.io import (
    model_folder,
    on_disk,
    read_model,
    stage_model,
    to_model,
    write_model,
)
from qcompiler.ir.order import sort_nodes
from qcompiler.ir.scratch import spilling, spilling_beside
from qcompiler.ir.structures import copied
from qcompiler.ir.tensors import array, constant, is_constant, nbytes, rearranged, stored_type
from qcompiler.ir.walk import graphs, tensors_of

__all__ = [
    "Namer",
    "add_node",
    "array",
    "attribute",
    "cast_type",
    "constant",
    "consumers",
    "copied",
    "elem_type",
    "given",
    "graphs",
    "is_constant",
    "is_graph_output",
    "model_folder",
    "nbytes",
    "on_disk",
    "producer",
    "read_model",
    "reads_values",
    "rearranged",
    "remove_dead",
    "remove_nodes",
    "replace_uses",
    "rewire_input",
    "sort_nodes",
    "spilling",
    "spilling_beside",
    "stage_model",
    "stored_type",
    "tensor_rank",
    "tensors_of",
    "to_model",
    "value_readers",
    "write_model",
]
