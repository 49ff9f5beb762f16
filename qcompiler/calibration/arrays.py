"""Calibration feeds from .npz files, checked against the model's inputs."""

from __future__ import annotations

from collections.abc import Mapping, Set
from pathlib import Path

import numpy as np

from qcompiler.archives import npz_names, read_npz
from qcompiler.calibration.budget import MOST_BYTES
from qcompiler.errors import CalibrationError
from qcompiler.feeds import IDS, MASK, POSITIONS, TYPES, Array, Signature, TensorSpec, untensored
from qcompiler.files import told_bytes

_BATCH = 8
"""Samples a feed, where the model's batch axis is open: bounds the activations in memory."""


def load_arrays(
    path: Path,
    signature: Signature,
    rows: Mapping[str, int],
    samples: int,
    others: Set[str] = frozenset(),
) -> tuple[list[dict[str, Array]], str]:
    """At most `samples` feeds from an .npz file or a directory of them (in order of name).

    An array has its input's rank (one feed, cut along an open batch axis) or one axis more (feeds
    stacked along the first); where a rank is unknown, a file is one feed. Language models need
    `input_ids` only; the rest is derived. Texts that `attention_mask` says are padded become feeds
    of their own without the padding, where the model's sizes are open. `rows`: by input, how many
    ids there are, where that is known. Arrays for `others`, inputs of other models, are
    passed over.

    Raises CalibrationError naming the file and the input that does not fit.
    """
    files = sorted(path.glob("*.npz")) if path.is_dir() else [path]
    if not files:
        raise CalibrationError(f"{path}: the directory holds no .npz file")
    feeds: list[dict[str, Array]] = []
    room = MOST_BYTES
    for file in files:
        if len(feeds) > samples:
            break
        found = _file_feeds(file, signature, rows, room, others)
        room -= sum(value.nbytes for feed in found for value in feed.values())
        if room < 0:
            raise CalibrationError(
                f"{path}: its first {len(feeds) + len(found)} samples take more than the "
                f"{told_bytes(MOST_BYTES)} that may be held in memory; give fewer"
            )
        feeds.extend(found)
    if not feeds:
        raise CalibrationError(f"{path}: its arrays are empty")
    used = feeds[:samples]
    more = f" of {len(feeds)} or more" if len(feeds) > samples else ""
    return used, f"{path}: {len(used)}{more} feeds from {len(files)} file(s)"


def array_names(path: Path) -> frozenset[str]:
    """The names of the arrays in an .npz file, or in the first of a directory of them."""
    file = min(path.glob("*.npz"), default=path) if path.is_dir() else path
    return frozenset(npz_names(file, CalibrationError))


def _file_feeds(
    file: Path, signature: Signature, rows: Mapping[str, int], room: int, others: Set[str]
) -> list[dict[str, Array]]:
    arrays = read_npz(file, room, CalibrationError)
    specs = {spec.name: spec for spec in signature.inputs}
    arrays = {name: array for name, array in arrays.items() if name in specs or name not in others}
    for name in arrays:
        if name not in specs:
            raise CalibrationError(
                f"{file}: the model has no input '{name}'; it has {', '.join(specs)}"
            )
    derived = set()
    if signature.kind != "other" and IDS in arrays:
        derived = {MASK, POSITIONS, TYPES, *(cache.past for cache in signature.caches)}
        derived |= specs.keys() - arrays.keys() - {IDS}
    for name in specs:
        if name not in arrays and name not in derived:
            raise CalibrationError(f"{file}: no array for input '{name}'")
    checked = {name: _check(file, specs[name], array) for name, array in arrays.items()}
    size = rows.get(IDS)
    if size is not None and IDS in checked:
        ids = checked[IDS]
        if ids.size and (ids.min() < 0 or ids.max() >= size):
            raise CalibrationError(f"{file}: input '{IDS}' has ids outside [0, {size})")
    feeds = _split(file, checked, specs)
    if derived:
        feeds = [{**signature.feeds(feed[IDS], feed.get(MASK)), **feed} for feed in feeds]
    sizes = [size for spec in signature.inputs for size in spec.shape or ()]
    if signature.kind == "other" or any(isinstance(size, int) and size != 1 for size in sizes):
        return feeds
    return [text for feed in feeds for text in _unpadded(feed)]


def _unpadded(feed: dict[str, Array]) -> list[dict[str, Array]]:
    """The texts of a padded batch one by one, without their padding; other feeds as they are."""
    mask = feed.get(MASK)
    if mask is None or mask.all() or any(value.shape != mask.shape for value in feed.values()):
        return [feed]
    kept = [(row, np.flatnonzero(keep)) for row, keep in enumerate(mask)]
    return [
        {name: value[row : row + 1, places] for name, value in feed.items()}
        for row, places in kept
        if len(places)
    ]


def _check(file: Path, spec: TensorSpec, array: Array) -> Array:
    where = f"{file}: input '{spec.name}'"
    if spec.dtype is None:
        raise CalibrationError(untensored(spec))
    wanted = (None,) * array.ndim if spec.shape is None else spec.shape
    rank = len(wanted)
    if array.ndim not in (rank, rank + 1):
        raise CalibrationError(
            f"{where} has rank {array.ndim}; the model's has {rank} (or {rank + 1}, stacked)"
        )
    shape = array.shape[array.ndim - rank :]
    for axis, (have, want) in enumerate(zip(shape, wanted, strict=True)):
        cut = axis == 0 and array.ndim == rank and isinstance(want, int) and have % want == 0
        if isinstance(want, int) and have != want and not (cut and have):
            raise CalibrationError(f"{where} has shape {array.shape}; the model's is {spec.shape}")
    custom = spec.dtype.kind == "V" or spec.dtype.name == "bfloat16"
    same_kind = (
        array.dtype.kind == "f" if custom else np.can_cast(array.dtype, spec.dtype, "same_kind")
    )
    if not same_kind:
        raise CalibrationError(f"{where} has dtype {array.dtype}; the model's is {spec.dtype}")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise CalibrationError(f"{where} holds NaN or infinite values")
    return array.astype(spec.dtype, copy=False)


def _split(
    file: Path, arrays: Mapping[str, Array], specs: Mapping[str, TensorSpec]
) -> list[dict[str, Array]]:
    if any(specs[name].rank is None for name in arrays):
        return [dict(arrays)]
    ranks = {name: specs[name].rank or 0 for name in arrays}
    stacked = {name for name, array in arrays.items() if array.ndim > ranks[name]}
    if stacked and len(stacked) < len(arrays):
        odd = next(name for name in arrays if name not in stacked)
        raise CalibrationError(f"{file}: input '{odd}' is not stacked, but the others are")
    counts = {name: array.shape[0] for name, array in arrays.items() if array.ndim}
    if stacked:
        _same_count(file, counts)
        total = next(iter(counts.values()))
        return [
            {name: np.asarray(array[i]) for name, array in arrays.items()} for i in range(total)
        ]
    if not counts or any(rank == 0 for rank in ranks.values()) or len(set(counts.values())) > 1:
        return [dict(arrays)]
    firsts = [shape[0] for name in arrays if (shape := specs[name].shape)]
    fixed = [size for size in firsts if isinstance(size, int)]
    step = min(fixed) if fixed else _BATCH
    total = next(iter(counts.values()))
    return [
        {name: array[start : start + step] for name, array in arrays.items()}
        for start in range(0, total, max(step, 1))
    ]


def _same_count(file: Path, counts: Mapping[str, int]) -> None:
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{name}: {count}" for name, count in counts.items())
        raise CalibrationError(f"{file}: the inputs have different numbers of feeds ({listed})")
