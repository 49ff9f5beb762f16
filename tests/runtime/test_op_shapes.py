"""What the ops tell ONNX Runtime of shapes while a model loads: unknown sizes stay open."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from linear_models import embedding_model, linear_model
from onnx import TensorProto, helper, numpy_helper
from plane_cases import GRIDS, make_planes
from test_op_activation import activation_model
from test_op_attention import attention_model
from test_op_attention import feeds as attention_feeds
from test_op_multi_head_attention import encoder_model
from test_op_multi_head_attention import feeds as encoder_feeds
from test_op_norm import feeds as norm_feeds
from test_op_norm import norm_model

from qcompiler import ops

PLANES = make_planes(64, 48, 32, bits=4)
LEVELS = make_planes(64, 48, 32, bits=3, grid=GRIDS[3])
X = np.ones((1, 3, 64), np.float32)

# A model of one node, and its feeds.
CASES = {
    "linear": (linear_model(PLANES), {"X": X}),
    "linear in three": (linear_model(PLANES, splits=(16, 16, 16)), {"X": X}),
    "static linear": (linear_model(PLANES, x_scale=0.02), {"X": X}),
    "embedding": (embedding_model(PLANES), {"ids": np.zeros((1, 3), np.int64)}),
    "levels": (linear_model(LEVELS), {"X": X}),
    "embedding of levels": (embedding_model(LEVELS), {"ids": np.zeros((1, 3), np.int64)}),
    "gelu": (activation_model("Gelu"), {"X": X[0]}),
    "swiglu": (activation_model("SwiGLU"), {"gate": X[0], "up": X[0]}),
    "layer norm": (norm_model(centers=True), norm_feeds(True, (1, 3, 64))),
    "rms norm": (norm_model(centers=False), norm_feeds(False, (1, 3, 64))),
    "encoder": (encoder_model(4, 16), encoder_feeds(1, 3, 3, 4, 16, mask=(1, 1, 1, 3))),
    "decoder": (attention_model(4, 2, 16), attention_feeds(4, 2, 16, rows=3)),
}
ON_GPUS = ("linear", "linear in three", "static linear", "embedding")

# What is stated of the first input's sizes.
KNOWN = {
    "rank": lambda sizes: [None] * len(sizes),
    "last": lambda sizes: [*[None] * (len(sizes) - 1), sizes[-1]],
    "lead": lambda sizes: [*sizes[:-1], None],
    "names": lambda sizes: [f"size{axis}" for axis in range(len(sizes))],
    "nothing": lambda _: None,
}


def reads_result(model, feeds, known, read, shape) -> onnx.ModelProto:
    """The model with a standard op that reads its first result, of `shape` when it runs."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    graph = changed.graph
    changed.ClearField("functions")
    first = graph.input[0]
    kind, sizes = first.type.tensor_type.elem_type, list(feeds[first.name].shape)
    first.CopyFrom(helper.make_tensor_value_info(first.name, kind, KNOWN[known](sizes)))
    y = graph.output[0].name
    del graph.output[:]
    constant, attributes = {
        "Add": (np.zeros(shape, np.float32), {}),
        "MatMul": (np.ones((shape[-1], 5), np.float32), {}),
        "Concat": (np.zeros((*shape[:-2], 7, shape[-1]), np.float32), {"axis": len(shape) - 2}),
        "Reshape": (np.array([-1, shape[-1]]), {}),
        "LayerNormalization": (np.ones(shape[-1], np.float32), {}),
    }[read]
    graph.initializer.append(numpy_helper.from_array(constant, "constant"))
    graph.node.append(helper.make_node(read, [y, "constant"], ["read"], **attributes))
    graph.output.append(helper.make_tensor_value_info("read", TensorProto.FLOAT, None))
    graph.output.append(helper.make_tensor_value_info(y, TensorProto.FLOAT, None))
    return changed


def check_reader(open_session, case, known, read) -> None:
    model, feeds = CASES[case]
    truth = open_session(model).run(None, feeds)[0]
    session = open_session(reads_result(model, feeds, known, read, truth.shape))
    y = session.run(None, feeds)[1]
    np.testing.assert_array_equal(y, truth)
    stated = session.get_outputs()[1].shape
    if stated:  # the rank is known
        named = [size for size in stated if isinstance(size, str)]
        assert len(stated) == truth.ndim
        assert len(set(named)) == len(named)
        assert all(
            isinstance(size, str) or size == real
            for size, real in zip(stated, truth.shape, strict=True)
        )


@pytest.mark.parametrize("read", ["Add", "MatMul", "Concat", "Reshape", "LayerNormalization"])
@pytest.mark.parametrize("known", KNOWN)
@pytest.mark.parametrize("case", CASES)
def test_standard_ops_read_results_of_unknown_size(session, case, known, read):
    check_reader(session, case, known, read)


@pytest.mark.parametrize("read", ["Add", "Concat"])
@pytest.mark.parametrize("known", KNOWN)
@pytest.mark.parametrize("case", ON_GPUS)
def test_glue_of_the_cuda_library(emulated_session, case, known, read):
    check_reader(emulated_session, case, known, read)


def test_one_name_is_one_size(session):
    """Results of one node share their leading sizes; those of other nodes have names of their own,
    for ONNX Runtime may give equal sizes one buffer."""
    nodes = [
        helper.make_node("Gelu", [x], [y], domain=ops.DOMAIN) for x, y in (("a", "A"), ("b", "B"))
    ]
    values = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name in names]
        for names, dims in (("ab", [None, 4]), ("AB", None))
    ]
    graph = helper.make_graph(nodes, "two", *values)
    imports = [helper.make_opsetid("", 21), helper.make_opsetid(ops.DOMAIN, 1)]
    runner = session(helper.make_model(graph, opset_imports=imports, ir_version=10))
    first, second = (output.shape for output in runner.get_outputs())
    assert first[0] != second[0]
    assert first[1] == second[1] == 4
    model, _ = CASES["linear in three"]
    model = reads_result(model, {"X": X}, "rank", "Reshape", (1, 3, 16))
    for name in ("Y1", "Y2"):
        model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    shapes = [output.shape for output in session(model).get_outputs()[1:]]
    assert shapes[0] == shapes[1] == shapes[2]
