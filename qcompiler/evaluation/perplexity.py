"""Perplexity of a decoder on a text: exp of the mean negative log-likelihood of its tokens.

The text is cut into windows that do not overlap; each starts afresh, with the begin-of-text token
where the tokenizer puts one before a text. Windows are the unit of the confidence interval, since
tokens within one are not independent.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from qcompiler.errors import ModelError
from qcompiler.evaluation.intervals import Z
from qcompiler.feeds import Array
from qcompiler.numerics.divergence import ROWS_AT_ONCE


@dataclass(frozen=True)
class PerplexityResult:
    """Perplexity with its 95% confidence interval over windows.

    `low` and `high` are None with fewer than three windows: no spread to measure.
    """

    perplexity: float
    low: float | None
    high: float | None
    tokens: int
    window: int

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Window:
    """Tokens [1, T] to feed, and the positions whose next token counts: `targets` [T - 1]."""

    token_ids: Array

    @property
    def targets(self) -> Array:
        """The tokens that positions 0 .. T-2 predict."""
        targets: Array = self.token_ids[0, 1:]
        return targets


def windows(
    token_ids: Array, *, window: int = 512, lead: Sequence[int] = (), max_tokens: int | None = None
) -> Iterator[Window]:
    """Cut `token_ids` [n] into windows of at most `window` tokens, each begun with `lead`.

    Raises ModelError if not even two tokens are there.
    """
    if window < 2 + len(lead):
        raise ModelError(f"a window needs at least {2 + len(lead)} tokens, not {window}")
    ids = token_ids[:max_tokens]
    if len(ids) + len(lead) < 2:
        raise ModelError("the text is too short to score: it has fewer than two tokens")
    step = window - len(lead)
    for start in range(0, len(ids), step):
        piece = [*lead, *ids[start : start + step]]
        if len(piece) > 1:
            yield Window(np.asarray([piece], np.int64))


def token_losses(logits: Array, targets: Array) -> Array:
    """Negative log-likelihood (nats, float64 [T]) of `targets` [T] under `logits` [T, V]."""
    losses = np.empty(len(targets), np.float64)
    for start in range(0, len(targets), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        block, wanted = logits[rows].astype(np.float32), targets[rows]
        top = block.max(axis=1)
        total = np.exp(block - top[:, None]).sum(axis=1, dtype=np.float64)
        picked = block[np.arange(len(wanted)), wanted]
        losses[rows] = np.log(total) + top.astype(np.float64) - picked
    return losses


def summarize(losses: list[Array], window: int) -> PerplexityResult:
    """Perplexity from the losses of each window."""
    sums = np.array([part.sum() for part in losses], np.float64)
    counts = np.array([len(part) for part in losses], np.float64)
    mean = sums.sum() / counts.sum()
    low = high = None
    enough = 3
    if len(losses) >= enough:
        # Variance of a ratio of sums over independent windows (delta method).
        residual = sums - mean * counts
        n = len(losses)
        error = math.sqrt(n / (n - 1) * float(residual @ residual)) / counts.sum()
        low, high = _exp(mean - Z * error), _exp(mean + Z * error)
    return PerplexityResult(_exp(mean), low, high, int(counts.sum()), window)


def _exp(x: float) -> float:
    return math.exp(x) if x < 700 else math.inf
