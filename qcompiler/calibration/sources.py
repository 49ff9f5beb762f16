"""Where calibration data comes from: one spec string, checked against the model it feeds.

| spec | data |
| --- | --- |
| `random-tokens` | tokens drawn uniformly from the vocabulary, none special |
| `self` | text the model itself samples, starting from its begin-of-text token |
| `pydoc:first`, `pydoc:second` | halves of the English text every Python ships |
| a text or `.jsonl` file | its text through the model's tokenizer |
| an `.npz` file or a directory of them | arrays named after the model's inputs |
| `random` | normal noise, for models that read no tokens: ranges, not meaning |

Without a spec it is what the recipe names, or `random-tokens`, or `random` for models that read no
tokens: see `default_spec`.

No feed holds padding: statistics are over all positions, and count what a mask hides.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qcompiler.calibration.arrays import load_arrays
from qcompiler.decoding import Decoder
from qcompiler.errors import CalibrationError, ModelError
from qcompiler.evaluation.embeddings import token_rows
from qcompiler.evaluation.texts import MAX_BYTES, PYDOC, read_text, sentences
from qcompiler.feeds import Array, Signature, vocabulary
from qcompiler.models import ModelPackage
from qcompiler.session import create_session

Feed = dict[str, Array]

MIN_TOKENS = 128
"""Fewer tokens than this give no usable statistics."""
ENCODER_BATCH = 12
"""Sentences of one length in a feed, at most: about eight on average in English text."""
_CANDIDATES = 8
"""Sentences looked at for each that is needed: the more, the fuller the batches of one length."""
SELF_BATCH = 8


@dataclass(frozen=True)
class CalibrationData:
    """Feeds for every input of a model, where they came from, and a digest of their contents."""

    feeds: Sequence[Feed]
    description: str
    sha256: str

    def __len__(self) -> int:
        return len(self.feeds)


def default_spec(package: ModelPackage, preferred: str | None = None) -> str:
    """The source to use when the user names none.

    `preferred` is what a recipe would have; it needs a model that reads tokens, and its tokenizer.
    """
    if Signature.of(package).kind == "other":
        return "random"
    return preferred if preferred and package.tokenizer_file is not None else "random-tokens"


def load_source(
    spec: str | Path,
    package: ModelPackage,
    *,
    samples: int = 32,
    length: int = 512,
    seed: int = 0,
    like: Sequence[Mapping[str, Array]] = (),
) -> CalibrationData:
    """Build at most `samples` feeds of at most `length` tokens from `spec` (see the module).

    `length` is cut to what the model can read. The same arguments give the same data. Raises
    CalibrationError, naming the input or the file, when the data is missing, malformed, too
    little, or does not fit the model.
    """
    if samples < 1 or length < 2:
        raise CalibrationError(f"{samples} samples of {length} tokens: need at least 1 of 2")
    if seed < 0:
        raise CalibrationError(f"the seed must not be negative, as {seed} is")
    signature = Signature.of(package)
    length = min(length, package.context_length() or length)
    source = str(spec)
    try:
        feeds, description = _load(
            source, _Request(package, signature, samples, length, seed, like)
        )
    except ModelError as error:
        raise CalibrationError(f"calibration from {source}: {error}") from error
    return CalibrationData(tuple(feeds), description, digest(feeds))


def digest(feeds: Sequence[Feed]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of all arrays, in order."""
    sha = hashlib.sha256()
    for feed in feeds:
        for name in sorted(feed):
            array = np.ascontiguousarray(feed[name])
            sha.update(f"{name} {array.dtype} {array.shape};".encode())
            sha.update(array.tobytes())
    return sha.hexdigest()


@dataclass(frozen=True)
class _Request:
    package: ModelPackage
    signature: Signature
    samples: int
    length: int
    seed: int
    like: Sequence[Mapping[str, Array]] = ()


def _load(spec: str, want: _Request) -> tuple[list[Feed], str]:
    path = Path(spec)
    if not spec:
        raise CalibrationError("the calibration source is empty; leave --calib out for the default")
    if path.suffix == ".npz" or path.is_dir():
        return load_arrays(path, want.package, want.signature, want.samples)
    if spec == "random":
        return _random(want)
    if want.signature.kind == "other":
        raise CalibrationError(
            f"{want.package.onnx_path} reads no token ids, so '{spec}' can't feed it; give an .npz "
            "with arrays named after its inputs, or 'random'"
        )
    if spec == "random-tokens":
        return _random_tokens(want)
    if spec == "self":
        return _self(want)
    known = ("random-tokens", "self", "random", *PYDOC)
    if spec not in PYDOC and not path.is_file():
        raise CalibrationError(
            f"no calibration source '{spec}': neither a file nor one of {', '.join(known)}"
        )
    try:
        text = read_text(spec)
    except (ValueError, OSError) as error:
        raise CalibrationError(f"calibration text: {error}") from error
    part = ""
    if path.is_file() and path.stat().st_size > MAX_BYTES:
        part = f", from its first {MAX_BYTES >> 20} MiB"
    build = _decoder_text if want.signature.kind == "decoder" else _encoder_text
    feeds, description = build(text, want)
    return feeds, f"{spec}: {description}{part}"


