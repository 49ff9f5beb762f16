"""MultiHeadAttention in ONNX Runtime: with the library, without it, and numpy agree."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from op_checks import BOTH, run_into
from single_node import with_function

from qcompiler import ops
from qcompiler.numerics import reference

# Batch, rows, keys, heads, channels.
SHAPES = [
    (1, 128, 128, 12, 32),
    (2, 7, 70, 3, 16),
    (3, 1, 40, 2, 48),
    (1, 2, 1, 1, 64),
    (1, 450, 33, 2, 80),
]


def encoder_model(heads, d, mask_rank=4, **attributes) -> onnx.ModelProto:
    attrs = {"num_heads": heads, "scale": float(d**-0.5), "nan_is_zero": 1} | attributes
    mask = [f"m{i}" for i in range(mask_rank)]
    dims = {"Q": ["B", "S", "W"], "K": ["b", "T", "w"], "V": ["c", "U", "x"], "mask": mask}
    node = helper.make_node(
        "MultiHeadAttention", list(dims), ["Y"], name="att", domain=ops.DOMAIN, **attrs
    )

    def info(name, shape):
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    graph = helper.make_graph(
        [node],
        "attention",
        [info(name, shape) for name, shape in dims.items()],
        [info("Y", ["B", "S", heads * d])],
    )
    return with_function(graph, "MultiHeadAttention")


def feeds(batch, rows, keys, heads, d, *, mask=(1,), seed=0):
    """Inputs with a mask of shape `mask`; [1] holds 0."""
    rng = np.random.default_rng(seed)
    q, k, v = (
        rng.normal(size=(batch, n, heads * d)).astype(np.float32) for n in (rows, keys, keys)
    )
    hidden = np.where(rng.random(mask) < 0.3, np.finfo(np.float32).min, rng.normal(size=mask))
    added = np.zeros(1) if tuple(mask) == (1,) else hidden
    return {"Q": q, "K": k, "V": v, "mask": added.astype(np.float32)}


def expected(fed, heads, d):
    return reference.multi_head_attention(
        **fed, num_heads=heads, scale=float(d**-0.5), nan_is_zero=True
    )


@BOTH
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_agrees_with_reference(session, shape, library):
    batch, rows, keys, heads, d = shape
    full = (batch, heads, rows, keys)
    masks = [(1,), full, (1, 1, rows, keys), (batch, 1, 1, keys), (1, heads, 1, keys)]
    for mask in masks:
        model = encoder_model(heads, d, len(mask))
        onnx.checker.check_model(model, full_check=True)
        fed = feeds(*shape, mask=mask)
        y = session(model, library=library).run(None, fed)[0]
        np.testing.assert_allclose(y, expected(fed, heads, d), atol=5e-6)


@BOTH
def test_rows_that_are_nan(session, library):
    """Zeros where asked for, else NaN."""
    fed = feeds(1, 6, 9, 2, 16, mask=(1, 1, 6, 9))
    fed["mask"][0, 0, 4] = -np.inf
    wanted = expected(fed, 2, 16)
    y = session(encoder_model(2, 16), library=library).run(None, fed)[0]
    np.testing.assert_allclose(y, wanted, atol=5e-6)
    assert not y[0, 4].any()
    y = session(encoder_model(2, 16, nan_is_zero=0), library=library).run(None, fed)[0]
    assert np.isnan(y[0, 4]).all()
    np.testing.assert_allclose(y[0, :4], wanted[0, :4], atol=5e-6)


def test_bits_do_not_depend_on_threads(session):
    fed = feeds(2, 300, 100, 3, 32, mask=(2, 1, 300, 100))
    one, two = (session(encoder_model(3, 32), threads=n).run(None, fed)[0] for n in (1, 2))
    np.testing.assert_array_equal(one, two)


@BOTH
@pytest.mark.parametrize("shape", [(0, 3, 4), (1, 0, 4), (2, 3, 0), (0, 0, 0)], ids=str)
def test_nothing_to_do(session, shape, library):
    """Zeros where there are no keys: a sum of nothing."""
    batch, rows, keys = shape
    for mask in ((1,), (batch, 1, rows, keys), (1, 2, 1, keys)):
        runner = session(encoder_model(2, 16, len(mask)), library=library)
        before = np.full((batch, rows, 32), np.nan, np.float32)
        assert not run_into(runner, feeds(*shape, 2, 16, mask=mask), [before])[0].any()


REFUSED = [
    ({"Q": (1, 4, 31)}, "Q has shape [1, 4, 31]"),
    ({"Q": (4, 32)}, "Q has shape [4, 32]"),
    ({"Q": (1, 4, 16), "K": (1, 6, 16), "V": (1, 6, 16)}, "heads have 8 channels"),
    ({"K": (1, 5, 32)}, "K has shape [1, 5, 32] and V [1, 6, 32]"),
    ({"K": (2, 6, 32), "V": (2, 6, 32)}, "expected [1, T, 32] of both"),
    ({"mask": (2,)}, "mask has shape [2]"),
    ({"mask": (1, 1, 4, 5)}, "mask has shape [1, 1, 4, 5], expected [1, 2, 4, 6]"),
    ({"mask": (1, 3, 1, 6)}, "mask has shape [1, 3, 1, 6]"),
    ({"mask": (1, 1, 4, 1)}, "mask has shape [1, 1, 4, 1]"),
]


@pytest.mark.parametrize("change", REFUSED, ids=lambda change: change[1])
def test_malformed_inputs_are_refused(session, change):
    shapes, message = change
    model = encoder_model(2, 16, len(shapes.get("mask", "1")))
    for value in model.graph.input:
        value.type.tensor_type.ClearField("shape")  # must not shield the kernel
    fed = feeds(1, 4, 6, 2, 16) | {n: np.ones(s, np.float32) for n, s in shapes.items()}
    with pytest.raises(Exception, match="MultiHeadAttention node 'att': ") as caught:
        session(model).run(None, fed)
    assert message in str(caught.value)


@pytest.mark.parametrize("heads", [0, -1, 2**40])
def test_malformed_attributes_are_refused(session, heads):
    with pytest.raises(Exception, match="MultiHeadAttention node 'att': num_heads="):
        session(encoder_model(2, 16, num_heads=heads))
