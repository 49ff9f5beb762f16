"""What each ``ai.qcompiler`` op computes, in numpy, on packed inputs: the yardstick of the kernels.

Integer parts are exact. Sums of floats are done in float64, so that a float32 implementation is
compared with the true value and not with another rounding. `linear_a8` and `embedding` have none
and give the ops' bits, every float32 operation rounded in the stated order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qcompiler.numerics.planes import PlaneMatrix

F32Array = npt.NDArray[np.float32]
Array = npt.NDArray[np.generic]


@dataclass(frozen=True)
class QuantizedActivations:
    """Rows of X as int8 codes: x ≈ code · scale of its row.

    codes: int8 [M, K] in -127 .. 127. scales: float32 [M, 1]. A row that held a non-finite value
    has codes 0 and scale NaN.
    """

    codes: npt.NDArray[np.int8]
    scales: F32Array

    def dequantized(self) -> F32Array:
        """float32 [M, K]."""
        return self.codes * self.scales


def quantize_activations(X: Array, scale: float | None = None) -> QuantizedActivations:
    """Symmetric int8 quantization of the rows of X, float [M, K].

    Dynamic (`scale` None): one scale for each row, max(|x|) / 127, or 1 where that is 0. Static:
    `scale` everywhere. Codes are clip(round_half_even(x / scale), ±127), with float32 division as
    ONNX QuantizeLinear does it.
    """
    x = X.astype(np.float32)
    finite = np.all(np.isfinite(x), axis=1, keepdims=True)
    rows = np.where(finite, x, np.float32(0))
    if scale is None:
        scales = (np.abs(rows).max(axis=1, keepdims=True) / np.float32(127)).astype(np.float32)
        scales[scales == 0] = 1
    else:
        scales = np.full((len(rows), 1), scale, dtype=np.float32)
    with np.errstate(over="ignore"):  # an infinite quotient clips like any other
        codes = np.clip(np.rint(rows / scales), -127, 127).astype(np.int8)
    return QuantizedActivations(codes, np.where(finite, scales, np.float32(np.nan)))


def linear_a8(
    X: Array, w: PlaneMatrix, bias: F32Array, *, x_scale: float | None = None
) -> F32Array:
    """``LinearW{b}A8``, ``LinearT{b}A8`` and, with `x_scale`, their Static forms.

    X [..., K] -> float32 [..., N]. Before the split and the cast to X's type. bias: float32 [N] or
    [1].
    """
    a = quantize_activations(_rows(X), x_scale)
    y = integer_product(a.codes, w).astype(np.float32) * w.scales * a.scales + bias
    return y.reshape(*X.shape[:-1], w.N)


def integer_product(codes: npt.NDArray[np.int8], w: PlaneMatrix) -> npt.NDArray[np.int32]:
    """The exact product of int8 [M, K] and the int8 weights: int32 [M, N]."""
    product = codes.astype(np.float64) @ w.weights().astype(np.float64)  # exact, and BLAS
    return product.astype(np.int32)


def embedding(ids: npt.NDArray[np.integer], w: PlaneMatrix) -> F32Array:
    """``EmbeddingW{b}``, ``EmbeddingT{b}``: columns `ids` of the matrix, float32 [ids.shape..., K].

    Raises IndexError for an id outside -N .. N-1.
    """
    return w.dequantized().T[ids]


def rotated(x: F32Array, cosines: F32Array, sines: F32Array) -> F32Array:
    """Rotary embedding, halves apart: x [..., S, d], cosines and sines [S, h] with 2 h <= d."""
    h = cosines.shape[-1]
    y = x.copy()
    y[..., :h] = x[..., :h] * cosines - x[..., h : 2 * h] * sines
    y[..., h : 2 * h] = x[..., h : 2 * h] * cosines + x[..., :h] * sines
    return y


def causal_attention(
    q: F32Array,
    k: F32Array,
    v: F32Array,
    *,
    window: int | None = None,
    softcap: float = 0.0,
    sink: F32Array | float = -np.inf,
) -> F32Array:
    """softmax(q k^T) v, where the last row of q sees all keys, the one before all but one, ..

    q [..., S, d], scaled; k and v [..., T, d] with T >= S. Computed in float64. `window`: of these
    keys a row sees so many, the last. `softcap`: scores become softcap tanh(score / softcap).
    `sink`: one more score of every row, of a value of zeros; a number, or [..., 1, 1].
    """
    scores = q.astype(np.float64) @ np.swapaxes(k, -1, -2).astype(np.float64)
    if softcap:
        scores = softcap * np.tanh(scores / softcap)
    s, t = scores.shape[-2:]
    before = np.arange(s)[:, None] + (t - s) - np.arange(t)
    visible = (before >= 0) & (before < (t if window is None else window))
    scores = np.where(visible, scores, -np.inf)
    top = np.maximum(scores.max(-1, keepdims=True), sink)
    weights = np.exp(scores - top)
    total = weights.sum(-1, keepdims=True) + np.exp(np.float64(sink) - top)
    y: F32Array = (weights / total @ v).astype(np.float32)
    return y


def group_query_attention(
    X: F32Array,
    past_key: F32Array,
    past_value: F32Array,
    cos_cache: F32Array,
    sin_cache: F32Array,
    *,
    num_heads: int,
    scale: float,
    window: int | None = None,
    softcap: float = 0.0,
    head_sink: F32Array | None = None,
) -> tuple[F32Array, F32Array, F32Array]:
    """``GroupQueryAttention`` of one sequence whose caches are full: Y and both new caches.

    X [1, S, (num_heads + 2 kv) d], caches [1, kv, P, d]; the results are [1, S, num_heads d] and
    [1, kv, P + S, d]. With `head_sink` [num_heads] it is ``GroupQueryAttentionSink``.
    """
    kv, past, d = past_key.shape[1:]
    s = X.shape[1]
    heads = X.reshape(1, s, num_heads + 2 * kv, d).transpose(0, 2, 1, 3)
    turns = cos_cache[past : past + s], sin_cache[past : past + s]
    q = rotated(heads[:, :num_heads], *turns) * np.float32(scale)
    k = np.concatenate([past_key, rotated(heads[:, num_heads:-kv], *turns)], axis=2)
    v = np.concatenate([past_value, heads[:, -kv:]], axis=2)
    shared = num_heads // kv
    y = causal_attention(
        *(q, np.repeat(k, shared, axis=1), np.repeat(v, shared, axis=1)),
        window=window,
        softcap=softcap,
        sink=-np.inf if head_sink is None else head_sink[:, None, None],
    )
    return y.transpose(0, 2, 1, 3).reshape(1, s, num_heads * d), k, v


def multi_head_attention(
    Q: F32Array,
    K: F32Array,
    V: F32Array,
    mask: F32Array,
    *,
    num_heads: int,
    scale: float,
    nan_is_zero: bool = False,
) -> F32Array:
    """``MultiHeadAttention``: Q [B, S, H d], K and V [B, T, H d] -> [B, S, H d], in float64.

    `mask` is added to the scores [B, H, S, T]. `nan_is_zero`: rows whose weights are NaN give
    zeros.
    """
    d = Q.shape[-1] // num_heads
    q, k, v = (
        x.astype(np.float64).reshape(*x.shape[:2], num_heads, d).swapaxes(1, 2) for x in (Q, K, V)
    )
    with np.errstate(invalid="ignore"):
        scores = scale * q @ k.swapaxes(-1, -2) + mask
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
    if nan_is_zero:
        weights = np.where(np.isnan(weights), 0.0, weights)
    y: F32Array = (weights @ v).swapaxes(1, 2).reshape(Q.shape).astype(np.float32)
    return y


def add_norm(
    X: F32Array, skip: F32Array, weight: F32Array, bias: F32Array | None, epsilon: float
) -> tuple[F32Array, F32Array]:
    """``AddRMSNormalization`` (`bias` None) and ``AddLayerNormalization``: Y and the sum.

    X and skip [..., N], weight and bias [N]; the norm is computed in float64.
    """
    total = X + skip
    centered = total.astype(np.float64)
    if bias is not None:
        centered -= centered.mean(axis=-1, keepdims=True)
    y = centered / np.sqrt(np.square(centered).mean(axis=-1, keepdims=True) + epsilon) * weight
    return (y if bias is None else y + bias).astype(np.float32), total


def swiglu(gate: F32Array, up: F32Array) -> F32Array:
    """``SwiGLU``: gate · sigmoid(gate) · up, of one shape; computed in float64."""
    x = gate.astype(np.float64)
    y: F32Array = (x / (1 + np.exp(-x)) * up).astype(np.float32)
    return y


def gelu(X: F32Array, *, by_tanh: bool = False) -> F32Array:
    """``Gelu``, x · P(N < x), and ``GeluTanh``, its approximation; computed in float64."""
    x = X.astype(np.float64)
    if by_tanh:
        # (1 + tanh(u)) / 2 without the cancellation
        with np.errstate(over="ignore"):
            share = 1 / (1 + np.exp(-2 * np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    else:
        share = np.vectorize(math.erfc, otypes=[np.float64])(-x / np.sqrt(2)) / 2
    return (x * share).astype(np.float32)


def _rows(X: Array) -> Array:
    k = X.shape[-1]
    return X.reshape(X.size // k, k)
