"""Where calibration data comes from: one spec string, checked against the model it feeds.

| spec | data |
| --- | --- |
| `random-tokens` | tokens drawn uniformly from the vocabulary, none special |
| `self` | text the model itself samples, from its begin-of-text token and a drawn word on |
| `pydoc:first`, `pydoc:second` | halves of the English text every Python ships |
| a text or `.jsonl` file | its text through the model's tokenizer |
| an `.npz` file or a directory of them | arrays named after the model's inputs |
| `random` | noise, ids and masks for models of any other kind: ranges, not meaning (`defaults`) |
| several with `+` between | these in turn, with an equal share of the samples each |

Without a spec it is what the recipe names, or `random-tokens`, or `random` for models that are no
language models: see `default_spec`.

No feed holds padding: statistics are over all positions, and count what a mask hides.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from qcompiler.calibration import texts
from qcompiler.calibration.arrays import array_names, load_arrays
from qcompiler.calibration.branches import for_both_branches
from qcompiler.calibration.budget import require_room
from qcompiler.calibration.defaults import Defaults
from qcompiler.calibration.handed import joined
from qcompiler.calibration.texts import Feed
from qcompiler.errors import CalibrationError, ModelError
from qcompiler.evaluation.texts import MAX_BYTES, PYDOC, read_text
from qcompiler.feeds import IDS, Array, Signature
from qcompiler.lookups import Lookups
from qcompiler.models import ModelPackage

_MOST_BYTES = 4 << 30
"""Of a model that writes text by default: for that it lies in memory whole, and each token takes as
long as reading all of it."""


@dataclass(frozen=True)
class CalibrationData:
    """Feeds for every input of a model, where they came from, and a digest of their contents."""

    feeds: Sequence[Feed]
    description: str
    sha256: str

    def __len__(self) -> int:
        return len(self.feeds)


def default_spec(
    package: ModelPackage, preferred: str | None = None, handed: Collection[str] = ()
) -> str:
    """The source to use when the user names none.

    `preferred` is what a recipe would have; it needs a model that reads tokens, and its tokenizer.
    `handed`: inputs that other models give.
    """
    left = Signature.of(package).without(handed)
    if left.kind == "other":
        return "random"
    if preferred is None or package.tokenizer_file is None:
        return "random-tokens"
    writes = _writes(package, left, handed)
    kept = [part for part in parts_of(preferred) if part != "self" or writes]
    return "+".join(kept) or "random-tokens"


def _writes(package: ModelPackage, left: Signature, handed: Collection[str]) -> bool:
    """Whether a model is to write text for its own calibration where nobody asked for it."""
    return _continues(left) and not handed and package.size_bytes() <= _MOST_BYTES


def _continues(signature: Signature) -> bool:
    """Whether a model can generate text by steps of one token."""
    ids = signature.input(IDS)
    fixed = ids is not None and any(isinstance(size, int) for size in ids.shape or ())
    return signature.kind == "decoder" and bool(signature.caches) and not fixed


def parts_of(spec: str) -> list[str]:
    """The sources of a mixture, or the one that a spec names: a file may have a + in its name."""
    return [spec] if Path(spec).exists() else spec.split("+")


def suits(spec: str | Path, package: ModelPackage, handed: Collection[str] = ()) -> bool:
    """Whether a source that is meant for several models is for this one, of which others give the
    inputs `handed`.

    CalibrationError for an .npz file that can't be read.
    """
    left = Signature.of(package).without(handed)
    if brought := arrays_in(spec):
        return not brought.isdisjoint(each.name for each in left.inputs)
    if "self" in parts_of(str(spec)):
        return left.kind == "decoder" and not handed
    return (left.kind == "other") == (str(spec) == "random")


def require_source(spec: str | Path) -> None:
    """CalibrationError where a source is neither known by name nor a file or folder.

    Whether an .npz can be read is found when it is.
    """
    known = ("random-tokens", "self", "random", *PYDOC)
    parts = parts_of(str(spec))
    for part in parts:
        if not part:
            raise CalibrationError(
                f"a calibration source of '{spec}' is empty"
                if len(parts) > 1
                else "the calibration source is empty; leave --calib out for the default"
            )
        path = Path(part)
        if part not in known and not path.is_file() and not _holds_arrays(path):
            raise CalibrationError(
                f"no calibration source '{part}': neither a file nor a folder, nor one of "
                f"{', '.join(known)}"
            )


def arrays_in(spec: str | Path) -> frozenset[str]:
    """The inputs that a source has arrays for; CalibrationError for an .npz that can't be read."""
    files = [Path(part) for part in parts_of(str(spec)) if _holds_arrays(Path(part))]
    return frozenset[str]().union(*map(array_names, files))


