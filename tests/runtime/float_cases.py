"""Valid nodes of the ops without weights, and what each should give."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from node_cases import NodeCase, Values, Wanted, pick

from qcompiler.numerics import reference

POSITIONS = 300
STEP = 2e-6  # what float32 is off by, relative to the largest term
MOST_SCORES = 300.0  # beyond, float32 can't tell which key weighs most
MASKED = -1e30  # what swallows any score that is added to it


def float_case(rng: np.random.Generator) -> NodeCase:
    """One of the ops."""
    return pick(rng, (_decoder_case, _encoder_case, _norm_case, _gate_case))(rng)


def _normal(rng: np.random.Generator, *shape: int, size: float = 1.0) -> np.ndarray:
    return (size * rng.standard_normal(shape)).astype(np.float32)


def _decoder_case(rng: np.random.Generator) -> NodeCase:
    heads, kv, d = pick(rng, [(4, 2, 16), (9, 3, 64), (3, 1, 32), (2, 2, 80), (1, 1, 16)])
    half = d // 2 if rng.random() < 0.8 else int(rng.integers(0, d // 2 + 1))
    angles = rng.uniform(0, 6, (POSITIONS, half))
    sinks = {"head_sink": _normal(rng, heads, size=3.0)} if rng.random() < 0.4 else {}

    def vary(rng: np.random.Generator) -> Values:
        batch, rows = int(pick(rng, [1, 1, 1, 2, 3, 0])), int(pick(rng, [0, 1, 1, 2, 3, 9, 40]))
        room = int(pick(rng, [0, 1, 5, 63, 64, 70, 200]))
        past = rng.integers(0, room + 1, batch)
        if rng.random() < 0.3:  # prompts, of which some are padded
            past = -rng.integers(0, rows + 1, batch)
        elif batch and rng.random() < 0.5:
            past[0] = room
        total = max(0, past.max(initial=0)) + rows
        return {
            "X": _normal(rng, batch, rows, (heads + 2 * kv) * d),
            "past_key": _normal(rng, batch, kv, room, d),
            "past_value": _normal(rng, batch, kv, room, d),
            "seqlens_k": (past + rows - 1).astype(np.int32),
            "total": np.array(total, np.int32).reshape(pick(rng, [(), (1,)])),
        }

    tables = {"cos": np.cos(angles).astype(np.float32), "sin": np.sin(angles).astype(np.float32)}
    return NodeCase(
        "GroupQueryAttentionSink" if sinks else "GroupQueryAttention",
        {
            "num_heads": heads,
            "kv_num_heads": kv,
            "scale": float(pick(rng, [d**-0.5, 0.0, 0.1])),
            "window": pick(rng, [-1, -1, 1, 2, 7, 33, 64, 65, 150, 2**31 - 1]),
            "softcap": pick(rng, [0.0, 0.0, 0.5, 30.0]),
        },
        vary(rng) | tables | sinks,
        set(tables | sinks) if rng.random() < 0.5 else set(),
        ["Y", "key", "value"],
        _decoded,
        vary,
        body_takes=lambda fed: fed["X"].size > 0,  # else it divides by zero, and so ends
        in_place={"past_key": "key", "past_value": "value"},
    )


def _decoded(attributes: Mapping[str, Any], values: Values) -> list[Wanted]:
    """Sequence by sequence; what belongs to padding, or to one with infinite values, may be any."""
    x, total = values["X"], int(values["total"].reshape(-1)[0])
    heads, kv = attributes["num_heads"], attributes["kv_num_heads"]
    batch, rows = x.shape[:2]
    d = x.shape[2] // (heads + 2 * kv)
    scale = attributes["scale"] or d**-0.5
    window = None if attributes["window"] == -1 else attributes["window"]
    caches = values["past_key"], values["past_value"]
    room = max(total, caches[0].shape[2])
    y = np.zeros((batch, rows, heads * d)), np.zeros((batch, rows, heads * d))
    present = [(np.zeros((batch, kv, room, d)), np.zeros((batch, kv, room, d))) for _ in caches]
    largest = _largest(values["cos"]) + _largest(values["sin"])
    for b, last in enumerate(values["seqlens_k"].reshape(-1)):
        length = int(last) + 1
        past = 0 if total == rows else length - rows
        own = x[b : b + 1]
        used = [cache[b : b + 1, :, :past] for cache in caches]
        with np.errstate(all="ignore"):
            found = (own[..., : heads * d], *used)  # without rows
            if rows:
                found = reference.group_query_attention(
                    *(own, *used, values["cos"], values["sin"]),
                    num_heads=heads,
                    scale=scale,
                    window=window,
                    softcap=attributes["softcap"],
                    head_sink=values.get("head_sink"),
                )
            peak, key, value = map(_largest, (own, *used))
            scores = abs(scale) * peak * largest * np.maximum(key, peak * largest) * d
            step = STEP * (1 + scores) * np.maximum(peak, value)
        y[0][b] = found[0][0]
        y[1][b] = step if scores < MOST_SCORES * d and step < 1e30 else np.inf
        y[1][b, length - past :] = np.inf
        for (cache, tolerance), result in zip(present, found[1:], strict=True):
            with np.errstate(invalid="ignore"):
                cache[b, :, : past + rows] = result[0]
            tolerance[b, :, length : past + rows] = np.inf
            rotated = STEP * peak * largest
        present[0][1][b, :, past : past + rows] += rotated if rotated < 1e30 else np.inf
    return [Wanted(*each) for each in (y, *present)]


def _largest(values: np.ndarray) -> float:
    """The largest magnitude, NaN where there is one."""
    return float(np.abs(values.astype(np.float64)).max(initial=0))


def _encoder_case(rng: np.random.Generator) -> NodeCase:
    heads, d = pick(rng, [(2, 16), (3, 48), (1, 64), (12, 32)])
    masks = int(rng.integers(4))  # no mask, of random numbers, of minus infinity, of both

    def vary(rng: np.random.Generator) -> Values:
        batch, rows, keys = (int(pick(rng, choices)) for choices in _ENCODER_SIZES)
        q, k, v = (_normal(rng, batch, n, heads * d) for n in (rows, keys, keys))
        shape = [n if rng.random() < 0.5 else 1 for n in (batch, heads, rows)]
        mask = _normal(rng, *shape, keys)
        hidden = rng.random(mask.shape) < pick(rng, [0.1, 0.9])
        low = pick(rng, [np.finfo(np.float32).min, -np.inf])
        mask = np.where(hidden, np.float32(low), mask if masks % 2 else np.float32(0))
        return {"Q": q, "K": k, "V": v, "mask": mask if masks else np.zeros(1, np.float32)}

    return NodeCase(
        "MultiHeadAttention",
        {
            "num_heads": heads,
            "scale": float(pick(rng, [d**-0.5, 1.0, 0.0])),
            "nan_is_zero": int(pick(rng, [0, 1])),
        },
        vary(rng),
        set(),
        ["Y"],
        _encoded,
        vary,
    )


_ENCODER_SIZES = ([1, 1, 2, 3, 0], [0, 1, 2, 3, 7, 40, 200], [0, 1, 2, 7, 64, 65, 130])


def _encoded(attributes: Mapping[str, Any], values: Values) -> list[Wanted]:
    """Where scores are so large that float32 can't compare them, anything may be there."""
    q, k, v, mask = (values[name] for name in ("Q", "K", "V", "mask"))
    heads, scale = attributes["num_heads"], attributes["scale"]
    if k.shape[1] == 0:
        return [Wanted(np.zeros(q.shape), 0.0)]
    with np.errstate(all="ignore"):
        wanted = reference.multi_head_attention(
            *(q, k, v, mask),
            num_heads=heads,
            scale=scale,
            nan_is_zero=attributes["nan_is_zero"] != 0,
        )
        d = q.shape[2] // heads
        scores = abs(scale) * _largest(q) * _largest(k) * d
        added, value = _largest(np.where(mask < MASKED, 0, mask)), _largest(v)
    fits = scores < MOST_SCORES * d and added < MOST_SCORES and value < 1e30
    return [Wanted(wanted, STEP * (1 + scores + added) * value if fits else np.inf)]


