"""Default values for the inputs of any model: what each input is, as far as graph and name tell.

| input | values |
| --- | --- |
| floats | normal noise; a second of it where the input is a wave |
| integers that index a table | drawn from its rows |
| words that the model knows | drawn from these |
| "mask" in the name, or compared and indexing nothing | ones: nothing is masked |
| "position" in the name | 0, 1, 2 .. |
| "token_type" or "segment" in the name | zeros |
| "len" in the name | the length of what it goes with |
| key/value caches | empty |
| other integers | 0 or 1, a guess |
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from qcompiler.errors import CalibrationError
from qcompiler.feeds import SWITCHES, Array, Signature, TensorSpec, untensored
from qcompiler.lookups import Lookups

Role = Literal[
    "noise", "ids", "words", "ones", "positions", "zeros", "lengths", "cache", "switch", "guess"
]
Shape = tuple[int, ...]

TOKENS = 64
"""Tokens of a text where the graph has no table of positions: how many it reads is not known."""
_OTHER, _IMAGE = 16, 224  # open sizes of sequences, and of the sides of images
_SOUND = 16_000  # open sizes of waves: a second, for most models
_CHANNELS = 3
_IMAGE_RANK = 4
_LENGTH = re.compile(r"(^|_)len(s|gths?)?($|_)|length")
_TOKEN_ROLES = ("ids", "positions", "zeros")
_FOLLOWING = ("ones", "lengths")
_DRAWN = ("noise", "ids", "words", "guess")


@dataclass(frozen=True)
class _Input:
    """One input, and what it is taken for."""

    spec: TensorSpec
    shape: tuple[int | str | None, ...]
    dtype: np.dtype[Any]
    role: Role
    rows: int = 2
    """Integers are below it."""
    words: Sequence[str] = ()

    @property
    def name(self) -> str:
        return self.spec.name


def _is_wave(each: _Input) -> bool:
    """Whether an input is [samples, time], or that with one or two channels between.

    Features have a size; a convolution over time has no result for a few points.
    """
    *lead, last = each.shape
    channels = lead[1:]
    return each.role == "noise" and not isinstance(last, int) and channels in ([], [1], [2])


class Defaults:
    """Draws feeds for a model of any kind."""

    def __init__(
        self,
        signature: Signature,
        lookups: Lookups,
        *,
        length: int,
        given: Mapping[str, Array] | None = None,
    ) -> None:
        """`length` of texts, at most. `given`: inputs that are known, whose sizes hold for others.

        CalibrationError for an input that can't be drawn.
        """
        self._signature = signature
        self._given = given or {}
        self._inputs = [_read(spec, signature, lookups) for spec in signature.inputs]
        self._tokens = min(length, lookups.positions or TOKENS)
        self._sizes = self._open_sizes()

    def draw(
        self, rng: np.random.Generator, like: Mapping[str, Array] | None = None
    ) -> dict[str, Array]:
        """One feed. `like` another: of its sizes, with ids and noise alone drawn anew."""
        given = {**(like or {}), **self._given}
        shapes = {
            each.name: given[each.name].shape if each.name in given else self._shape(each)
            for each in self._inputs
        }
        return {
            each.name: self._given[each.name]
            if each.name in self._given
            else given[each.name]
            if each.name in given and not _redrawn(each, given[each.name])
            else self._drawn(each, shapes, rng, given.get(each.name))
            for each in self._inputs
        }

    @property
    def shapes(self) -> list[Shape]:
        """The shapes of what is drawn for one feed."""
        return [self._shape(each) for each in self._drawn_inputs() if each.role != "cache"]

    @property
    def meaningless(self) -> bool:
        """Whether there is anything that real data would have other values for."""
        return any(each.role in _DRAWN for each in self._drawn_inputs())

    @property
    def description(self) -> str:
        """What the inputs are taken for that are drawn."""
        named: dict[str, list[str]] = {}
        for each in self._drawn_inputs():
            below = f" below {each.rows}" if each.role == "ids" else ""
            named.setdefault(_TOLD.get(each.role, each.role) + below, []).append(f"'{each.name}'")
        if list(named) == [_TOLD["noise"]]:
            return _TOLD["noise"]
        return ", ".join(f"{told} for {' and '.join(names)}" for told, names in named.items())

    def _drawn_inputs(self) -> list[_Input]:
        return [each for each in self._inputs if each.name not in self._given]

    def _open_sizes(self) -> dict[object, int]:
        """Sizes of open dimensions: by symbol, or by input and axis where there is none."""
        sizes: dict[object, int] = {}
        for each in self._inputs:
            if each.name in self._given:
                for axis, size in enumerate(self._given[each.name].shape):
                    sizes.setdefault(_key(each, axis), size)
        first = [each for each in self._inputs if each.role in _TOKEN_ROLES]
        last = [each for each in self._inputs if each.role in _FOLLOWING]
        others = [each for each in self._inputs if each not in first and each not in last]
        for each in (*first, *others, *last):
            for axis, size in enumerate(each.shape):
                if not isinstance(size, int):
                    sizes.setdefault(_key(each, axis), self._size(each, axis, sizes))
        return sizes

    def _size(self, each: _Input, axis: int, known: Mapping[object, int]) -> int:
        symbol = str(each.shape[axis] or "").lower()
        if "batch" in symbol or (axis == 0 and "seq" not in symbol):
            return 1
        if each.role in _TOKEN_ROLES:
            return self._tokens
        if each.role == "ones" and (other := self._companion(each)) is not None:
            place = _time_axis(other)
            size = other.shape[place]
            return size if isinstance(size, int) else known.get(_key(other, place), self._tokens)
        if len(each.shape) == _IMAGE_RANK:
            return _CHANNELS if axis == 1 and "channel" in symbol else _IMAGE
        return _SOUND if _is_wave(each) else _OTHER

    def _companion(self, each: _Input) -> _Input | None:
        """The input that a mask or a length goes with: the one whose name is most like its own."""
        others = [
            other
            for other in self._inputs
            if other.role in ("ids", "noise") and len(other.shape) > 1
        ]
        others.sort(key=lambda other: other.role != "ids")
        return max(
            others,
            key=lambda other: _alike(each.name, other.name),
            default=None,
        )

    def _shape(self, each: _Input) -> Shape:
        return tuple(
            size if isinstance(size, int) else self._sizes[_key(each, axis)]
            for axis, size in enumerate(each.shape)
        )

    def _drawn(
        self,
        each: _Input,
        shapes: Mapping[str, Shape],
        rng: np.random.Generator,
        like: Array | None,
    ) -> Array:
        shape = shapes[each.name]
        match each.role:
            case "noise":
                values = _spread_like(rng.standard_normal(shape), like)
            case "ids" | "guess":
                values = rng.integers(0, each.rows, shape)
            case "words":
                values = np.array(each.words, object)[rng.integers(0, len(each.words), shape)]
            case "ones":
                values = np.ones(shape)
            case "positions":
                count = shape[-1] if shape else 1
                values = np.broadcast_to(np.arange(count) % each.rows, shape)
            case "zeros":
                values = np.zeros(shape)
            case "lengths":
                other = self._companion(each)
                values = np.full(
                    shape, 1 if other is None else shapes[other.name][_time_axis(other)]
                )
            case "switch":
                values = np.full(shape, SWITCHES[each.name])
            case "cache":
                cache = next(c for c in self._signature.caches if c.past == each.name)
                batch = next(iter(shapes.values()), (1,))
                values = cache.empty(batch[0] if batch else 1)
        return np.asarray(values).astype(each.dtype)


_TOLD: Mapping[str, str] = {
    "noise": "normal noise",
    "ids": "ids",
    "words": "known words",
    "lengths": "full lengths",
    "cache": "nothing",
    "switch": "the default",
    "guess": "0 or 1, a guess,",
}


def _read(spec: TensorSpec, signature: Signature, lookups: Lookups) -> _Input:
    """What an input is; CalibrationError where nothing can be drawn for it."""
    name = spec.name.lower()
    if spec.dtype is None:
        raise CalibrationError(untensored(spec))
    floats = spec.dtype.kind == "f" or spec.dtype.name == "bfloat16"
    kind = "f" if floats else spec.dtype.kind
    rows, words = lookups.rows.get(spec.name), lookups.words.get(spec.name, ())
    drawable = kind in "fiub" or (kind == "O" and words)
    if spec.shape is None or not drawable:
        raise CalibrationError(
            f"input '{spec.name}' can't be drawn at random: give an .npz with '{spec.name}' in it"
        )

    def taken(role: Role) -> _Input:
        assert spec.shape is not None and spec.dtype is not None  # else it is refused above
        return _Input(spec, spec.shape, spec.dtype, role, rows or 2, words)

    if words:
        return taken("words")
    if any(cache.past == spec.name for cache in signature.caches):
        return taken("cache")
    if spec.name in SWITCHES:
        return taken("switch")
    if "mask" in name:
        return taken("ones")
    if kind in "fb":
        return taken("noise" if kind == "f" else "guess")
    if "position" in name:
        positions = rows or lookups.positions or np.iinfo(np.int32).max
        return _Input(spec, spec.shape, spec.dtype, "positions", positions)
    if "token_type" in name or "segment" in name:
        return taken("zeros")
    if rows is not None:
        return taken("ids")
    if _LENGTH.search(name):
        return taken("lengths")
    return taken("ones" if spec.name in lookups.compared else "guess")


def _key(each: _Input, axis: int) -> object:
    """One open size of the model: a symbol is the same everywhere."""
    return each.shape[axis] or (each.name, axis)


def _alike(one: str, other: str) -> int:
    """How many letters two names begin with together."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))


def _time_axis(each: _Input) -> int:
    """The axis of a sequence: the first open one behind the batch."""
    opened = [axis for axis, size in enumerate(each.shape) if axis and not isinstance(size, int)]
    return opened[0] if opened else 1


def _redrawn(each: _Input, like: Array) -> bool:
    """Whether other data has other values: a number by itself, or a mask, is a setting."""
    return each.role == "ids" or (each.role == "noise" and like.size > 1)


def _spread_like(noise: Array, like: Array | None) -> Array:
    """Noise with the mean and the spread of other values, where these vary."""
    if like is None or not float(like.astype(np.float64).std()) > 0.0:
        return noise
    values = like.astype(np.float64)
    return noise * values.std() + values.mean()
