"""Files that people bring: text, JSON and TOML, read within limits.

Whatever lies there, a reader gives a value or raises an error of the caller's type that names the
file, the place in it and the remedy. Nothing is read beyond its limit, from a pipe or a device.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from qcompiler.errors import QcError, shown

CONFIG_BYTES = 16 << 20
"""Of a config or a template: real ones have kilobytes."""
RECIPE_BYTES = 1 << 20
TOKENIZER_BYTES = 256 << 20
"""Of a tokenizer.json: the largest vocabularies take some tens of MB."""
DEEPEST = 64
"""Lists and objects inside one another, at most."""

_ESCAPE = re.compile(
    r"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
    r"|(?P<lone>u[dD][89a-fA-F][0-9a-fA-F]{2})|.)",
    re.DOTALL,
)


_LONG_KEY = re.compile(rf"(?:[^\s.=,]{{1,100}}+[ \t]*+\.[ \t]*+){{{DEEPEST}}}")


def read_bytes(path: Path, most: int, refusal: type[QcError], *, cut: bool = False) -> bytes:
    """What a regular file holds; with `cut`, one byte over `most` of what is longer.

    `refusal` for what is longer otherwise, is no regular file or can't be read.
    """
    try:
        # A pipe that nobody writes to would be waited for.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | _BINARY)
        with os.fdopen(handle, "rb") as file:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise refusal(f"{path} is no regular file; save what it gives to a file")
            content = file.read(most + 1)
    except OSError as error:
        raise refusal(
            f"{path} can't be read: {error.strerror or error}; check the path and its permissions"
        ) from error
    except ValueError as error:  # a name with a null character
        raise refusal(f"{path} can't be read: {error}") from error
    if len(content) > most and not cut:
        raise refusal(
            f"{path} is larger than {told_bytes(most)}, too large for what it should be; "
            "check that it is the right file"
        )
    return content


_BINARY = getattr(os, "O_BINARY", 0)


def told_bytes(size: int) -> str:
    """A limit in words."""
    return f"{size >> 30} GiB" if size >= 1 << 30 else f"{size >> 20} MiB"


def read_text(path: Path, refusal: type[QcError], most: int = CONFIG_BYTES) -> str:
    """The text of a UTF-8 file; `refusal` where it is none."""
    return decoded(read_bytes(path, most, refusal), path, refusal)


def decoded(content: bytes, path: Path | str, refusal: type[QcError]) -> str:
    """Bytes of a file as UTF-8 text; `refusal`, with the place, where they are none."""
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise refusal(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8") from error


def read_json(path: Path, refusal: type[QcError]) -> dict[str, Any]:
    """The object a JSON file holds; `refusal` where it holds none."""
    value = parse_json(read_text(path, refusal).removeprefix("\ufeff"), str(path), refusal)
    if not isinstance(value, dict):
        raise refusal(f"{path}: expected a JSON object, not {shown(value)}")
    return value


def parse_json(text: str, where: str, refusal: type[QcError]) -> Any:
    """A JSON value. A lone half of a surrogate pair, which is no character, becomes U+FFFD.

    `refusal`, which begins with `where`, for what is no JSON, or too deep.
    """
    if "\\ud" in text or "\\uD" in text:
        text = _ESCAPE.sub(lambda found: r"\ufffd" if found["lone"] else found[0], text)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise refusal(f"{where} is not JSON: {_cause(error)}") from error
    if text.count("[") + text.count("{") > DEEPEST:
        _require_shallow(value, where, refusal)
    return value


def json_lines(text: str, where: str, refusal: type[QcError]) -> Iterator[tuple[str, Any]]:
    """The values of JSON lines, each with the line's name for messages."""
    # Not splitlines: JSON strings may hold other line breaks, such as U+2028.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            name = f"{where} line {number}"
            yield name, parse_json(line, name, refusal)


def read_toml(path: Path, refusal: type[QcError]) -> dict[str, Any]:
    """The tables of a TOML file; `refusal` where it is none, or too deep."""
    text = read_text(path, refusal, RECIPE_BYTES).removeprefix("\ufeff")
    if _LONG_KEY.search(text):  # the time these take grows with the square
        raise refusal(f"{path} is not valid TOML: a key has more than {DEEPEST} parts")
    try:
        tables = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise refusal(f"{path} is not valid TOML: {_cause(error)}") from error
    _require_shallow(tables, str(path), refusal)
    return tables


def _cause(error: Exception) -> str:
    return "too deeply nested" if isinstance(error, RecursionError) else str(error)


def _require_shallow(value: Any, where: str, refusal: type[QcError]) -> None:
    """Without recursion: what is to be found out is whether recursion can work."""
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > DEEPEST:
            raise refusal(
                f"{where} is nested more than {DEEPEST} levels deep; check that it is the right "
                "file"
            )
        level = [
            inner
            for each in level
            if isinstance(each, dict | list)
            for inner in (each.values() if isinstance(each, dict) else each)
            if isinstance(inner, dict | list)
        ]


def json_text(value: Any, *, ascii_only: bool = False) -> str:
    """A value as JSON that every reader takes: a number that is not finite becomes null.

    What is no character (a byte of a file name that is not UTF-8) is written as an escape.
    """
    text = json.dumps(plain(value), indent=2, ensure_ascii=ascii_only, allow_nan=False)
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def plain(value: Any) -> Any:
    """Data that JSON can hold; numbers that are not finite become None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if hasattr(value, "item"):  # a numpy scalar
        return plain(value.item())
    return value
