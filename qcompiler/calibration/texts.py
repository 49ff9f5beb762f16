"""Calibration texts: token ids in windows, in sentences of one length, drawn, or by the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from qcompiler.calibration.draws import with_fixed_seeds
from qcompiler.decoding import Decoder
from qcompiler.errors import CalibrationError
from qcompiler.evaluation.embeddings import token_rows
from qcompiler.evaluation.texts import sentences
from qcompiler.feeds import IDS, Array, Signature, vocabulary
from qcompiler.lookups import Lookups
from qcompiler.models import ModelPackage
from qcompiler.session import create_session

Feed = dict[str, Array]

MIN_TOKENS = 128
"""Fewer tokens than this give no usable statistics."""
ENCODER_BATCH = 12
"""Sentences of one length in a feed, at most: about eight on average in English text."""
_CANDIDATES = 8
"""Sentences looked at for each that is needed: the more, the fuller the batches of one length."""
_TEXT_RANK = 2  # [batch, tokens]
SELF_TOKENS = 8192
"""Of texts generated at once: a step reads all weights, for however many, and their caches grow."""


@dataclass(frozen=True)
class Request:
    """What is wanted of a source."""

    package: ModelPackage
    signature: Signature
    lookups: Lookups
    samples: int
    length: int
    seed: int
    held_back: int = 0
    """Samples beside those that were asked for."""
    like: Sequence[Mapping[str, Array]] = ()
    handed: Sequence[Mapping[str, Array]] = ()
    """What other models give to this one, sample by sample; its other inputs are `signature`'s."""
    others: frozenset[str] = frozenset()
    """Inputs of these models: arrays may be meant for them."""
    batch: int = 1
    """Texts of a feed, where each has its own."""

    def fitted(self) -> Request:
        """The same for texts that the model can read: of its own size where that is fixed."""
        shape = None if (ids := self.signature.input(IDS)) is None else ids.shape
        batch, length = shape if shape and len(shape) == _TEXT_RANK else (None, None)
        limits = (self.package.context_length(), self.lookups.positions)
        longest = min([self.length, *(limit for limit in limits if limit)])
        return replace(
            self,
            batch=batch if isinstance(batch, int) else 1,
            length=length if isinstance(length, int) else longest,
        )

    @property
    def fixed(self) -> bool:
        """Whether all texts must have one length, and so many share a feed."""
        ids = self.signature.input(IDS)
        return any(isinstance(size, int) and size != 1 for size in (ids and ids.shape) or ())


