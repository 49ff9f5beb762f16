"""SwiGLU and Gelu in ONNX Runtime: with the library, without it, and numpy agree."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from op_checks import BOTH
from single_node import with_function

from qcompiler import ops
from qcompiler.numerics import reference


def activation_model(op_type: str) -> onnx.ModelProto:
    """Each input has dimensions of its own, so that only the op can find them different."""
    inputs = ["gate", "up"] if op_type == "SwiGLU" else ["X"]
    node = helper.make_node(op_type, inputs, ["Y"], name="mlp", domain=ops.DOMAIN)

    def info(name, shape):
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    dims = (["a", "n"], ["b", "m"])
    given = [info(name, shape) for name, shape in zip(inputs, dims, strict=False)]
    graph = helper.make_graph([node], "activation", given, [info("Y", dims[0])])
    return with_function(graph, op_type)


@BOTH
def test_swiglu_agrees_with_reference(session, library):
    model = activation_model("SwiGLU")
    onnx.checker.check_model(model, full_check=True)
    runner = session(model, library=library)
    atol = 1e-6 if library else 1e-5  # ONNX Runtime's Sigmoid is an approximation
    for shape in ((1, 1536), (70, 300), (0, 8), (2, 0)):
        gate, up = np.random.default_rng(0).normal(0, 4, (2, *shape)).astype(np.float32)
        y = runner.run(None, {"gate": gate, "up": up})[0]
        np.testing.assert_allclose(y, reference.swiglu(gate, up), rtol=1e-5, atol=atol)


@pytest.mark.parametrize("op_type", ["Gelu", "GeluTanh"])
@BOTH
def test_gelu_agrees_with_reference(session, library, op_type):
    model = activation_model(op_type)
    onnx.checker.check_model(model, full_check=True)
    runner = session(model, library=library)
    for shape in ((1, 1536), (70, 300), (0, 8), (2, 0)):
        x = np.random.default_rng(0).normal(0, 3, shape).astype(np.float32)
        y = runner.run(None, {"X": x})[0]
        wanted = reference.gelu(x, by_tanh=op_type == "GeluTanh")
        np.testing.assert_allclose(y, wanted, rtol=1e-5, atol=2e-6)


def test_shapes_that_differ_are_refused(session):
    feeds = {"gate": np.zeros((2, 3), np.float32), "up": np.zeros((1, 3), np.float32)}
    message = r"SwiGLU node 'mlp': gate has shape \[2, 3\] and up \[1, 3\]"
    with pytest.raises(Exception, match=message):
        session(activation_model("SwiGLU")).run(None, feeds)
