"""Constant expressions that come to terabytes are left as they are, and cost nothing."""

from __future__ import annotations

import resource
import time

import numpy as np
import pytest
import tiny_models as tiny
from onnx import helper

from qcompiler.ir.io import import_proto
from qcompiler.passmanager import PassContext, PassManager
from qcompiler.recipe import parse_pipeline

NODE = helper.make_node
MANY = 10**6

LONG = np.arange(1, MANY + 1, dtype=np.float32)
"""Four megabytes; its product with itself is four terabytes."""

UNKNOWN = [NODE("NonZero", ["long"], ["places"]), NODE("Cast", ["places"], ["rows"], to=1)]
"""[1, 10^6], of which shape inference does not know it."""

BOMBS = {
    "expand": [NODE("Expand", ["long", "square"], ["big"])],
    "tile": [NODE("Tile", ["long", "million"], ["big"])],
    "fill": [NODE("ConstantOfShape", ["square"], ["big"])],
    "computed fill": [NODE("Abs", ["square"], ["s"]), NODE("ConstantOfShape", ["s"], ["big"])],
    "range": [NODE("Range", ["zero", "trillion", "one"], ["big"])],
    "computed range": [
        NODE("Abs", ["trillion"], ["t"]),
        NODE("Range", ["zero", "t", "one"], ["big"]),
    ],
    "pad": [NODE("Pad", ["long", "pads"], ["big"])],
    "resize": [NODE("Resize", ["long", "", "scales"], ["big"])],
    "broadcast": [NODE("Reshape", ["long", "column"], ["c"]), NODE("Add", ["long", "c"], ["big"])],
    "unknown broadcast": [
        *UNKNOWN,
        NODE("Transpose", ["rows"], ["columns"], perm=[1, 0]),
        NODE("Add", ["rows", "columns"], ["big"]),
    ],
    "unknown product": [
        *UNKNOWN,
        NODE("Transpose", ["rows"], ["columns"], perm=[1, 0]),
        NODE("MatMul", ["columns", "rows"], ["big"]),
    ],
    "unknown joined": [*UNKNOWN, NODE("Concat", ["rows"] * 2000, ["big"], axis=0)],
    "joined": [NODE("Concat", ["long"] * 10_000, ["big"], axis=0)],
    "gathered": [*UNKNOWN, NODE("Gather", ["rows", "places"], ["big"], axis=0)],
}


def bomb(nodes: list) -> list:
    """The nodes, and a layer beside them; only the size of what they give is read."""
    rest = [
        NODE("Size", ["big"], ["size"]),
        NODE("Cast", ["size"], ["factor"], to=1),
        NODE("MatMul", ["x", "w"], ["h"]),
        NODE("Mul", ["h", "factor"], ["y"]),
    ]
    return [*nodes, *rest]


@pytest.mark.parametrize("name", BOMBS)
def test_nothing_of_a_terabyte_is_computed(name: str) -> None:
    model = tiny.model_of(
        bomb(BOMBS[name]),
        [tiny.value("x", tiny.FLOAT, ["n", 8])],
        [tiny.value("y", tiny.FLOAT, ["n", 8])],
        {
            "w": tiny.embedding()[:8],
            "long": LONG,
            "square": np.array([MANY, MANY]),
            "column": np.array([-1, 1]),
            "million": np.array([MANY]),
            "zero": np.array(0),
            "one": np.array(1),
            "trillion": np.array(MANY**2),
            "pads": np.array([0, MANY**2]),
            "scales": np.array([MANY], np.float32),
        },
    )
    graph = import_proto(model)
    before, started = peak(), time.process_time()
    manager = PassManager(parse_pipeline("import,fold-constants,canonicalize"))
    graph, _ = manager.run(graph, PassContext())
    assert any(tensor.name == "big" for node in graph.nodes for tensor in node.outputs)
    assert time.process_time() - started < 10
    assert peak() - before < 500 << 20


def peak() -> int:
    """Bytes that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def test_expressions_that_share_a_chain_are_not_walked_without_end() -> None:
    nodes = [NODE("Abs", ["w"], ["a0"])]
    nodes += [NODE("Abs", [f"a{at}"], [f"a{at + 1}"]) for at in range(700)]
    last = "x"
    for at in range(700):
        nodes.append(NODE("MatMul", [last, f"a{at}"], [f"h{at}"]))
        last = f"h{at}"
    values = [tiny.value(name, tiny.FLOAT, ["n", 8]) for name in ("x", last)]
    model = tiny.model_of(nodes, values[:1], values[1:], {"w": tiny.embedding()[:8]})
    manager = PassManager(parse_pipeline("import,fold-constants"))
    started = time.process_time()
    manager.run(import_proto(model), PassContext())
    assert time.process_time() - started < 5
