"""Output for people on a terminal, and for programs in a pipe.

Results go to standard output, everything else to standard error, so a pipe sees results only: what
libraries print meanwhile too (`results_only`). Whatever a text holds, a terminal obeys none of it,
and what its encoding lacks is escaped.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from qcompiler.escapes import in_json, printable
from qcompiler.files import json_text

_MESSAGE = 4000  # characters of an error
_SHORT = 18  # characters of a cell that is not worth breaking
_BETWEEN = 3  # characters between two columns of a drawn table

Advance = Callable[[int, int], None]
"""Called with (done, total)."""


_results: list[TextIO] = []
"""Where results go while standard output is closed to others."""


@contextmanager
def results_only() -> Generator[None, None, None]:
    """While it lasts, results alone reach standard output.

    What others print, in Python or below it, goes to standard error. Warnings, which are meant for
    programmers, go nowhere unless Python was told about them.
    """
    with contextlib.ExitStack() as stack:
        _results.append(stack.enter_context(_own_output()))
        stack.callback(_results.pop)
        stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        if not sys.warnoptions:
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
        yield


@contextmanager
def _own_output() -> Generator[TextIO, None, None]:
    """Standard output; the descriptor of that number is standard error's meanwhile."""
    sys.stdout.flush()
    try:
        kept = os.dup(sys.stdout.fileno()) if sys.stdout.fileno() == _STDOUT else -1
    except (OSError, io.UnsupportedOperation):  # closed, or not a file: only Python prints there
        kept = -1
    if kept < 0:
        yield sys.stdout
        return
    made = os.fdopen(os.dup(kept), "w", encoding=sys.stdout.encoding, errors="backslashreplace")
    os.dup2(_STDERR, _STDOUT)
    try:
        yield made
    finally:
        with contextlib.suppress(OSError):  # what could not be written has been told
            made.close()
        os.dup2(kept, _STDOUT)
        os.close(kept)


_STDOUT, _STDERR = 1, 2


def say(text: str = "") -> None:
    """One line of a result."""
    say_text(printable(text) + "\n")


def say_text(text: str) -> None:
    """A result of several lines, or of a part of one."""
    out = _results[-1] if _results else sys.stdout
    _write(out, printable(text, lines=True))


def note(text: str) -> None:
    """One line on standard error."""
    _write(sys.stderr, printable(text) + "\n")


def _write(out: TextIO, text: str) -> None:
    encoding = out.encoding or "utf-8"
    out.write(text.encode(encoding, "backslashreplace").decode(encoding))
    out.flush()


class _Notes(logging.Handler):
    """What is logged, one line each, and the same line once."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._told: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if text not in self._told:
            self._told.add(text)
            note(text)


def show_log() -> None:
    """Show warnings that are logged, from here on for one command."""
    root = logging.getLogger()
    for handler in [each for each in root.handlers if isinstance(each, _Notes)]:
        root.removeHandler(handler)
    root.addHandler(_Notes())


@contextmanager
def progress(description: str) -> Generator[Advance, None, None]:
    """A progress bar on a terminal; nothing in a pipe."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda _done, _total: None
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeRemainingColumn())
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
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("compiling", total=None)
        yield lambda phase, done, total: bar.update(
            task, description=printable(phase), completed=done, total=total
        )


@contextmanager
def status(description: str) -> Generator[None, None, None]:
    """A spinner on a terminal for work of unknown length; nothing in a pipe."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield
        return
    plain = not console.encoding.startswith("utf")
    with console.status(Text(printable(description)), spinner="line" if plain else "dots"):
        yield


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> None:
    """A table: drawn on a terminal, aligned plain text in a pipe. Figures stand on the right.

    The title is a line of its own before it.
    On a terminal too narrow for it, every row becomes a paragraph.
    """
    console = Console(file=_results[-1] if _results else None)
    if title:
        say(title)
    rows = [[printable(cell) for cell in row] for row in rows]
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
        say("  ".join(aligned).rstrip())


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
    out = _results[-1] if _results else sys.stdout
    text = in_json(json_text(value))
    try:
        text.encode(out.encoding or "utf-8")
    except UnicodeEncodeError:
        text = json_text(value, ascii_only=True)
    say_text(text + "\n")


def print_error(message: str) -> None:
    """One line `error: ...` on standard error."""
    text = " ".join(message.split())
    note(f"error: {text if len(text) <= _MESSAGE else text[:_MESSAGE] + ' ...'}")


def megabytes(size: int) -> str:
    """A size in MB (10^6 bytes)."""
    return f"{size / 1e6:.1f}"


def number(value: float | None, digits: int = 1) -> str:
    """A figure, or a dash where there is none."""
    return "-" if value is None else f"{value:.{digits}f}"
