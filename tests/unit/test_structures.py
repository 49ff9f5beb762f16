"""Tensors and nodes made without graphsurgeon's constructors are what these make."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx_graphsurgeon.importers.onnx_importer import OnnxImporter

import qcompiler
from qcompiler import ir, memory, protos
from qcompiler.ir.io import import_proto
from qcompiler.ir.printer import print_graph
from qcompiler.ir.structures import copied, described, node, variable

MODEL = """
<ir_version: 10, opset_import: ["" : 21]>
g (float[N, 64] x) => (float[N, 64] y)
<float[64, 64] w, float[64] b>
{
    h = MatMul(x, w)
    n = Clip(h, , b0)
    s = Add(n, b)
    y = Relu(s)
}
"""


def model() -> onnx.ModelProto:
    made = onnx.parser.parse_model(MODEL.replace("float[64] b>", "float[64] b, float b0 = {2.0}>"))
    del made.graph.initializer[:]
    rng = np.random.default_rng(0)
    for name, shape in (("w", (64, 64)), ("b", (64,)), ("b0", ())):
        values = np.asarray(rng.standard_normal(shape), np.float32)
        made.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    return made


def test_a_node_and_its_tensors_know_of_each_other() -> None:
    x, y = variable("x"), variable("y", np.dtype(np.float32), ["N", 4])
    made = node("Add", "sum", {}, [x, x], [y], None)
    assert list(made.inputs) == [x, x] and list(made.outputs) == [y]
    assert [id(each) for each in x.outputs] == [id(made), id(made)]
    assert [id(each) for each in y.inputs] == [id(made)]
    made.inputs.clear()
    assert not x.outputs, "lists are kept in step as graphsurgeon's are"


@pytest.mark.parametrize(
    "value",
    [
        helper.make_tensor_value_info("t", TensorProto.FLOAT, ["N", 4, None]),
        helper.make_tensor_value_info("t", TensorProto.BFLOAT16, [2]),
        helper.make_tensor_value_info("t", TensorProto.INT64, []),
        helper.make_tensor_value_info("t", TensorProto.STRING, None),
        helper.make_tensor_sequence_value_info("t", TensorProto.FLOAT, [3]),
        onnx.ValueInfoProto(name="t"),
    ],
    ids=["sizes", "no numpy type", "scalar", "no rank", "sequence", "no type"],
)
def test_what_a_message_says_of_a_tensor_is_read_as_graphsurgeon_does(
    value: onnx.ValueInfoProto,
) -> None:
    made, usual = described(value), OnnxImporter.import_tensor(value)
    for field in ("name", "dtype", "shape", "type"):
        assert getattr(made, field) == getattr(usual, field)


def test_a_copy_shares_values_and_nothing_else() -> None:
    graph = import_proto(model())
    made = copied(graph)
    assert print_graph(made) == print_graph(graph) == print_graph(graph.copy())
    assert not {id(each) for each in made.nodes} & {id(each) for each in graph.nodes}
    theirs = ir.tensors_of(graph)
    for name, tensor in ir.tensors_of(made).items():
        assert tensor is not theirs[name]
        if ir.is_constant(tensor):
            assert tensor._values is theirs[name]._values
    ir.remove_nodes(made, list(made.nodes))
    assert len(graph.nodes) == 4 and graph.nodes[1].inputs[0].inputs[0] is graph.nodes[0]


def test_names_that_are_given_up_are_free_again() -> None:
    fresh = ir.Namer(import_proto(model()))
    assert fresh("h") == "h_1"
    fresh.give_up(["h"])
    assert fresh("h") == "h"
    fresh.take(["free"])
    assert fresh("free") == "free_1"


def test_a_source_is_parsed_three_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = tmp_path / "m.onnx", tmp_path / "out.onnx"
    onnx.save(model(), source)
    read: list[str] = []
    plain = protos.read_proto

    def noting(path: Path) -> onnx.ModelProto:
        read.append(Path(path).name)
        return plain(path)

    for where in ("models", "ir.io", "comparison", "session"):
        monkeypatch.setattr(f"qcompiler.{where}.read_proto", noting)
    qcompiler.compile(source, recipe="rtn", output=out)
    # When it is opened, for the passes, and beside the result, which is read once.
    assert sorted(read) == ["m.onnx"] * 3 + ["out.onnx"]


def test_an_outline_has_no_large_values(tmp_path: Path) -> None:
    source = tmp_path / "m.onnx"
    onnx.save(model(), source)
    outline = qcompiler.models.open_package(source).outline
    kept = {each.name: len(each.raw_data) for each in outline.graph.initializer}
    assert kept == {"w": 0, "b": 256, "b0": 4}
    assert [list(each.dims) for each in outline.graph.initializer] == [[64, 64], [64], []]


def test_cycles_are_looked_for_as_before_when_a_large_graph_is_done() -> None:
    usual = gc.get_threshold()
    with memory.many_objects(100):
        assert gc.get_threshold() == usual, "of a small graph nothing is left lying"
    with pytest.raises(KeyError), memory.many_objects(100_000):
        assert gc.get_threshold()[0] > usual[0]
        raise KeyError
    assert gc.get_threshold() == usual
