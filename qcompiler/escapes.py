"""Text that was written by others, made safe to show."""

from __future__ import annotations

import re

_UNSAFE = re.compile(
    "[\\x00-\\x1f\\x7f-\\x9f"  # controls: a terminal obeys them
    "\\u061c\\u200e\\u200f\\u202a-\\u202e\\u2066-\\u2069"  # what turns the order of letters
    "\\u2028\\u2029"  # line breaks to some
    "\\ud800-\\udfff]"  # no characters: bytes of file names that are not UTF-8
)
_LINES = "\n\t"


def printable(text: str, *, lines: bool = False) -> str:
    """Text with escapes for what is no plain character; with `lines`, line breaks and tabs stay."""
    return _UNSAFE.sub(
        lambda found: found[0] if lines and found[0] in _LINES else _escape(found[0]), text
    )


def in_json(text: str) -> str:
    """The same for a JSON document, by escapes that say the same to its reader."""
    # JSON itself escapes line breaks in strings: what is left stands between values.
    return _UNSAFE.sub(
        lambda found: found[0] if found[0] in _LINES else f"\\u{ord(found[0]):04x}", text
    )


def _escape(letter: str) -> str:
    code = ord(letter)
    if 0xDC80 <= code <= 0xDCFF:  # how Python keeps a byte that it can't decode
        code -= 0xDC00
    if letter in "\n\r\t":
        return repr(letter)[1:-1]
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
