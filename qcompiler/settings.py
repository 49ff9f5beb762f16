"""The shapes of configs: a setting, or None where it is absent or can't be what it should be.

Configs are written by many tools. What they say beside is no reason to refuse a model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MOST = 2**31 - 1
"""Larger token ids, counts and sizes are no model's."""

Settings = Mapping[str, Any]


def table(settings: Settings, *keys: str) -> Settings:
    """The object at `keys`, one inside the other; an empty one where there is none."""
    found: Any = settings
    for key in keys:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def text(settings: Settings, key: str) -> str | None:
    """A string."""
    found = settings.get(key)
    return found if isinstance(found, str) else None


def count(settings: Settings, key: str) -> int | None:
    """A positive whole number."""
    found = _whole(settings.get(key))
    return found or None


def token(settings: Settings, key: str) -> int | None:
    """A token id, from 0."""
    return _whole(settings.get(key))


def tokens(settings: Settings, key: str) -> tuple[int, ...] | None:
    """Token ids, where there is one or a list of them; None where there is neither."""
    found = settings.get(key)
    if isinstance(found, list):
        return tuple(each for each in map(_whole, found) if each is not None)
    one = _whole(found)
    return None if one is None else (one,)


def _whole(value: Any) -> int | None:
    number = isinstance(value, int) and not isinstance(value, bool)
    return value if number and 0 <= value <= MOST else None
