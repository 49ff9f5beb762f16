"""Everything that needs torch and transformers: reading GGUF, and export in standard operators."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import shutil
import warnings
from collections.abc import Generator
from pathlib import Path
from typing import Any

from qcompiler import settings
from qcompiler.errors import ExportError
from qcompiler.export.sources import read_config
from qcompiler.foreign import one_line
from qcompiler.models import SIDE_FILES, TOKENIZER

OPSET = 21  # the first with blocked int4 DequantizeLinear
_MAX_BATCH = 64
_MAX_SEQUENCE = 8192


def gguf_to_folder(gguf: Path, out: Path) -> Path:
    """Write a GGUF file as a float32 Hugging Face folder, tokenizer included.

    Raises ExportError when the file or its architecture can't be read.
    """
    torch, transformers = _libraries(needed_for="GGUF files")
    where = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    with _quiet(transformers), _refused(f"{gguf} can't be read"):
        loaded = transformers.AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
        tokenizer = transformers.AutoTokenizer.from_pretrained(**where)
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
    return out


def export_torch(folder: Path, out: Path, *, decoder: bool) -> None:
    """Export a Hugging Face folder with dynamic batch and sequence, weights in model.onnx.data.

    A decoder gives `logits` (no cache), an encoder `last_hidden_state`. Raises ExportError.
    """
    torch, transformers = _libraries(needed_for="the torch dialect")
    auto = transformers.AutoModelForCausalLM if decoder else transformers.AutoModel
    output = "logits" if decoder else "last_hidden_state"
    extra = {"use_cache": False} if decoder else {}
    with _quiet(transformers), _refused(f"{folder} can't be exported"):
        model = auto.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
        model.eval()

        def run(self: Any, input_ids: Any, attention_mask: Any) -> Any:
            result = self.model(input_ids=input_ids, attention_mask=attention_mask, **extra)
            return getattr(result, output)

        # torch exports modules, not functions.
        wrapper = type("OneOutput", (torch.nn.Module,), {"forward": run})()
        wrapper.model = model
        ids = torch.arange(32).reshape(2, 16)
        limit = settings.count(read_config(folder), "max_position_embeddings") or _MAX_SEQUENCE
        axes = {
            0: torch.export.Dim("batch", min=1, max=_MAX_BATCH),
            1: torch.export.Dim("sequence", min=1, max=min(limit, _MAX_SEQUENCE)),
        }
        program = torch.onnx.export(
            wrapper,
            (ids, torch.ones_like(ids)),
            dynamo=True,
            input_names=["input_ids", "attention_mask"],
            output_names=[output],
            dynamic_shapes=(axes, axes),
            opset_version=OPSET,
            external_data=True,
            verbose=False,
        )
        program.save(str(out / "model.onnx"), external_data=True)
        _save_tokenizer(transformers, folder, out)


def _save_tokenizer(transformers: Any, folder: Path, out: Path) -> None:
    for name in SIDE_FILES:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, out / name)
    if not (out / TOKENIZER).is_file():
        # Older models ship only a vocabulary: the fast tokenizer is made from it.
        transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(out)


def _libraries(needed_for: str) -> tuple[Any, Any]:
    # The source is a local file: nothing may go looking for it on the network.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        import torch
        import transformers
    except ImportError as error:
        raise ExportError(
            f"{needed_for} need torch and transformers ({error}): pip install 'qcompiler[export]'"
        ) from error
    return torch, transformers


@contextlib.contextmanager
def _quiet(transformers: Any) -> Generator[None, None, None]:
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
def _refused(what: str) -> Generator[None, None, None]:
    try:
        yield
    except (ExportError, OSError, KeyboardInterrupt, MemoryError):
        raise
    except Exception as error:  # the libraries raise anything on a model they don't know
        reason = one_line(error) or type(error).__name__
        raise ExportError(f"{what}: {reason}; download it again, or convert it anew") from error
