"""compile(): the only orchestration. Reads a model, runs a recipe, writes and checks the result."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_graphsurgeon as gs

from qcompiler import __version__, ir, memory, targets
from qcompiler import recipe as recipes
from qcompiler.analysis.reach import Reach, reach
from qcompiler.analysis.requirements import required_versions
from qcompiler.calibration.supply import Progress, Supply
from qcompiler.commit import Made, file_place, folder_place, put_folder, put_model
from qcompiler.companions import check_companions, put_companions
from qcompiler.comparison import Pair
from qcompiler.driver import Calibration, Job, open_jobs
from qcompiler.errors import ModelError
from qcompiler.escapes import printable
from qcompiler.feeds import Signature
from qcompiler.models import ModelPackage, open_packages
from qcompiler.passmanager import PassContext, Record, require_matches
from qcompiler.protos import all_nodes
from qcompiler.recipe import Recipe, options_of
from qcompiler.remarks import Merged, Rounded
from qcompiler.report import FolderReport, Report, account, build_report, told_sizes
from qcompiler.staging import scratch_beside
from qcompiler.targets import Target
from qcompiler.verification import Verification, verify_output

_HELD_BACK = 2


@dataclass(frozen=True, kw_only=True)
class CompileResult:
    """What `compile` wrote, and the report on every layer."""

    output: Path
    files: tuple[Path, ...]
    report: Report | FolderReport
    """Of a folder of several models: what became of each."""


def compile(
    model: str | Path,
    *,
    recipe: str | Path = "w4a8",
    output: str | Path | None = None,
    target: str = "ort-custom",
    calib: str | Path | None = None,
    calib_samples: int | None = None,
    calib_length: int | None = None,
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
    """Quantize an ONNX file, or the models of a folder (`qcompiler.folders`).

    The models of a folder become a folder with all of them: where one computes what another reads,
    that one is calibrated on it (`qcompiler.calibration.handed`). One that holds nothing to
    quantize is copied. `output` defaults to `<stem>.<recipe>.onnx` beside a file and
    `<folder>.<recipe>` beside a folder. `calib` names the calibration source (see
    `qcompiler.calibration.sources`); by default what the recipe names, or random tokens for
    language models. The recipe also says how many samples there are, of how many tokens at most.
    `overrides` are `pass.option=value` texts. `budget` (bits a weight of the linear layers) and
    `max_kl` (divergence at the output) let `allocate-bits` choose the formats of weights.
    `exclude`: regular expressions of layer names to leave in float. The result is compared with its
    source on held-back data and refused when it is broken, unless `force`.

    Raises a QcError subclass whose message names cause and remedy; nothing is left behind then.
    """
    packages = open_packages(model)
    chosen = recipes.load(recipe, overrides)
    wanted = targets.get(target)
    check_companions(packages, wanted)
    if budget is not None or max_kl is not None:
        chosen = recipes.with_budget(chosen, wanted, budget, max_kl)
    jobs = open_jobs(
        packages,
        chosen.passes + wanted.passes(),
        target=wanted,
        calibration=Calibration(
            source=calib,
            samples=calib_samples or chosen.calibration_samples,
            length=calib_length or chosen.calibration_length,
            seed=seed,
            held_back=_HELD_BACK,
        ),
        preferred=chosen.calibration,
        exclude=exclude,
        dump_ir=dump_ir,
        progress=progress,
    )
    final = _output_path(packages, Path(model), chosen.name, output)
    parts = [_Compilation(job, chosen, wanted) for job in jobs]
    with memory.many_objects(sum(len(all_nodes(package.outline)) for package in packages)):
        if packages[0].folder is None:
            return _compile_file(parts[0], final, verify=verify, force=force)
        return _compile_folder(parts, final, exclude, verify=verify, force=force)


def _compile_file(part: _Compilation, final: Path, *, verify: bool, force: bool) -> CompileResult:
    """Make a model beside its place, and put it there."""
    with scratch_beside(final) as scratch:
        result = scratch / "result"
        result.mkdir()
        made, report = part.run(scratch, result / final.name, final, verify=verify, force=force)
        # plan-weights has looked for the patterns among all nodes, before the long passes.
        require_matches(part.job.context, _told_layers([part]))
        files = put_model(made, final)
    return CompileResult(output=final, files=tuple(files), report=report)


def _compile_folder(
    parts: Sequence[_Compilation],
    final: Path,
    exclude: Sequence[str],
    *,
    verify: bool,
    force: bool,
) -> CompileResult:
    """Make all models of a folder beside its place, and put it there when the last is complete."""
    started = time.perf_counter()
    packages = [part.job.package for part in parts]
    files: list[Path] = []
    reports: list[Report] = []
    with scratch_beside(final) as scratch:
        result = scratch / "result"
        result.mkdir()
        for part in parts:
            made, report = part.in_folder(scratch, result, final, verify=verify, force=force)
            files += [file for file in made if file not in files]
            reports.append(report)
        _require_some(reports, packages)
        require_matches(PassContext(exclude=tuple(exclude)), _told_layers(parts))
        output_bytes = sum(file.stat().st_size for file in files)
        files = [*put_companions(packages, result, parts[0].target), *files]
        put_folder(result, final, models=[package.onnx_path.name for package in packages])
    placed = tuple(final / file.relative_to(result) for file in files)
    if len(reports) == 1:
        return CompileResult(output=final, files=placed, report=replace(reports[0], output=final))
    sources = {file for package in packages for file in package.files}
    whole = FolderReport(
        source=packages[0].onnx_path.parent,
        output=final,
        source_bytes=sum(file.stat().st_size for file in sources),
        output_bytes=output_bytes,
        seconds=time.perf_counter() - started,
        models=tuple(reports),
    )
    return CompileResult(output=final, files=placed, report=whole)


@dataclass(frozen=True)
class _Compilation:
    """One model on its way."""

    job: Job
    recipe: Recipe
    target: Target

    def in_folder(
        self, scratch: Path, result: Path, final: Path, *, verify: bool, force: bool
    ) -> tuple[Sequence[Path], Report]:
        """Write the model into the folder `result` under its name, to lie in the folder `final`.

        Where there is nothing to quantize it is copied, and the report says why.
        """
        package = self.job.package
        place = final / package.onnx_path.name
        work = scratch / "work"
        work.mkdir()
        try:
            made, report = self.run(work, result / place.name, place, verify=verify, force=force)
        except _NothingToQuantizeError as why:
            size = package.size_bytes()
            return _copied(package, result), self._report(place, size, 0.0, copied=why.reason)
        finally:
            shutil.rmtree(work)
        return made.files, report

    def run(
        self, work: Path, staged: Path, final: Path, *, verify: bool, force: bool
    ) -> tuple[Made, Report]:
        """Run the passes, write the model to `staged`, and check it.

        `work` takes what is large on the way; `final` is where the model is to lie.
        """
        started = time.perf_counter()
        package, supply = self.job.package, self.job.supply
        with ir.spilling(work):
            graph, minimum = self._quantized()
            metadata = _metadata(package, self.recipe, self.target, minimum, supply)
            made = ir.stage_model(graph, staged.parent, staged.name, metadata=metadata)
            reached = reach(graph, _quantized_nodes(self.job.manager.history))
            del graph
        memory.release()
        checked = None
        if verify:
            checked = verify_output(self._pair(made.model, reached), supply, self.recipe, force)
        size = sum(file.stat().st_size for file in made.files)
        return made, self._report(final, size, time.perf_counter() - started, checked)

    def _report(
        self,
        final: Path,
        size: int,
        seconds: float,
        checked: Verification | None = None,
        copied: str | None = None,
    ) -> Report:
        return build_report(
            self.job.manager.history,
            recipe=self.recipe,
            target=self.target.name,
            source=self.job.package.onnx_path,
            output=final,
            source_bytes=self.job.package.size_bytes(),
            output_bytes=size,
            calibration=self.job.supply.description,
            verification=None if checked is None else checked.to_dict(),
            seconds=seconds,
            copied=copied,
        )

    def _quantized(self) -> tuple[gs.Graph, str]:
        """The graph behind the last pass, and the ONNX Runtime that it needs."""
        job, history = self.job, self.job.manager.history
        graph, learned = job.run()
        _require_quantized(history, job.package)
        return graph, self.target.minimum_for(learned.plan.values(), required_versions(graph))

    def _pair(self, staged: Path, reached: Reach) -> Pair:
        """Source and result, as they are to be compared."""
        package = self.job.package
        return Pair(
            package,
            staged,
            reached,
            caches=frozenset(cache.present for cache in Signature.of(package).caches),
            rescaled=any(options_of(step).get("through_cache") for step in self.job.passes),
        )


def _output_path(
    packages: Sequence[ModelPackage], model: Path, recipe: str, output: str | Path | None
) -> Path:
    given = packages[0].folder
    if output is not None:
        final = Path(output).absolute()
        if given is None and final.suffix != ".onnx":
            raise ModelError(f"output '{output}' must end in .onnx, like the model it comes from")
    elif given is not None:
        folder = given.resolve()
        final = folder.with_name(f"{folder.name}.{recipe}")
    else:
        final = model.absolute().with_name(f"{model.stem}.{recipe}.onnx")
    place = file_place(final) if given is None else folder_place(final)
    for package in packages:
        package.refuse_overwriting(place)
    return place


class _NothingToQuantizeError(ModelError):
    """A model without a layer that the recipe can quantize."""

    def __init__(self, package: ModelPackage, reason: str) -> None:
        super().__init__(f"{package.onnx_path} holds {reason}")
        self.reason = reason


def _require_some(reports: Sequence[Report], packages: Sequence[ModelPackage]) -> None:
    """ModelError where nothing has been quantized in any model."""
    if all(report.copied is not None for report in reports):
        raise _NothingToQuantizeError(packages[0], str(reports[0].copied))


def _told_layers(parts: Sequence[_Compilation]) -> set[str]:
    """The names that passes have said something about."""
    steps = [step for part in parts for step in part.job.manager.history]
    return {remark.layer for step in steps for remark in step.remarks}


def _copied(package: ModelPackage, result: Path) -> list[Path]:
    """Copy a model and its data as they are."""
    made: list[Path] = []
    for file in package.files:
        copy = result / file.relative_to(package.onnx_path.parent)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)
        made.append(copy)
    return made


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
    raise _NothingToQuantizeError(package, f"nothing this recipe can quantize{why}")


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
    for path in package.files:
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