def _norm_case(rng: np.random.Generator) -> NodeCase:
    centers = bool(rng.random() < 0.5)
    n = int(pick(rng, [1, 2, 3, 8, 15, 16, 17, 33, 70, 576]))
    rank = int(rng.integers(0, 3))

    def vary(rng: np.random.Generator) -> Values:
        shape = [int(pick(rng, [0, 1, 2, 7, 60])) for _ in range(rank)]
        size = pick(rng, [1.0, 1.0, 1e-3, 1e3, 1e-20])
        return {name: _normal(rng, *shape, n, size=size) for name in ("X", "skip")}

    weights = {name: _normal(rng, n) for name in ("weight", "bias")[: 1 + centers]}
    return NodeCase(
        "AddLayerNormalization" if centers else "AddRMSNormalization",
        {"epsilon": float(pick(rng, [1e-5, 1e-6, 1e-12, 0.0, 1.0]))},
        vary(rng) | weights,
        set(weights) if rng.random() < 0.7 else set(),
        ["Y", "sum" if rng.random() < 0.5 else ""],
        _normalized,
        vary,
    )


def _normalized(attributes: Mapping[str, Any], values: Values) -> list[Wanted]:
    """Where squares overflow or vanish in float32, anything may be there."""
    x, skip, weight, bias = (values.get(name) for name in ("X", "skip", "weight", "bias"))
    epsilon = float(np.float32(attributes["epsilon"]))
    with np.errstate(all="ignore"):
        y, total = reference.add_norm(x, skip, weight, bias, epsilon)
        exact = total.astype(np.float64)
        peak = np.abs(exact).max(-1, keepdims=True, initial=0)
        centered = exact if bias is None else exact - exact.mean(-1, keepdims=True)
        spread = np.square(centered).mean(-1, keepdims=True) + epsilon
        fits = (peak < 1e15) & (spread > 1e-30)
        # A mean is off by as much as the largest value, and so is what is left without it.
        share = peak / np.sqrt(spread) if bias is not None else 1.0
        tolerance = STEP * 5 * np.abs(y) + STEP * np.abs(weight) * share
        loose = tolerance * (1 + (peak * peak / spread if bias is not None else 0))
        if bias is not None:
            tolerance, loose = (each + STEP * np.abs(bias) for each in (tolerance, loose))
        tolerance, loose = (np.where(fits, each, np.inf) for each in (tolerance, loose))
        tolerance = np.where(np.isnan(tolerance), 0.0, tolerance)
    return [Wanted(y, tolerance, loose), Wanted(total, 0.0)]


