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
import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
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
from qcompiler.feeds import Array, Signature
from qcompiler.lookups import Lookups
from qcompiler.models import ModelPackage


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
    if Signature.of(package).without(handed).kind == "other":
        return "random"
    return preferred if preferred and package.tokenizer_file is not None else "random-tokens"


def suits(spec: str | Path, package: ModelPackage, handed: Collection[str] = ()) -> bool:
    """Whether a source that is meant for several models is for this one, of which others give the
    inputs `handed`.

    CalibrationError for an .npz file that can't be read.
    """
    left = Signature.of(package).without(handed)
    if _holds_arrays(Path(spec)):
        return not arrays_in(spec).isdisjoint(each.name for each in left.inputs)
    if str(spec) == "self":
        return left.kind == "decoder" and not handed
    return (left.kind == "other") == (str(spec) == "random")


def require_source(spec: str | Path) -> None:
    """CalibrationError where a source is neither known by name nor a file or folder.

    Whether an .npz can be read is found when it is.
    """
    known = ("random-tokens", "self", "random", *PYDOC)
    if not str(spec):
        raise CalibrationError("the calibration source is empty; leave --calib out for the default")
    path = Path(spec)
    if str(spec) not in known and not path.is_file() and not _holds_arrays(path):
        raise CalibrationError(
            f"no calibration source '{spec}': neither a file nor a folder, nor one of "
            f"{', '.join(known)}"
        )


def arrays_in(spec: str | Path) -> frozenset[str]:
    """The inputs that a source has arrays for; CalibrationError for an .npz that can't be read."""
    return array_names(Path(spec)) if _holds_arrays(Path(spec)) else frozenset()


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
        feeds, description = _load(source, request.fitted())
        if handed:
            feeds = joined(feeds, handed, whole)
        if not _holds_arrays(Path(source)):
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


def _load(spec: str, want: texts.Request) -> tuple[list[Feed], str]:
    path = Path(spec)
    require_source(spec)
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
    if spec in ("random-tokens", "self"):
        shape = (want.batch, want.length)
        require_room(
            [shape] * len(want.signature.inputs),
            want.samples,
            want.held_back,
            "give a smaller --calib-length",
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
