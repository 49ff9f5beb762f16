"""Which layers a model's output depends on most: `allocate-bits` without a budget."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qcompiler import ir
from qcompiler.opt import run_pipeline

PIPELINE = (
    "import,canonicalize,fuse-norm{{standard_only=true}},calibrate,plan-activations,"
    'allocate-bits{{probe="{probe}",activations=[]}}'
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
    calib: str | None = None,
    calib_samples: int = 4,
    calib_length: int = 512,
    exclude: Sequence[str] = (),
    seed: int = 0,
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
            calib=calib,
            calib_samples=calib_samples,
            calib_length=calib_length,
            exclude=exclude,
            seed=seed,
            progress=progress,
        )
    found: dict[int, Sensitivity] = {}
    for remark in result.history[-1].remarks:
        rank = int(remark.data["sensitivity_rank"])
        found[rank] = Sensitivity(
            rank=rank,
            layers=tuple(remark.data["unit"]),
            divergence=float(remark.data["sensitivity"]),
        )
    return [found[rank] for rank in sorted(found)]


def exclusion(units: Sequence[Sensitivity]) -> str:
    """The regular expression that keeps all layers of `units` in float."""
    names = [re.escape(name) for unit in units for name in unit.layers]
    return f"^({'|'.join(names)})$"