def _gate_case(rng: np.random.Generator) -> NodeCase:
    op_type = pick(rng, ["SwiGLU", "Gelu", "GeluTanh"])
    names = ("gate", "up") if op_type == "SwiGLU" else ("X",)

    def vary(rng: np.random.Generator) -> Values:
        large = rng.random() < 0.1
        shape = [40, 1000] if large else rng.choice([0, 1, 3, 8, 15, 17, 70], rng.integers(0, 4))
        size = pick(rng, [1.0, 4.0, 30.0, 1e-30])
        return {name: np.asarray(_normal(rng, *map(int, shape), size=size)) for name in names}

    def judge(_: Mapping[str, Any], values: Values) -> list[Wanted]:
        with np.errstate(all="ignore"):
            return [_gated(**values) if op_type == "SwiGLU" else _gelu(op_type, **values)]

    return NodeCase(op_type, {}, vary(rng), set(), ["Y"], judge, vary)


def _gated(gate: np.ndarray, up: np.ndarray) -> Wanted:
    """Sigmoids have a least value: e^-87 of the kernels, less than 3e-7 of ONNX Runtime's."""
    y = reference.swiglu(gate, up)
    product = np.abs(gate.astype(np.float64) * up)
    loose = 1e-5 * np.abs(y) + 3e-7 * product + 1e-38
    tolerance = 1e-5 * np.abs(y) + 2e-38 * product + 1e-38
    fits = (product < 1e30) | np.isnan(product)
    return Wanted(y, np.where(fits, tolerance, np.inf), np.where(fits, loose, np.inf))


def _gelu(op_type: str, X: np.ndarray) -> Wanted:
    """The limit at minus infinity is zero; ONNX Runtime's operator gives NaN there."""
    y = np.where(np.isneginf(X), np.float32(0), reference.gelu(X, by_tanh=op_type == "GeluTanh"))
    tolerance = 1e-5 * np.abs(y) + 2e-6 * np.minimum(np.abs(X), 1) + np.float32(1e-38)
    loose = np.where(np.isinf(X) | (np.abs(X) > 1e12), np.inf, tolerance + 1e-6)
    return Wanted(y, tolerance, loose)
