"""Feeds: caches that are truly empty, masks and positions that agree with them."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import tiny_models as tiny
from onnx import TensorProto, helper

from qcompiler import ops
from qcompiler.decoding import Decoder
from qcompiler.errors import ModelError
from qcompiler.feeds import Signature, as_taken, vocabulary
from qcompiler.lookups import Lookups
from qcompiler.models import open_package
from qcompiler.session import create_session

IDS = np.array([[3, 7, 11, 5, 3], [9, 9, 4, 20, 6]])


def test_kinds():
    weights = tiny.embedding()
    assert Signature.of_proto(tiny.decoder(weights)).kind == "decoder"
    assert Signature.of_proto(tiny.decoder(weights, cache=False)).kind == "decoder"
    assert Signature.of_proto(tiny.encoder(weights)).kind == "encoder"
    assert Signature.of_proto(tiny.linear()).kind == "other"


@pytest.mark.parametrize(("width", "kind"), [(5, "encoder"), (90, "decoder"), (110, "decoder")])
def test_logits_of_labels_are_no_next_tokens(tmp_path, width, kind):
    """A classifier of tokens, exported without token types; heads may be padded, or have less."""
    nodes = [
        helper.make_node("Gather", ["E", "input_ids"], ["e"]),
        helper.make_node("MatMul", ["e", "W"], ["logits"]),
    ]
    model = tiny.model_of(
        nodes,
        [tiny.value("input_ids", TensorProto.INT64, ["batch", "sequence"])],
        [tiny.value("logits", TensorProto.FLOAT, ["batch", "sequence", width])],
        {"E": np.ones((100, 32), np.float32), "W": np.ones((32, width), np.float32)},
    )
    signature = Signature.of_proto(model)
    assert signature.kind == signature.without([]).kind == kind
    onnx.save(model, tmp_path / "model.onnx")
    assert vocabulary(open_package(tmp_path), signature) == (100 if width == 5 else min(width, 100))


def test_empty_cache():
    signature = Signature.of_proto(tiny.decoder(tiny.embedding()))
    feeds = signature.feeds(IDS)
    assert feeds["past_key_values.0.key"].shape == (2, 1, 0, tiny.HIDDEN)
    assert feeds["past_key_values.0.key"].dtype == np.float32


def test_symbolic_head_dim_from_the_config():
    model = tiny.decoder(tiny.embedding(), head_dim="kv_cache_dim")
    with pytest.raises(ModelError, match=r"past_key_values\.0\.key.*kv_cache_dim.*genai_config"):
        Signature.of_proto(model)
    cache = Signature.of_proto(model, tiny.CONFIG).caches[0]
    assert cache.empty(3).shape == (3, 1, 0, tiny.HIDDEN)


def test_symbolic_head_dim_from_the_attention_node():
    signature = Signature.of_proto(tiny.gqa_decoder(tiny.embedding()))
    assert signature.shares_buffer
    assert signature.caches[1].empty(1).shape == (1, 1, 0, tiny.HIDDEN)


def test_symbolic_head_dim_from_the_output():
    model = tiny.decoder(tiny.embedding(), head_dim="kv_cache_dim")
    for output in model.graph.output[1:]:
        output.type.tensor_type.shape.dim[3].dim_value = 8
    assert Signature.of_proto(model).caches[0].empty(1).shape[-1] == 8


def test_positions_count_unmasked_tokens():
    model = tiny.decoder(tiny.embedding(), cache=False)
    model.graph.input.append(tiny.value("position_ids", tiny.INT, ["batch", "sequence"]))
    mask_type = tiny.TensorProto.INT32
    model.graph.input.append(tiny.value("attention_mask", mask_type, ["batch", "sequence"]))
    signature = Signature.of_proto(model)
    mask = np.array([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    feeds = signature.feeds(IDS, mask)
    assert feeds["position_ids"].tolist() == [[0, 0, 0, 1, 2], [0, 1, 2, 3, 4]]
    assert feeds["attention_mask"].dtype == np.int32
    assert feeds["input_ids"].dtype == np.int64
    with pytest.raises(ModelError, match="attention_mask"):
        signature.feeds(IDS, mask[:, :2])


def test_unknown_input_makes_a_model_other():
    model = tiny.decoder(tiny.embedding(), cache=False)
    model.graph.input.append(tiny.value("pixels", tiny.FLOAT, [1]))
    signature = Signature.of_proto(model)
    assert signature.kind == "other"
    with pytest.raises(ModelError, match="pixels"):
        signature.feeds(IDS)


def test_encoder_feeds():
    signature = Signature.of_proto(tiny.encoder(tiny.embedding()))
    feeds = signature.feeds(IDS)
    assert set(feeds) == {"input_ids", "attention_mask", "token_type_ids"}
    assert feeds["token_type_ids"].sum() == 0
    assert feeds["attention_mask"].all()


def test_steps_by_hand_agree_with_one_run(tmp_path):
    folder = tiny.save(tiny.decoder(tiny.embedding()), tmp_path)
    session, signature = create_session(folder), Signature.of(open_package(folder))
    whole = session.run(["logits"], signature.feeds(IDS))[0]
    names = [output.name for output in session.get_outputs()]
    past = None
    for t in range(IDS.shape[1]):
        outputs = session.run(None, signature.feeds(IDS[:, t : t + 1], past=past))
        outputs = dict(zip(names, outputs, strict=True))
        past = signature.next_past(outputs)
        np.testing.assert_allclose(outputs["logits"][:, 0], whole[:, t], rtol=1e-5, atol=1e-5)


def test_feeds_of_one_model_serve_another_with_float16_caches(tmp_path):
    signature = Signature.of_proto(tiny.gqa_decoder(tiny.embedding()), tiny.CONFIG)
    narrow = tiny.gqa_decoder(tiny.embedding())
    narrow.graph.node.insert(
        0,
        helper.make_node("Cast", ["half"], ["past_key_values.0.key"], to=TensorProto.FLOAT),
    )
    cache = next(v for v in narrow.graph.input if v.name == "past_key_values.0.key")
    cache.name = "half"
    cache.type.tensor_type.elem_type = TensorProto.FLOAT16
    session = create_session(tiny.save(narrow, tmp_path))
    feeds = signature.feeds(IDS)
    feeds["half"] = feeds.pop("past_key_values.0.key")
    taken = as_taken(session, feeds)
    assert {name for name in feeds if taken[name] is not feeds[name]} == {"half"}
    assert taken["half"].dtype == np.float16
    session.run(["logits"], taken)


@pytest.mark.parametrize("op_type", ["GroupQueryAttention", "GroupQueryAttentionSink"])
def test_caches_and_positions_of_our_attention(op_type):
    """Where their shapes leave them open, from attributes and from the rotary tables."""
    cache = ["batch", "heads", "past_sequence", "width"]
    names = [f"past_key_values.0.{each}" for each in ("key", "value")]
    nodes = [
        helper.make_node(
            op_type,
            ["x", *names, "last", "total", "cos", "sin", *["sinks"] * op_type.endswith("Sink")],
            ["y", "present.0.key", "present.0.value"],
            domain=ops.DOMAIN,
            num_heads=6,
            kv_num_heads=3,
        )
    ]
    inputs = [tiny.value(name, TensorProto.FLOAT, cache) for name in names]
    outputs = [tiny.value(n, TensorProto.FLOAT, cache) for n in nodes[0].output[1:]]
    tables = {name: np.zeros((50, 8), np.float32) for name in ("cos", "sin")}
    model = tiny.model_of(nodes, inputs, outputs, tables | {"sinks": np.zeros(6, np.float32)})
    signature = Signature.of_proto(model)
    assert signature.shares_buffer
    assert [each.empty(2).shape for each in signature.caches] == [(2, 3, 0, 16)] * 2
    assert Lookups.of(model).positions == 50


def test_windows_and_states_keep_their_size():
    windowed = Signature.of_proto(tiny.gqa_decoder(tiny.embedding(), window=3))
    assert [each.empty(2).shape for each in windowed.caches] == [(2, 1, 3, tiny.HIDDEN)] * 2
    stateful = Signature.of_proto(tiny.state_decoder(tiny.embedding()))
    (state,) = stateful.caches
    assert (state.past, state.present) == ("past.0.conv", "present.0.conv")
    assert state.empty(2).shape == (2, tiny.HIDDEN, 2)
    for signature in (windowed, stateful):
        assert not any(each.grows for each in signature.caches)
        past = {each.past: each.empty(2) for each in signature.caches}
        with pytest.raises(ModelError, match="how many positions were read; give a mask"):
            signature.feeds(IDS, past=past)


@pytest.mark.parametrize("kind", ["handover", "shared", "uncached", "windowed", "stateful"])
def test_decoder_agrees_with_one_run(tmp_path, kind):
    weights = tiny.embedding()
    model = {
        "handover": lambda: tiny.decoder(weights),
        "shared": lambda: tiny.gqa_decoder(weights),
        "uncached": lambda: tiny.decoder(weights, cache=False),
        "windowed": lambda: tiny.gqa_decoder(weights, window=2),
        "stateful": lambda: tiny.state_decoder(weights),
    }[kind]()
    folder = tiny.save(model, tmp_path)
    session, signature = create_session(folder), Signature.of(open_package(folder))
    whole = session.run(["logits"], signature.feeds(IDS))[0]
    decoder = Decoder(session, signature, batch=2, capacity=6)
    assert decoder.cached == (kind != "uncached")
    np.testing.assert_allclose(decoder.step(IDS[:, :3]), whole[:, 2], rtol=1e-5, atol=1e-5)
    state = decoder.snapshot()
    for _ in range(2):  # the second time from the snapshot
        decoder.restore(state)
        for t in (3, 4):
            step = decoder.step(IDS[:, t : t + 1])
            np.testing.assert_allclose(step, whole[:, t], rtol=1e-5, atol=1e-5)
    assert decoder.position == 5
    with pytest.raises(ModelError, match="outgrows the 6 positions"):
        decoder.step(IDS[:, :2])


def test_vocabulary_is_the_least_known(tmp_path):
    folder = tiny.save(tiny.decoder(tiny.embedding()), tmp_path, config=tiny.CONFIG)
    package = open_package(folder)
    assert vocabulary(package, Signature.of(package)) == tiny.VOCABULARY
    smaller = {"model": {**tiny.CONFIG["model"], "vocab_size": 10}}
    package = open_package(tiny.save(package.proto(), tmp_path, config=smaller))
    assert vocabulary(package, Signature.of(package)) == 10
