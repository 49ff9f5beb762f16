"""Functions that call each other are counted before anyone inlines them."""

from __future__ import annotations

import time
from itertools import pairwise
from pathlib import Path

import onnx
import pytest
import tiny_models as tiny
from command_line import refusal
from onnx import helper

from qcompiler.errors import ModelError
from qcompiler.functions import MOST_NODES, inlined, require_bounded
from qcompiler.models import open_package

DOMAIN = "local"


def function(name: str, nodes: list) -> onnx.FunctionProto:
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(DOMAIN, 1)]
    return helper.make_function(DOMAIN, name, ["a"], ["b"], nodes, opsets)


def call(name: str, a: str, b: str) -> onnx.NodeProto:
    return helper.make_node(name, [a], [b], domain=DOMAIN)


def in_branches(a: str, b: str, name: str) -> list:
    """The call in both branches of an If."""
    graphs = {
        branch: helper.make_graph(
            [call(name, a, f"{b}_{branch}")],
            branch,
            [],
            [tiny.value(f"{b}_{branch}", tiny.FLOAT, ["n", 8])],
        )
        for branch in ("then_branch", "else_branch")
    }
    flag = helper.make_tensor("yes", onnx.TensorProto.BOOL, [], [True])
    constant = helper.make_node("Constant", [], [f"{b}_flag"], value=flag)
    return [constant, helper.make_node("If", [f"{b}_flag"], [b], **graphs)]


def doubling(depth: int, *, branches: bool = False) -> onnx.ModelProto:
    """Each function calls the one below it twice."""
    functions = [function("f0", [helper.make_node("Relu", ["a"], ["b"])])]
    for at in range(1, depth):
        below = f"f{at - 1}"
        twice = [call(below, "a", "half"), call(below, "half", "b")]
        functions.append(function(f"f{at}", in_branches("a", "b", below) if branches else twice))
    model = tiny.model_of(
        [call(f"f{depth - 1}", "x", "h"), helper.make_node("MatMul", ["h", "w"], ["y"])],
        [tiny.value("x", tiny.FLOAT, ["n", 8])],
        [tiny.value("y", tiny.FLOAT, ["n", 8])],
        {"w": tiny.embedding()[:8]},
    )
    model.functions.extend(functions)
    model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    return model


@pytest.mark.parametrize("branches", [False, True])
def test_forty_functions_that_call_each_other_twice_are_refused(tmp_path: Path, branches) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(doubling(40, branches=branches), path)
    started = time.process_time()
    said = refusal("compile", path, "--recipe", "rtn", "-o", tmp_path / "out.onnx")
    assert time.process_time() - started < 5
    assert "function 'f" in said and f"more than {MOST_NODES:,}" in said and "Loop" in said
    assert [each.name for each in tmp_path.iterdir()] == ["model.onnx"]
    assert "when inlined" in refusal("inspect", path)


def test_calls_of_the_model_count_too() -> None:
    model = doubling(19)  # 2^18 nodes, fewer than may be
    require_bounded(model)
    model.graph.node.extend(call("f18", "x", f"z{at}") for at in range(2))
    with pytest.raises(ModelError, match="function 'f18' and what it calls come to 786,432"):
        require_bounded(model)


@pytest.mark.parametrize("names", [("f0", "f0"), ("f0", "f1", "f2", "f0")])
def test_functions_that_call_themselves_are_refused(tmp_path: Path, names) -> None:
    model = doubling(1)
    del model.functions[:]
    for name, below in pairwise(names):
        model.functions.append(function(name, in_branches("a", "b", below)))
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(ModelError, match=r"function 'f\d' calls itself.*Loop"):
        open_package(tmp_path / "model.onnx")


def test_a_long_chain_of_functions_is_counted_without_recursion() -> None:
    model = doubling(1)
    for at in range(1, 5000):
        model.functions.append(function(f"f{at}", [call(f"f{at - 1}", "a", "b")]))
    model.functions.extend([model.functions.pop(0)])
    model.graph.node[0].op_type = "f4999"
    require_bounded(model)


def of_opset(node: onnx.NodeProto, version: int) -> onnx.ModelProto:
    """A model of opset 21 whose one function is of another."""
    made = doubling(1)
    made.functions[0].node[0].CopyFrom(node)
    made.functions[0].opset_import[0].version = version
    return made


def test_functions_of_another_opset_with_the_same_operators_are_inlined() -> None:
    made = of_opset(helper.make_node("Relu", ["a"], ["b"]), 14)
    assert [node.op_type for node in inlined(made).graph.node] == ["Relu", "MatMul"]
    assert made.functions[0].opset_import[0].version == 14  # as it was


def test_functions_of_another_opset_with_other_operators_are_refused(tmp_path: Path) -> None:
    onnx.save(of_opset(helper.make_node("LeakyRelu", ["a"], ["b"]), 13), tmp_path / "m.onnx")
    told = refusal("compile", tmp_path / "m.onnx")
    assert "function 'f0' is of another opset than the model, whose operators differ" in told
