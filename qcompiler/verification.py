"""Whether a compiled model still does what its source does, on data that no pass has seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler import ir
from qcompiler.calibration.pieces import evaluate, main_output
from qcompiler.calibration.supply import Feed, Supply, short
from qcompiler.errors import CalibrationError, ModelError, VerificationError
from qcompiler.feeds import as_taken
from qcompiler.models import ModelPackage
from qcompiler.numerics.rounding import sqnr_db
from qcompiler.recipe import Recipe
from qcompiler.session import create_session, one_line

_FLOATS = ("tensor(float)", "tensor(float16)", "tensor(double)")


@dataclass(frozen=True, kw_only=True)
class Verification:
    """Compiled against source on calibration data held back from the passes."""

    sqnr_db: float
    """Signal-to-noise of the first output of floats in dB; inf where they are equal."""
    top1_agreement: float | None
    """Share of positions with the same most likely token; None for models without logits."""
    samples: int
    held_back: bool
    """Whether no pass had seen the samples."""
    finite: bool

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return dict(vars(self))


def require_floats(graph: gs.Graph, package: ModelPackage) -> None:
    """What `verify_output` compares; better known before the long passes than behind them."""
    # Types that numpy lacks are left to ONNX Runtime.
    kinds = [output.dtype for output in graph.outputs]
    if all(isinstance(kind, (type, np.dtype)) and np.dtype(kind).kind in "biuO" for kind in kinds):
        raise _no_floats(package.onnx_path)


def _no_floats(path: Path) -> ModelError:
    return ModelError(f"{path} gives no floats that tell the quality: compile with --no-verify")


def verify_output(
    package: ModelPackage,
    staged: Path,
    source: Supply,
    chosen: Recipe,
    force: bool,
) -> Verification:
    """Run source and result, one after the other, and judge one output."""
    feeds, held_back = source.kept()
    cut = short(feeds)
    reference = _reference(package.onnx_path, cut)
    result = _output(staged, cut)
    # A model may mean its infinities: a mask over logits.
    judged = np.isfinite(reference)
    if reference.size and not judged.any():
        raise VerificationError(
            f"{package.onnx_path} itself gives nothing but NaN or infinity on the calibration "
            "data; give data that suits it (--calib)"
        )
    finite = bool(np.isfinite(result[judged]).all())
    logits = reference.shape[-1] > 1024
    checked = Verification(
        sqnr_db=sqnr_db(reference[judged], result[judged]) if finite else float("-inf"),
        top1_agreement=(
            float(np.mean(reference.argmax(-1) == result.argmax(-1))) if logits else None
        ),
        samples=len(cut),
        held_back=held_back,
        finite=finite,
    )
    if (not finite or checked.sqnr_db < chosen.min_sqnr_db) and not force:
        raise _refused(checked, chosen)
    return checked


def _refused(checked: Verification, chosen: Recipe) -> VerificationError:
    what = (
        f"has {checked.sqnr_db:.1f} dB signal-to-noise at its output, less than the "
        f"{chosen.min_sqnr_db:.1f} dB this recipe promises"
        if checked.finite
        else "gives NaN or infinity"
    )
    return VerificationError(
        f"the compiled model {what}; try another recipe, calibration text (--calib), smaller "
        "groups, or exclude layers; --force writes it all the same"
    )


def _reference(path: Path, feeds: Sequence[Feed]) -> np.ndarray[Any, Any]:
    """What `_output` gives for the float model, with a part of its weights in memory at a time."""
    graph = ir.read_model(path)
    try:
        return _rows(evaluate(graph, main_output(graph), feeds))
    except CalibrationError as error:
        raise ModelError(f"{path}: {error}") from None


def _rows(values: Sequence[np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    """The last dimensions of all arrays as rows, float32."""
    rows = [each.reshape(-1, each.shape[-1] if each.size and each.ndim else 1) for each in values]
    return np.concatenate(rows).astype(np.float32)


def _output(path: Path, feeds: Sequence[Feed]) -> np.ndarray[Any, Any]:
    """The first output of floating-point numbers, as rows over all feeds."""
    # Weights packed for speed would double the memory of a session that runs twice.
    session = create_session(path, options={"session.disable_prepacking": "1"})
    floats = [output for output in session.get_outputs() if output.type in _FLOATS]
    if not floats:
        raise _no_floats(path)
    chosen = next((output for output in floats if 0 not in output.shape), floats[0])
    try:
        results = [
            np.asarray(session.run([chosen.name], as_taken(session, feed))[0]) for feed in feeds
        ]
        return _rows(results)
    except Exception as error:  # ONNX Runtime's errors share no other base class
        raise ModelError(
            f"{path} does not run on the calibration data: {one_line(error)}"
        ) from None
