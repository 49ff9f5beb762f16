"""compile(): the only orchestration. Reads a model, runs a recipe, writes and checks the result."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler import __version__, ir, memory, runtime
from qcompiler import recipe as recipes
from qcompiler.calibration.pieces import evaluate, main_output
from qcompiler.calibration.sources import default_spec
from qcompiler.calibration.supply import Feed, Supply, short
from qcompiler.errors import CalibrationError, ModelError, RecipeError, VerificationError
from qcompiler.feeds import as_taken
from qcompiler.instruments import DumpInstrument, VerifyInstrument
from qcompiler.models import GENAI_CONFIG, ModelPackage, open_package
from qcompiler.numerics.rounding import sqnr_db
from qcompiler.passmanager import (
    Instrument,
    Pass,
    PassContext,
    PassManager,
    Record,
    require_matches,
)
from qcompiler.recipe import Recipe
from qcompiler.report import Report, build_report
from qcompiler.session import create_session, one_line
from qcompiler.staging import scratch_beside

TARGETS: dict[str, str] = {
    "ort-custom": (
        "fuse-norm,compute-rotary,merge-linears,lower-ort-custom,lower-attention,"
        "lower-multi-head-attention,lower-norm,lower-activation"
    ),
    "cuda": "fuse-norm,compute-rotary,merge-linears,lower-ort-custom,half-precision",
    "ort-contrib": "fuse-norm,compute-rotary,lower-ort-contrib",
    "qdq": "",
}
"""What each target runs after the recipe's passes."""

MINIMUM_ORT = {"ort-custom": "1.20", "cuda": "1.20", "ort-contrib": "1.23", "qdq": "1.20"}

_HELD_BACK = 2

Progress = Callable[[str, int, int], None]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Verification:
    """Compiled against source on calibration data held back from the passes."""

    sqnr_db: float
    """Signal-to-noise of the first output of floats in dB; inf where they are equal."""
    top1_agreement: float | None
    """Share of positions with the same most likely token; None for models without logits."""
    samples: int
    held_back: bool
    """Whether no pass had seen the samples."""
    finite: bool

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return dict(vars(self))


@dataclass(frozen=True, kw_only=True)
class CompileResult:
    """What `compile` wrote, and the report on every layer."""

    output: Path
    files: tuple[Path, ...]
    report: Report


def compile(
    model: str | Path,
    *,
    recipe: str | Path = "w4a8",
    output: str | Path | None = None,
    target: str = "ort-custom",
    calib: str | Path | None = None,
    calib_samples: int | None = None,
    calib_length: int = 512,
    overrides: Sequence[str] = (),
    budget: float | None = None,
    max_kl: float | None = None,
    exclude: Sequence[str] = (),
    dump_ir: str | Path | None = None,
    seed: int = 0,
    force: bool = False,
    verify: bool = True,
    progress: Progress | None = None,
) -> CompileResult:
    """Quantize an ONNX file or an onnxruntime-genai model folder.

    `output` defaults to `<stem>.<recipe>.onnx` beside a file and `<folder>.<recipe>` beside a
    folder. `calib` names the calibration source (see `qcompiler.calibration.sources`); by
    default what the recipe names, or random tokens for language models. `overrides` are
    `pass.option=value` texts.
    `budget` (bits a weight of the linear layers) and `max_kl` (divergence at the output) let
    `allocate-bits` choose the formats of weights. `exclude`: regular expressions of layer names to
    leave in float. The result is compared with its source on held-back data and refused when it is
    broken, unless `force`.

    Raises a QcError subclass whose message names cause and remedy; nothing is left behind then.
    """
    started = time.perf_counter()
    package = open_package(model)
    chosen = recipes.load(recipe, overrides)
    if budget is not None or max_kl is not None:
        chosen = recipes.with_budget(chosen, budget, max_kl)
    passes = pipeline(chosen, target)
    final = _output_path(package, Path(model), chosen.name, output)
    if calib is None:
        calib = default_spec(package, chosen.calibration)
    if calib_samples is None:
        calib_samples = chosen.calibration_samples
    source = Supply(
        package,
        calib,
        samples=calib_samples,
        length=calib_length,
        seed=seed,
        held_back=_HELD_BACK,
        progress=progress,
    )
    context = PassContext(
        target=target,
        exclude=tuple(exclude),
        observe=source.observe,
        stream=source.stream,
        probe=source.probe,
        progress=progress,
    )
    instruments: list[Instrument] = [VerifyInstrument()]
    if dump_ir is not None:
        instruments.append(DumpInstrument(Path(dump_ir)))
    manager = PassManager(passes, instruments)
    with scratch_beside(final) as scratch:
        with ir.spilling(scratch):
            graph = ir.read_model(package.onnx_path)
            if verify:
                _require_floats(graph, package)
            graph, _ = manager.run(graph, context)
            _require_quantized(manager.history, package)
            # plan-activations has looked for the patterns among all nodes, before the long passes.
            require_matches(context, {r.layer for step in manager.history for r in step.remarks})
            metadata = _metadata(package, chosen, target, source)
            name = final.name if package.folder is None else package.onnx_path.name
            staged = scratch / name
            written = ir.write_model(graph, staged, metadata=metadata)
        del graph
        memory.release()
        checked = None
        if verify:
            checked = _verify(package, staged, source, chosen, force)
        if package.folder is not None:
            written += _companions(package, scratch, name, target)
        sizes = (package.size_bytes(), sum(f.stat().st_size for f in written[:2]))
        files = _install(written, scratch, final, package)
    report = build_report(
        manager.history,
        recipe=chosen,
        target=target,
        source=package.onnx_path,
        output=final,
        source_bytes=sizes[0],
        output_bytes=sizes[1],
        calibration=source.description,
        verification=None if checked is None else checked.to_dict(),
        seconds=time.perf_counter() - started,
    )
    return CompileResult(output=final, files=tuple(files), report=report)