def _holds_arrays(path: Path) -> bool:
    return path.suffix == ".npz" or path.is_dir()


def load_source(
    spec: str | Path,
    package: ModelPackage,
    *,
    samples: int = 32,
    length: int = 512,
    seed: int = 0,
    held_back: int = 0,
    like: Sequence[Mapping[str, Array]] = (),
    handed: Sequence[Mapping[str, Array]] = (),
    others: frozenset[str] = frozenset(),
) -> CalibrationData:
    """Build at most `samples` feeds of at most `length` tokens from `spec` (see the module).

    `held_back` of the samples come beside those that were asked for. `length` is cut to what the
    model can read. Noise is `like` other feeds where there are some, in sizes, mean and spread.
    `handed` is what other models give to this one, sample by sample: the source feeds the rest. An
    .npz may hold arrays for the inputs `others` of these. The same arguments give the same data.
    Raises CalibrationError, naming the input or the file, when the data is missing, malformed, too
    little or too large, or does not fit the model.
    """
    if samples < 1 or length < 2:
        raise CalibrationError(f"{samples} samples of {length} tokens: need at least 1 of 2")
    if seed < 0:
        raise CalibrationError(f"the seed must not be negative, as {seed} is")
    whole, lookups = Signature.of(package), Lookups.of(package.outline)
    left = whole.without(handed[0]) if handed else whole
    source = str(spec)
    request = texts.Request(
        package, left, lookups, samples, length, seed, held_back, like, handed, others
    )
    try:
        require_source(source)
        parts = parts_of(source)
        feeds, description = _mixed(parts, request.fitted())
        if handed:
            feeds = joined(feeds, handed, whole)
        if not any(_holds_arrays(Path(part)) for part in parts):
            feeds = for_both_branches(feeds, package, whole)
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


def _mixed(parts: Sequence[str], want: texts.Request) -> tuple[list[Feed], str]:
    """Feeds of the sources in turn: the first few are of all, and so are the last."""
    if {"random-tokens", "self"} & set(parts) and want.signature.kind != "other":
        require_room(
            [(want.batch, want.length)] * len(want.signature.inputs),
            want.samples,
            want.held_back,
            "give a smaller --calib-length",
        )
    shares = [len(range(first, want.samples, len(parts))) for first in range(len(parts))]
    found = [
        _load(part, replace(want, samples=share))
        for part, share in zip(parts, shares, strict=True)
        if share
    ]
    turns = itertools.zip_longest(*(feeds for feeds, _ in found))
    feeds = [feed for turn in turns for feed in turn if feed is not None]
    return feeds, "; ".join(description for _, description in found)


def _load(spec: str, want: texts.Request) -> tuple[list[Feed], str]:
    path = Path(spec)
    if _holds_arrays(path):
        return _varied(
            *load_arrays(path, want.signature, want.lookups.rows, want.samples, want.others)
        )
    if spec == "random":
        return _random(want)
    if want.signature.kind == "other":
        raise CalibrationError(
            f"{want.package.onnx_path} reads no token ids, or not them alone, so '{spec}' "
            "can't feed it; give an .npz with arrays named after its inputs, or 'random'"
        )
    if spec == "random-tokens":
        return texts.random_tokens(want)
    if spec == "self":
        return texts.own(want)
    text = read_text(spec, CalibrationError)
    part = ""
    if path.is_file() and path.stat().st_size > MAX_BYTES:
        part = f", from its first {MAX_BYTES >> 20} MiB"
    windows = want.signature.kind == "decoder" or want.fixed
    build = texts.windows if windows else texts.batches
    feeds, description = build(text, want)
    return feeds, f"{spec}: {description}{part}"


def _random(want: texts.Request) -> tuple[list[Feed], str]:
    if want.signature.kind != "other":
        raise CalibrationError(
            "'random' is for models other than language models; use random-tokens"
        )
    rng = np.random.default_rng(want.seed)
    whole = Signature.of(want.package)
    given = [
        Defaults(whole, want.lookups, length=want.length, given=each)
        for each in want.handed or ({},)
    ]
    for each in given:
        require_room(
            each.shapes,
            want.samples,
            want.held_back,
            "export the model for smaller inputs, or with open sizes",
        )
    like = want.like or (None,)
    pairs = zip(itertools.cycle(given), itertools.cycle(like), range(want.samples))
    feeds = [each.draw(rng, other) for each, other, _ in pairs]
    told = f"random: {want.samples} feeds of {given[0].description or 'nothing'}, seed {want.seed}"
    if given[0].meaningless or not want.handed:
        told += (
            ". WARNING: noise is not your data; ranges and transforms fitted to it may be wrong: "
            "give an .npz"
        )
    return feeds, told


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
