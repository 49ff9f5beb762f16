"""Sentence embeddings of an encoder, and how well a quantized encoder keeps them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnxruntime as ort
from tokenizers import Tokenizer

from qcompiler.errors import ModelError
from qcompiler.evaluation import intervals
from qcompiler.feeds import Array, Signature
from qcompiler.foreign import runtime_errors


@dataclass(frozen=True)
class EmbeddingResult:
    """Cosine of each sentence's embedding with the reference's, and nearest neighbours kept.

    `neighbour_agreement`: share of sentences whose nearest other sentence is the same one. Lows and
    highs are 95% confidence intervals over sentences, taken as independent: of the mean, None with
    fewer than three; Wilson's of the share.
    """

    mean_cosine: float
    cosine_low: float | None
    cosine_high: float | None
    min_cosine: float
    neighbour_agreement: float
    neighbour_low: float
    neighbour_high: float
    sentences: int

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def token_rows(tokenizer: Tokenizer, texts: Sequence[str], max_length: int) -> list[list[int]]:
    """The token ids of each text, cut at `max_length`."""
    rows: list[list[int]] = []
    for encoding in tokenizer.encode_batch(list(texts)):
        ids = encoding.ids
        # A cut text keeps its closing token, which encoders rely on.
        rows.append(ids if len(ids) <= max_length else [*ids[: max_length - 1], ids[-1]])
    return rows


def batch_ids(tokenizer: Tokenizer, texts: Sequence[str], max_length: int) -> tuple[Array, Array]:
    """Token ids and mask [B, T] of `texts`, padded to the longest, cut at `max_length`."""
    rows = token_rows(tokenizer, texts, max_length)
    width = max(len(row) for row in rows)
    ids_array = np.zeros((len(rows), width), np.int64)
    mask = np.zeros((len(rows), width), np.int64)
    for i, row in enumerate(rows):
        ids_array[i, : len(row)] = row
        mask[i, : len(row)] = 1
    return ids_array, mask


def embed(
    session: ort.InferenceSession,
    signature: Signature,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    *,
    batch: int = 16,
    max_length: int = 256,
    advance: Callable[[int], None] = lambda _: None,
) -> Array:
    """Embeddings of `texts`, float32 [n, d], of length 1: token vectors averaged over the mask.

    An output of rank 2 is taken to be a pooled embedding already.
    """
    parts: list[Array] = []
    for start in range(0, len(texts), batch):
        ids, mask = batch_ids(tokenizer, texts[start : start + batch], max_length)
        with runtime_errors(ModelError, "the model does not run on the text"):
            output = session.run([signature.logits], signature.feeds(ids, mask))[0]
        hidden = np.asarray(output).astype(np.float32)
        parts.append(pool(hidden, mask))
        advance(len(ids))
    return np.concatenate(parts)


def pool(hidden: Array, mask: Array) -> Array:
    """Mean of `hidden` [B, T, d] over the positions `mask` [B, T] keeps, scaled to length 1."""
    if hidden.ndim == mask.ndim + 1:
        weight = mask[:, :, None].astype(np.float32)
        hidden = (hidden * weight).sum(axis=1) / np.maximum(weight.sum(axis=1), 1.0)
    elif hidden.ndim != mask.ndim:
        raise ModelError(f"the model's output has rank {hidden.ndim}: not token or text vectors")
    norm = np.linalg.norm(hidden, axis=1, keepdims=True)
    result: Array = hidden / np.maximum(norm, np.finfo(np.float32).tiny)
    return result


def compare(reference: Array, embeddings: Array) -> EmbeddingResult:
    """Compare unit embeddings [n, d] row by row; needs at least two rows."""
    if reference.shape != embeddings.shape:
        raise ModelError(
            f"embeddings of shape {embeddings.shape} can't be compared with the reference's "
            f"{reference.shape}"
        )
    # Lengths are 1 but for rounding.
    cosine = np.minimum((reference.astype(np.float64) * embeddings).sum(axis=1), 1.0)
    same = _nearest(reference) == _nearest(embeddings)
    low, high = intervals.of_mean(cosine) or (None, None)
    neighbour_low, neighbour_high = intervals.of_share(int(same.sum()), len(same))
    return EmbeddingResult(
        mean_cosine=float(cosine.mean()),
        cosine_low=low,
        cosine_high=None if high is None else min(high, 1.0),
        min_cosine=float(cosine.min()),
        neighbour_agreement=float(same.mean()),
        neighbour_low=neighbour_low,
        neighbour_high=neighbour_high,
        sentences=len(reference),
    )


def _nearest(vectors: Array) -> Array:
    similarity = vectors @ vectors.T
    np.fill_diagonal(similarity, -np.inf)
    nearest: Array = similarity.argmax(axis=1)
    return nearest
