"""Attention of ONNX's and ONNX Runtime's operators, spelled out: rows of queries over rows of keys.

S tokens of B sequences, H heads of D channels, K heads of keys and values, H / K of queries each:

    Y = Softmax(mask(cap(c Q Kᵀ))) V

Queries of one key head are one matrix of S H / K rows, so that nothing is repeated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from qcompiler.autodiff.call import Call
from qcompiler.autodiff.expand import spelling
from qcompiler.autodiff.terms import Term, concat
from qcompiler.ops import CONTRIB_DOMAIN

_MASKED = float(np.finfo(np.float32).min)


@spelling("GroupQueryAttention", domain=CONTRIB_DOMAIN)
def group_query_attention(call: Call) -> Sequence[Term | None]:
    """Causal attention over the tokens of this run alone: with anything in the cache it is refused.

    Sequences that are shorter than the batch end with padding, which no token before it sees: their
    lengths do not matter.
    """
    _refuse(call, [*range(12, len(call.node.input))], "the cache is quantized, or queries normed")
    _refuse_full_cache(call, 3, 4)
    heads, kv_heads = call.attr("num_heads"), call.attr("kv_num_heads")
    by_head = _separate(call, heads, kv_heads)
    q, k, v = (each.term for each in by_head)
    size = by_head[2].size
    if call.attr("do_rotary", 0):
        cos, sin = (_angles(call, table) for table in (7, 8))
        rotary = Rotary(cos, sin, call.size(7, 1), bool(call.attr("rotary_interleaved", 0)))
        q, k = rotary.turned(q, size), rotary.turned(k, size)
    scale = call.attr("scale", 0.0) or 1 / math.sqrt(size)
    grouped = q.reshape(0, kv_heads, -1, size)
    scores = grouped.op("MatMul", k.transpose(0, 1, 3, 2)) * scale
    tokens = call.raw(0).op("Shape", start=1, end=2)
    scores = scores.op("Reshape", concat([call.to.ints(0, heads), tokens, tokens], 0))
    if cap := call.attr("softcap", 0.0):
        scores = (scores / cap).op("Tanh") * cap
    if call.has(10):
        scores = scores + call.x(10)
    scores = _seen(tokens, call.attr("local_window_size", -1)).where(scores, _MASKED)
    weights = _weights(call, scores, heads)
    rows = concat([call.to.ints(0, kv_heads, -1), tokens], 0)
    y = weights.op("Reshape", rows).op("MatMul", v)
    y = y.op("Reshape", concat([call.to.ints(0, heads), tokens, call.to.ints(size)], 0))
    return y.transpose(0, 2, 1, 3).reshape(0, 0, heads * size), k, v


@spelling("MultiHeadAttention", domain=CONTRIB_DOMAIN)
def multi_head_attention(call: Call) -> Sequence[Term | None]:
    """Attention of queries, keys and values in three tensors [B, S, H D], without a cache."""
    _refuse(call, [*range(6, len(call.node.input))], "it has a cache")
    if not (call.has(1) and call.has(2)) or len(call.sizes(1)) != 3 or len(call.sizes(2)) != 3:
        raise call.refusal("queries, keys and values are not three tensors of rank 3")
    heads = call.attr("num_heads")
    widths = [call.size(index, 2) for index in range(3)]
    given = [call.x(index) for index in range(3)]
    if call.has(3):
        biases = call.x(3).split(0, *widths)
        given = [term + bias for term, bias in zip(given, biases, strict=True)]
    sizes = [width // heads for width in widths]
    q, k, v = (_heads(term, heads, size) for term, size in zip(given, sizes, strict=True))
    scale = call.attr("scale", 0.0) or 1 / math.sqrt(sizes[0])
    scores = q.op("MatMul", k.transpose(0, 1, 3, 2)) * scale
    if call.has(4):
        if len(call.sizes(4)) != 2:
            raise call.refusal("its key_padding_mask is not [batch, keys]")
        away = (1.0 - call.x(4)) * call.attr("mask_filter_value", -10000.0)
        scores = scores + away.op("Unsqueeze", call.to.ints(1, 2))
    if call.has(5):
        scores = scores + call.x(5)
    if call.attr("unidirectional", 0):
        tokens = call.raw(0).op("Shape", start=1, end=2)
        scores = _seen(tokens, -1).where(scores, _MASKED)
    y = scores.op("Softmax", axis=-1).op("MatMul", v)
    return (y.transpose(0, 2, 1, 3).reshape(0, 0, widths[2]),)


@spelling("Attention")
def attention(call: Call) -> Sequence[Term | None]:
    """ONNX's operator over rows or by head, with nothing in its cache.

    ONNX's inliner of functions stops at inputs that are left out.
    """
    _refuse(call, [6], "its cache is kept outside")
    _refuse_full_cache(call, 4, 5)
    flat = len(call.sizes(0)) == 3
    heads, kv_heads = (
        (call.attr("q_num_heads"), call.attr("kv_num_heads"))
        if flat
        else (call.size(0, 1), call.size(1, 1))
    )
    q, k, v = (call.x(index) for index in range(3))
    sizes = [call.size(index, -1) for index in range(3)]
    if flat:
        sizes = [size // n for size, n in zip(sizes, (heads, kv_heads, kv_heads), strict=True)]
        q, k, v = (
            _heads(each, n, size)
            for each, n, size in zip((q, k, v), (heads, kv_heads, kv_heads), sizes, strict=True)
        )
    tokens, keys = (each.op("Shape", start=2, end=3) for each in (q, k))
    scale = call.attr("scale", 0.0) or 1 / math.sqrt(sizes[0])
    scores = q.reshape(0, kv_heads, -1, sizes[0]).op("MatMul", k.transpose(0, 1, 3, 2)) * scale
    scores = scores.op("Reshape", concat([call.to.ints(0, heads), tokens, keys], 0))
    if cap := call.attr("softcap", 0.0):
        scores = (scores / cap).op("Tanh") * cap
    if call.has(3):
        booleans = call.kinds.elem(call.node.input[3]) == onnx.TensorProto.BOOL
        scores = call.raw(3).where(scores, _MASKED) if booleans else scores + call.x(3)
    if call.attr("is_causal", 0):
        seen = _count(keys).op("LessOrEqual", _count(tokens).op("Unsqueeze", tokens.to.ints(1)))
        scores = seen.where(scores, _MASKED)
    weights = scores.op("Softmax", axis=-1)
    rows = concat([call.to.ints(0, kv_heads, -1), keys], 0)
    y = weights.op("Reshape", rows).op("MatMul", v)
    y = y.op("Reshape", concat([call.to.ints(0, heads), tokens, call.to.ints(sizes[2])], 0))
    if flat:
        y = y.transpose(0, 2, 1, 3).reshape(0, 0, heads * sizes[2])
    return y, k, v


@spelling("RotaryEmbedding", domain=CONTRIB_DOMAIN)
def rotary_embedding(call: Call) -> Sequence[Term | None]:
    """Rotary embedding of [B, H, S, D], or of [B, S, H D] by way of it."""
    if call.attr("is_packed_batching", 0) or call.attr("scale", 1.0) != 1.0:
        raise call.refusal("sequences are packed, or it scales")
    cos, sin = call.x(2), call.x(3)
    half = call.size(2, 1)
    positions = call.raw(1)
    if call.sizes(1) == (1,):  # a start
        flat = len(call.sizes(0)) == 3
        tokens = call.raw(0).op("Shape", start=1 if flat else 2, end=2 if flat else 3)
        positions = positions.op("Add", _count(tokens)).op("Unsqueeze", call.to.ints(0))
    cos, sin = (t.op("Gather", positions).op("Unsqueeze", call.to.ints(1)) for t in (cos, sin))
    rotary = Rotary(cos, sin, half, bool(call.attr("interleaved", 0)))
    if len(call.sizes(0)) == 4:
        return (rotary.turned(call.x(), call.size(0, 3)),)
    width = call.size(0, 2)
    heads = call.attr("num_heads", 0) or width // (2 * half)
    by_head = _heads(call.x(), heads, width // heads)
    turned = rotary.turned(by_head, width // heads)
    return (turned.transpose(0, 2, 1, 3).reshape(0, 0, width),)


@dataclass(frozen=True)
class Rotary:
    """Cosines and sines that broadcast to [B, H, S, half], of `half` pairs of channels."""

    cos: Term
    sin: Term
    half: int
    interleaved: bool
    """Whether the channels of a pair lie side by side, and not `half` apart."""

    def turned(self, x: Term, size: int) -> Term:
        """The pairs (a, b) of x[B, H, S, size] as (a cos - b sin, b cos + a sin); others stay."""
        rest = size - 2 * self.half
        x, *others = x.split(3, 2 * self.half, rest) if rest else [x]
        last = 4 if self.interleaved else 3
        cos, sin = self.cos, self.sin
        if self.interleaved:
            x = x.reshape(0, 0, 0, self.half, 2)
            cos, sin = (each.op("Unsqueeze", x.to.ints(-1)) for each in (cos, sin))
        a, b = x.split(last, 1, 1) if self.interleaved else x.split(last, self.half, self.half)
        x = concat([a * cos - b * sin, b * cos + a * sin], last)
        if self.interleaved:
            x = x.reshape(0, 0, 0, 2 * self.half)
        return concat([x, *others], 3) if others else x


@dataclass(frozen=True)
class _Heads:
    """A tensor [B, heads, S, size]."""

    term: Term
    size: int


def _separate(call: Call, heads: int, kv_heads: int) -> list[_Heads]:
    """Queries, keys and values by head, whether they come in one tensor or in three."""
    counts = (heads, kv_heads, kv_heads)
    if call.has(1) and call.has(2):
        sizes = [call.size(index, -1) // count for index, count in enumerate(counts)]
        terms = [call.x(index) for index in range(3)]
    else:
        sizes = [call.size(0, -1) // sum(counts)] * 3
        terms = call.x(0).split(-1, *(count * sizes[0] for count in counts))
    return [
        _Heads(_heads(term, count, size), size)
        for term, count, size in zip(terms, counts, sizes, strict=True)
    ]


def _heads(term: Term, heads: int, size: int) -> Term:
    return term.reshape(0, 0, heads, size).transpose(0, 2, 1, 3)


def _angles(call: Call, table: int) -> Term:
    """The rows of a table for the positions of the tokens, [1 or B, 1, S, half]."""
    if call.has(9):
        return call.x(table).op("Gather", call.raw(9)).op("Unsqueeze", call.to.ints(1))
    tokens = call.raw(0).op("Shape", start=1, end=2)
    return call.x(table).op("Gather", _count(tokens)).op("Unsqueeze", call.to.ints(0, 1))


def _count(tokens: Term) -> Term:
    """0, 1, ... as many as a vector of one says."""
    start, step = (tokens.to.constant(value, np.int64) for value in (0, 1))
    return start.op("Range", tokens.op("Squeeze", tokens.to.ints(0)), step)


def _seen(tokens: Term, window: int) -> Term:
    """Which keys (columns) a query (row) sees: those before it, of a window where it is not -1."""
    keys = _count(tokens)
    queries = keys.op("Unsqueeze", tokens.to.ints(1))
    seen = keys.op("LessOrEqual", queries)
    if window < 0:
        return seen
    first = queries.op("Sub", tokens.to.constant(window, np.int64))
    return seen.op("And", keys.op("Greater", first))


def _weights(call: Call, scores: Term, heads: int) -> Term:
    """The softmax of scores, beside a score that goes nowhere where there is one."""
    if not call.has(11) and not call.attr("smooth_softmax", 0):
        return scores.op("Softmax", axis=-1)
    sink = call.x(11) if call.has(11) else call.to.constant([0.0] * heads, np.float32)
    column = sink.reshape(1, heads, 1, 1).op("Expand", _column(scores))
    whole = concat([scores, column], 3).op("Softmax", axis=-1)
    return whole.op("Slice", call.to.ints(0), call.to.ints(-1), call.to.ints(3))


def _column(scores: Term) -> Term:
    """The sizes of one column of scores."""
    return concat([scores.op("Shape", end=3), scores.to.ints(1)], 0)


def _refuse(call: Call, indices: Sequence[int], why: str) -> None:
    if any(call.has(index) for index in indices):
        raise call.refusal(why)


def _refuse_full_cache(call: Call, *indices: int) -> None:
    if any(call.has(index) and call.sizes(index)[2] != 0 for index in indices):
        raise call.refusal("its cache is not known to be empty")
