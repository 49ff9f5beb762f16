"""SwiGLU in ONNX Runtime: with the library, without it, and numpy agree."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from qcompiler import ops
from qcompiler.numerics import reference


def gate_model() -> onnx.ModelProto:
    node = helper.make_node("SwiGLU", ["gate", "up"], ["Y"], name="mlp", domain=ops.DOMAIN)

    def info(name, *shape):
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    graph = helper.make_graph(
        [node], "gate", [info("gate", "a", "n"), info("up", "b", "m")], [info("Y", "a", "n")]
    )
    return helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", ops.ONNX_OPSET), helper.make_opsetid(ops.DOMAIN, 1)],
        functions=[ops.function("SwiGLU")],
        ir_version=10,
    )


@pytest.mark.parametrize("library", [True, False], ids=["library", "functions"])
def test_agrees_with_reference(session, library):
    model = gate_model()
    onnx.checker.check_model(model, full_check=True)
    runner = session(model, library=library)
    atol = 1e-6 if library else 1e-5  # ONNX Runtime's Sigmoid is an approximation
    for shape in ((1, 1536), (70, 300), (0, 8), (2, 0)):
        gate, up = np.random.default_rng(0).normal(0, 4, (2, *shape)).astype(np.float32)
        y = runner.run(None, {"gate": gate, "up": up})[0]
        np.testing.assert_allclose(y, reference.swiglu(gate, up), rtol=1e-5, atol=atol)


def test_shapes_that_differ_are_refused(session):
    feeds = {"gate": np.zeros((2, 3), np.float32), "up": np.zeros((1, 3), np.float32)}
    message = r"SwiGLU node 'mlp': gate has shape \[2, 3\] and up \[1, 3\]"
    with pytest.raises(Exception, match=message):
        session(gate_model()).run(None, feeds)
