"""Where text becomes a number: in plain digits, and of a size that can be meant.

Python reads more than people write: "1_0", digits of other scripts, "nan" and "inf".
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

_WHOLE = re.compile(r"(?!-0+$)[+-]?[0-9]{1,18}")
_REAL = re.compile(r"[+-]?(?:[0-9]{1,30}(?:\.[0-9]{0,30})?|\.[0-9]{1,30})(?:[eE][+-]?[0-9]{1,3})?")
_CLOSING = {"[": "]", '"': '"', "'": "'"}


def whole(text: str) -> int:
    """A whole number below 10^18; ValueError for other text."""
    if not _WHOLE.fullmatch(text):
        raise ValueError("not a whole number")
    return int(text)


def real(text: str) -> float:
    """A finite number; ValueError for other text."""
    value = float(text) if _REAL.fullmatch(text) else math.nan
    if not math.isfinite(value):
        raise ValueError("not a finite number")
    return value


def value(text: str) -> Any:
    """An option as pipelines and --set write it: true, 4, 0.5, "text", text, or [a, b]."""
    text = text.strip()
    if text[:1] == "[" and text[-1:] == "]":
        return [_single(part) for part in split(text[1:-1])]
    return _single(text)


def _single(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
        return text[1:-1]
    for number in (whole, real):
        try:
            return number(text)
        except ValueError:
            continue
    return text


def split(text: str) -> Iterator[str]:
    """The parts between commas, but for commas within brackets or quotes; empty ones left out."""
    start, until = 0, ""
    for at, letter in enumerate(text):
        if until:
            until = "" if letter == until else until
        elif letter in _CLOSING:
            until = _CLOSING[letter]
        elif letter == ",":
            if part := text[start:at].strip():
                yield part
            start = at + 1
    if part := text[start:].strip():
        yield part
