"""torch and transformers: found, kept quiet, their errors made ours; and reading GGUF."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import os
import re
import warnings
from collections.abc import Generator
from pathlib import Path
from typing import Any

from qcompiler.errors import ExportError
from qcompiler.export import ties
from qcompiler.foreign import one_line

_TOLD = 300  # characters of a cause


def gguf_to_folder(gguf: Path, out: Path, *, tie: bool = False) -> tuple[str, ...]:
    """Write a GGUF file as a float32 Hugging Face folder, tokenizer included.

    `tie`: of a table that the file holds twice, as embeddings and as head, one is kept. Returns
    what there is to say. Raises ExportError when the file or its architecture can't be read.
    """
    torch, transformers = libraries(needed_for="GGUF files")
    where = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    remedy = "download it again, or convert it anew"
    with quiet(transformers), refused(f"{gguf} can't be read", remedy):
        loaded = transformers.AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
        tokenizer = transformers.AutoTokenizer.from_pretrained(**where)
        notes = ties.settle(torch, loaded, tie=tie)
        config = loaded.config
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        # A model read from GGUF counts as quantized and can't be saved: its weights move to a
        # fresh one of the same shape.
        model = type(loaded)(config)
        model.load_state_dict(loaded.state_dict())
        model.tie_weights()
        model.save_pretrained(out)
        tokenizer.save_pretrained(out)
    return notes


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
