"""Fused operators spelled out: ONNX Runtime's values, and torch's gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from stock_runtime import open_session

from qcompiler.autodiff import gradients
from qcompiler.autodiff.expand import expanded
from qcompiler.errors import CalibrationError
from qcompiler.ir.io import import_proto
from qcompiler.ops import CONTRIB_DOMAIN

torch = pytest.importorskip("torch")
F = torch.nn.functional

Feed = dict[str, np.ndarray]
HEADS, KV, SIZE, BATCH, TOKENS = 4, 2, 32, 2, 5


def floats(*sizes: int, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    draws = np.random.default_rng((seed, *sizes))
    return (scale * draws.standard_normal(sizes)).astype(np.float32)


def model_of(
    op: str, inputs: list[str], feed: Feed, outputs: list[str], domain=CONTRIB_DOMAIN, **attrs: Any
):
    """A model of one of ONNX Runtime's operators; inputs of the feed, "" for those left out."""
    node = helper.make_node(op, inputs, outputs, domain=domain, name="fused", **attrs)
    given = [
        helper.make_tensor_value_info(k, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
        for k, v in feed.items()
    ]
    ends = [helper.make_tensor_value_info(name, 1, None) for name in outputs if name]
    graph = helper.make_graph([node], "fused", given, ends)
    opsets = [helper.make_opsetid("", 21 if domain else 23)]
    opsets.append(helper.make_opsetid(CONTRIB_DOMAIN, 1))
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def check_values(model: onnx.ModelProto, feed: Feed, wanted: list[str]) -> None:
    """The spelled-out model gives what ONNX Runtime's own operator gives."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    spelled = expanded(copy, set(wanted))
    assert all(node.op_type != model.graph.node[0].op_type for node in spelled.graph.node)
    fused = open_session(model).run(None, feed)
    for one, other in zip(open_session(spelled).run(None, feed), fused, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def check_gradients(model: onnx.ModelProto, feed: Feed, wanted: list[str], by_torch) -> None:
    """Of one output (that of the model's first), against torch in float64."""
    output = model.graph.output[0].name
    seed = floats(*open_session(model).run([output], feed)[0].shape, seed=99)
    given = {k: torch.from_numpy(v.copy()) for k, v in feed.items()}
    given = {k: v.double() if v.is_floating_point() else v for k, v in given.items()}
    given |= {k: given[k].requires_grad_() for k in wanted}
    by_torch(given).backward(torch.from_numpy(seed).double())
    found = dict(gradients(import_proto(model), wanted, output, [feed], lambda *_: seed))
    assert set(found) == set(wanted)
    for name in wanted:
        expected = given[name].grad.numpy()
        atol = 1e-5 * max(1.0, np.abs(expected).max())
        np.testing.assert_allclose(found[name][0], expected, rtol=1e-5, atol=atol, err_msg=name)


def tables(half: int) -> tuple[np.ndarray, np.ndarray]:
    angles = np.outer(np.arange(12), 0.3 ** np.arange(half)).astype(np.float32)
    return np.cos(angles), np.sin(angles)


def rotated(x, cos, sin, half: int, interleaved: bool):
    """x[B, H, S, D], cos and sin [S, half]."""
    cos, sin = cos[: x.shape[2]].double(), sin[: x.shape[2]].double()
    turn, rest = x[..., : 2 * half], x[..., 2 * half :]
    if interleaved:
        a, b = turn[..., ::2], turn[..., 1::2]
        turned = torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(-2)
    else:
        a, b = turn[..., :half], turn[..., half:]
        turned = torch.cat([a * cos - b * sin, b * cos + a * sin], -1)
    return torch.cat([turned, rest], -1)


def attention(q, k, v, scale: float, mask=None, cap: float = 0.0, sink=None):
    """Heads of q[B, H, S, D] over those of k and v [B, K, S, D]."""
    k, v = (each.repeat_interleave(q.shape[1] // each.shape[1], 1) for each in (k, v))
    scores = q @ k.transpose(-1, -2) * scale
    if cap:
        scores = cap * torch.tanh(scores / cap)
    if mask is not None:
        scores = scores + mask
    if sink is not None:
        column = sink.reshape(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        return torch.cat([scores, column], -1).softmax(-1)[..., :-1] @ v
    return scores.softmax(-1) @ v


def by_head(x, size: int):
    return x.reshape(*x.shape[:2], -1, size).transpose(1, 2)


def causal(tokens: int, window: int = -1):
    rows, columns = torch.arange(tokens)[:, None], torch.arange(tokens)
    seen = (columns <= rows) & ((window < 0) | (columns > rows - window))
    return torch.zeros(tokens, tokens).double().masked_fill(~seen, float("-inf"))


GQA = {
    "packed": {},
    "separate": {"separate": True},
    "no rotary": {"do_rotary": 0},
    "interleaved": {"rotary_interleaved": 1},
    "part of the channels": {"half": 8},
    "separate, part interleaved": {"half": 8, "rotary_interleaved": 1, "separate": True},
    "window": {"local_window_size": 2},
    "cap and scale": {"softcap": 1.5, "scale": 0.4},
    "sink": {"sink": True},
    "smooth": {"smooth_softmax": 1},
    "bias": {"bias": True},
    "positions": {"positions": True},
    "one key head": {"kv": 1},
}


@pytest.mark.parametrize("name", GQA)
def test_group_query_attention(name: str) -> None:
    options = {"do_rotary": 1, "half": SIZE // 2, "kv": KV} | GQA[name]
    separate, half, kv = options.pop("separate", False), options.pop("half"), options.pop("kv")
    extras = {key: options.pop(key, False) for key in ("sink", "bias", "positions")}
    cos, sin = tables(half)
    feed = {
        "past_key": np.zeros((BATCH, kv, 0, SIZE), np.float32),
        "past_value": np.zeros((BATCH, kv, 0, SIZE), np.float32),
        "lengths": np.full(BATCH, TOKENS - 1, np.int32),
        "total": np.asarray(TOKENS, np.int32),
    }
    widths = {"q": HEADS * SIZE, "k": kv * SIZE, "v": kv * SIZE}
    if separate:
        wanted = ["q", "k", "v"]
        feed |= {n: floats(BATCH, TOKENS, w, seed=i) for i, (n, w) in enumerate(widths.items())}
    else:
        wanted = ["q"]
        feed["q"] = floats(BATCH, TOKENS, sum(widths.values()))
    inputs = [*wanted, *[""] * (3 - len(wanted)), "past_key", "past_value", "lengths", "total"]
    inputs += ["cos", "sin"] if options["do_rotary"] else ["", ""]
    feed |= {"cos": cos, "sin": sin} if options["do_rotary"] else {}
    inputs += ["positions" if extras["positions"] else "", "bias" if extras["bias"] else ""]
    inputs += ["sink" if extras["sink"] else ""]
    if extras["positions"]:
        feed["positions"] = np.tile(np.arange(TOKENS), (BATCH, 1))
    if extras["bias"]:
        feed["bias"] = floats(BATCH, HEADS, TOKENS, TOKENS, seed=7)
        wanted.append("bias")
    if extras["sink"]:
        feed["sink"] = floats(HEADS, seed=8)
        wanted.append("sink")
    attrs = {"num_heads": HEADS, "kv_num_heads": kv} | options
    outputs = ["y", "present_key", "present_value"]
    model = model_of("GroupQueryAttention", inputs, feed, outputs, **attrs)
    check_values(model, feed, wanted)

    def by_torch(given):
        parts = [given["q"], given.get("k"), given.get("v")]
        if not separate:
            parts = given["q"].split(list(widths.values()), -1)
        q, k, v = (by_head(each, SIZE) for each in parts)
        if options["do_rotary"]:
            turn = (given["cos"], given["sin"], half, bool(options.get("rotary_interleaved")))
            q, k = rotated(q, *turn), rotated(k, *turn)
        mask = causal(TOKENS, options.get("local_window_size", -1))
        if extras["bias"]:
            mask = mask + given["bias"]
        sink = given.get("sink")
        if options.get("smooth_softmax"):
            sink = torch.zeros(HEADS).double()
        scale = options.get("scale", SIZE**-0.5)
        y = attention(q, k, v, scale, mask, options.get("softcap", 0.0), sink)
        return y.transpose(1, 2).flatten(2)

    check_gradients(model, feed, wanted, by_torch)


def test_a_cache_with_something_in_it_is_refused() -> None:
    feed = {
        "q": floats(1, 1, (HEADS + 2 * KV) * SIZE),
        "past_key": floats(1, KV, 3, SIZE),
        "past_value": floats(1, KV, 3, SIZE),
        "lengths": np.full(1, 3, np.int32),
        "total": np.asarray(4, np.int32),
    }
    inputs = ["q", "", "", "past_key", "past_value", "lengths", "total"]
    attrs = {"num_heads": HEADS, "kv_num_heads": KV}
    outputs = ["y", "present_key", "present_value"]
    model = model_of("GroupQueryAttention", inputs, feed, outputs, **attrs)
    with pytest.raises(CalibrationError, match=r"GroupQueryAttention 'fused': .* empty"):
        list(gradients(import_proto(model), ["q"], "y", [feed], lambda _, y: y))


@pytest.mark.parametrize("extras", [[], ["bias"], ["pad"], ["pad", "added"], ["unidirectional"]])
def test_multi_head_attention(extras: list[str]) -> None:
    keys = TOKENS if "unidirectional" in extras else 7
    width = HEADS * SIZE
    feed = {
        "q": floats(BATCH, TOKENS, width),
        "k": floats(BATCH, keys, width, seed=1),
        "v": floats(BATCH, keys, width, seed=2),
    }
    wanted = ["q", "k", "v"]
    if "bias" in extras:
        feed["bias"] = floats(3 * width, seed=3)
        wanted.append("bias")
    if "pad" in extras:
        feed["pad"] = np.asarray([[1] * keys, [1] * (keys - 2) + [0] * 2], np.int32)
    if "added" in extras:
        feed["added"] = floats(1, HEADS, TOKENS, keys, seed=4)
        wanted.append("added")
    inputs = ["q", "k", "v", *(name if name in feed else "" for name in ("bias", "pad", "added"))]
    attrs = {"num_heads": HEADS, "unidirectional": int("unidirectional" in extras)}
    model = model_of("MultiHeadAttention", inputs, feed, ["y"], **attrs)
    check_values(model, feed, wanted)

    def by_torch(given):
        q, k, v = given["q"], given["k"], given["v"]
        if "bias" in extras:
            q, k, v = (x + b for x, b in zip((q, k, v), given["bias"].split(width), strict=True))
        mask = torch.zeros(1).double()
        if "pad" in extras:
            mask = (1 - given["pad"].double())[:, None, None] * -10000.0
        if "added" in extras:
            mask = mask + given["added"]
        if "unidirectional" in extras:
            mask = mask + causal(TOKENS)
        q, k, v = (by_head(each, SIZE) for each in (q, k, v))
        return attention(q, k, v, SIZE**-0.5, mask).transpose(1, 2).flatten(2)

    check_gradients(model, feed, wanted, by_torch)


@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("start", [False, True])
def test_rotary_embedding(interleaved: int, flat: bool, start: bool) -> None:
    cos, sin = tables(SIZE // 2)
    x = floats(BATCH, TOKENS, HEADS * SIZE) if flat else floats(BATCH, HEADS, TOKENS, SIZE)
    positions = np.zeros(1, np.int64) if start else np.tile(np.arange(TOKENS), (BATCH, 1))
    feed = {"x": x, "positions": positions, "cos": cos, "sin": sin}
    model = model_of("RotaryEmbedding", list(feed), feed, ["y"], interleaved=interleaved)
    check_values(model, feed, ["x"])

    def by_torch(given):
        heads = by_head(given["x"], SIZE) if flat else given["x"]
        y = rotated(heads, given["cos"], given["sin"], SIZE // 2, bool(interleaved))
        return y.transpose(1, 2).flatten(2) if flat else y

    check_gradients(model, feed, ["x"], by_torch)


ATTENTION: dict[str, dict[str, Any]] = {
    "mask": {"mask": "floats"},
    "cap": {"mask": "floats", "softcap": 2.0},
    "causal": {"is_causal": 1},
    "causal rows, an empty cache": {"is_causal": 1, "flat": True, "cache": True},
    "rows, scale, which keys": {"mask": "booleans", "scale": 0.3, "flat": True},
}


@pytest.mark.parametrize("name", ATTENTION)
def test_attention_of_onnx(name: str) -> None:
    attrs = dict(ATTENTION[name])
    mask, flat, cache = (attrs.pop(key, None) for key in ("mask", "flat", "cache"))
    feed = {
        "q": floats(BATCH, HEADS, TOKENS, SIZE),
        "k": floats(BATCH, KV, 7, SIZE, seed=1),
        "v": floats(BATCH, KV, 7, SIZE, seed=2),
    }
    if flat:
        feed = {key: rows(each) for key, each in feed.items()}
        attrs |= {"q_num_heads": HEADS, "kv_num_heads": KV}
    wanted = [*feed, "mask"] if mask == "floats" else [*feed]
    if mask:
        bias = floats(TOKENS, 7, seed=3)
        feed["mask"] = bias if mask == "floats" else bias > -0.5
    inputs, outputs = ["q", "k", "v", "mask" if mask else ""], ["y"]
    if cache:
        feed |= {f"past_{key}": np.zeros((BATCH, KV, 0, SIZE), np.float32) for key in "kv"}
        inputs, outputs = [*inputs, "past_k", "past_v"], ["y", "present_k", "present_v"]
    model = model_of("Attention", inputs, feed, outputs, domain="", **attrs)
    check_values(model, feed, wanted)

    def by_torch(given):
        q, k, v = (by_head(given[key], SIZE) if flat else given[key] for key in "qkv")
        added = given.get("mask")
        if mask == "booleans":
            added = torch.zeros(TOKENS, 7).double().masked_fill(~given["mask"], float("-inf"))
        if attrs.get("is_causal"):
            added = causal(7)[:TOKENS]
        scale = attrs.get("scale", SIZE**-0.5)
        y = attention(q, k, v, scale, added, attrs.get("softcap", 0.0))
        return y.transpose(1, 2).flatten(2) if flat else y

    check_gradients(model, feed, wanted, by_torch)


def rows(heads: np.ndarray) -> np.ndarray:
    """[B, S, H D] of [B, H, S, D]."""
    return heads.transpose(0, 2, 1, 3).reshape(BATCH, heads.shape[2], -1)


def test_rotary_embedding_of_onnx_is_its_function() -> None:
    cos, sin = tables(SIZE // 2)
    positions = np.tile(np.arange(TOKENS), (BATCH, 1))
    feed = {"x": floats(BATCH, HEADS, TOKENS, SIZE), "cos": cos, "sin": sin, "at": positions}
    model = model_of("RotaryEmbedding", list(feed), feed, ["y"], domain="")
    check_values(model, feed, ["x"])

    def by_torch(given):
        return rotated(given["x"], given["cos"], given["sin"], SIZE // 2, False)

    check_gradients(model, feed, ["x"], by_torch)


def rms(x, w, epsilon: float = 1e-12):
    return x * ((x * x).mean(-1, keepdim=True) + epsilon).rsqrt() * w


SKIPS = {
    "SkipLayerNormalization": lambda t, g: F.layer_norm(t, (8,), g["w"], g.get("b"), 1e-12),
    "SkipSimplifiedLayerNormalization": lambda t, g: rms(t, g["w"]),
}


@pytest.mark.parametrize("total", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("op", SKIPS)
def test_norms_of_a_sum(op: str, bias: bool, total: bool) -> None:
    feed = {"x": floats(2, 3, 8), "skip": floats(2, 3, 8, seed=1), "w": floats(8, seed=2)}
    centred = op == "SkipLayerNormalization"
    feed |= {"b": floats(8, seed=3)} if centred else {}
    feed |= {"bias": floats(8, seed=4)} if bias else {}
    outputs = ["y", "", "", "s"]
    model = model_of(op, list(feed), feed, outputs)
    check_values(model, feed, list(feed))
    if total:
        del model.graph.output[0]

    def by_torch(given):
        summed = given["x"] + given["skip"] + (given["bias"] if bias else 0)
        return summed if total else SKIPS[op](summed, given)

    check_gradients(model, feed, ["x", "skip", "bias"] if bias else ["x", "skip"], by_torch)


def test_fused_operators_in_half_precision() -> None:
    feed = {"x": floats(2, 3, 8), "skip": floats(2, 3, 8, seed=1), "w": floats(8, seed=2)}
    half = {name: values.astype(np.float16) for name, values in feed.items()}
    model = model_of("SkipSimplifiedLayerNormalization", list(feed), half, ["y"])
    model.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    (fused,), (spelled,) = (
        open_session(each).run(None, half) for each in (model, expanded(copy, {"x"}))
    )
    assert fused.dtype == spelled.dtype == np.float16
    np.testing.assert_allclose(spelled, fused, rtol=2e-3, atol=2e-3)
    check_gradients(model, half, ["x"], lambda given: rms(given["x"] + given["skip"], given["w"]))


ACTIVATIONS = {
    "Gelu": (["x"], lambda g: F.gelu(g["x"])),
    "BiasGelu": (["x", "b"], lambda g: F.gelu(g["x"] + g["b"])),
    "FastGelu": (["x", "b"], lambda g: F.gelu(g["x"] + g["b"], approximate="tanh")),
    "QuickGelu": (["x"], lambda g: g["x"] * torch.sigmoid(1.702 * g["x"])),
}


@pytest.mark.parametrize("op", ACTIVATIONS)
def test_activations(op: str) -> None:
    inputs, by_torch = ACTIVATIONS[op]
    feed = {name: {"x": floats(2, 3, 8), "b": floats(8, seed=1)}[name] for name in inputs}
    model = model_of(op, inputs, feed, ["y"])
    check_values(model, feed, inputs)
    check_gradients(model, feed, inputs, by_torch)
