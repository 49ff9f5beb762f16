"""What passes say of layers; the report is made of remarks alone.

Each kind of remark holds what its readers need as fields. The report asks for the kind of a remark,
never for the pass it came from.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from qcompiler.formats import Granularity, WeightFormat

LayerKind = Literal["linear", "embedding"]


@dataclass(frozen=True, kw_only=True)
class Remark:
    """Something about one layer, in words."""

    layer: str
    message: str
    applied: bool = True
    """Whether something was done, or why it was not."""

    def to_dict(self) -> dict[str, Any]:
        """As plain data, with the kind of the remark."""
        fields = {key: _plain(value) for key, value in vars(self).items()}
        return {"remark": type(self).__name__, **fields}


@dataclass(frozen=True, kw_only=True)
class LeftAlone(Remark):
    """A layer that stays as it is: in float, or as Q/DQ where a target has nothing for it."""

    applied: bool = False
    kind: LayerKind | None = None
    """None for a matrix product that is no linear layer."""
    shape: tuple[int, int] | None = None
    """(K, N)."""


@dataclass(frozen=True, kw_only=True)
class Planned(Remark):
    """What is to become of a layer."""

    kind: LayerKind = "linear"
    shape: tuple[int, int] | None = None
    weight: WeightFormat | None = None
    activation: Granularity | None = None
    """How its input becomes int8; None where the pass does not say."""
    input_absmax: float | None = None
    activation_errors: Mapping[Granularity, float] | None = None
    """Relative error of the output for each way to round the input, where they were measured."""
    sensitivity: float | None = None
    """Divergence at the output when the layers of its unit are rounded alone."""
    sensitivity_rank: int | None = None
    """1 for the most sensitive."""
    unit: tuple[str, ...] = ()
    """The layers that share its input."""


@dataclass(frozen=True, kw_only=True)
class Folded(Remark):
    """The norm before a layer moved into its weight, or why it did not."""


@dataclass(frozen=True, kw_only=True)
class Rotated(Remark):
    """A layer's weight took a rotation, or why it did not."""


@dataclass(frozen=True, kw_only=True)
class Equalized(Remark):
    """A layer's weight took the scales of its input, or why it did not."""

    method: str
    edge: str
    activation: Granularity | None = None
    """What the plan changed to, where it did."""
    chosen: str | None = None
    """Of a search: the candidate with the least error."""
    error_before: float | None = None
    error_after: float | None = None
    scale_max: float | None = None


@dataclass(frozen=True, kw_only=True)
class Rounded(Remark):
    """A weight became codes."""

    kind: LayerKind
    shape: tuple[int, int]
    form: WeightFormat
    sqnr_db: float
    """Signal-to-noise of the weight."""
    bytes_after: int
    tied: bool = False
    """Whether a table and a head share the weight."""
    rounding: str = "nearest"
    fallback: str | None = None
    """Why it was rounded to nearest where the recipe asks for more."""
    output_error: float | None = None
    """Relative error of the layer's output over the calibration data, where it was measured."""
    output_error_nearest: float | None = None
    """The same with weights rounded to nearest."""
    tokens: int | None = None
    """Calibration tokens that codes were chosen by, where data routes tokens to the layer."""

    @property
    def scheme(self) -> str:
        """Format and rounding, such as "int4 g128 sym gptq"."""
        return f"{self.form}" + ("" if self.rounding == "nearest" else f" {self.rounding}")

    def improved(self, rounding: str, before: float, after: float) -> Rounded:
        """The same layer with codes that `rounding` chose; output errors before and after."""
        message = f"{self.message}, {rounding}: output error {before:.4f} -> {after:.4f}"
        return dataclasses.replace(
            self,
            message=message,
            rounding=rounding,
            output_error_nearest=before,
            output_error=after,
        )

    def fallen_back(self, reason: Exception) -> Rounded:
        """The same layer, rounded to nearest where more was asked for."""
        fallback = f"rounded to nearest: {reason}"
        return dataclasses.replace(self, message=f"{self.message}, {fallback}", fallback=fallback)


@dataclass(frozen=True, kw_only=True)
class Adjusted(Remark):
    """Biases or norms around a quantized layer were refit, or why not; errors on held-out data."""

    norm: str | None = None
    """The norm that was refit, None for a bias."""
    error_before: float | None = None
    error_after: float | None = None


@dataclass(frozen=True, kw_only=True)
class Merged(Remark):
    """A layer became a part of one node with others."""

    members: tuple[str, ...]
    into: str
    """The name of that node."""


@dataclass(frozen=True, kw_only=True)
class Divided(Remark):
    """A node that holds several matrices became a layer for each."""

    parts: tuple[str, ...]
    """The layers; together they have what the node held."""


@dataclass(frozen=True, kw_only=True)
class Lowered(Remark):
    """An operator of the target took a layer's place."""

    op: str
    activation: Granularity | None = None
    """How that operator makes its input int8, where it has a way of its own."""
    bytes_after: int | None = None
    """Of the weight as that operator reads it, where it is stored in another form than planned."""


@dataclass(frozen=True, kw_only=True)
class Computed(Remark):
    """Constants that a node reads are computed when a session loads, not stored."""


def _plain(value: Any) -> Any:
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, WeightFormat):
        return str(value)
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    return list(value) if isinstance(value, tuple) else value
