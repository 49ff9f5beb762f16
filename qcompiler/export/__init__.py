"""From a Hugging Face folder or a GGUF file to ONNX, ready to compile.

Two dialects: `genai`, the decoder graphs of onnxruntime-genai's model builder (fused attention),
and `torch`, the standard operators of `torch.onnx.export(dynamo=True)`, for models of every kind.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from qcompiler.commit import folder_place, put_folder
from qcompiler.errors import ExportError
from qcompiler.export.sources import (
    Source,
    check_space,
    check_tokenizer,
    check_weights,
    find_source,
    is_decoder,
)
from qcompiler.staging import scratch_beside

__all__ = ["ExportResult", "export_model"]

Dialect = Literal["auto", "genai", "torch"]
Precision = Literal["fp32", "int4"]


@dataclass(frozen=True)
class ExportResult:
    """Where the exported model lies, and how it was made."""

    path: Path
    source: str
    dialect: str
    precision: str
    seconds: float
    notes: tuple[str, ...] = ()
    """What is worth knowing of the result: another dialect than usual, no cache, no tokenizer."""

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "path": str(self.path)}


def export_model(
    src: str | Path,
    out: str | Path,
    *,
    dialect: Dialect = "auto",
    precision: Precision = "fp32",
    tie: bool = False,
    overwrite: bool = False,
) -> ExportResult:
    """Export `src` into the folder `out`: model.onnx with its data, tokenizer and configs beside.

    `src`: a Hugging Face folder, a .gguf file, or `package:NAME`, an installed Python package that
    carries either. An encoder-decoder becomes encoder.onnx and decoder.onnx. Dialect "auto" is
    `genai` for the decoders that its builder can build, else `torch`. Precision "int4" is
    onnxruntime-genai's own quantization, a baseline. `tie`: a table that a .gguf file holds in two
    roundings, as embeddings and as head, becomes one. `out` appears only when it is complete.

    Raises ExportError or OutputError, the remedy in its message.
    """
    start = time.perf_counter()
    out = Path(out)
    if dialect not in ("auto", "genai", "torch") or precision not in ("fp32", "int4"):
        raise ExportError(
            f"dialect '{dialect}', precision '{precision}': there are auto, genai, torch and "
            "fp32, int4"
        )
    if dialect == "torch" and precision != "fp32":
        raise ExportError("precision int4 exists in the genai dialect only; use fp32")
    final = folder_place(out, replace=overwrite)
    source = find_source(str(src))
    # What fails fails now, not behind minutes of work.
    check_space(source, check_weights(source), final.parent, precision)
    check_tokenizer(source)
    # Beside the result: the last step is then a rename, on one file system.
    with scratch_beside(final) as work:
        made = work / "out"
        made.mkdir()
        folder, told = _folder(source, work, tie=tie)
        used, notes = _export(source, folder, made, work, dialect, precision)
        put_folder(made, final, replace=overwrite)
    seconds = time.perf_counter() - start
    return ExportResult(out, source.description, used, precision, seconds, (*told, *notes))


def _folder(source: Source, work: Path, *, tie: bool) -> tuple[Path, tuple[str, ...]]:
    """The Hugging Face folder to export, and what there is to say about it."""
    if source.is_gguf:
        # torch takes seconds to import: only now is it certain to be needed.
        from qcompiler.export import gguf

        folder = work / "hf"
        return folder, gguf.gguf_to_folder(source.path, folder, tie=tie)
    if tie:
        raise ExportError(
            f"{source.description}: only .gguf files hold one table in two roundings; leave out "
            "--tie, and set tie_word_embeddings in config.json if head and embeddings are one"
        )
    return source.path, ()


def _export(
    source: Source, folder: Path, made: Path, work: Path, dialect: str, precision: str
) -> tuple[str, tuple[str, ...]]:
    """Returns the dialect and the notes."""
    from qcompiler.export import fit, genai, standard

    if not source.is_gguf:  # else it has just been written
        fit.check_fit(folder)
    obstacle = genai.obstacle(folder)
    if obstacle is None and dialect != "torch":
        try:
            genai.build(folder, made, work, precision)
        except ExportError as error:
            obstacle = str(error)
            shutil.rmtree(made)
            made.mkdir()
        else:
            return "genai", ()
    if dialect == "genai":
        raise ExportError(f"{source.description}: {obstacle}; use --dialect torch")
    if precision != "fp32":
        why = f", and {obstacle}" if obstacle else ""
        raise ExportError(f"precision int4 exists in the genai dialect only{why}; use fp32")
    notes = standard.export_torch(folder, made)
    if obstacle and is_decoder(folder):
        notes = (f"in standard operators: {obstacle}", *notes)
    return "torch", notes
