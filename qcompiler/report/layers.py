"""What happened to each layer, gathered from the remarks of the passes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qcompiler.passmanager import Record, Remark

KEPT_AS_QDQ = "Q/DQ"
"""The `op` of a quantized layer no target pass replaced."""


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One linear layer, embedding, or other matrix product of the source model."""

    name: str
    kind: str = "other"
    """"linear", "embedding", or "other": a matrix product that is no linear layer."""
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
    sensitivity: float | None = None
    """Divergence at the output when it and what shares its input are rounded alone."""
    sensitivity_rank: int | None = None
    """1 for the most sensitive."""
    op: str | None = None
    """The operator that computes the layer in the result."""
    merged_with: tuple[str, ...] = ()
    tied: bool = False
    bytes_before: int | None = None
    bytes_after: int | None = None
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
    """Layers in the order they were first spoken of; other matrix products last."""
    layers: dict[str, Layer] = {}
    members: dict[str, Sequence[str]] = {}
    for record in history:
        for remark in record.remarks:
            if "merged_into" in remark.data:
                members[str(remark.data["merged_into"])] = remark.data["merged"]
            for name in members.get(remark.layer, (remark.layer,)):
                layer = layers.get(name, Layer(name=name))
                change = _change(record.name, remark, layer)
                layers[name] = dataclasses.replace(layer, **change)
    finished = [_finished(layer) for layer in layers.values()]
    return tuple(sorted(finished, key=lambda layer: layer.kind == "other"))


_SETTLED = (
    *("input_absmax", "activation_errors", "sqnr_db", "output_error", "output_error_nearest"),
    *("sensitivity", "sensitivity_rank", "op", "bytes_before", "bytes_after", "tied"),
)


def _change(step: str, remark: Remark, layer: Layer) -> dict[str, Any]:
    """The fields a remark settles."""
    data = remark.data
    change = {key: data[key] for key in ("kind", "K", "N") if key in data}
    if "activation" in data:
        change["activation"] = data["activation"]
    if step == "equalize":
        return change | _equalized(remark)
    if step == "merge-linears":
        others = [name for name in data.get("merged", ()) if name != layer.name]
        return change | {"merged_with": tuple(others)}
    # A layer that these leave alone may be quantized all the same.
    if step in ("fold-norm", "rotate"):
        return change | _transformed(step, remark, layer)
    if step in ("correct-bias", "tweak-norms"):
        return change
    if not remark.applied:
        return change | {"reason": remark.message}
    for key in _SETTLED:
        if key in data:
            change[key] = data[key]
    if "bits" in data:
        change |= {"scheme": scheme(data), "reason": data.get("fallback")}
    return change


def _transformed(step: str, remark: Remark, layer: Layer) -> dict[str, Any]:
    if not remark.applied:
        return {"not_transformed": (*layer.not_transformed, remark.message)}
    if step == "fold-norm":
        return {"norm_folded": remark.message}
    return {"rotated": (*layer.rotated, remark.message)}


def _equalized(remark: Remark) -> dict[str, Any]:
    if not remark.applied:
        return {"not_equalized": remark.message.removeprefix("not equalized: ")}
    return {"equalized": f"{remark.data['method']} through {remark.data['edge']}"}


def scheme(data: Mapping[str, Any]) -> str:
    """A weight's scheme in one word each: type, group, symmetry; rounding and scales if unusual."""
    symmetry = "sym" if data["symmetric"] else "asym"
    rounding = data.get("rounding", "nearest")
    suffix = " progressive" if data.get("progressive") else ""
    suffix += "" if rounding == "nearest" else f" {rounding}"
    return f"int{data['bits']} g{data['group_size']} {symmetry}{suffix}"


def _finished(layer: Layer) -> Layer:
    if layer.quantized and layer.op is None:
        return dataclasses.replace(layer, op=KEPT_AS_QDQ)
    return layer if layer.quantized else dataclasses.replace(layer, activation=None)
