"""Texts to calibrate with and to evaluate on: files, and the English every Python ships.

`pydoc:first` and `pydoc:second` are the halves of `pydoc_data.topics`, the language reference as
plain text. Topics quote each other, a fifth of all sentences: each paragraph counts once, where it
comes first, and the split lies between topics, so nothing is in both.
"""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

from qcompiler.errors import QcError
from qcompiler.files import decoded, json_lines, read_bytes

PYDOC = ("pydoc:first", "pydoc:second")
MAX_BYTES = 64 * 2**20
"""Of a longer text only the beginning is read."""


def pydoc_text(half: str) -> str:
    """The text of "pydoc:first" or "pydoc:second"."""
    seen: set[str] = set()
    articles: list[str] = []
    for article in topics.values():
        fresh = [p for p in re.split(r"\n\s*\n", article) if p.strip() and p not in seen]
        seen.update(fresh)
        articles.append("\n\n".join(fresh))
    middle = sum(map(len, articles)) / 2
    ends = itertools.accumulate(map(len, articles))
    split = 1 + next(i for i, end in enumerate(ends) if end >= middle)
    chosen = articles[:split] if half == PYDOC[0] else articles[split:]
    return "\n\n".join(filter(None, chosen))


def read_text(spec: str, refusal: type[QcError]) -> str:
    """The text that `spec` names: a pydoc half, a text file, or a .jsonl file.

    `refusal`, the cause in its message, for an unreadable or malformed file.
    """
    if spec in PYDOC:
        return pydoc_text(spec)
    if spec.startswith("pydoc:"):
        raise refusal(f"no text '{spec}': there are {' and '.join(PYDOC)}")
    path = Path(spec)
    if not path.is_file():
        raise refusal(f"no text file {spec}; give a file, or one of {', '.join(PYDOC)}")
    content = read_bytes(path, MAX_BYTES, refusal, cut=True)
    if cut := len(content) > MAX_BYTES:
        # The cut may fall inside a character: that one is dropped.
        content = _whole_characters(content[:MAX_BYTES])
    text = decoded(content, spec, refusal)
    if path.suffix == ".jsonl":
        return "\n\n".join(_jsonl_texts(spec, text.rsplit("\n", 1)[0] if cut else text, refusal))
    return text


def _whole_characters(content: bytes) -> bytes:
    """UTF-8 without a character at its end that is cut off."""
    for back in range(1, 4):
        lead = content[-back]
        if lead >= 0xC0:  # it begins a character of 2 to 4 bytes
            length = 2 + (lead >= 0xE0) + (lead >= 0xF0)
            return content[:-back] if length > back else content
    return content


def sentences(text: str, shortest: int = 24, longest: int = 400) -> list[str]:
    """Distinct sentences of `text` in order, each of `shortest` to `longest` characters."""
    found: dict[str, None] = {}
    for paragraph in re.split(r"\n\s*\n", text):
        flat = " ".join(paragraph.split())
        for sentence in re.split(r"(?<=[.!?])\s+(?=[A-Z\"'(])", flat):
            if shortest <= len(sentence) <= longest:
                found[sentence] = None
    return list(found)


def _jsonl_texts(spec: str, text: str, refusal: type[QcError]) -> list[str]:
    texts: list[str] = []
    for where, record in json_lines(text, spec, refusal):
        found = _record_text(record)
        if found is None:
            raise refusal(
                f"{where} has no text: expected a field text, prompt, content or messages"
            )
        texts.append(found)
    return texts


def _record_text(record: Any) -> str | None:
    if isinstance(record, str):
        return record
    if not isinstance(record, dict):
        return None
    for key in ("text", "prompt", "content"):
        if isinstance(record.get(key), str):
            return record[key]
    messages = record.get("messages")
    if isinstance(messages, list) and messages:
        parts = [_record_text(message) for message in messages]
        return "\n".join(part for part in parts if part is not None) or None
    return None