def pipeline(chosen: Recipe, target: str) -> tuple[Pass, ...]:
    """The passes of a recipe followed by those of a target; RecipeError for an unknown target."""
    check_target(target)
    tail = TARGETS[target]
    return chosen.passes + (recipes.parse_pipeline(tail) if tail else ())


def check_target(target: str) -> None:
    """RecipeError for an unknown target."""
    if target not in TARGETS:
        hint = recipes.did_you_mean(target, list(TARGETS))
        raise RecipeError(f"unknown target '{target}'; {hint}")


def _output_path(
    package: ModelPackage, model: Path, recipe: str, output: str | Path | None
) -> Path:
    if output is not None:
        final = Path(output).absolute()
        if package.folder is None and final.suffix != ".onnx":
            raise ModelError(f"output '{output}' must end in .onnx, like the model it comes from")
    elif package.folder is not None:
        folder = package.folder.resolve()
        final = folder.with_name(f"{folder.name}.{recipe}")
    else:
        final = model.absolute().with_name(f"{model.stem}.{recipe}.onnx")
    package.refuse_overwriting(final)
    if package.folder is not None and final.is_file():
        raise ModelError(f"output '{final}' is a file; a model folder compiles to a folder")
    if package.folder is None and final.is_dir():
        raise ModelError(f"output '{final}' is a folder; a model file compiles to a file")
    return final


def _require_floats(graph: gs.Graph, package: ModelPackage) -> None:
    """What `_verify` compares; better known before the long passes than behind them."""
    # Types that numpy lacks are left to ONNX Runtime.
    kinds = [output.dtype for output in graph.outputs]
    if all(isinstance(kind, (type, np.dtype)) and np.dtype(kind).kind in "biuO" for kind in kinds):
        raise _no_floats(package.onnx_path)


def _no_floats(path: Path) -> ModelError:
    return ModelError(f"{path} gives no floats that tell the quality: compile with --no-verify")


def _require_quantized(history: Sequence[Record], package: ModelPackage) -> None:
    steps = [r for r in history if r.name in ("quantize-weights", "quantize-embedding")]
    if any(remark.applied for step in steps for remark in step.remarks):
        return
    refused = [r for step in [*steps, *history] for r in step.remarks if not r.applied]
    why = ": it has no matrix product by a constant"
    if refused:
        why = f" (for example '{refused[0].layer}': {refused[0].message})"
    raise ModelError(f"{package.onnx_path} holds nothing this recipe can quantize{why}")


def _metadata(package: ModelPackage, chosen: Recipe, target: str, source: Supply) -> dict[str, str]:
    digest = hashlib.sha256()
    for path in (package.onnx_path, *package.data_files()):
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return {
        "qcompiler.version": __version__,
        "qcompiler.recipe": json.dumps(chosen.to_dict(), sort_keys=True),
        "qcompiler.target": target,
        "qcompiler.source_sha256": digest.hexdigest(),
        "qcompiler.calibration": source.description,
        "qcompiler.calibration_sha256": source.sha256,
        "qcompiler.minimum_onnxruntime": MINIMUM_ORT[target],
    }


