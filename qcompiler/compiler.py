"""compile(): the only orchestration. Reads a model, runs a recipe, writes and checks the result."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_graphsurgeon as gs

from qcompiler import __version__, ir, memory, targets
from qcompiler import recipe as recipes
from qcompiler.analysis.reach import Reach, reach
from qcompiler.calibration.sources import default_spec
from qcompiler.calibration.supply import Progress, Supply
from qcompiler.commit import Made, file_place, folder_place, put_folder, put_model
from qcompiler.companions import put_companions
from qcompiler.comparison import Pair
from qcompiler.driver import Calibration, Job, open_job
from qcompiler.errors import ModelError
from qcompiler.escapes import printable
from qcompiler.feeds import Signature
from qcompiler.models import ModelPackage, open_package
from qcompiler.passmanager import Record, require_matches
from qcompiler.protos import all_nodes
from qcompiler.recipe import Recipe, options_of
from qcompiler.remarks import Merged, Rounded
from qcompiler.report import Report, account, build_report, told_sizes
from qcompiler.staging import scratch_beside
from qcompiler.targets import Target
from qcompiler.verification import Verification, verify_output

_HELD_BACK = 2


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
    package = open_package(model)
    chosen = recipes.load(recipe, overrides)
    wanted = targets.get(target)
    if budget is not None or max_kl is not None:
        chosen = recipes.with_budget(chosen, wanted, budget, max_kl)
    usual = default_spec(package, chosen.calibration)
    job = open_job(
        package,
        chosen.passes + wanted.passes(),
        target=wanted,
        calibration=Calibration(
            source=usual if calib is None else calib,
            samples=calib_samples or chosen.calibration_samples,
            length=calib_length,
            seed=seed,
            held_back=_HELD_BACK,
            usual=usual,
        ),
        exclude=exclude,
        dump_ir=dump_ir,
        progress=progress,
    )
    final = _output_path(package, Path(model), chosen.name, output)
    with memory.many_objects(len(all_nodes(package.outline))):
        part = _Compilation(job, chosen, wanted)
        return _run(part, package, final, verify=verify, force=force)


def _run(
    part: _Compilation, package: ModelPackage, final: Path, *, verify: bool, force: bool
) -> CompileResult:
    """Make the result beside its place, and put it there when it is complete."""
    with scratch_beside(final) as scratch:
        result = scratch / "result"
        result.mkdir()
        made, report = part.run(scratch, result, final, verify=verify, force=force)
        if package.folder is None:
            files = put_model(made, final)
        else:
            copied = put_companions([package], result, part.target)
            files = [final / file.name for file in (*copied, *made.files)]
            put_folder(result, final, model=made.model.name)
    return CompileResult(output=final, files=tuple(files), report=report)


@dataclass(frozen=True)
class _Compilation:
    """One model on its way."""

    job: Job
    recipe: Recipe
    target: Target

    def run(
        self, work: Path, result: Path, final: Path, *, verify: bool, force: bool
    ) -> tuple[Made, Report]:
        """Run the passes, write the model into the folder `result`, and check it.

        `work` takes what is large on the way. `final` is where the model will lie: the file, or its
        folder.
        """
        started = time.perf_counter()
        package, supply = self.job.package, self.job.supply
        name = final.name if package.folder is None else package.onnx_path.name
        with ir.spilling(work):
            graph, minimum = self._quantized()
            metadata = _metadata(package, self.recipe, self.target, minimum, supply)
            made = ir.stage_model(graph, result, name, metadata=metadata)
            reached = reach(graph, _quantized_nodes(self.job.manager.history))
            del graph
        memory.release()
        checked = None
        if verify:
            checked = verify_output(self._pair(made.model, reached), supply, self.recipe, force)
        report = build_report(
            self.job.manager.history,
            recipe=self.recipe,
            target=self.target.name,
            source=package.onnx_path,
            output=final,
            source_bytes=package.size_bytes(),
            output_bytes=sum(file.stat().st_size for file in made.files),
            calibration=supply.description,
            verification=None if checked is None else checked.to_dict(),
            seconds=time.perf_counter() - started,
        )
        return made, report

    def _quantized(self) -> tuple[gs.Graph, str]:
        """The graph behind the last pass, and the ONNX Runtime that it needs."""
        job, history = self.job, self.job.manager.history
        graph, learned = job.run()
        _require_quantized(history, job.package)
        # plan-weights has looked for the patterns among all nodes, before the long passes.
        require_matches(job.context, {r.layer for step in history for r in step.remarks})
        return graph, self.target.minimum_for(learned.plan.values())

    def _pair(self, staged: Path, reached: Reach) -> Pair:
        """Source and result, as they are to be compared."""
        package = self.job.package
        return Pair(
            package,
            staged,
            reached,
            caches=frozenset(cache.present for cache in Signature.of(package).caches),
            rescaled=any(options_of(step).get("through_cache") for step in self.recipe.passes),
        )


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
    place = file_place(final) if package.folder is None else folder_place(final)
    package.refuse_overwriting(place)
    return place


def _require_quantized(history: Sequence[Record], package: ModelPackage) -> None:
    layers, weights = account(history)
    if any(layer.quantized for layer in layers):
        return
    refused = [layer for layer in layers if layer.reason is not None]
    # A layer tells more than other nodes, and what holds more tells more.
    refused.sort(key=lambda layer: (layer.kind == "other", -(layer.bytes_before or 0)))
    why = ": it has no matrix product by a constant"
    if refused:
        why = f" (for example '{refused[0].name}': {refused[0].reason})"
    if weights is not None and weights.bytes:
        why += f"; what holds its weights: {told_sizes(weights.rest)}"
    raise ModelError(f"{package.onnx_path} holds nothing this recipe can quantize{why}")


def _quantized_nodes(history: Sequence[Record]) -> set[str]:
    """The names of nodes that compute quantized layers and tables in the result."""
    remarks = [remark for step in history for remark in step.remarks]
    names = {remark.layer for remark in remarks if isinstance(remark, Rounded)}
    for remark in remarks:
        if isinstance(remark, Merged) and not names.isdisjoint(remark.members):
            names = names.difference(remark.members) | {remark.into}
    return names


def _metadata(
    package: ModelPackage, chosen: Recipe, target: Target, minimum: str, source: Supply
) -> dict[str, str]:
    digest = hashlib.sha256()
    for path in (package.onnx_path, *package.data_files):
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return {
        "qcompiler.version": __version__,
        "qcompiler.recipe": json.dumps(chosen.to_dict(), sort_keys=True),
        "qcompiler.target": target.name,
        "qcompiler.source_sha256": digest.hexdigest(),
        "qcompiler.calibration": printable(source.description),  # file names may be no UTF-8
        "qcompiler.calibration_sha256": source.sha256,
        "qcompiler.minimum_onnxruntime": minimum,
    }


__all__ = ["CompileResult", "Verification", "compile"]
