"""How much calibration data is held in memory, at most: known before any of it is made."""

from __future__ import annotations

import math
from collections.abc import Sequence

from qcompiler.errors import CalibrationError
from qcompiler.files import told_bytes

MOST_BYTES = 4 << 30
"""Of all feeds together. Models are calibrated with far less."""


def require_room(shapes: Sequence[tuple[int, ...]], samples: int, kept: int, remedy: str) -> None:
    """CalibrationError where `samples` feeds of arrays of these shapes take more than there is.

    `kept` of the samples come beside those that were asked for. Values count as 8 bytes, which they
    have when they are drawn. The message says how many samples would fit, or else the remedy.
    """
    each = sum(8 * math.prod(shape) for shape in shapes)
    if each * samples <= MOST_BYTES:
        return
    fit = MOST_BYTES // each - kept
    told = (
        f"{samples - kept} calibration samples of {each / 1e6:.1f} MB are more than the "
        f"{told_bytes(MOST_BYTES)} that may be held in memory"
    )
    beside = f" beside {kept} to verify with" if kept else ""
    if fit > 0:
        raise CalibrationError(f"{told}; at most {fit} fit{beside}: --calib-samples {fit}")
    raise CalibrationError(f"{told}, and not one fits{beside}; {remedy}")
