"""The errors a user can meet: each message names the cause and the remedy."""

from __future__ import annotations

import difflib
import re
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any


class QcError(Exception):
    """Root of every error raised on purpose; the CLI prints it on one line, exit code 1."""


class ModelError(QcError):
    """The input model can't be read, is not valid ONNX, or holds nothing to work on."""


class RecipeError(QcError):
    """A recipe, pass name or pass option is wrong."""


class CalibrationError(QcError):
    """Calibration data is missing, too small, or does not fit the model."""


class PassError(QcError):
    """A pass failed or broke the graph; names the pass and the node."""


class VerificationError(QcError):
    """The compiled model disagrees with its source beyond what its recipe allows."""


class RuntimeLibraryError(QcError):
    """The op library is missing or does not load."""


class ExportError(QcError):
    """A source model can't be turned into ONNX."""


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """A suggestion for a mistyped word, or the list of what is known."""
    close = difflib.get_close_matches(word, known, n=1)
    if close:
        return f"did you mean '{close[0]}'?"
    return f"known: {', '.join(sorted(known))}"


_SHOWN = 80  # characters of a value in a message
_TOLD = 2000  # characters of another library's message that are looked at
_EXHAUSTED = ("bad_alloc", "Failed to allocate memory", "out of memory")


def shown(value: Any) -> str:
    """A value as messages quote it: what is long is cut."""
    if isinstance(value, dict | list):  # may be of any size and depth
        return f"{'a table' if isinstance(value, dict) else 'a list'} of {len(value)}"
    if isinstance(value, int) and abs(value) >= 10**_SHOWN:  # Python may refuse to print it
        return "a number of more than 80 digits"
    text = repr(value[: _SHOWN + 1] if isinstance(value, str) else value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."


def one_line(error: BaseException) -> str:
    """The message of an ONNX Runtime error without its status prefix and line breaks."""
    text = " ".join(str(error)[:_TOLD].split())
    if text.startswith("[ONNXRuntimeError]"):
        text = text.split(" : ", 3)[-1]
    if "incompatible" in text and "arguments" in text:  # of the binding, with its signatures
        text = "it does not take a value of this type"
    # Some name the place in ONNX Runtime's sources, with the signature of the C++ function.
    return re.sub(r"/\S{1,400}\.(?:cc|h):\d+ [^)]*\)(?: const)? ", "", text)


@contextmanager
def runtime_errors(
    refusal: type[QcError], what: str, remedy: str = "export it again"
) -> Generator[None, None, None]:
    """ONNX Runtime's exceptions, which share no base class, as `refusal`: what, cause, remedy."""
    try:
        yield
    except (QcError, MemoryError):
        raise
    except Exception as error:
        if any(sign in str(error) for sign in _EXHAUSTED):
            raise MemoryError(f"{what}: {one_line(error)}") from error
        raise refusal(f"{what}: {one_line(error)}; {remedy}") from error


@contextmanager
def foreign_errors(refusal: type[QcError], what: str, remedy: str) -> Generator[None, None, None]:
    """Whatever a library raises on bad data as `refusal`: what, cause, remedy.

    A panic of a library written in Rust is no Exception.
    """
    try:
        yield
    except (QcError, MemoryError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        raise refusal(f"{what}: {one_line(error) or type(error).__name__}; {remedy}") from error
