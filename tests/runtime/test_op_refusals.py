"""Malformed nodes are refused: one message that names the op, the node and the cause."""

from __future__ import annotations

import numpy as np
import pytest
from linear_models import embedding_model, linear_model
from op_checks import refusal
from plane_cases import EVERY_FORM, GRIDS, make_planes


def u8(*shape):
    return np.zeros(shape, np.uint8)


def f32(*shape):
    return np.zeros(shape, np.float32)


# For a matrix of K=100, N=35, group size 32, whose W is [3, 4, {strip}] and groups [3, 4, 16].
SIZES = [
    (
        {"layout": 1},
        "layout 1 is not known to this version of the op library, which reads layout 2",
    ),
    ({"layout": 3}, "layout 3"),
    ({"K": 0}, "K=0 is out of range"),
    ({"K": -5}, "K=-5 is out of range"),
    ({"K": 2**17 + 1}, "K=131073 is out of range 1 .. 131072"),
    ({"K": 2**62}, "K=4611686018427387904 is out of range"),
    ({"K": 2**17, "N": 2**28}, "K=131072 times N=268435456 is out of range"),
    ({"K": 1.5}, "K is missing or not an integer"),
    ({"K": 129}, "W has shape [3, 4, {strip}], expected [3, 5, {strip}]"),
    ({"N": 0}, "N=0 is out of range"),
    ({"N": 49}, "W has shape [3, 4, {strip}], expected [4, 4, {strip}]"),
    ({"N": 2**63 - 1}, "N=9223372036854775807 is out of range"),
]
GROUPS = [
    ({"group_size": 0}, "group_size=0 is not 16, 32, 64, 128 or 256"),
    ({"group_size": -16}, "group_size=-16"),
    ({"group_size": 48}, "group_size=48"),
    ({"group_size": 512}, "group_size=512"),
    ({"group_size": 2**62}, "group_size=4611686018427387904"),
    (
        {"group_size": 16},
        "groups has shape [3, 4, 16], expected [3, 7, 16] for K=100, N=35, group_",
    ),
]
LEVELS = [
    ({"levels": [0, 3, 6]}, "levels has 3 values, expected 4"),
    ({"levels": [0, 3, 6, 9, 9]}, "levels has 5 values, expected 4"),
    ({"levels": [0, 6, 3, 9]}, "levels=[0, 6, 3, 9] must ascend within 0 .. 32"),
    ({"levels": [-1, 3, 6, 9]}, "levels=[-1, 3, 6, 9] must ascend within 0 .. 32"),
    ({"levels": [0, 3, 6, 33]}, "levels=[0, 3, 6, 33] must ascend within 0 .. 32"),
    ({"levels": [0, 3, 6, 2**32 + 9]}, "levels=[0, 3, 6, 4294967305] must ascend within 0 .. 32"),
    ({"levels": [-(2**63), 3, 6, 9]}, "must ascend within 0 .. 32"),
    ({"levels": 3}, "levels has 0 values, expected 4"),
    ({"levels": [0.0, 3.0, 6.0, 9.0]}, "levels has 0 values, expected 4"),
    ({"levels": None}, "levels is missing"),
    ({"zero": -1}, "zero=-1 is out of range 0 .. 32"),
    ({"zero": 33}, "zero=33 is out of range 0 .. 32"),
    ({"zero": 2**32}, "zero=4294967296 is out of range 0 .. 32"),
    ({"zero": [3]}, "zero is missing or not an integer"),
    ({"zero": None}, "zero is missing"),
]
SPLITS = [
    ({"splits": [30, 4, 0]}, "splits=[30, 4, 0] must be three sizes that sum to N=35"),
    ({"splits": [0, 35, 0]}, "the first above 0"),
    ({"splits": [35, 6, 3]}, "splits=[35, 6, 3] must be three sizes that sum to N=35"),
    ({"splits": [35, 0, -1]}, "must be three sizes"),
    ({"splits": [30, 5, 1]}, "must be three sizes"),
    ({"splits": [40, -5, 0]}, "must be three sizes"),
    ({"splits": [2**62, 2**62, 2**63 - 1]}, "must be three sizes"),
    ({"splits": [35]}, "splits has 1 values, expected 3"),
    ({"splits": None}, "splits is missing"),
    ({"layout": None}, "layout is missing"),
    ({"K": None}, "K is missing"),
]
MATRIX = [
    ({"W": u8(3, 3, 256)}, "W has shape [3, 3, 256], expected [3, 4, 256] for K=100, N=35, group_"),
    ({"W": u8(3, 4, 128)}, "W has shape [3, 4, 128]"),
    ({"W": u8(3 * 4 * 256)}, "W has shape [3072]"),
    ({"W": u8(0, 4, 256)}, "W has shape [0, 4, 256]"),
    ({"W": u8()}, "W has shape []"),
    ({"groups": u8(3, 4, 15)}, "groups has shape [3, 4, 15], expected [3, 4, 16]"),
    ({"groups": u8(1, 1, 1)}, "groups has shape [1, 1, 1]"),
    ({"scales": f32(34)}, "scales has shape [34], expected [35]"),
    ({"scales": f32(1)}, "scales has shape [1]"),
    ({"scales": f32(48)}, "scales has shape [48]"),
]
BIASES = [
    ({"bias": f32(34)}, "bias has shape [34], expected [35] or [1]"),
    ({"bias": f32()}, "bias has shape []"),
]
X_SCALES = [
    (f32(2), "x_scale has shape [2], expected [] or [1]"),
    (np.array(0, np.float32), "x_scale is 0.0"),
    (np.array(-1, np.float32), "x_scale is -1.0"),
    (np.array(np.nan, np.float32), "x_scale is nan"),
    (np.array(np.inf, np.float32), "x_scale is inf"),
]