def windows(text: str, want: Request) -> tuple[list[Feed], str]:
    """Feeds of texts of one length, cut from a long one, with their description."""
    ids = _encode(text, want)
    lead, tail = _frame(want)
    step = max(1, want.length - len(lead) - len(tail))
    starts = np.arange(0, len(ids) - step + 1, step)
    if len(starts) == 0:
        if want.fixed:
            raise CalibrationError(
                f"the calibration text has {len(ids)} tokens; the model reads {want.length} at once"
            )
        starts, step = np.array([0]), len(ids)
    count = want.samples * want.batch
    if len(starts) > count:
        # Spread over the whole text, not its beginning only.
        starts = np.sort(np.random.default_rng(want.seed).choice(starts, count, replace=False))
    starts = np.resize(starts, -(-len(starts) // want.batch) * want.batch)
    rows = [[*lead, *ids[s : s + step], *tail][: want.length] for s in starts]
    feeds = _fed(rows, want)
    return feeds, f"{len(rows)} windows of {len(rows[0])} tokens out of {len(ids)} tokens"


def _frame(want: Request) -> tuple[list[int], list[int]]:
    """What goes before and after a text; a decoder's goes on."""
    lead, tail = want.package.frame()
    return lead, [] if want.signature.kind == "decoder" else tail


def _fed(rows: Sequence[Sequence[int]], want: Request) -> list[Feed]:
    """Feeds of texts of one length, as many in each as the model takes."""
    batches = [rows[start : start + want.batch] for start in range(0, len(rows), want.batch)]
    return [want.signature.feeds(np.array(batch, np.int64)) for batch in batches]


def batches(text: str, want: Request) -> tuple[list[Feed], str]:
    """Feeds of the sentences of a text, in each those of one length, with their description."""
    _encode(text, want)
    rng = np.random.default_rng(want.seed)
    found = sentences(text) or [line for line in text.splitlines() if line.strip()]
    most = _CANDIDATES * want.samples * ENCODER_BATCH
    if len(found) > most:
        found = [found[i] for i in np.sort(rng.choice(len(found), most, replace=False))]
    by_length: dict[int, list[list[int]]] = {}
    for row in token_rows(want.package.tokenizer(), found, want.length):
        by_length.setdefault(len(row), []).append(row)
    batches = [
        np.array(rows[start : start + ENCODER_BATCH], np.int64)
        for rows in by_length.values()
        for start in range(0, len(rows), ENCODER_BATCH)
    ]
    # Each sentence is in one batch: drawn in any order, short and long ones keep their shares.
    chosen = [batches[i] for i in rng.permutation(len(batches))[: want.samples]]
    count = sum(map(len, chosen))
    feeds = [want.signature.feeds(ids) for ids in chosen]
    return feeds, f"{count} sentences in {len(feeds)} batches, each of one length"


def _encode(text: str, want: Request) -> list[int]:
    ids = want.package.tokenizer().encode(text, add_special_tokens=False).ids
    if len(ids) < MIN_TOKENS:
        raise CalibrationError(
            f"the calibration text has {len(ids)} tokens; at least {MIN_TOKENS} are needed"
        )
    if max(ids) >= (size := vocabulary(want.package, want.signature)):
        raise CalibrationError(
            f"input 'input_ids': token {max(ids)} is beyond the model's vocabulary of {size}; "
            "the tokenizer is another model's"
        )
    return ids


def _text_tokens(want: Request) -> Array:
    size, special = vocabulary(want.package, want.signature), want.package.special_ids()
    tokens = np.array([token for token in range(size) if token not in special], np.int64)
    if len(tokens) == 0:
        raise CalibrationError("the vocabulary holds special tokens only")
    return tokens


def random_tokens(want: Request) -> tuple[list[Feed], str]:
    """Feeds of tokens drawn from the vocabulary, with their description."""
    rng = np.random.default_rng(want.seed)
    tokens = _text_tokens(want)
    lead, tail = _frame(want)
    body = max(1, want.length - len(lead) - len(tail))
    rows = [
        [*lead, *rng.choice(tokens, body), *tail][: want.length]
        for _ in range(want.samples * want.batch)
    ]
    return (
        _fed(rows, want),
        f"random-tokens: {want.samples} x {want.length} of {len(tokens)} tokens, seed {want.seed}",
    )


def own(want: Request) -> tuple[list[Feed], str]:
    """Feeds of texts that the model itself samples, with their description."""
    if want.signature.kind != "decoder":
        raise CalibrationError("'self' needs a model that generates text; use random-tokens")
    session = create_session(want.package.onnx_path, model=with_fixed_seeds(want.package.proto()))
    tokens = _text_tokens(want)
    rng = np.random.default_rng(want.seed)
    rows: list[Array] = []
    while len(rows) < want.samples:
        batch = min(max(1, SELF_TOKENS // want.length), want.samples - len(rows))
        decoder = Decoder(session, want.signature, batch=batch, capacity=want.length)
        if not decoder.cached and want.length > 64:
            raise CalibrationError(
                "'self' on a model without key/value cache takes hours at this length; use "
                "random-tokens or a text"
            )
        bos = want.package.bos_id()
        lead = np.full((batch, 0 if bos is None else 1), bos or 0, np.int64)
        # A random first word makes the samples differ: in subject, in kind, in language.
        ids: Array = np.concatenate([lead, rng.choice(tokens, (batch, 1))], axis=1)
        logits = decoder.step(ids)
        while ids.shape[1] < want.length:
            new = _sample(logits, tokens, rng)
            ids = np.concatenate([ids, new], axis=1)
            if ids.shape[1] < want.length:
                logits = decoder.step(new)
        rows.extend(ids[i : i + 1] for i in range(batch))
    return [want.signature.feeds(row) for row in rows], (
        f"self: {want.samples} x {want.length} tokens sampled from the model, seed {want.seed}"
    )


def _sample(logits: Array, tokens: Array, rng: np.random.Generator) -> Array:
    """One text token per row [B, 1], drawn from softmax(logits [B, V]) at temperature 1."""
    allowed = logits[:, tokens].astype(np.float64)
    if not np.isfinite(allowed).all():
        raise CalibrationError("the model's logits are not finite: it can't generate its own text")
    sums = np.exp(allowed - allowed.max(axis=1, keepdims=True)).cumsum(axis=1)
    drawn = rng.random((len(sums), 1)) * sums[:, -1:]
    chosen: Array = tokens[(sums[:, :-1] <= drawn).sum(axis=1)]
    return chosen[:, None]
