"""Malformed nodes are refused: one message that names the op, the node and the cause."""

from __future__ import annotations

import numpy as np
import pytest
from op_checks import refusal
from op_models import BITS, gather_model, make_layer, matmul_model


def u8(*shape):
    return np.zeros(shape, np.uint8)


def half(*shape):
    return np.zeros(shape, np.float16)


# For a layer of K=100, N=35, group size 32: W [3, 13, 64], scales [3, 4, 16].
ATTRIBUTES = [
    ({"layout": 7}, "layout 7"),
    ({"layout": None}, "layout"),
    ({"K": 0}, "K=0 is out of range"),
    ({"K": -5}, "K=-5 is out of range"),
    ({"K": 2**62}, "K=4611686018427387904 is out of range"),
    ({"K": 2**28, "N": 2**28}, "times N=268435456 is out of range"),
    ({"K": None}, "K is missing"),
    ({"K": 1.5}, "K is missing or not an integer"),
    ({"K": 105, "activation_block": 105}, "W has shape [3, 13, 64], expected [3, 14, 64]"),
    ({"N": 0}, "N=0 is out of range"),
    ({"N": 49}, "W has shape [3, 13, 64], expected [4, 13, 64]"),
    ({"N": 2**63 - 1}, "N=9223372036854775807 is out of range"),
    ({"group_size": 0}, "group_size=0 is not 32, 64, 128 or 256"),
    ({"group_size": -32}, "group_size=-32"),
    ({"group_size": 48}, "group_size=48"),
    ({"group_size": 64}, "scales has shape [3, 4, 16], expected [3, 2, 16]"),
    ({"activation_block": 33}, "activation_block=33 is neither K=100 nor group_size=32"),
    ({"activation_block": None}, "activation_block is missing"),
    ({"splits": [30, 4, 0]}, "splits=[30, 4, 0] must be three sizes that sum to N=35"),
    ({"splits": [0, 35, 0]}, "the first above 0"),
    ({"splits": [35, 6, 3]}, "splits=[35, 6, 3] must be three sizes that sum to N=35"),
    ({"splits": [35, 0, -1]}, "must be three sizes"),
    ({"splits": [30, 5, 1]}, "must be three sizes"),
    ({"splits": [40, -5, 0]}, "must be three sizes"),
    ({"splits": [2**62, 2**62, 2**63 - 1]}, "must be three sizes"),
    ({"splits": [35]}, "splits has 1 values, expected 3"),
    ({"splits": None}, "splits is missing"),
]
TENSORS = [
    ({"W": u8(3, 12, 64)}, "W has shape [3, 12, 64], expected [3, 13, 64] for K=100, N=35"),
    ({"W": u8(3, 13, 32)}, "W has shape [3, 13, 32]"),
    ({"W": u8(3 * 13 * 64)}, "W has shape [2496]"),
    ({"W": u8(0, 13, 64)}, "W has shape [0, 13, 64]"),
    ({"W": u8()}, "W has shape []"),
    ({"scales": half(3, 4, 15)}, "scales has shape [3, 4, 15], expected [3, 4, 16]"),
    ({"scales": half(1, 1, 1)}, "scales has shape [1, 1, 1]"),
    ({"zero_points": u8(3, 3, 16)}, "zero_points has shape [3, 3, 16], expected [3, 4, 16]"),
    ({"zero_points": u8(0, 0, 0)}, "zero_points has shape [0, 0, 0]"),
    ({"bias": np.zeros(34, np.float32)}, "bias has shape [34], expected [35] or [1]"),
    ({"bias": np.zeros((), np.float32)}, "bias has shape []"),
]
X_SCALES = [
    (np.zeros(2, np.float32), "x_scale has shape [2], expected [] or [1]"),
    (np.array(0, np.float32), "x_scale is 0.0"),
    (np.array(-1, np.float32), "x_scale is -1.0"),
    (np.array(np.nan, np.float32), "x_scale is nan"),
    (np.array(np.inf, np.float32), "x_scale is inf"),
]


@pytest.fixture
def layer():
    return make_layer(100, 35, 32, symmetric=False)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(("attributes", "cause"), ATTRIBUTES, ids=str)
