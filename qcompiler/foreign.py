"""Other libraries: what they raise becomes an error of ours, and what they print goes nowhere."""

from __future__ import annotations

import os
import re
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager

from qcompiler.errors import QcError

_TOLD = 2000  # characters of a message that are looked at
_EXHAUSTED = ("bad_alloc", "Failed to allocate memory", "out of memory")
_STDERR = 2
_silencing = threading.Lock()


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


@contextmanager
def silenced() -> Generator[None, None, None]:
    """Keep what a library prints below Python, such as the stack of a panic, off standard error."""
    sys.stderr.flush()
    with _silencing:  # it is the process's
        try:
            kept = os.dup(_STDERR)
        except OSError:  # closed: nothing can be printed
            yield
            return
        nothing = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nothing, _STDERR)
            yield
        finally:
            os.dup2(kept, _STDERR)
            os.close(kept)
            os.close(nothing)
