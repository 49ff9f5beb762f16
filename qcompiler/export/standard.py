"""Export in standard operators, by torch.onnx.export(dynamo=True)."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qcompiler.errors import ExportError
from qcompiler.export import cache, experts, fit, kinds, scans
from qcompiler.export.graphs import Graph, whole, write
from qcompiler.export.hf import cause_of, libraries, quiet, refused
from qcompiler.export.sources import has_tokenizer
from qcompiler.files import read_json
from qcompiler.models import SIDE_FILES, TOKENIZER

_PREPROCESSOR = "preprocessor_config.json"
_RELOAD = "download them again, or take the model in plain floats"


def export_torch(folder: Path, out: Path) -> tuple[str, ...]:
    """Export a Hugging Face folder: model.onnx, or encoder.onnx and decoder.onnx for a pair.

    Batch and sequence are dynamic; weights lie beside, in FILE.data. Returns what there is to say
    about the result. Raises ExportError.
    """
    torch, transformers = libraries(needed_for="the torch dialect")
    with quiet(transformers), refused(f"{folder} can't be exported", kinds.OTHER_MEANS):
        # In this order, what fails early need not wait for the weights.
        config = transformers.AutoConfig.from_pretrained(folder)
        role = kinds.role_of(config.to_dict())
        loader = _loader(transformers, role, kinds.architecture(config.to_dict()))
        notes = _save_side_files(transformers, folder, out)
        model, found = _load(torch, loader, folder)
        experts.write_out(torch, transformers, model)
        scans.take_whole(model)
        if found["missing_keys"] and role in ("decoder", "pair"):
            raise fit.lacking(folder, model, found)
        if role == "decoder":
            return (*notes, *_write_decoder(torch, transformers, model, out))
        full = model.config.to_dict()
        graphs: tuple[Graph, ...]
        if role == "pair":
            graphs = cache.pair(torch, transformers, model, full)
        else:
            graph, made_up = whole(torch, model, role, full, _preprocessor(folder))
            if made_up:
                raise fit.lacking(folder, model, found)
            graphs = (graph,)
        for graph in graphs:
            write(torch, graph, model, out)
    return notes


def _loader(transformers: Any, role: kinds.Role, name: str) -> Any:
    """The class that loads a model."""
    found = fit.loader_of(transformers, role, name)
    if found is None:
        raise ExportError(
            f"transformers {transformers.__version__} has no class {name}, and code that a model "
            f"brings along is not run; {kinds.OTHER_MEANS}"
        )
    return found


def _load(torch: Any, loader: Any, folder: Path) -> tuple[Any, dict[str, Any]]:
    """The model, and what transformers says of it; weights that it lacks are NaN."""
    with refused(f"the weights of {folder} can't be loaded", _RELOAD):
        model, found = fit.loaded(torch, loader, folder)
    # transformers makes them up. Some are never used: a pooler, what masks in training.
    weights = model.state_dict()
    for name in found["missing_keys"]:
        weights[name].fill_(torch.nan)
    return model.eval(), found


def _write_decoder(torch: Any, transformers: Any, model: Any, out: Path) -> tuple[str, ...]:
    """Write a decoder with its cache; where that fails, without, and say so."""
    try:
        write(torch, cache.decoder(torch, transformers, model), model, out)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # torch and transformers raise anything
        write(torch, cache.uncached(), model, out)
        return (f"without key/value cache, each step reads the whole text: {cause_of(error)}",)
    return ()


def _preprocessor(folder: Path) -> Mapping[str, Any]:
    file = folder / _PREPROCESSOR
    return read_json(file, ExportError) if file.is_file() else {}


def _save_side_files(transformers: Any, folder: Path, out: Path) -> tuple[str, ...]:
    for name in (*SIDE_FILES, _PREPROCESSOR):
        if (folder / name).is_file():
            shutil.copyfile(folder / name, out / name)
    if (out / TOKENIZER).is_file() or not has_tokenizer(folder):
        return ()
    # Older models ship only a vocabulary: the fast tokenizer is made from it.
    try:
        transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(out)
    except Exception as error:  # of sentencepiece, tokenizers or transformers
        return (f"without tokenizer.json, put one beside it: {cause_of(error)}",)
    return () if (out / TOKENIZER).is_file() else ("without tokenizer.json: put one beside it",)
