"""The texts that models are judged on besides the one that every Python ships."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
pytestmark = pytest.mark.skipif(not EXAMPLES.is_dir(), reason="no checkout")
KINDS = ("plays", "law", "science", "chat", "languages", "code")


@pytest.fixture
def texts(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module("texts")


def paragraphs(file: Path) -> set[str]:
    return {each for each in file.read_text("utf-8").split("\n\n") if len(each) > 40}


@pytest.mark.parametrize("kind", KINDS)
def test_halves_are_large_and_apart(texts, tmp_path, kind):
    assert set(texts.KINDS) == set(KINDS)
    try:
        first, second = texts.write(kind, tmp_path)
    except texts.MissingTextError as missing:
        pytest.skip(str(missing))
    assert min(len(each.read_text("utf-8")) for each in (first, second)) > 15_000
    shared = paragraphs(first) & paragraphs(second)
    assert len(shared) < 0.02 * len(paragraphs(second))  # code has its idioms


def test_a_missing_package_is_named(texts):
    with pytest.raises(texts.MissingTextError, match="package no_such_package is not installed"):
        texts.package_folder("no_such_package")
