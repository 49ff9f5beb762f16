"""What happened to each layer, gathered from the remarks of the passes."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qcompiler.formats import Granularity
from qcompiler.passmanager import Record
from qcompiler.remarks import (
    Computed,
    Divided,
    Equalized,
    Folded,
    LeftAlone,
    Lowered,
    Merged,
    Planned,
    Remark,
    Rotated,
    Rounded,
)

KEPT_AS_QDQ = "Q/DQ"
"""The `op` of a quantized layer no target pass replaced."""


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One linear layer, embedding, or other node of the source with weights or a product."""

    name: str
    kind: str = "other"
    """"linear", "embedding", or "other": a node of another kind that multiplies matrices or reads
    large constants."""
    K: int | None = None
    N: int | None = None
    scheme: str | None = None
    """Of the weight, such as "int4 g32 asym" or "int4 g128 sym gptq"; None where it is float."""
    activation: str | None = None
    """How the input becomes int8: "per-token", "per-group", "per-tensor", "none"."""
    input_absmax: float | None = None
    activation_errors: Mapping[str, float] | None = None
    """Relative error of the output for each way to round the input, where they were measured."""
    norm_folded: str | None = None
    """What of the norm before the layer its weight took, such as "norm and its bias folded"."""
    rotated: tuple[str, ...] = ()
    """Rotations its weight took, such as "residual stream rotated, hadamard 576"."""
    not_transformed: tuple[str, ...] = ()
    """Why no norm was folded into it, or why it was not rotated."""
    equalized: str | None = None
    """Method and edge, such as "lae through norm"."""
    not_equalized: str | None = None
    """Why equalization left the layer alone; None where it was not asked for."""
    sqnr_db: float | None = None
    """Signal-to-noise of the weight."""
    output_error: float | None = None
    """Relative error of the layer's output over the calibration data, where it was measured."""
    output_error_nearest: float | None = None
    """The same with weights rounded to nearest."""
    tokens: int | None = None
    """Calibration tokens that were routed to it, where it is an expert rounded by them."""
    sensitivity: float | None = None
    """Divergence at the output when it and what shares its input are rounded alone."""
    sensitivity_rank: int | None = None
    """1 for the most sensitive."""
    op: str | None = None
    """The operator that computes the layer in the result."""
    merged_with: tuple[str, ...] = ()
    tied: bool = False
    bytes_before: int | None = None
    """Of the constants it reads, as the source stores them, each counted with one reader; None
    where it reads none of any size."""
    bytes_after: int | None = None
    """Of its codes, scales and zero points as they are stored, where it is quantized; 0 where the
    row of a table has them."""
    computed: bool = False
    """Whether its constants are computed when a session loads, not stored."""
    reason: str | None = None
    """Why the layer was left alone, or not given an op of its own."""

    @property
    def quantized(self) -> bool:
        """Whether its weight is quantized."""
        return self.scheme is not None

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return dataclasses.asdict(self) | {"quantized": self.quantized}


def gather(history: Iterable[Record]) -> tuple[Layer, ...]:
    """Layers in the order they were first spoken of; nodes of other kinds last."""
    layers: dict[str, Layer] = {}
    members: dict[str, Sequence[str]] = {}
    for remark in (remark for record in history for remark in record.remarks):
        if isinstance(remark, Divided):
            layers.pop(remark.layer, None)
            continue
        if isinstance(remark, Merged):
            members[remark.into] = remark.members
        names = members.get(remark.layer, (remark.layer,))
        rows = [layers.get(name, Layer(name=name)) for name in names]
        if isinstance(remark, Lowered) and remark.bytes_after is not None:
            rows = _stored(rows, remark.bytes_after)
        layers |= {row.name: dataclasses.replace(row, **_change(remark, row)) for row in rows}
    finished = [_finished(layer) for layer in layers.values()]
    return tuple(sorted(finished, key=lambda layer: layer.kind == "other"))


def _stored(rows: Sequence[Layer], nbytes: int) -> list[Layer]:
    """Rows of one weight of so many bytes, each with those of its columns.

    A row without bytes keeps none: another has them.
    """
    ends = list(itertools.accumulate((row.N or 0 for row in rows), initial=0))
    shares = [nbytes * end // max(ends[-1], 1) for end in ends]
    return [
        dataclasses.replace(row, bytes_after=row.bytes_after and end - start)
        for row, start, end in zip(rows, shares, shares[1:], strict=False)
    ]


def _change(remark: Remark, layer: Layer) -> dict[str, Any]:
    """The fields a remark settles."""
    match remark:
        case LeftAlone():
            return _told(kind=remark.kind, **_sizes(remark.shape)) | {"reason": remark.message}
        case Planned():
            return _planned(remark)
        case Folded() | Rotated():
            return _transformed(remark, layer)
        case Equalized():
            return _told(activation=_named(remark.activation)) | _equalized(remark)
        case Rounded():
            return _rounded(remark)
        case Merged():
            others = tuple(name for name in remark.members if name != layer.name)
            return {"merged_with": others}
        case Lowered():
            return {"op": remark.op} | _told(activation=_named(remark.activation))
        case Computed():
            return {"computed": True, "reason": remark.message}
        case _:
            return {}


def _told(**fields: Any) -> dict[str, Any]:
    """Those that are said: None leaves what was known before."""
    return {name: value for name, value in fields.items() if value is not None}


def _sizes(shape: tuple[int, int] | None) -> dict[str, Any]:
    return {} if shape is None else {"K": shape[0], "N": shape[1]}


def _named(granularity: Granularity | None) -> str | None:
    return None if granularity is None else granularity.value


def _planned(remark: Planned) -> dict[str, Any]:
    errors = remark.activation_errors
    return {
        "kind": remark.kind,
        **_sizes(remark.shape),
        **_told(
            activation=_named(remark.activation),
            input_absmax=remark.input_absmax,
            activation_errors=errors and {each.value: error for each, error in errors.items()},
            sensitivity=remark.sensitivity,
            sensitivity_rank=remark.sensitivity_rank,
        ),
    }


def _transformed(remark: Folded | Rotated, layer: Layer) -> dict[str, Any]:
    # A layer that these leave alone may be quantized all the same.
    if not remark.applied:
        return {"not_transformed": (*layer.not_transformed, remark.message)}
    if isinstance(remark, Folded):
        return {"norm_folded": remark.message}
    return {"rotated": (*layer.rotated, remark.message)}


def _equalized(remark: Equalized) -> dict[str, Any]:
    if not remark.applied:
        return {"not_equalized": remark.message.removeprefix("not equalized: ")}
    return {"equalized": f"{remark.method} through {remark.edge}"}


def _rounded(remark: Rounded) -> dict[str, Any]:
    told = ("sqnr_db", "bytes_after", "tied")
    errors = _told(
        output_error=remark.output_error,
        output_error_nearest=remark.output_error_nearest,
        tokens=remark.tokens,
    )
    return {
        "kind": remark.kind,
        **_sizes(remark.shape),
        **{name: getattr(remark, name) for name in told},
        **errors,
        "scheme": remark.scheme,
        "reason": remark.fallback,
    }


def _finished(layer: Layer) -> Layer:
    if layer.quantized and layer.op is None:
        return dataclasses.replace(layer, op=KEPT_AS_QDQ)
    if layer.quantized:
        return layer
    reason = layer.reason or ("no pass of the recipe rounds it" if layer.kind != "other" else None)
    return dataclasses.replace(layer, activation=None, reason=reason)
