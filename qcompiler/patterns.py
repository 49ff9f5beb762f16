"""Regular expressions that people give, which may take no longer than a moment to match."""

from __future__ import annotations

import functools

import regex

from qcompiler.errors import RecipeError, shown

_SECONDS = 1.0
"""For one name: a pattern that means something takes microseconds."""
_LONGEST = 1 << 17  # characters


def require_pattern(pattern: str) -> None:
    """RecipeError for what is no regular expression."""
    if len(pattern) > _LONGEST:
        raise RecipeError(f"'{pattern[:40]}...' is too long for a pattern; use several")
    try:
        _compiled(pattern)
    except (regex.error, RecursionError, OverflowError, MemoryError) as error:
        cause = "too deeply nested" if isinstance(error, RecursionError) else str(error)
        raise RecipeError(f"{shown(pattern)} is no regular expression: {cause}") from None


def matches(pattern: str, name: str) -> bool:
    """Whether a pattern is found in a name; RecipeError where that takes too long."""
    try:
        return _compiled(pattern).search(name, timeout=_SECONDS) is not None
    except TimeoutError:
        raise RecipeError(
            f"{shown(pattern)} takes too long to match {shown(name)}; write it without repetitions "
            "inside repetitions"
        ) from None


@functools.lru_cache(maxsize=64)
def _compiled(pattern: str) -> regex.Pattern[str]:
    return regex.compile(pattern)
