"""Calibration samples in two parts: to fit by, and to judge by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def split(samples: Sequence[T]) -> tuple[Sequence[T], Sequence[T]]:
    """All but the last quarter, and that: at least one. ValueError if there are not two samples."""
    if len(samples) < 2:
        raise ValueError("there is one calibration sample, and none to judge by")
    start = len(samples) - max(1, len(samples) // 4)
    return samples[:start], samples[start:]
