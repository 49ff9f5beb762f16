"""Which layers a model's output depends on most: `allocate-bits` without a budget."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qcompiler import ir
from qcompiler.driver import Calibration
from qcompiler.opt import run_pipeline
from qcompiler.remarks import Planned

PIPELINE = (
    "import,canonicalize,fuse-norm{{standard_only=true}},plan-weights,calibrate,plan-activations,"
    'allocate-bits{{probe="{probe}"}}'
)


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """One unit: layers that share an input, rounded while the rest stays in float."""

    rank: int
    layers: tuple[str, ...]
    divergence: float
    """Of the model's first output: KL in nats for logits, else the relative squared error."""

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


def measure(
    model: str | Path,
    *,
    probe: str = "int4 g128 sym",
    calibration: Calibration = Calibration(samples=4),  # noqa: B008  (frozen)
    exclude: Sequence[str] = (),
    progress: Callable[[str, int, int], None] | None = None,
) -> list[Sensitivity]:
    """Every unit of an ONNX file or model folder, the most sensitive first.

    `probe` is the format it is rounded to, such as "int4 g128 sym". Raises a QcError subclass for a
    model or data that does not serve.
    """
    with ir.spilling_beside(None):
        result = run_pipeline(
            model,
            PIPELINE.format(probe=probe),
            calibration=calibration,
            exclude=exclude,
            progress=progress,
        )
    found: dict[int, Sensitivity] = {}
    for remark in result.history[-1].remarks:
        if isinstance(remark, Planned) and remark.sensitivity is not None:
            rank = remark.sensitivity_rank or 0
            found[rank] = Sensitivity(rank=rank, layers=remark.unit, divergence=remark.sensitivity)
    return [found[rank] for rank in sorted(found)]


def exclusion(units: Sequence[Sensitivity]) -> str:
    """The regular expression that keeps all layers of `units` in float."""
    names = [re.escape(name) for unit in units for name in unit.layers]
    return f"^({'|'.join(names)})$"
