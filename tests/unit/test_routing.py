"""What is told of experts from a graph's form: routers, rows that data chooses, nodes that move
rows."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from qcompiler.analysis.experts import is_router, routed_rows
from qcompiler.analysis.rows import is_zeros, origin
from qcompiler.calibration.statistics import TensorStatistics
from qcompiler.ir import tensors_of
from qcompiler.ir.io import import_proto

VECTORS = {
    "zero": [0],
    "one": [1],
    "all": [-1],
    "flat": [-1, 4],
    "halves": [2, 2],
    "twice": [2, 1, 1],
    "firsts": [[0], [1]],
    "pairs": [[0, 1], [1, 0]],
    "triples": [[0, 1, 2], [1, 0, 3], [0, 0, 0], [1, 1, 1]],
    "cells": [[[0, 1], [0, 2], [1, 0], [1, 3]]] * 2,
    "third": [[[2]]],
    "four": [[[0, 1, 2, 3]]],
}
HEADER = '<ir_version: 10, opset_import: ["" : 21]>\n'


def tensors(body: str) -> dict:
    """Tensors by name of a graph that reads `x` [2, n, 4], with a matrix `w` [4, 4]."""
    model = onnx.parser.parse_model(f"{HEADER} g (float[2, n, 4] x) => (y) {{ {body} }}")
    model.graph.initializer.append(numpy_helper.from_array(np.ones((4, 4), "f4"), "w"))
    for name, values in VECTORS.items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(values), name))
    return tensors_of(import_proto(onnx.shape_inference.infer_shapes(model, data_prop=True)))


UNROLLED = """
    scores = MatMul(x, w)
    best, chosen = TopK(scores, one)
    hit = Equal(chosen, zero)
    places0 = NonZero(hit)
    places1 = Gather(places0, zero)
    places = Reshape(places1, all)
    flat_x = Reshape(x, flat)
    rows = Gather(flat_x, places)
    h = MatMul(rows, w)
    act = Relu(h)
    y = MatMul(act, w)
"""


def test_rows_that_data_chooses() -> None:
    found = tensors(UNROLLED)
    chosen = routed_rows(found["rows"])
    assert chosen is not None
    assert (chosen.whole.name, chosen.alike) == ("flat_x", True)
    behind = routed_rows(found["act"])
    assert behind is not None
    assert (behind.whole.name, behind.alike) == ("flat_x", False)
    assert routed_rows(found["flat_x"]) is None


def test_routers() -> None:
    found = tensors(UNROLLED)
    assert is_router(found["scores"])
    assert not is_router(found["h"])
    best_words = tensors("scores = MatMul(x, w) best, y = TopK(scores, one)")
    assert not is_router(best_words["scores"])


ZEROS = "s = Shape(x) z = ConstantOfShape(s)"


@pytest.mark.parametrize(
    "body",
    [
        "y = Reshape(x, flat)",
        "y = Gather(x, zero)",
        "y = Unsqueeze(x, zero)",
        "y = Expand(x, twice)",
        "y, z = Split <axis = 1, num_outputs = 2> (x)",
        "a = Reshape(x, flat) y = Gather(a, one)",
        "y = GatherND(x, firsts)",
        "y = GatherND(x, pairs)",
        "y = GatherND <batch_dims = 1> (x, firsts)",
        "s = Shape(x) i = Expand(third, s) y = GatherElements <axis = 1> (x, i)",
        f"{ZEROS} y = ScatterND(z, firsts, x)",
        f'{ZEROS} y = ScatterND <reduction = "add"> (z, firsts, x)',
        f"{ZEROS} i = Expand(third, s) y = ScatterElements <axis = 1> (z, i, x)",
    ],
)
def test_nodes_that_move_rows(body: str) -> None:
    assert origin(tensors(body)["y"]).name == "x"


@pytest.mark.parametrize(
    "body",
    [
        "y = Reshape(x, all)",
        "y = Gather <axis = 2> (x, zero)",
        "y = Unsqueeze(x, all)",
        "y, z = Split <axis = -1> (x, halves)",
        "y = Relu(x)",
        "y = ReduceSum(x, all)",
        "y = GatherND(x, triples)",
        "y = GatherND <batch_dims = 1> (x, cells)",
        "y = GatherElements <axis = 1> (x, four)",
        "s = Shape(x) i = Expand(third, s) y = GatherElements <axis = 2> (x, i)",
        "s = Shape(x) i = Expand(four, s) y = GatherElements <axis = 1> (x, i)",
        f'{ZEROS} y = ScatterND <reduction = "max"> (z, firsts, x)',
        f"{ZEROS} some = GatherND(x, triples) y = ScatterND(z, triples, some)",
        f"{ZEROS} i = Expand(four, s) y = ScatterElements <axis = 1> (z, i, x)",
        f"{ZEROS} i = Expand(third, s) y = ScatterElements <axis = 2> (z, i, x)",
        "z = Relu(x) y = ScatterND(z, firsts, x)",
    ],
)
def test_nodes_that_change_channels(body: str) -> None:
    assert origin(tensors(body)["y"]).name == "y"


def test_rows_among_zeros_are_not_those_that_were() -> None:
    y = tensors(f"{ZEROS} y = ScatterND(z, firsts, x)")["y"]
    assert origin(y).name == "x"
    assert origin(y, unchanged=True) is y


@pytest.mark.parametrize(
    ("body", "known"),
    [
        ("y = ConstantOfShape(halves)", True),
        ("y = ConstantOfShape <value = float[1] {0}> (halves)", True),
        ("y = ConstantOfShape <value = float[1] {1}> (halves)", False),
        ("s = Shape(x) y = Expand(zero, s)", True),
        ("s = Shape(x) y = Expand(one, s)", False),
        ("s = Shape(x) z0 = Cast <to = 1> (zero) z1 = Expand(z0, s) y = Reshape(z1, flat)", True),
        ("y = Sub(x, x)", False),  # not where it is infinite
    ],
)
def test_zeros(body: str, known: bool) -> None:
    assert is_zeros(tensors(body)["y"]) == known


def test_statistics_are_filled_up_with_those_of_all_tokens() -> None:
    def statistics(low: float, high: float, square: float, tokens: int) -> TensorStatistics:
        return TensorStatistics(*(np.full(2, each, "f4") for each in (low, high, square)), tokens)

    filled = statistics(-1, 4, 2, 10).filled(statistics(-3, 2, 6, 1000), 40)
    assert filled.minimum.tolist() == [-3, -3]
    assert filled.maximum.tolist() == [4, 4]
    assert filled.mean_square.tolist() == [5, 5]
    assert filled.tokens == 10
