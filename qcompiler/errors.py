"""The errors a user can meet: each message names the cause and the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

from qcompiler.escapes import printable


class QcError(Exception):
    """Root of every error raised on purpose; the CLI prints it, exit code 1.

    The message is one printable line, whatever names from models stand in it.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(printable(" ".join(message.split())))


class ModelError(QcError):
    """The input model can't be read, is not valid ONNX, or holds nothing to work on."""


class RecipeError(QcError):
    """A recipe, pass name or pass option is wrong."""


class CalibrationError(QcError):
    """Calibration data is missing, too small, or does not fit the model."""


class GradientError(CalibrationError):
    """An operator on the way to the output has no gradient here."""


class PassError(QcError):
    """A pass failed or broke the graph; names the pass and the node."""


class FaultError(PassError):
    """A part of the compiler met something in a model that it did not expect."""


class VerificationError(QcError):
    """The compiled model disagrees with its source beyond what its recipe allows."""


class RuntimeLibraryError(QcError):
    """The op library is missing or does not load."""


class OutputError(QcError):
    """An output can't be put where it is to go, or would replace what nobody wants replaced."""


class ExportError(QcError):
    """A source model can't be turned into ONNX."""


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """A suggestion for a mistyped word, or the list of what is known."""
    close = difflib.get_close_matches(word, known, n=1)
    if close:
        return f"did you mean '{close[0]}'?"
    return f"known: {', '.join(sorted(known))}"


_SHOWN = 80  # characters of a value in a message


def shown(value: Any) -> str:
    """A value as messages quote it: what is long is cut."""
    if isinstance(value, dict | list):  # may be of any size and depth
        return f"{'a table' if isinstance(value, dict) else 'a list'} of {len(value)}"
    if isinstance(value, int) and abs(value) >= 10**_SHOWN:  # Python may refuse to print it
        return "a number of more than 80 digits"
    text = repr(value[: _SHOWN + 1] if isinstance(value, str) else value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."
