"""How errors are told on the command line: each on one line."""

from __future__ import annotations

import errno
import os
import traceback
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import typer

from qcompiler import __version__, console

BUG = 70
"""Exit code for an error of ours."""
TRACEBACK_VARIABLE = "QC_TRACEBACK"
"""Environment variable that shows where an unexpected error comes from."""

_PANIC = "PanicException"  # of libraries written in Rust: no Exception
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]  # typer has no name for it


def is_ours(error: BaseException) -> bool:
    """Whether an error is a fault, and no way to end the process."""
    return isinstance(error, Exception) or type(error).__name__ == _PANIC


@contextmanager
def usage_errors() -> Generator[None, None, None]:
    """One line for a command line that can't be read."""
    try:
        yield
    except _UsageError as error:
        context = getattr(error, "ctx", None)
        if type(error).__name__ == "NoArgsIsHelpError":  # not an error: it shows the help
            raise
        command = "qc" if context is None else context.command_path
        message = getattr(error, "format_message", error.__str__)().rstrip(".")
        console.print_error(f"{message}; see {command} --help")
        raise typer.Exit(2) from None


def tell_bug(error: BaseException, ctx: Any) -> None:
    """One line for an unexpected error; where it comes from, for those who ask."""
    if os.environ.get(TRACEBACK_VARIABLE):
        for line in "".join(traceback.format_exception(error)).splitlines():
            console.note(line)
    console.print_error(
        f"this is a bug of qc {__version__}, in 'qc {ctx.invoked_subcommand}': "
        f"{type(error).__name__}: {error}; please report it with what "
        f"{TRACEBACK_VARIABLE}=1 shows"
    )


def explained(error: OSError) -> str:
    """An error of the operating system, with the file and a remedy."""
    where = f"{error.filename}: " if error.filename else ""
    if error.errno == errno.ENOSPC:
        return f"{where}the disk is full; free some space or write elsewhere"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{where}no permission; check the owner of the file and its folder"
    if error.errno in (errno.EEXIST, errno.ENOTDIR):
        return f"{where}a file is where a folder is needed; choose another place"
    if error.errno == errno.EFBIG:
        return f"{where}the file grows too large for this place (see ulimit -f); write elsewhere"
    if error.errno in (errno.ELOOP, errno.ENAMETOOLONG):
        return f"{where}{error.strerror}; choose another path"
    return f"{where}{error.strerror or error}"
