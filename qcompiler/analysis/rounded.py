"""What a report says of a weight that became codes."""

from __future__ import annotations

from typing import Any

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


def _sqnr_db(values: Any, quantized: QuantizedWeight) -> float:
    """Signal-to-noise of a weight, over evenly spaced columns: memory stays small."""
    part = slice(None, None, max(1, values.shape[1] // _JUDGED))
    return sqnr_db(values[:, part], quantized.columns(part).dequantize())
