"""GroupQueryAttention in ONNX Runtime: with the library, without it, and numpy agree."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper
from op_checks import BOTH, run_into
from single_node import with_function

from qcompiler import ops
from qcompiler.numerics import reference

POSITIONS = 300
# Query heads, key heads, channels.
HEADS = [(9, 3, 64), (4, 4, 32), (3, 1, 16), (2, 1, 96), (2, 2, 80)]


def attention_model(heads, kv, d, **attributes) -> onnx.ModelProto:
    attrs = {"num_heads": heads, "kv_num_heads": kv, "scale": float(d**-0.5)} | attributes
    inputs = {
        "X": (TensorProto.FLOAT, ["B", "S", "W"]),
        "past_key": (TensorProto.FLOAT, ["B", "H", "P", "d"]),
        "past_value": (TensorProto.FLOAT, ["B", "H", "P", "d"]),
        "seqlens_k": (TensorProto.INT32, ["B"]),
        "total": (TensorProto.INT32, []),
        "cos": (TensorProto.FLOAT, ["M", "h"]),
        "sin": (TensorProto.FLOAT, ["M", "h"]),
    }
    outputs = {"Y": ["B", "S", heads * d], "key": ["B", kv, "T", d], "value": ["B", kv, "T", d]}
    node = helper.make_node(
        "GroupQueryAttention", list(inputs), list(outputs), name="att", domain=ops.DOMAIN, **attrs
    )
    graph = helper.make_graph(
        [node],
        "attention",
        [helper.make_tensor_value_info(name, *form) for name, form in inputs.items()],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in outputs.items()],
    )
    return with_function(graph, "GroupQueryAttention", **{"com.microsoft": 1})


def feeds(heads, kv, d, *, batch=1, rows=4, room=0, past=None, half=None, seed=0):
    """Inputs for sequences of `past` positions in use in caches with `room` for more."""
    rng = np.random.default_rng(seed)
    past = [room] * batch if past is None else past
    total = max(past) + rows
    angles = rng.uniform(0, 6, (POSITIONS, half or d // 2))
    normal = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    return {
        "X": normal(batch, rows, (heads + 2 * kv) * d),
        "past_key": normal(batch, kv, room, d),
        "past_value": normal(batch, kv, room, d),
        "seqlens_k": np.array([each + rows - 1 for each in past], np.int32),
        "total": np.array(total, np.int32),
        "cos": np.cos(angles).astype(np.float32),
        "sin": np.sin(angles).astype(np.float32),
    }


def expected(fed, heads, d, past=None, scale=None):
    """Of the first sequence, of whose cache `past` positions are in use."""
    caches = [fed[name][:1, :, :past] for name in ("past_key", "past_value")]
    scale = float(d**-0.5) if scale is None else scale
    return reference.group_query_attention(
        fed["X"][:1], *caches, fed["cos"], fed["sin"], num_heads=heads, scale=scale
    )


@BOTH
@pytest.mark.parametrize("form", HEADS, ids=str)
def test_agrees_with_reference(session, form, library):
    heads, kv, d = form
    model = attention_model(*form)
    onnx.checker.check_model(model, full_check=True)
    runner = session(model, library=library)
    for rows, room in ((1, 1), (1, 200), (2, 64), (3, 63), (20, 70), (130, 0), (7, 0)):
        fed = feeds(heads, kv, d, rows=rows, room=room)
        for found, wanted in zip(runner.run(None, fed), expected(fed, heads, d), strict=True):
            np.testing.assert_allclose(found, wanted, atol=5e-6)


def test_a_part_of_a_head_is_rotated(session):
    """ONNX Runtime needs a whole head here, the kernel does not."""
    fed = feeds(2, 1, 32, room=5, half=8)
    found = session(attention_model(2, 1, 32)).run(None, fed)
    for value, wanted in zip(found, expected(fed, 2, 32), strict=True):
        np.testing.assert_allclose(value, wanted, atol=5e-6)


@pytest.mark.parametrize("rows", [1, 9])
def test_one_buffer_may_be_past_and_present(session, rows):
    """As onnxruntime-genai binds it: positions in use stay, later ones are not read."""
    heads, kv, d, room, used = 4, 2, 32, 60, 21
    fed = feeds(heads, kv, d, rows=rows, room=room, past=[used])
    for name in ("past_key", "past_value"):
        fed[name][:, :, used + rows :] = np.nan
    wanted = expected(fed, heads, d, used)
    runner = session(attention_model(heads, kv, d))
    binding = runner.io_binding()
    caches = {
        name: ort.OrtValue.ortvalue_from_numpy(fed[f"past_{name}"]) for name in ("key", "value")
    }
    for name, value in fed.items():
        if not name.startswith("past"):
            binding.bind_cpu_input(name, value)
    for name, buffer in caches.items():
        binding.bind_ortvalue_input(f"past_{name}", buffer)
        binding.bind_ortvalue_output(name, buffer)
    binding.bind_output("Y", "cpu")
    runner.run_with_iobinding(binding)
    y = binding.get_outputs()[-1].numpy()
    np.testing.assert_allclose(y, wanted[0], atol=5e-6)
    for (_, buffer), cache in zip(caches.items(), wanted[1:], strict=True):
        np.testing.assert_allclose(buffer.numpy()[:, :, : used + rows], cache, atol=5e-6)


@BOTH
def test_sequences_of_different_lengths(session, library):
    runner = session(attention_model(4, 2, 32), library=library)
    fed = feeds(4, 2, 32, batch=2, rows=1, room=9, past=[7, 9])
    y, key, value = runner.run(None, fed)
    for found, wanted in zip((y, key, value), expected(fed, 4, 32, 7), strict=True):
        np.testing.assert_allclose(
            found[:1, :, :8] if found.ndim == 4 else found[:1], wanted, atol=5e-6
        )
    assert key.shape == value.shape == (2, 2, 10, 32)


def test_a_padded_prompt(session):
    """Two sequences at once give what each gives alone; what follows the shorter one is padding."""
    runner = session(attention_model(4, 2, 32))
    fed = feeds(4, 2, 32, batch=2, rows=6)
    fed["seqlens_k"][1] = 3
    y = runner.run(["Y"], fed)[0]
    alone = {
        name: value[1:] if name in ("X", "past_key", "past_value") else value
        for name, value in fed.items()
    }
    alone |= {
        "X": fed["X"][1:, :4],
        "seqlens_k": fed["seqlens_k"][1:],
        "total": np.array(4, np.int32),
    }
    np.testing.assert_allclose(y[1:, :4], runner.run(["Y"], alone)[0], atol=5e-6)


def test_bits_do_not_depend_on_threads(session):
    model = attention_model(9, 3, 64)
    for rows, room in ((1, 250), (130, 100)):
        fed = feeds(9, 3, 64, rows=rows, room=room)
        one, two = (session(model, threads=n).run(None, fed) for n in (1, 2))
        for a, b in zip(one, two, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("room", "past"), [(3, [3]), (40, [21]), (40, [0]), (9, [9, 4, 0])], ids=str
)
def test_without_new_rows_the_caches_stay(session, room, past):
    """Positions in use are carried over, the rest is zeros. ONNX Runtime's operator refuses it."""
    fed = feeds(2, 1, 16, batch=len(past), rows=0, room=room, past=past)
    runner = session(attention_model(2, 1, 16))
    shape = (len(past), 1, room, 16)
    before = [np.full(s, np.nan, np.float32) for s in ((len(past), 0, 32), shape, shape)]
    y, *caches = run_into(runner, fed, before)
    assert y.shape == (len(past), 0, 32)
    for found, name in zip(caches, ("past_key", "past_value"), strict=True):
        for b, used in enumerate(past):
            np.testing.assert_array_equal(found[b, :, :used], fed[name][b, :, :used])
            assert not found[b, :, used:].any()


