"""Whether a compiled model still does what its source does, on data that no pass has seen.

Every output of floats that a quantized layer reaches is judged, and the worst one decides. Caches
that the model reads again only have to be finite: what their errors do shows in the others. Where
there is none, because the model gives labels, sequences or maps, the floats these are made from
are judged.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qcompiler.calibration.supply import Supply
from qcompiler.comparison import SOURCE_NOT_FINITE, OutputQuality, Pair
from qcompiler.errors import CalibrationError, ModelError, QcError, VerificationError
from qcompiler.recipe import Recipe

_BROKEN_DB = 0.0
"""With less, an output on default data has more noise than signal."""


@dataclass(frozen=True, kw_only=True)
class DefaultData:
    """The outputs on data that the user did not choose, where they gave some."""

    source: str
    """What the data is; where there is none, why."""
    sqnr_db: float | None = None
    """The least of the outputs, None where they could not be compared."""
    finite: bool = True

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return dict(vars(self))


@dataclass(frozen=True, kw_only=True)
class Verification:
    """Compiled against source on calibration data held back from the passes."""

    sqnr_db: float
    """The least signal-to-noise of the judged outputs in dB; inf where they are equal."""
    worst_sample_db: float
    """The least of a judged output on one sample."""
    top1_agreement: float | None
    """Share of positions with the same most likely token; None for models without logits."""
    samples: int
    held_back: bool
    """Whether no pass had seen the samples."""
    finite: bool
    outputs: tuple[OutputQuality, ...]
    default_data: DefaultData | None = None
    """None where the samples are the default data."""

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return dict(vars(self)) | {
            "outputs": [output.to_dict() for output in self.outputs],
            "default_data": None if self.default_data is None else self.default_data.to_dict(),
        }


def verify_output(pair: Pair, source: Supply, chosen: Recipe, force: bool) -> Verification:
    """Run source and result, one after the other, and judge the outputs.

    VerificationError for a result that is broken, unless `force`; ModelError where nothing tells.
    """
    feeds, held_back = source.kept()
    samples = pair.compare(feeds)
    judged = _deciding(samples.outputs)
    if not judged:
        raise _nothing_told(pair.package.onnx_path, samples.outputs)
    checked = Verification(
        sqnr_db=_least(judged),
        worst_sample_db=min(_db(each.worst_sample_db) for each in judged),
        top1_agreement=samples.top1_agreement,
        samples=len(feeds),
        held_back=held_back,
        finite=all(each.finite for each in samples.outputs),
        outputs=samples.outputs,
        default_data=_on_default_data(pair, source),
    )
    if not force:
        _refuse_broken(checked, chosen)
        _refuse_broken_elsewhere(checked, chosen)
    return checked


def _deciding(outputs: Sequence[OutputQuality]) -> list[OutputQuality]:
    """The outputs that decide: those beside the judged ones only where there are no others.

    What no quantized layer reaches is equal, or something is broken that is no quantization.
    """
    compared = [each for each in outputs if each.sqnr_db is not None]
    untouched = [each for each in compared if each.role == "exact"]
    for role in ("judged", "beside", "state"):
        if found := [each for each in compared if each.role == role]:
            return found + untouched
    return untouched


def _least(outputs: Sequence[OutputQuality]) -> float:
    return min((_db(each.sqnr_db) for each in outputs), default=math.inf)


def _nothing_told(path: Path, outputs: Sequence[OutputQuality]) -> QcError:
    if any(each.note == SOURCE_NOT_FINITE for each in outputs):
        return VerificationError(
            f"{path} itself gives nothing but NaN or infinity on the calibration data; give data "
            "that suits it (--calib)"
        )
    return ModelError(f"{path} gives no floats that tell the quality: compile with --no-verify")


def _refuse_broken(checked: Verification, chosen: Recipe) -> None:
    """VerificationError for an output that is not finite, or worse than the recipe promises."""
    least = chosen.min_sqnr_db
    broken = [each for each in checked.outputs if not each.finite]
    if broken:
        what = f"gives NaN or infinity at its output '{broken[0].name}'"
    elif checked.sqnr_db < least:
        worst = min(_deciding(checked.outputs), key=lambda each: _db(each.sqnr_db))
        what = (
            f"has {checked.sqnr_db:.1f} dB signal-to-noise at its output '{worst.name}', less than "
            f"the {least:.1f} dB this recipe promises"
        )
    else:
        return
    raise VerificationError(
        f"the compiled model {what}; try another recipe, calibration text (--calib), smaller "
        "groups, or exclude layers; --force writes it all the same"
    )


def _refuse_broken_elsewhere(checked: Verification, chosen: Recipe) -> None:
    """VerificationError for a result that has learned the user's data and nothing else.

    That data tells the quality; on any other the result need not be good, but it has to work.
    """
    usual = checked.default_data
    if usual is None or (
        usual.finite and _db(usual.sqnr_db) >= min(_BROKEN_DB, chosen.min_sqnr_db)
    ):
        return
    what = f"has {usual.sqnr_db:.1f} dB signal-to-noise" if usual.finite else "is not finite"
    raise VerificationError(
        f"the compiled model works on data like that of --calib only, on other ({usual.source}) it "
        f"{what}; calibrate on data that varies more, or without --calib; --force writes it all "
        "the same"
    )


def _db(value: float | None) -> float:
    """A ratio, inf where there is none."""
    return math.inf if value is None else value


def _on_default_data(pair: Pair, source: Supply) -> DefaultData | None:
    """The outputs on default data; it may not suit the model, which is no fault of the result."""
    try:
        data = source.fresh()
        if data is None:
            return None
        found = pair.compare(data.feeds).outputs
    except (CalibrationError, ModelError) as error:
        return DefaultData(source=f"not checked on default data: {error}")
    return DefaultData(
        source=data.description.partition(". WARNING")[0],
        sqnr_db=_least(_deciding(found)),
        finite=all(each.finite for each in found),
    )