def _decoder_text(text: str, want: _Request) -> tuple[list[Feed], str]:
    ids = _encode(text, want)
    lead = want.package.frame()[0]
    step = want.length - len(lead)
    starts = np.arange(0, len(ids) - step + 1, step)
    if len(starts) == 0:
        starts, step = np.array([0]), len(ids)
    if len(starts) > want.samples:
        # Spread over the whole text, not its beginning only.
        starts = np.sort(
            np.random.default_rng(want.seed).choice(starts, want.samples, replace=False)
        )
    rows = [np.array([[*lead, *ids[s : s + step]]], np.int64) for s in starts]
    feeds = [want.signature.feeds(row) for row in rows]
    return feeds, f"{len(rows)} windows of {rows[0].shape[1]} tokens out of {len(ids)} tokens"


def _encoder_text(text: str, want: _Request) -> tuple[list[Feed], str]:
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


def _encode(text: str, want: _Request) -> list[int]:
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


def _text_tokens(want: _Request) -> Array:
    size, special = vocabulary(want.package, want.signature), want.package.special_ids()
    tokens = np.array([token for token in range(size) if token not in special], np.int64)
    if len(tokens) == 0:
        raise CalibrationError("the vocabulary holds special tokens only")
    return tokens


def _random_tokens(want: _Request) -> tuple[list[Feed], str]:
    rng = np.random.default_rng(want.seed)
    tokens = _text_tokens(want)
    lead, tail = want.package.frame()
    if want.signature.kind == "decoder":
        tail = []
    body = max(1, want.length - len(lead) - len(tail))
    feeds: list[Feed] = []
    for _ in range(want.samples):
        drawn = rng.choice(tokens, body)
        feeds.append(want.signature.feeds(np.array([[*lead, *drawn, *tail]], np.int64)))
    return (
        feeds,
        f"random-tokens: {want.samples} x {want.length} of {len(tokens)} tokens, seed {want.seed}",
    )


def _self(want: _Request) -> tuple[list[Feed], str]:
    if want.signature.kind != "decoder":
        raise CalibrationError("'self' needs a model that generates text; use random-tokens")
    session = create_session(want.package.onnx_path)
    tokens = _text_tokens(want)
    rng = np.random.default_rng(want.seed)
    rows: list[Array] = []
    while len(rows) < want.samples:
        batch = min(SELF_BATCH, want.samples - len(rows))
        decoder = Decoder(session, want.signature, batch=batch, capacity=want.length)
        if not decoder.cached and want.length > 64:
            raise CalibrationError(
                "'self' on a model without key/value cache takes hours at this length; use "
                "random-tokens or a text"
            )
        bos = want.package.bos_id()
        # Without a begin token a random first one makes the samples differ.
        first = rng.choice(tokens, (batch, 1)) if bos is None else np.full((batch, 1), bos)
        ids: Array = first.astype(np.int64)
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
    # argmax(logits + Gumbel noise) is a draw from the softmax.
    allowed = logits[:, tokens].astype(np.float64)
    if not np.isfinite(allowed).all():
        raise CalibrationError("the model's logits are not finite: it can't generate its own text")
    chosen: Array = tokens[(allowed + rng.gumbel(size=allowed.shape)).argmax(axis=1)]
    return chosen[:, None]


def _random(want: _Request) -> tuple[list[Feed], str]:
    if want.signature.kind != "other":
        raise CalibrationError("'random' is for models that read no tokens; use random-tokens")
    rng = np.random.default_rng(want.seed)

    def small(shape: tuple[int, ...]) -> Array:
        return rng.integers(0, 2, shape)

    draw: dict[str, Callable[[tuple[int, ...]], Array]] = {
        "f": rng.standard_normal,
        "i": small,
        "u": small,
        "b": small,
    }
    feeds: list[Feed] = []
    for _ in range(want.samples):
        feed: Feed = {}
        for spec in want.signature.inputs:
            kind = "f" if spec.dtype is not None and spec.dtype.name == "bfloat16" else None
            kind = kind or (spec.dtype.kind if spec.dtype is not None else "")
            if kind not in draw or spec.shape is None or spec.dtype is None:
                raise CalibrationError(
                    f"input '{spec.name}' can't be drawn at random; give an .npz"
                )
            feed[spec.name] = np.asarray(draw[kind](_sizes(spec.shape))).astype(spec.dtype)
        feeds.append(feed)
    return feeds, (
        f"random: {want.samples} feeds of normal noise, seed {want.seed}. WARNING: noise is not "
        "your data; ranges and transforms fitted to it may be wrong: give an .npz"
    )


def _sizes(shape: tuple[int | str | None, ...]) -> tuple[int, ...]:
    """Sizes for open dimensions: batch 1, image sides 224, anything else 16."""
    image = 4
    side = 224 if len(shape) == image else 16
    return tuple(
        size if isinstance(size, int) else 1 if axis == 0 else side
        for axis, size in enumerate(shape)
    )
