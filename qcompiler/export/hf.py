"""torch and transformers: found, kept quiet, their errors made ours."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import os
import re
import warnings
from collections.abc import Generator
from typing import Any

from qcompiler.errors import ExportError
from qcompiler.foreign import one_line

_TOLD = 300  # characters of a cause


def libraries(needed_for: str) -> tuple[Any, Any]:
    # The source is a local file: nothing may go looking for it on the network.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        import torch
        import transformers

        importlib.import_module("onnxscript")  # torch.onnx misses it once the weights are read
    except ImportError as error:
        raise ExportError(
            f"{needed_for} need torch, transformers and onnxscript ({error}): "
            "pip install 'qcompiler[export]'"
        ) from error
    return torch, transformers


@contextlib.contextmanager
def quiet(transformers: Any) -> Generator[None, None, None]:
    """Keep the libraries' progress bars, notes and warnings off the terminal."""
    notes = transformers.utils.logging
    verbosity, bars, disabled = (
        notes.get_verbosity(),
        notes.is_progress_bar_enabled(),
        logging.root.manager.disable,
    )
    notes.set_verbosity_error()
    notes.disable_progress_bar()
    logging.disable(logging.WARNING)
    quiet = io.StringIO()
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(quiet),
            contextlib.redirect_stderr(quiet),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
        notes.set_verbosity(verbosity)
        if bars:
            notes.enable_progress_bar()


@contextlib.contextmanager
def refused(what: str, remedy: str) -> Generator[None, None, None]:
    """Whatever the libraries raise on a model as ExportError: what, the first cause, remedy."""
    try:
        yield
    except (ExportError, OSError, KeyboardInterrupt, MemoryError):
        raise
    except Exception as error:  # the libraries raise anything on a model they don't know
        raise ExportError(f"{what}: {cause_of(error)}; {remedy}") from error


def cause_of(error: BaseException) -> str:
    """Type and message of what `error` was raised from, without colours, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = re.sub(r"\x1b\[[0-9;]*m", "", one_line(error))
    if isinstance(error, ExportError):
        return text
    text = text if len(text) <= _TOLD else text[:_TOLD].rsplit(" ", 1)[0] + " ..."
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
