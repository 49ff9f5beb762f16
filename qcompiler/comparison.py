"""A compiled model beside its source: what both give on the same feeds, output by output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnxruntime as ort

from qcompiler import ir
from qcompiler.analysis.reach import Reach
from qcompiler.calibration.draws import fix_seeds, with_names_of_import
from qcompiler.calibration.pieces import evaluate
from qcompiler.calibration.supply import Feed, short
from qcompiler.errors import CalibrationError, ModelError
from qcompiler.feeds import as_taken
from qcompiler.foreign import runtime_errors
from qcompiler.models import ModelPackage
from qcompiler.numerics.rounding import decibel
from qcompiler.protos import read_proto
from qcompiler.session import create_session

Array = np.ndarray[Any, Any]
Role = Literal["judged", "beside", "state", "exact", "labels", "skipped"]

_FLOATS = ("tensor(float)", "tensor(float16)", "tensor(double)")
_FEW = 16
"""Fewer values than this, over all samples, tell of these samples and not of the model."""
_LOGITS = 1024
"""An output with more channels than this gives the likelihood of tokens."""
_SIZING = frozenset({"NonZero", "NonMaxSuppression", "Unique", "Compress", "Loop", "If"})
"""Operators whose results have sizes that depend on values."""
SOURCE_NOT_FINITE = "the source gives nothing but NaN or infinity"


@dataclass(frozen=True, kw_only=True)
class OutputQuality:
    """One output of the compiled model against the source's, over all samples."""

    name: str
    role: Role
    """judged; beside: of floats, but too few, or all zero, to judge by; state: a cache that the
    model reads again, whose errors show in the judged ones; exact: no quantized layer reaches it;
    labels: no floats, compared value by value; skipped: not compared, see `note`."""
    sqnr_db: float | None = None
    """Signal-to-noise of floats in dB over all samples; inf where they are equal."""
    worst_sample_db: float | None = None
    """That of the sample with the least."""
    equal: float | None = None
    """Of labels: the share of equal values."""
    finite: bool = True
    """Whether it is finite where the source's is."""
    note: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return dict(vars(self))


@dataclass(frozen=True)
class Comparison:
    """The outputs of both models on some feeds."""

    outputs: tuple[OutputQuality, ...]
    top1_agreement: float | None
    """Share of positions with the same most likely token; None for models without logits."""


@dataclass(frozen=True)
class Pair:
    """A source and its result."""

    package: ModelPackage
    staged: Path
    reach: Reach
    caches: frozenset[str] = frozenset()
    """Outputs that the model reads again."""
    rescaled: bool = False
    """Whether the recipe scales these, so that they are not to be what the source's are."""

    def compare(self, feeds: Sequence[Feed]) -> Comparison:
        """Every output of the model; floats before them where these alone tell the quality.

        ModelError where one of the two does not run.
        """
        source = ir.read_model(self.package.onnx_path, self.package.data_files)
        graph = with_names_of_import(source)
        cut = short(feeds, graph)
        try:
            results = _Results.of(self, cut, self._before(graph))
        except ModelError:
            _run(self.package.onnx_path, cut)  # the source, if it does not run either
            raise
        try:
            values = evaluate(graph, list(results.values), cut)
        except CalibrationError as error:
            raise ModelError(f"{self.package.onnx_path}: {error}") from None
        resized = any(node.op in _SIZING for node in graph.nodes)
        outputs: list[OutputQuality] = []
        agreement = None
        for name, result in results.values.items():
            reached = name in self.reach.outputs or name in results.before
            found = _quality(name, values[name], result, reached=reached, resized=resized)
            if name in self.caches and found.role == "judged":
                found = replace(found, role="state")
            if agreement is None and found.role == "judged":
                agreement = _top1_agreement(values[name], result)
            outputs.append(found)
        for name, note in results.skipped.items():
            outputs.append(OutputQuality(name=name, role="skipped", note=note))
        return Comparison(tuple(outputs), agreement)

    def _before(self, graph: gs.Graph) -> list[str]:
        """The floats before other outputs that both models compute."""
        known = {str(output.name) for node in graph.nodes for output in node.outputs}
        outputs: list[Any] = graph.outputs
        known -= {str(output.name) for output in outputs}
        names = [name for each in self.reach.before.values() for name in each if name in known]
        return list(dict.fromkeys(names))


