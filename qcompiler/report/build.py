"""The report of one compilation: a row for every layer, sizes, times and the verification."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qcompiler import __version__
from qcompiler.commit import put_text
from qcompiler.files import json_text, plain
from qcompiler.passmanager import Record
from qcompiler.recipe import Recipe
from qcompiler.remarks import Divided
from qcompiler.report.layers import Layer, gather
from qcompiler.report.weights import Weights, weigh

SCHEMA_VERSION = 1
"""Of `Report.to_dict`: raised when a field changes its meaning or goes away."""


@dataclass(frozen=True, kw_only=True)
class PassTime:
    """One pass that ran."""

    name: str
    changed: bool
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a compilation did, layer by layer, and what it cost."""

    recipe: Mapping[str, Any]
    target: str
    source: Path
    output: Path
    source_bytes: int
    output_bytes: int
    calibration: str
    verification: Mapping[str, Any] | None
    seconds: float
    passes: tuple[PassTime, ...]
    layers: tuple[Layer, ...]
    weights: Weights | None
    """None where no pass has counted what the source stores."""
    copied: str | None = None
    """Why the model is as it was, where it is: one of several in a folder may be."""

    @property
    def models(self) -> tuple[Report, ...]:
        """The models that it tells of: this one."""
        return (self,)

    @property
    def ratio(self) -> float:
        """How many times smaller the result is."""
        return self.source_bytes / max(self.output_bytes, 1)

    @property
    def counts(self) -> dict[str, int]:
        """Layers by what became of them."""
        linears = [layer for layer in self.layers if layer.kind == "linear"]
        tables = [layer for layer in self.layers if layer.kind == "embedding"]
        return {
            "linear": len(linears),
            "linear_quantized": sum(layer.quantized for layer in linears),
            "embedding": len(tables),
            "embedding_quantized": sum(layer.quantized for layer in tables),
            "norm_folded": sum(layer.norm_folded is not None for layer in linears),
            "rotated": sum(bool(layer.rotated) for layer in linears),
            "equalized": sum(layer.equalized is not None for layer in linears),
            "other": sum(layer.kind == "other" for layer in self.layers),
        }

    @property
    def ops(self) -> dict[str, int]:
        """Layers by the operator that computes them in the result, most first."""
        return dict(Counter(layer.op for layer in self.layers if layer.op).most_common())

    def to_dict(self) -> dict[str, Any]:
        """As plain data that JSON can hold; numbers that are not finite become None."""
        return plain(
            {
                "schema_version": SCHEMA_VERSION,
                "qcompiler_version": __version__,
                "recipe": self.recipe,
                "target": self.target,
                "source": str(self.source),
                "output": str(self.output),
                "source_bytes": self.source_bytes,
                "output_bytes": self.output_bytes,
                "ratio": self.ratio,
                "copied": self.copied,
                "calibration": self.calibration,
                "verification": self.verification,
                "seconds": self.seconds,
                "counts": self.counts,
                "ops": self.ops,
                "weights": None if self.weights is None else self.weights.to_dict(),
                "passes": [dict(vars(step)) for step in self.passes],
                "layers": [layer.to_dict() for layer in self.layers],
            }
        )


@dataclass(frozen=True, kw_only=True)
class FolderReport:
    """What became of the models of a folder that were compiled as one."""

    source: Path
    output: Path
    source_bytes: int
    output_bytes: int
    """Of the models with their data, each file once."""
    seconds: float
    models: tuple[Report, ...]
    """In the order in which they feed one another."""

    @property
    def ratio(self) -> float:
        """How many times smaller the models are together."""
        return self.source_bytes / max(self.output_bytes, 1)

    def to_dict(self) -> dict[str, Any]:
        """As plain data, with the report of each model."""
        return plain(
            {
                "schema_version": SCHEMA_VERSION,
                "qcompiler_version": __version__,
                "source": str(self.source),
                "output": str(self.output),
                "source_bytes": self.source_bytes,
                "output_bytes": self.output_bytes,
                "ratio": self.ratio,
                "seconds": self.seconds,
                "models": [model.to_dict() for model in self.models],
            }
        )


def build_report(
    history: Sequence[Record],
    *,
    recipe: Recipe,
    target: str,
    source: Path,
    output: Path,
    source_bytes: int,
    output_bytes: int,
    calibration: str = "none",
    verification: Mapping[str, Any] | None = None,
    seconds: float = 0.0,
    copied: str | None = None,
) -> Report:
    """The report of a pipeline's history; sizes in bytes, weights included."""
    layers, weights = account(history)
    return Report(
        recipe=recipe.to_dict(),
        target=target,
        source=source,
        output=output,
        source_bytes=source_bytes,
        output_bytes=output_bytes,
        calibration=calibration,
        verification=verification,
        seconds=seconds,
        passes=tuple(
            PassTime(name=record.name, changed=record.changed, seconds=record.seconds)
            for record in history
        ),
        layers=layers,
        weights=weights,
        copied=copied,
    )


def account(history: Sequence[Record]) -> tuple[tuple[Layer, ...], Weights | None]:
    """What became of every layer, and of the bytes that the source stores."""
    layers = gather(history)
    counted = [record.inventory for record in history if record.inventory is not None]
    if not counted:
        return layers, None
    said = (remark for record in history for remark in record.remarks)
    parts = {each.layer: each.parts for each in said if isinstance(each, Divided)}
    return weigh(layers, counted[0], parts)


def write_json(report: Report | FolderReport, path: Path) -> None:
    """Write the report as JSON."""
    put_text(path, json_text(report.to_dict()) + "\n")
