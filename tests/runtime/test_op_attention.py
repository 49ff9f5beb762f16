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


# Of one key, below, at and above the rows of a task, a panel of keys and all there are.
WINDOWS = [1, 3, 47, 48, 49, 63, 64, 65, 130, 2**31 - 1]
OPS = {False: "GroupQueryAttention", True: "GroupQueryAttentionSink"}


def attention_model(heads, kv, d, *, sink=False, **attributes) -> onnx.ModelProto:
    attrs = {"num_heads": heads, "kv_num_heads": kv, "scale": float(d**-0.5)}
    attrs |= {"window": -1, "softcap": 0.0} | attributes
    inputs = {
        "X": (TensorProto.FLOAT, ["B", "S", "W"]),
        "past_key": (TensorProto.FLOAT, ["B", "H", "P", "d"]),
        "past_value": (TensorProto.FLOAT, ["B", "H", "P", "d"]),
        "seqlens_k": (TensorProto.INT32, ["B"]),
        "total": (TensorProto.INT32, []),
        "cos": (TensorProto.FLOAT, ["M", "h"]),
        "sin": (TensorProto.FLOAT, ["M", "h"]),
    }
    if sink:
        inputs["head_sink"] = (TensorProto.FLOAT, ["N"])
    outputs = {"Y": ["B", "S", heads * d], "key": ["B", kv, "T", d], "value": ["B", kv, "T", d]}
    node = helper.make_node(
        OPS[sink], list(inputs), list(outputs), name="att", domain=ops.DOMAIN, **attrs
    )
    graph = helper.make_graph(
        [node],
        "attention",
        [helper.make_tensor_value_info(name, *form) for name, form in inputs.items()],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in outputs.items()],
    )
    return with_function(graph, OPS[sink], **{"com.microsoft": 1})


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


def expected(fed, heads, d, past=None, scale=None, sequence=0, **options):
    """Of one sequence, the first, of whose cache `past` positions are in use."""
    one = slice(sequence, sequence + 1)
    caches = [fed[name][one, :, :past] for name in ("past_key", "past_value")]
    scale = float(d**-0.5) if scale is None else scale
    return reference.group_query_attention(
        *(fed["X"][one], *caches, fed["cos"], fed["sin"]),
        num_heads=heads,
        scale=scale,
        head_sink=fed.get("head_sink"),
        **options,
    )


def agree(runner, fed, heads, d, **options):
    for found, wanted in zip(
        runner.run(None, fed), expected(fed, heads, d, **options), strict=True
    ):
        np.testing.assert_allclose(found, wanted, atol=5e-6)


@BOTH
@pytest.mark.parametrize("form", HEADS, ids=str)
def test_agrees_with_reference(session, form, library):
    heads, kv, d = form
    model = attention_model(*form)
    onnx.checker.check_model(model, full_check=True)
    runner = session(model, library=library)
    for rows, room in ((1, 1), (1, 200), (2, 64), (3, 63), (20, 70), (130, 0), (7, 0)):
        agree(runner, feeds(heads, kv, d, rows=rows, room=room), heads, d)


@BOTH
@pytest.mark.parametrize("window", WINDOWS)
def test_windows(session, window, library):
    """Prompts, parts of prompts and steps, below, at and above the window."""
    runner = session(attention_model(4, 2, 32, window=window), library=library)
    sizes = [(1, 0), (1, 1), (1, 63), (1, 64), (1, 200), (2, 130), (3, 63), (20, 70), (60, 140)]
    sizes += [(n, 0) for n in (2, 3, 48, 49, 65, 97, 130, 200)]
    for rows, room in sizes:
        agree(runner, feeds(4, 2, 32, rows=rows, room=room), 4, 32, window=window)


@BOTH
def test_softcap(session, library):
    for softcap, window in ((0.5, -1), (50.0, -1), (2.0, 10)):
        model = attention_model(3, 1, 48, softcap=softcap, window=window, scale=0.5)
        runner = session(model, library=library)
        for rows, room in ((1, 200), (2, 64), (7, 63), (70, 0)):
            fed = feeds(3, 1, 48, rows=rows, room=room)
            options = {"softcap": softcap, "scale": 0.5}
            agree(runner, fed, 3, 48, window=None if window < 0 else window, **options)


@BOTH
def test_sinks(session, library):
    sinks = np.array([0.0, -2.0, 5.0, -np.inf], np.float32)
    for window, softcap in ((-1, 0.0), (7, 0.0), (66, 3.0)):
        model = attention_model(4, 2, 32, sink=True, window=window, softcap=softcap)
        onnx.checker.check_model(model, full_check=True)
        runner = session(model, library=library)
        for rows, room in ((1, 0), (1, 200), (2, 64), (7, 63), (130, 0)):
            fed = feeds(4, 2, 32, rows=rows, room=room) | {"head_sink": sinks}
            agree(runner, fed, 4, 32, window=None if window < 0 else window, softcap=softcap)


