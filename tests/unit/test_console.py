"""Tables on terminals and in pipes."""

from __future__ import annotations

import pytest
from rich.console import Console

from qcompiler import console

COLUMNS = ("layer", "MB", "note")
ROWS = [["fc_1", "0.59 -> 0.09", "a note that takes its place"], ["a[0]", "-", ""]]


@pytest.fixture
def terminal(monkeypatch):
    """A terminal of a given width; returns what is on it."""

    def of_width(width: int) -> Console:
        made = Console(width=width, force_terminal=True, record=True, color_system=None)
        monkeypatch.setattr(console, "Console", lambda **_: made)
        return made

    return of_width


def test_pipe(capsys) -> None:
    console.print_table(COLUMNS, ROWS)
    assert capsys.readouterr().out.splitlines() == [
        "layer            MB  note",
        "fc_1   0.59 -> 0.09  a note that takes its place",
        "a[0]              -",
    ]


def test_terminal(terminal) -> None:
    screen = terminal(60)
    console.print_table(COLUMNS, ROWS)
    lines = screen.export_text().splitlines()
    assert any("fc_1    0.59 -> 0.09   a note that takes" in line for line in lines)
    assert any("a[0]               -" in line for line in lines)


def test_narrow_terminal(terminal) -> None:
    screen = terminal(30)
    console.print_table(COLUMNS, ROWS)
    lines = [line.rstrip() for line in screen.export_text().splitlines()]
    facts = ["  MB: 0.59 -> 0.09; note: a", "  note that takes its place"]
    assert lines == ["fc_1", *facts, "a[0]", ""]


def test_empty_table(capsys) -> None:
    console.print_table(COLUMNS, [])
    assert capsys.readouterr().out == "layer  MB  note\n"
