"""Regular expressions that people give, which may take no longer than a moment to match."""

from __future__ import annotations

import functools
import math
import re

import regex

from qcompiler.errors import RecipeError, shown
from qcompiler.foreign import foreign_errors

_SECONDS = 1.0
"""For one name: a pattern that means something takes microseconds."""
_LONGEST = 4096
"""Characters of a pattern, and of a name: some searches take the product, whatever the timeout."""
_PLAIN = re.compile(r"(?:\\.|[^\\|()\[\]*+?^$.]){512}", re.DOTALL)
"""Plain letters: the time that their first search takes grows with the cube of their number."""
_GROUPS = re.compile(r"\(\?[a-zA-Z-]*:|(?<!\\)[()\[\]]")  # they do not part letters
_REPEATS = 10_000
"""Product of all counts such as {3} or {1,9}: the compiler of patterns writes repetitions out."""
_COUNT = re.compile(r"\\.|\{([0-9]*+),?+([0-9]*+)[^}]*+\}", re.DOTALL)


def require_pattern(pattern: str) -> None:
    """RecipeError for what is no regular expression."""
    if len(pattern) > _LONGEST or _PLAIN.search(_GROUPS.sub("", pattern)):
        raise RecipeError(f"{shown(pattern)} is too long for a pattern; use several")
    counts = [max(map(len, found)) for found in _COUNT.findall(pattern)]
    if any(count > len(str(_REPEATS)) for count in counts) or _repeats(pattern) > _REPEATS:
        raise RecipeError(f"{shown(pattern)} repeats more than {_REPEATS} times; use * or +")
    what = f"{shown(pattern)} is no regular expression"
    with foreign_errors(RecipeError, what, "put \\ before signs such as ( in a name"):
        _compiled(pattern)


def matches(pattern: str, name: str) -> bool:
    """Whether a pattern is found in a name, or in the beginning of one longer than any.

    RecipeError where that takes too long.
    """
    try:
        return _compiled(pattern).search(name[:_LONGEST], timeout=_SECONDS) is not None
    except (TimeoutError, MemoryError):
        raise RecipeError(
            f"{shown(pattern)} takes too long to match {shown(name)}; write it without repetitions "
            "inside repetitions"
        ) from None


def _repeats(pattern: str) -> int:
    """The product of the counts of a pattern."""
    found = (max(int(low or 1), int(high or 1), 1) for low, high in _COUNT.findall(pattern))
    return math.prod(found)


@functools.lru_cache(maxsize=64)
def _compiled(pattern: str) -> regex.Pattern[str]:
    return regex.compile(pattern)