@BOTH
@pytest.mark.parametrize("scale", [0.0, -0.0, 0.01])
def test_a_scale_of_zero_is_the_default(session, library, scale):
    """As ONNX Runtime's operator reads it."""
    fed = feeds(4, 2, 32, rows=6, room=5)
    found = session(attention_model(4, 2, 32, scale=scale), library=library).run(None, fed)
    for value, wanted in zip(found, expected(fed, 4, 32, scale=scale or None), strict=True):
        np.testing.assert_allclose(value, wanted, atol=5e-6)


REFUSED = [
    ({"X": np.zeros((1, 4, 63), np.float32)}, "X has shape [1, 4, 63]"),
    ({"X": np.zeros((1, 4, 32), np.float32)}, "heads have 8 channels"),
    ({"past_key": np.zeros((1, 1, 3, 8), np.float32)}, "past_key has shape [1, 1, 3, 8]"),
    ({"past_value": np.zeros((1, 1, 2, 16), np.float32)}, "past_value [1, 1, 2, 16]"),
    ({"total": np.array(3, np.int32)}, "total_sequence_length=3 lies outside 4"),
    ({"total": np.array(301, np.int32)}, "(the positions of cos_cache)"),
    ({"total": np.array(-(2**31), np.int32)}, "total_sequence_length=-2147483648"),
    ({"seqlens_k": np.array([2**31 - 1], np.int32)}, "seqlens_k[0]=2147483647 does not fit"),
    ({"seqlens_k": np.array([-(2**31)], np.int32)}, "seqlens_k[0]=-2147483648 does not fit"),
    ({"seqlens_k": np.array([2], np.int32)}, "seqlens_k[0]=2 does not fit"),
    ({"seqlens_k": np.array([6, 6], np.int32)}, "seqlens_k has shape [2], expected [1]"),
    ({"seqlens_k": np.array([7], np.int32), "total": np.array(8, np.int32)}, "a cache of 3"),
    ({"cos": np.zeros((300, 9), np.float32)}, "cos_cache has shape [300, 9]"),
    ({"sin": np.zeros((299, 8), np.float32)}, "sin_cache [299, 8]"),
]


@pytest.mark.parametrize("change", REFUSED, ids=lambda change: change[1])
def test_malformed_inputs_are_refused(session, change):
    values, message = change
    runner = session(attention_model(2, 1, 16))
    with pytest.raises(Exception, match="GroupQueryAttention node 'att': ") as caught:
        runner.run(None, feeds(2, 1, 16, room=3) | values)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "attributes",
    [{"num_heads": 3, "kv_num_heads": 2}, {"kv_num_heads": 0}, {"num_heads": -4}],
    ids=str,
)
def test_malformed_attributes_are_refused(session, attributes):
    with pytest.raises(Exception, match="is not a multiple of kv_num_heads"):
        session(attention_model(2, 1, 16, **attributes))
