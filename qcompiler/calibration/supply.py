"""Calibration data as passes ask for it: loaded when the first one does, some kept from them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.autodiff import divergence_probe, gradients
from qcompiler.calibration.handed import Handed
from qcompiler.calibration.observe import observe
from qcompiler.calibration.probe import probe
from qcompiler.calibration.sources import CalibrationData, load_source
from qcompiler.calibration.statistics import Statistics
from qcompiler.calibration.stream import stream
from qcompiler.models import ModelPackage

Progress = Callable[[str, int, int], None]
Feed = Mapping[str, np.ndarray[Any, Any]]

_PROBED = 3  # samples
_SHORT = 128  # tokens
_SEED = 0  # of the probes that gradients are taken of


@dataclass(frozen=True)
class FeedData:
    """Data for passes from feeds at hand."""

    feeds: Sequence[Feed]
    source: str
    """What they are, for the statistics."""
    progress: Callable[[int], None] | None = None
    """Called with the number of feeds that observers have seen."""

    def observe(self, graph: gs.Graph, names: Sequence[str]) -> Statistics:
        """Statistics of activations."""
        return observe(graph, names, self.feeds, source=self.source, progress=self.progress)

    def stream(
        self, graph: gs.Graph, names: Sequence[str], share: float = 1.0
    ) -> Iterator[Sequence[np.ndarray[Any, Any]]]:
        """Values of activations, one after the other, over the first feeds: at least `share` of
        them."""
        return stream(graph, names, self.feeds[: math.ceil(share * len(self.feeds))])

    def gradients(
        self, graph: gs.Graph, names: Sequence[str], output: str, most: int | None = None
    ) -> Iterator[tuple[str, Sequence[np.ndarray[Any, Any]]]]:
        """Gradients at activations of a probe of the divergence at an output, over all feeds or
        `most` of them."""
        return gradients(graph, names, output, self.feeds[:most], divergence_probe(_SEED))

    def probe(
        self,
        graph: gs.Graph,
        output: str,
        names: Sequence[str],
        variants: Iterable[Mapping[str, np.ndarray[Any, Any]]],
    ) -> Iterator[list[np.ndarray[Any, Any]]]:
        """An output for other values of constants, over the first tokens of a few feeds."""
        return probe(graph, output, names, short(self.feeds[:_PROBED], graph), variants)


class Supply:
    """Loads the calibration source when a pass first asks, and keeps some of it back."""

    def __init__(
        self,
        package: ModelPackage,
        spec: str | Path,
        *,
        samples: int,
        length: int,
        seed: int,
        held_back: int = 0,
        usual: str | None = None,
        progress: Progress | None = None,
        handed: Handed | None = None,
        others: frozenset[str] = frozenset(),
    ) -> None:
        """`held_back` samples are loaded beside, and kept from the passes.

        `usual` is the source that the model has by default. `handed` is what other models of the
        folder give to this one; an .npz may hold arrays for the inputs `others` of these.
        """
        self._package = package
        self._spec = spec
        self._samples, self._length, self._seed = samples, length, seed
        self._held_back = held_back
        self._usual = usual
        self._progress = progress
        self._handed, self._others = handed, others
        self._data: CalibrationData | None = None
        self.used = False

    def _load(self) -> CalibrationData:
        if self._data is None:
            self._data = load_source(
                self._spec,
                self._package,
                samples=self._samples + self._held_back,
                length=self._length,
                seed=self._seed,
                held_back=self._held_back,
                handed=() if self._handed is None else self._handed.feeds(),
                others=self._others,
            )
        return self._data

    @property
    def feeds(self) -> Sequence[Feed]:
        """All feeds, those held back at the end."""
        return self._load().feeds

    @property
    def told(self) -> str:
        """What the data is, used or not."""
        data = self._load()
        held = f"; {self._held_back} of them held back" if self._spares(data) else ""
        return self._beside(data.description + held)

    def _beside(self, told: str) -> str:
        return told if self._handed is None else f"{told}; {self._handed.description}"

    @property
    def description(self) -> str:
        """What the statistics come from, "none" where no pass asked."""
        if not self.used:
            return "none"
        return self.told

    @property
    def sha256(self) -> str:
        """Digest of the data, empty where no pass asked."""
        return self._load().sha256 if self.used else ""

    def observe(self, graph: gs.Graph, names: Sequence[str]) -> Statistics:
        """Statistics of activations over the data not held back."""
        return self._given().observe(graph, names)

    def stream(
        self, graph: gs.Graph, names: Sequence[str], share: float = 1.0
    ) -> Iterator[Sequence[np.ndarray[Any, Any]]]:
        """Values of activations over the data not held back, or the first of it, one after the
        other."""
        return self._given().stream(graph, names, share)

    def gradients(
        self, graph: gs.Graph, names: Sequence[str], output: str, most: int | None = None
    ) -> Iterator[tuple[str, Sequence[np.ndarray[Any, Any]]]]:
        """Gradients at activations of a probe of the divergence at an output, the last of the graph
        first, over the data not held back or `most` samples of it."""
        return self._given().gradients(graph, names, output, most)

    def probe(
        self,
        graph: gs.Graph,
        output: str,
        names: Sequence[str],
        variants: Iterable[Mapping[str, np.ndarray[Any, Any]]],
    ) -> Iterator[list[np.ndarray[Any, Any]]]:
        """An output for other values of constants, over the first tokens of a few samples."""
        return self._given().probe(graph, output, names, variants)

    def _given(self) -> FeedData:
        """The data not held back, which is used from then on."""
        self.used = True
        data = self._load()
        feeds: list[Feed] = list(data.feeds)
        feeds = feeds[: -self._held_back] if self._spares(data) else feeds

        def tick(done: int) -> None:
            if self._progress is not None:
                self._progress("calibrating", done, len(feeds))

        return FeedData(feeds, self._beside(data.description), tick)

    def _spares(self, data: CalibrationData) -> bool:
        """Whether there is something to hold back, and more than that."""
        return 0 < self._held_back < len(data)

    def fresh(self) -> CalibrationData | None:
        """Default data that no pass has seen; None where the passes have seen no other.

        CalibrationError where the model has none.
        """
        if not self.used or self._usual in (None, str(self._spec)):
            return None
        kept = self.kept()[0]
        names = () if self._handed is None else self._handed.links
        return load_source(
            self._usual,
            self._package,
            samples=max(self._held_back, 1),
            length=self._length,
            seed=self._seed + 1,
            like=kept,
            handed=[{name: feed[name] for name in names} for feed in kept] if names else (),
        )

    def kept(self) -> tuple[list[Feed], bool]:
        """Feeds to judge by, and whether no pass saw them: a small source has none to spare."""
        data = self._load()
        feeds: list[Feed] = list(data.feeds)
        return feeds[-self._held_back :], not self.used or self._spares(data)


def short(feeds: Sequence[Feed], graph: gs.Graph) -> list[Feed]:
    """The first tokens of texts: enough to judge, cheap in memory. Other feeds stay whole.

    A feed is a text where all that is in it has one place a token, but for empty caches.
    """
    inputs: list[Any] = graph.inputs
    fixed = {str(each.name) for each in inputs if each.shape and isinstance(each.shape[-1], int)}
    return [
        {name: value[:, :_SHORT] if value.ndim == 2 else value for name, value in feed.items()}
        if _is_text({name: value for name, value in feed.items() if value.size > 1}, fixed)
        else feed
        for feed in feeds
    ]


def _is_text(feed: Feed, fixed: Set[str]) -> bool:
    """Whether all arrays are integers [B, T] of one shape, and T may be another."""
    shapes = {value.shape for value in feed.values()}
    whole = all(value.dtype.kind == "i" and value.ndim == 2 for value in feed.values())
    return whole and len(shapes) == 1 and not fixed & feed.keys()
