"""Weights that became codes, and what a report says of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from qcompiler.numerics.gptq import Moments, improved
from qcompiler.numerics.rounding import QuantizedWeight, sqnr_db
from qcompiler.remarks import LayerKind, Rounded

_JUDGED = 4096  # columns


def described(layer: str, quantized: QuantizedWeight, values: Any, *, kind: LayerKind) -> Rounded:
    """The remark on one weight; `values` is its float [K, N] form."""
    rows, columns = quantized.codes.shape
    return Rounded(
        layer=layer,
        message=quantized.form.in_words(),
        kind=kind,
        shape=(rows, columns),
        form=quantized.form,
        sqnr_db=_sqnr_db(values, quantized),
        bytes_after=quantized.nbytes(),
    )


@dataclass(frozen=True)
class Judgement:
    """How codes were chosen, and what that did to a layer's output."""

    rounding: str
    errors: tuple[float, float] | None = None
    """Of the output with the nearest codes, and with those chosen."""
    fallback: ValueError | None = None
    """Why the nearest codes were kept where more was asked for."""

    def tell(self, remark: Rounded) -> Rounded:
        """The remark of a layer with this added."""
        if self.errors is not None:
            return remark.improved(self.rounding, *self.errors)
        return remark if self.fallback is None else remark.fallen_back(self.fallback)


def better_codes(
    rounding: str,
    weight: Any,
    nearest: QuantizedWeight,
    found: Moments,
    choose: Callable[[], QuantizedWeight],
) -> tuple[QuantizedWeight, Judgement]:
    """What `choose`, which is called `rounding`, gives for a weight [K, N] where the moments of its
    input suffice and say that it is better; else `nearest`."""
    try:
        chosen, before, after = improved(weight, nearest, found, choose)
    except ValueError as reason:
        return nearest, Judgement(rounding, fallback=reason)
    return chosen, Judgement(rounding, errors=(before, after))


def _sqnr_db(values: Any, quantized: QuantizedWeight) -> float:
    """Signal-to-noise of a weight, over evenly spaced columns: memory stays small."""
    part = slice(None, None, max(1, values.shape[1] // _JUDGED))
    return sqnr_db(values[:, part], quantized.columns(part).dequantize())