def test_nothing_before_a_window_is_read(session):
    """Steps and parts of prompts: what lies there may be anything."""
    for rows in (1, 2, 5, 60):
        fed = feeds(4, 2, 32, rows=rows, room=200)
        runner = session(attention_model(4, 2, 32, window=10))
        wanted = runner.run(["Y"], fed)[0]
        for name in ("past_key", "past_value"):
            fed[name][:, :, :128] = np.nan  # whole panels
        np.testing.assert_array_equal(runner.run(["Y"], fed)[0], wanted)


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


FORMS = pytest.mark.parametrize(
    ("window", "softcap", "sink"),
    [(-1, 0.0, False), (70, 0.0, False), (5, 4.0, False), (-1, 0.0, True), (70, 3.0, True)],
    ids=str,
)


def options_of(window, softcap):
    """Of the reference."""
    return {"window": None if window < 0 else window, "softcap": softcap}


def with_sinks(fed, heads, sink):
    sinks = np.linspace(-1, 2, heads, dtype=np.float32)
    return fed | ({"head_sink": sinks} if sink else {})


@BOTH
@FORMS
@pytest.mark.parametrize("past", [[7, 9], [130, 81], [64, 0]], ids=str)
def test_sequences_of_different_lengths(session, library, window, softcap, sink, past):
    model = attention_model(4, 2, 32, window=window, softcap=softcap, sink=sink)
    room = max(past)
    fed = with_sinks(feeds(4, 2, 32, batch=2, rows=1, room=room, past=past), 4, sink)
    results = session(model, library=library).run(None, fed)
    options = options_of(window, softcap)
    for b, used in enumerate(past):
        for found, wanted in zip(
            results, expected(fed, 4, 32, used, sequence=b, **options), strict=True
        ):
            own = found[b : b + 1]
            own = own[:, :, : used + 1] if own.ndim == 4 else own
            np.testing.assert_allclose(own, wanted, atol=5e-6)
    assert results[1].shape == results[2].shape == (2, 2, room + 1, 32)


@BOTH
@FORMS
@pytest.mark.parametrize(("rows", "shorter"), [(6, 4), (130, 100), (100, 1)])
def test_a_padded_prompt(session, library, window, softcap, sink, rows, shorter):
    """Two sequences at once; what follows the shorter one is padding."""
    model = attention_model(4, 2, 32, window=window, softcap=softcap, sink=sink)
    fed = with_sinks(feeds(4, 2, 32, batch=2, rows=rows), 4, sink)
    fed["seqlens_k"][1] = shorter - 1
    y = session(model, library=library).run(["Y"], fed)[0]
    for b, length in enumerate((rows, shorter)):
        wanted = expected(fed, 4, 32, 0, sequence=b, **options_of(window, softcap))[0]
        np.testing.assert_allclose(y[b, :length], wanted[0, :length], atol=5e-6)


@FORMS
def test_bits_do_not_depend_on_threads(session, window, softcap, sink):
    model = attention_model(9, 3, 64, window=window, softcap=softcap, sink=sink)
    for rows, room in ((1, 250), (130, 100)):
        fed = with_sinks(feeds(9, 3, 64, rows=rows, room=room), 9, sink)
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


@pytest.mark.parametrize("sink", [False, True])
@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"window": 0}, "window=0 is neither -1 nor in 1 .. 2^31 - 1"),
        ({"window": -2}, "window=-2 is neither"),
        ({"window": 2**31}, "window=2147483648 is neither"),
        ({"window": -(2**63)}, "window=-9223372036854775808 is neither"),
        ({"softcap": -1.0}, "softcap=-1.000000 is not a finite number of 0 or more"),
        ({"softcap": float("nan")}, "softcap=nan is not a finite number"),
        ({"softcap": float("inf")}, "softcap=inf is not a finite number"),
    ],
    ids=str,
)
def test_malformed_forms_are_refused(session, attributes, message, sink):
    with pytest.raises(Exception, match=f"{OPS[sink]} node 'att': ") as caught:
        session(attention_model(2, 1, 16, sink=sink, **attributes))
    assert message in str(caught.value)


@pytest.mark.parametrize("shape", [(), (1,), (3,), (1, 2)], ids=str)
def test_malformed_sinks_are_refused(session, shape):
    model = attention_model(2, 1, 16, sink=True)
    model.graph.input[-1].type.tensor_type.ClearField("shape")
    fed = feeds(2, 1, 16, room=3) | {"head_sink": np.zeros(shape, np.float32)}
    with pytest.raises(Exception, match=r"head_sink has shape .*, expected \[2\]"):
        session(model).run(None, fed)