@pytest.fixture
def w():
    return make_planes(100, 35, 32, bits=4)


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("make", [linear_model, embedding_model])
def test_sizes(session, make, bits):
    w = make_planes(100, 35, 32, bits=bits)
    label = f"LinearW{bits}A8 node 'layer0': "
    if make is embedding_model:
        label = f"EmbeddingW{bits} node 'embed': "
    for attributes, cause in [*SIZES, *(GROUPS if bits < 8 else [])]:
        message = refusal(session, make(w, attributes=attributes, functions=False))
        assert label in message
        assert cause.replace("{strip}", str(64 * bits)) in message


@pytest.mark.parametrize("make", [linear_model, embedding_model])
def test_levels(session, make):
    w = make_planes(100, 35, 32, bits=2, grid=GRIDS[2])
    label = "LinearT2A8 node 'layer0': "
    if make is embedding_model:
        label = "EmbeddingT2 node 'embed': "
    for attributes, cause in [*SIZES, *GROUPS, *LEVELS]:
        message = refusal(session, make(w, attributes=attributes, functions=False))
        assert label in message
        assert cause.replace("{strip}", "128") in message
    for levels, zero in ([0, 0, 0, 0], 0), ([32, 32, 32, 32], 32):
        session(make(w, attributes={"levels": levels, "zero": zero}, functions=False))


@pytest.mark.parametrize(("attributes", "cause"), SPLITS, ids=str)
def test_splits(session, w, attributes, cause):
    message = refusal(session, linear_model(w, attributes=attributes, functions=False))
    assert "LinearW4A8 node 'layer0': " in message
    assert cause in message


@pytest.mark.parametrize(("tensors", "cause"), [*MATRIX, *BIASES], ids=str)
def test_constants(session, w, tensors, cause):
    message = refusal(session, linear_model(w, tensors=tensors, functions=False))
    assert f"LinearW4A8 node 'layer0': {cause}" in message


@pytest.mark.parametrize(("tensors", "cause"), MATRIX, ids=str)
def test_tables(session, w, tensors, cause):
    message = refusal(session, embedding_model(w, tensors=tensors, functions=False))
    assert f"EmbeddingW4 node 'embed': {cause}" in message


@pytest.mark.parametrize(("tensors", "cause"), [*MATRIX, *BIASES], ids=str)
def test_tensors_at_run_time(session, w, tensors, cause):
    (name,) = tensors
    model = linear_model(w, as_inputs=(name,), tensors=tensors, functions=False)
    runner = session(model)
    with pytest.raises(Exception, match="LinearW4A8 node 'layer0': ") as caught:
        runner.run(None, {"X": f32(1, 1, 100), **tensors})
    assert cause in str(caught.value)


@pytest.mark.parametrize(("x_scale", "cause"), X_SCALES, ids=str)
def test_static_scale(session, w, x_scale, cause):
    options = {"x_scale": 0.02, "tensors": {"x_scale": x_scale}, "functions": False}
    label = "LinearW4A8Static node 'layer0': "
    assert label + cause in refusal(session, linear_model(w, **options))
    runner = session(linear_model(w, **options, as_inputs=("x_scale",)))
    with pytest.raises(Exception, match=f"{label}x_scale"):
        runner.run(None, {"X": f32(1, 1, 100), "x_scale": x_scale})


def test_sizes_of_eight_bits_name_no_groups(session):
    w = make_planes(100, 35, 32, bits=8)
    message = refusal(session, linear_model(w, tensors={"W": u8(3, 3, 512)}, functions=False))
    assert "expected [3, 4, 512] for K=100, N=35" in message
    assert "group_size" not in message


def test_wrong_x(session, w):
    model = linear_model(w, functions=False)
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "k"
    with pytest.raises(Exception, match=r"X has shape \[1, 1, 99\], its last dimension .* K=100"):
        session(model).run(None, {"X": f32(1, 1, 99)})


def test_other_element_types(session, w):
    tensors = {"scales": w.scales.astype(np.float16)}
    message = refusal(session, linear_model(w, tensors=tensors, functions=False))
    assert "layer0" in message
    assert "tensor(float16)" in message


@EVERY_FORM
@pytest.mark.parametrize("x_scale", [None, 0.02])
def test_the_kernel_replaces_the_function(session, x_scale, bits, grid):
    """Only the kernel looks at the layout: its refusal shows that it is the one in use."""
    w = make_planes(100, 35, 32, bits=bits, grid=grid)
    model = linear_model(w, x_scale=x_scale, attributes={"layout": 7})
    assert "layout 7" in refusal(session, model)
    session(model, library=False)