def _verify(
    package: ModelPackage,
    staged: Path,
    source: Supply,
    chosen: Recipe,
    force: bool,
) -> Verification:
    """Run source and result, one after the other, and judge one output."""
    feeds, held_back = source.kept()
    cut = short(feeds)
    reference = _reference(package.onnx_path, cut)
    result = _output(staged, cut)
    # A model may mean its infinities: a mask over logits.
    judged = np.isfinite(reference)
    if reference.size and not judged.any():
        raise VerificationError(
            f"{package.onnx_path} itself gives nothing but NaN or infinity on the calibration "
            "data; give data that suits it (--calib)"
        )
    finite = bool(np.isfinite(result[judged]).all())
    logits = reference.shape[-1] > 1024
    checked = Verification(
        sqnr_db=sqnr_db(reference[judged], result[judged]) if finite else float("-inf"),
        top1_agreement=(
            float(np.mean(reference.argmax(-1) == result.argmax(-1))) if logits else None
        ),
        samples=len(cut),
        held_back=held_back,
        finite=finite,
    )
    if (not finite or checked.sqnr_db < chosen.min_sqnr_db) and not force:
        what = (
            f"has {checked.sqnr_db:.1f} dB signal-to-noise at its output, less than the "
            f"{chosen.min_sqnr_db:.1f} dB this recipe promises"
            if finite
            else "gives NaN or infinity"
        )
        raise VerificationError(
            f"the compiled model {what}; try another recipe, calibration text (--calib), smaller "
            "groups, or exclude layers; --force writes it all the same"
        )
    return checked


def _reference(path: Path, feeds: Sequence[Feed]) -> np.ndarray[Any, Any]:
    """What `_output` gives for the float model, with a part of its weights in memory at a time."""
    graph = ir.read_model(path)
    try:
        return _rows(evaluate(graph, main_output(graph), feeds))
    except CalibrationError as error:
        raise ModelError(f"{path}: {error}") from None


def _rows(values: Sequence[np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    """The last dimensions of all arrays as rows, float32."""
    rows = [each.reshape(-1, each.shape[-1] if each.size and each.ndim else 1) for each in values]
    return np.concatenate(rows).astype(np.float32)


_FLOATS = ("tensor(float)", "tensor(float16)", "tensor(double)")


def _output(path: Path, feeds: Sequence[Feed]) -> np.ndarray[Any, Any]:
    """The first output of floating-point numbers, as rows over all feeds."""
    # Weights packed for speed would double the memory of a session that runs twice.
    session = create_session(path, options={"session.disable_prepacking": "1"})
    floats = [output for output in session.get_outputs() if output.type in _FLOATS]
    if not floats:
        raise _no_floats(path)
    chosen = next((output for output in floats if 0 not in output.shape), floats[0])
    try:
        results = [
            np.asarray(session.run([chosen.name], as_taken(session, feed))[0]) for feed in feeds
        ]
        return _rows(results)
    except Exception as error:  # ONNX Runtime's errors share no other base class
        raise ModelError(
            f"{path} does not run on the calibration data: {one_line(error)}"
        ) from None


def _companions(package: ModelPackage, scratch: Path, name: str, target: str) -> list[Path]:
    """Everything else of a model folder: tokenizer, configuration, and the op library."""
    assert package.folder is not None  # the caller asks for folders only
    skip = {package.onnx_path.resolve(), *(f.resolve() for f in package.data_files())}
    copied: list[Path] = []
    for path in sorted(package.folder.iterdir()):
        if path.is_file() and path.resolve() not in skip:
            shutil.copyfile(path, scratch / path.name)
            copied.append(scratch / path.name)
    if target not in ("ort-custom", "cuda"):
        return copied
    library = runtime.cuda_library_path() if target == "cuda" else runtime.library_path()
    if library is None:
        _log.warning(
            "%s was not built with this qcompiler, for want of nvcc: put it beside the model",
            runtime.CUDA_LIBRARY,
        )
    else:
        shutil.copyfile(library, scratch / library.name)
        copied.append(scratch / library.name)
    config = scratch / GENAI_CONFIG
    if config.is_file():
        data = json.loads(config.read_text(encoding="utf-8"))
        decoder = data.setdefault("model", {}).setdefault("decoder", {})
        decoder["filename"] = name
        options = decoder.setdefault("session_options", {})
        options["custom_ops_library"] = runtime.CUDA_LIBRARY if library is None else library.name
        if target == "cuda":
            options["provider_options"] = [{"cuda": {}}]
        config.write_text(json.dumps(data, indent=4), encoding="utf-8")
    return copied


def _install(
    written: Sequence[Path], scratch: Path, final: Path, package: ModelPackage
) -> list[Path]:
    """Move complete files to their place, the model itself last."""
    folder = final if package.folder is not None else final.parent
    folder.mkdir(parents=True, exist_ok=True)
    model = scratch / (final.name if package.folder is None else package.onnx_path.name)
    ordered = [path for path in written if path != model] + [model]
    placed: list[Path] = []
    for path in ordered:
        path.replace(folder / path.name)
        placed.append(folder / path.name)
    return placed


__all__ = ["TARGETS", "CompileResult", "Verification", "compile", "pipeline"]
