"""Where calibration data comes from: one spec string, checked against the model it feeds.

| spec | data |
| --- | --- |
| `random-tokens` | tokens drawn uniformly from the vocabulary, none special |
| `self` | text the model itself samples, starting from its begin-of-text token |
| `pydoc:first`, `pydoc:second` | halves of the English text every Python ships |
| a text or `.jsonl` file | its text through the model's tokenizer |
| an `.npz` file or a directory of them | arrays named after the model's inputs |
| `random` | noise, ids and masks for models of any other kind: ranges, not meaning (`defaults`) |

Without a spec it is what the recipe names, or `random-tokens`, or `random` for models that are no
language models: see `default_spec`.

No feed holds padding: statistics are over all positions, and count what a mask hides.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from qcompiler.calibration.arrays import load_arrays
from qcompiler.calibration.defaults import Defaults
from qcompiler.calibration.draws import with_fixed_seeds
from qcompiler.decoding import Decoder
from qcompiler.errors import CalibrationError, ModelError
from qcompiler.evaluation.embeddings import token_rows
from qcompiler.evaluation.texts import MAX_BYTES, PYDOC, read_text, sentences
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

    `length` is cut to what the model can read. Noise is `like` other feeds where there are some, in
    sizes, mean and spread. The same arguments give the same data. Raises CalibrationError, naming
    the input or the file, when the data is missing, malformed, too little, or does not fit the
    model.
    """
    if samples < 1 or length < 2:
        raise CalibrationError(f"{samples} samples of {length} tokens: need at least 1 of 2")
    if seed < 0:
        raise CalibrationError(f"the seed must not be negative, as {seed} is")
    signature, lookups = Signature.of(package), Lookups.of(package.proto())
    source = str(spec)
    request = _Request(package, signature, lookups, samples, length, seed, like)
    try:
        feeds, description = _load(source, request.fitted())
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
            sha.update((array.astype(str) if array.dtype.kind == "O" else array).tobytes())
    return sha.hexdigest()


@dataclass(frozen=True)
class _Request:
    package: ModelPackage
    signature: Signature
    lookups: Lookups
    samples: int
    length: int
    seed: int
    like: Sequence[Mapping[str, Array]] = ()
    batch: int = 1
    """Texts of a feed, where each has its own."""

    def fitted(self) -> _Request:
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


def _load(spec: str, want: _Request) -> tuple[list[Feed], str]:
    path = Path(spec)
    if not spec:
        raise CalibrationError("the calibration source is empty; leave --calib out for the default")
    if path.suffix == ".npz" or path.is_dir():
        return _varied(*load_arrays(path, want.signature, want.lookups.rows, want.samples))
    if spec == "random":
        return _random(want)
    if want.signature.kind == "other":
        raise CalibrationError(
            f"{want.package.onnx_path} reads no token ids, or not them alone, so '{spec}' "
            "can't feed it; give an .npz with arrays named after its inputs, or 'random'"
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
    windows = want.signature.kind == "decoder" or want.fixed
    build = _windows if windows else _encoder_text
    feeds, description = build(text, want)
    return feeds, f"{spec}: {description}{part}"


def _windows(text: str, want: _Request) -> tuple[list[Feed], str]:
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


def _frame(want: _Request) -> tuple[list[int], list[int]]:
    """What goes before and after a text; a decoder's goes on."""
    lead, tail = want.package.frame()
    return lead, [] if want.signature.kind == "decoder" else tail


def _fed(rows: Sequence[Sequence[int]], want: _Request) -> list[Feed]:
    """Feeds of texts of one length, as many in each as the model takes."""
    batches = [rows[start : start + want.batch] for start in range(0, len(rows), want.batch)]
    return [want.signature.feeds(np.array(batch, np.int64)) for batch in batches]


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


def _self(want: _Request) -> tuple[list[Feed], str]:
    if want.signature.kind != "decoder":
        raise CalibrationError("'self' needs a model that generates text; use random-tokens")
    session = create_session(want.package.onnx_path, model=with_fixed_seeds(want.package.proto()))
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
        raise CalibrationError(
            "'random' is for models other than language models; use random-tokens"
        )
    rng = np.random.default_rng(want.seed)
    defaults = Defaults(want.signature, want.lookups, length=want.length)
    given = want.like or (None,)
    feeds = [defaults.draw(rng, given[index % len(given)]) for index in range(want.samples)]
    return feeds, (
        f"random: {want.samples} feeds of {defaults.description}, seed {want.seed}. WARNING: noise "
        "is not your data; ranges and transforms fitted to it may be wrong: give an .npz"
    )


def _varied(feeds: list[Feed], description: str) -> tuple[list[Feed], str]:
    """Feeds with their description, which warns where they hardly vary."""
    still = [
        name
        for name, value in feeds[0].items()
        if value.dtype.kind == "f"
        and value.size > 1
        and all(feed[name].size and (feed[name] == value.flat[0]).all() for feed in feeds)
    ]
    if len(feeds) > 1 and len({digest([feed]) for feed in feeds}) == 1:
        description += ". WARNING: all samples are the same"
    elif still:
        named = " and ".join(f"'{name}'" for name in still)
        description += f". WARNING: {named} never changes; real data would"
    return feeds, description
