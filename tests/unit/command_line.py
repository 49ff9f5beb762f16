"""`qc` as tests run it."""

from __future__ import annotations

from typer.testing import CliRunner

from qcompiler.cli import app
from qcompiler.cli_errors import BUG


def qc(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code != BUG, result.stderr
    return result


def refusal(*arguments) -> str:
    """The one line with which a command is refused."""
    result = qc(*arguments)
    assert result.exit_code == 1, result.stdout
    assert isinstance(result.exception, SystemExit)
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    return result.stderr


def short(value: object) -> str:
    """A name for a case: the operating system hands it to child processes."""
    return "" if callable(value) else repr(value)[:40]