def test_attributes(session, attributes, cause, bits):
    if bits == 8:
        for blocks_4, blocks_8 in (("13", "25"), ("14", "27")):
            cause = cause.replace(f", {blocks_4}, 64]", f", {blocks_8}, 64]")
    layer = make_layer(100, 35, 32, bits=bits, symmetric=False)
    message = refusal(session, matmul_model(layer, "row", attributes=attributes, functions=False))
    assert f"MatMulW{bits}A8 node 'layer0': " in message
    assert cause in message


@pytest.mark.parametrize(("tensors", "cause"), TENSORS, ids=str)
def test_constants(session, layer, tensors, cause):
    message = refusal(session, matmul_model(layer, "row", tensors=tensors, functions=False))
    assert "MatMulW4A8 node 'layer0': " in message
    assert cause in message


@pytest.mark.parametrize(("tensors", "cause"), TENSORS, ids=str)
def test_tensors_at_run_time(session, layer, tensors, cause):
    (name,) = tensors
    model = matmul_model(layer, "row", as_inputs=(name,), tensors=tensors, functions=False)
    runner = session(model)
    x = np.zeros((1, 1, 100), np.float32)
    with pytest.raises(Exception, match="MatMulW4A8 node 'layer0': ") as caught:
        runner.run(None, {"X": x, **tensors})
    assert cause in str(caught.value)


@pytest.mark.parametrize(("x_scale", "cause"), X_SCALES, ids=str)
def test_static_scale(session, layer, x_scale, cause):
    model = matmul_model(layer, "static", tensors={"x_scale": x_scale}, functions=False)
    message = refusal(session, model)
    assert "MatMulW4A8Static node 'layer0': " in message
    assert cause in message
    model = matmul_model(
        layer, "static", tensors={"x_scale": x_scale}, as_inputs=("x_scale",), functions=False
    )
    with pytest.raises(Exception, match="MatMulW4A8Static node 'layer0': x_scale"):
        session(model).run(None, {"X": np.zeros((1, 1, 100), np.float32), "x_scale": x_scale})


def test_wrong_x(session, layer):
    model = matmul_model(layer, "row", functions=False)
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "k"
    with pytest.raises(Exception, match=r"X has shape \[1, 1, 99\], its last dimension .* K=100"):
        session(model).run(None, {"X": np.zeros((1, 1, 99), np.float32)})


@pytest.mark.parametrize(
    ("attributes", "tensors", "cause"),
    [
        ({"layout": 2}, {}, "layout 2"),
        ({"N": 10**12}, {}, "N=1000000000000 is out of range"),
        ({"group_size": 16}, {}, "group_size=16"),
        ({}, {"W": u8(3, 12, 64)}, "W has shape [3, 12, 64], expected [3, {blocks}, 64]"),
        ({}, {"scales": half(4, 3, 16)}, "scales has shape [4, 3, 16]"),
        ({}, {"zero_points": u8(1, 1, 2)}, "zero_points has shape [1, 1, 2]"),
    ],
)
@pytest.mark.parametrize("bits", BITS)
def test_gather(session, bits, attributes, tensors, cause):
    layer = make_layer(100, 35, 32, bits=bits, symmetric=False)
    message = refusal(
        session, gather_model(layer, attributes=attributes, tensors=tensors, functions=False)
    )
    assert f"GatherW{bits} node 'embed': " in message
    assert cause.replace("{blocks}", str(-(-100 * bits // 32))) in message


def test_other_element_types(session, layer):
    message = refusal(
        session,
        matmul_model(
            layer, "row", tensors={"scales": layer.w.scales.astype(np.float32)}, functions=False
        ),
    )
    assert "layer0" in message
    assert "tensor(float)" in message


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("activation", ["row", "static"])
def test_the_kernel_replaces_the_function(session, activation, bits):
    """Only the kernel looks at the layout: its refusal shows that it is the one in use."""
    layer = make_layer(100, 35, 32, bits=bits)
    model = matmul_model(layer, activation, attributes={"layout": 7}, functions=True)
    assert "layout 7" in refusal(session, model)
    session(model, library=False)
