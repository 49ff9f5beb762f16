"""Output for people on a terminal, and for programs in a pipe.

Results go to standard output, everything else to standard error, so a pipe sees results only.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

_SHORT = 18  # characters of a cell that is not worth breaking
_BETWEEN = 3  # characters between two columns of a drawn table

Advance = Callable[[int, int], None]
"""Called with (done, total)."""


@contextmanager
def progress(description: str) -> Generator[Advance, None, None]:
    """A progress bar on a terminal; nothing in a pipe."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda _done, _total: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(description, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def phases() -> Generator[Callable[[str, int, int], None], None, None]:
    """Progress of work in several phases, called with (phase, done, total); nothing in a pipe."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda _phase, _done, _total: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("compiling", total=None)
        yield lambda phase, done, total: bar.update(
            task, description=phase, completed=done, total=total
        )


@contextmanager
def status(description: str) -> Generator[None, None, None]:
    """A spinner on a terminal for work of unknown length; nothing in a pipe."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield
        return
    with console.status(description):
        yield


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> None:
    """A table: drawn on a terminal, aligned plain text in a pipe. Figures stand on the right.

    The title is a line of its own before it.
    On a terminal too narrow for it, every row becomes a paragraph.
    """
    console = Console()
    if title:
        print(title)
    cells = [[line[i] for line in (columns, *rows)] for i in range(len(columns))]
    widths = [max(map(len, column)) for column in cells]
    figures = [i > 0 and all(map(_is_figure, column[1:])) for i, column in enumerate(cells)]
    if console.is_terminal:
        room = sum(min(width, _SHORT) + _BETWEEN for width in widths)
        if room <= console.width:
            console.print(_drawn(columns, rows, widths, figures))
        else:
            _print_paragraphs(console, columns, rows)
        return
    for line in (columns, *rows):
        aligned = [
            cell.rjust(width) if figure else cell.ljust(width)
            for cell, width, figure in zip(line, widths, figures, strict=True)
        ]
        print("  ".join(aligned).rstrip())


def _drawn(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    widths: Sequence[int],
    figures: Sequence[bool],
) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    for column, width, figure in zip(columns, widths, figures, strict=True):
        table.add_column(
            column,
            justify="right" if figure else "left",
            overflow="fold",
            no_wrap=width <= _SHORT,
        )
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def _print_paragraphs(
    console: Console, columns: Sequence[str], rows: Sequence[Sequence[str]]
) -> None:
    for first, *others in rows:
        facts = [
            f"{column}: {cell}"
            for column, cell in zip(columns[1:], others, strict=True)
            if cell not in ("", "-")
        ]
        console.print(Text(first, style="bold"))
        console.print(Padding(Text("; ".join(facts)), (0, 0, 0, 2)))


def _is_figure(cell: str) -> bool:
    return cell[:1] in "-0123456789" or cell == "inf"


def print_json(value: Any) -> None:
    """One JSON document on standard output."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def print_error(message: str) -> None:
    """One line `error: ...` on standard error."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr)


def megabytes(size: int) -> str:
    """A size in MB (10^6 bytes)."""
    return f"{size / 1e6:.1f}"


def number(value: float | None, digits: int = 1) -> str:
    """A figure, or a dash where there is none."""
    return "-" if value is None else f"{value:.{digits}f}"