@dataclass(frozen=True)
class _Results:
    """What the compiled model gives."""

    values: Mapping[str, Sequence[Array]]
    """By output that can be compared, one array a feed."""
    skipped: Mapping[str, str]
    """Why the others can't be."""
    before: Sequence[str]
    """Those of the first that are no outputs, but what some are made from."""

    @classmethod
    def of(cls, pair: Pair, feeds: Sequence[Feed], before: Sequence[str]) -> _Results:
        """`before` is what to compare where no output of floats tells the quality."""
        path = pair.staged
        session = _open(path, before)
        types = {each.name: str(each.type) for each in session.get_outputs()}
        skipped = {name: f"it is a {kind}" for name, kind in types.items() if not _is_array(kind)}
        if pair.rescaled:
            skipped |= dict.fromkeys(pair.caches, "the recipe scales it (through_cache)")
        names = [name for name in types if name not in skipped and name not in before]
        if any(types[name] in _FLOATS and name in pair.reach.outputs for name in names):
            before = ()
        names += before
        with runtime_errors(ModelError, f"{path} does not run on the calibration data"):
            rows = [session.run(names, as_taken(session, feed)) for feed in feeds] if names else []
        values = {name: [np.asarray(row[at]) for row in rows] for at, name in enumerate(names)}
        return cls(values, skipped, before)


def _is_array(kind: str) -> bool:
    """Whether numpy holds values of an ONNX Runtime type."""
    return kind.startswith("tensor(") and "bfloat" not in kind and "float8" not in kind


def _open(path: Path, before: Sequence[str]) -> ort.InferenceSession:
    """A session that gives the tensors `before` too, and draws the numbers the source draws."""
    model = read_proto(path)
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in before)
    changed = fix_seeds(model) or bool(before)
    # Weights packed for speed would double the memory of a session that runs a few times.
    options = {"session.disable_prepacking": "1"}
    if changed:
        return create_session(path, options=options, model=model, brief=True)
    return create_session(path, options=options, held=model, brief=True)


def _run(path: Path, feeds: Sequence[Feed]) -> None:
    """ModelError where a model does not run."""
    session = _open(path, ())
    with runtime_errors(ModelError, f"{path} does not run on the calibration data"):
        for feed in feeds:
            session.run(None, as_taken(session, feed))


def _quality(
    name: str,
    reference: Sequence[Array],
    result: Sequence[Array],
    *,
    reached: bool,
    resized: bool,
) -> OutputQuality:
    """How near a result is to its reference, one array a sample each.

    `resized`: whether sizes may depend on values, and so differ.
    """
    if any(a.shape != b.shape for a, b in zip(reference, result, strict=True)):
        if resized:
            note = "its size depends on values, and differs"
            return OutputQuality(name=name, role="skipped", note=note)
        note = "its shape is not the source's"
        return OutputQuality(name=name, role="judged", sqnr_db=-np.inf, note=note)
    if reference[0].dtype.kind != "f":
        equal = np.concatenate([np.ravel(a == b) for a, b in zip(reference, result, strict=True)])
        share = float(equal.mean()) if equal.size else 1.0
        return OutputQuality(name=name, role="labels" if reached else "exact", equal=share)
    parts = [_energies(a, b) for a, b in zip(reference, result, strict=True)]
    count = sum(part.count for part in parts)
    if not count and any(each.size for each in reference):
        return OutputQuality(name=name, role="skipped", note=SOURCE_NOT_FINITE)
    signal, noise = sum(part.signal for part in parts), sum(part.noise for part in parts)
    role: Role = "judged" if count >= _FEW and signal else "beside"
    return OutputQuality(
        name=name,
        role=role if reached else "exact",
        sqnr_db=decibel(signal, noise),
        worst_sample_db=min(decibel(part.signal, part.noise) for part in parts),
        finite=all(np.isfinite(part.noise) for part in parts),
    )


@dataclass(frozen=True)
class _Energies:
    """Sums of squares over the values that the source has finite."""

    signal: float
    noise: float
    """Infinite where the result is not finite."""
    count: int


def _energies(reference: Array, result: Array) -> _Energies:
    # A model may mean its infinities: a mask over logits.
    judged = np.isfinite(reference)
    kept, given = (each[judged].astype(np.float32) for each in (reference, result))
    if not np.isfinite(given).all():
        return _Energies(0.0, np.inf, kept.size)
    noise = np.subtract(kept, given, dtype=np.float64)
    signal = float(np.sum(np.square(kept, dtype=np.float64)))
    return _Energies(signal, float(np.sum(np.square(noise))), kept.size)


def _top1_agreement(reference: Sequence[Array], result: Sequence[Array]) -> float | None:
    """The share of rows with the same largest value; None where they are no logits."""
    if any(not each.ndim or each.shape[-1] <= _LOGITS for each in reference):
        return None
    same = [np.ravel(a.argmax(-1) == b.argmax(-1)) for a, b in zip(reference, result, strict=True)]
    return float(np.mean(np.concatenate(same)))
