"""Samples for both branches of a decoder that holds two: for a text's beginning, and to go on.

Optimum's `decoder_model_merged.onnx` chooses by the input `use_cache_branch`. A sample that begins
takes one branch. Every second one is cut in two: the float model reads its first half, and the
sample is what is left, with the caches that this gave.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qcompiler.calibration.budget import MOST_BYTES
from qcompiler.calibration.draws import with_fixed_seeds
from qcompiler.errors import CalibrationError
from qcompiler.feeds import BRANCH, IDS, MASK, POSITIONS, TYPES, Array, Signature
from qcompiler.foreign import runtime_errors
from qcompiler.models import ModelPackage
from qcompiler.session import create_session

Feed = dict[str, Array]

_BY_TOKEN = (IDS, MASK, POSITIONS, TYPES)
_ROOM = MOST_BYTES // 4
"""Bytes that the caches of all samples may take; those beyond stay beginnings."""


def for_both_branches(
    feeds: Sequence[Feed], package: ModelPackage, signature: Signature
) -> list[Feed]:
    """The feeds, every second one as it goes on, where the model has a branch for that.

    CalibrationError where the model does not run on a beginning.
    """
    made = list(feeds)
    if signature.input(BRANCH) is None or not signature.caches:
        return made
    proto = with_fixed_seeds(package.proto())
    session = create_session(package.onnx_path, model=proto)
    presents = [cache.present for cache in signature.caches]
    room = _ROOM
    for place in range(len(feeds) - 1, -1, -2):  # the last ones are held back: one of each kind
        feed = feeds[place]
        if not _divides(feed, signature):
            continue
        half = feed[IDS].shape[1] // 2
        first = {name: each[:, :half] if name in _BY_TOKEN else each for name, each in feed.items()}
        with runtime_errors(CalibrationError, "the model does not run on the data"):
            caches = [np.asarray(cache) for cache in session.run(presents, first)]
        room -= sum(cache.nbytes for cache in caches)
        if room < 0:
            break
        rest = {
            name: each[:, half:] if name in _BY_TOKEN and name != MASK else each
            for name, each in feed.items()
        }
        rest[BRANCH] = np.ones_like(feed[BRANCH])
        pasts = [cache.past for cache in signature.caches]
        made[place] = rest | dict(zip(pasts, caches, strict=True))
    return made


def _divides(feed: Feed, signature: Signature) -> bool:
    """Whether a sample is a text's beginning, of a length that is free."""
    ids = signature.input(IDS)
    if ids is None or ids.shape is None or isinstance(ids.shape[-1], int):
        return False
    return not feed[BRANCH].any() and feed[IDS].ndim == len(ids.shape) and feed[IDS].shape[1] > 1
