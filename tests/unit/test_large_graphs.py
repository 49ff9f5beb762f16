"""Time grows with the number of nodes, and no faster, whatever the shape of the graph."""

from __future__ import annotations

import time
from pathlib import Path

import onnx
import pytest
from large_graphs import SHAPES

import qcompiler
from qcompiler import ir
from qcompiler.errors import PassError
from qcompiler.ir.io import import_proto
from qcompiler.ir.order import topological

SMALL, LARGE = 1000, 3000
MOST = 4.5
"""How many times as long the three times as many nodes may take; the square would be nine."""

FLOOR = 0.5
"""Seconds below which noise counts more than nodes."""


def seconds(shape: str, nodes: int, folder: Path) -> float:
    """CPU time of a compile in this thread: ONNX Runtime's other threads spin while they wait."""
    model = folder / f"{shape}.{nodes}.onnx"
    onnx.save(SHAPES[shape](nodes), model)
    started = time.thread_time()
    # Noise adds up over a thousand layers; its limit is not the subject here.
    qcompiler.compile(model, recipe="rtn", output=folder / "out.onnx", force=True)
    return time.thread_time() - started


@pytest.mark.parametrize(
    "shape",
    [
        "mixed_chain",
        "fan_out",
        "initializers",
        "expressions",
        "deep_if",
        "many_ifs",
        "small_layers",
    ],
)
def test_three_times_the_nodes_take_three_times_as_long(shape: str, tmp_path: Path) -> None:
    growths: list[float] = []
    for _ in range(2):  # another process may have had the cache
        small = max(seconds(shape, SMALL, tmp_path), FLOOR)
        growths.append(seconds(shape, LARGE, tmp_path) / small)
        if growths[-1] <= MOST:
            break
    assert min(growths) <= MOST, growths


def test_ten_thousand_nodes_take_seconds(tmp_path: Path) -> None:
    assert seconds("relu_chain", 10_000, tmp_path) <= 20


def test_sizes_that_inference_reads_stay_in_the_model(tmp_path: Path) -> None:
    seconds("wide_split", 1000, tmp_path)
    made = onnx.load(tmp_path / "out.onnx", load_external_data=False)
    split = next(node for node in made.graph.node if node.op_type == "Split")
    sizes = next(each for each in made.graph.initializer if each.name == split.input[1])
    assert sizes.data_location == onnx.TensorProto.DEFAULT and len(sizes.raw_data) == 8000


def test_a_long_chain_in_the_wrong_order_is_sorted_without_recursion() -> None:
    graph = import_proto(SHAPES["relu_chain"](20_000))
    names = [node.name for node in graph.nodes]
    graph.nodes.reverse()
    assert [node.name for node in topological(graph)] == names
    ir.remove_dead(graph)
    assert [node.name for node in graph.nodes] == names
    graph.outputs[0].outputs.append(graph.nodes[0])
    with pytest.raises(PassError, match="cycle"):
        ir.sort_nodes(graph)
