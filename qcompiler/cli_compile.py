"""The commands that compile and look into models: compile, inspect, opt, recipe."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qcompiler import cli_options, console
from qcompiler.cli_options import Command, Json
from qcompiler.commit import file_place, put_model
from qcompiler.staging import scratch_beside
from qcompiler.targets import TARGETS

if TYPE_CHECKING:
    from qcompiler.compiler import CompileResult
    from qcompiler.passmanager import Record

recipe_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="The recipes that say how to quantize.",
)

Model = Annotated[str, typer.Argument(metavar="MODEL", help="ONNX file or model folder.")]
Target = Annotated[
    str,
    typer.Option("--target", "-t", help=f"What the result runs on: {', '.join(TARGETS)}."),
]
Calib = Annotated[
    str | None,
    typer.Option(
        metavar="SRC",
        help="Calibration data: random-tokens, pydoc:first, self, a text, .jsonl or .npz file, a "
        "folder of .npz files, or random; several with + between share the samples. By default "
        "what a recipe names, else random-tokens for language models and random for others.",
    ),
]
Samples = Annotated[
    int, typer.Option(parser=cli_options.whole(1), metavar="N", help="Calibration samples.")
]
Length = Annotated[
    int,
    typer.Option(parser=cli_options.whole(2), metavar="N", help="Tokens per calibration sample."),
]
Seed = Annotated[
    int,
    typer.Option(parser=cli_options.whole(0), metavar="N", help="Seed of random calibration data."),
]
Exclude = Annotated[
    list[str] | None,
    typer.Option(
        "--nodes-to-exclude", metavar="REGEX", help="Leave layers with matching names in float."
    ),
]
DumpIr = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Write the graph after every pass to this folder."),
]
Lowering = Annotated[
    str | None,
    typer.Option("--target", "-t", help="Add the passes of this target after yours."),
]
Pipeline = Annotated[
    str, typer.Option("-p", "--pipeline", help="Passes: name{option=value,...},name,...")
]
OptOutput = Annotated[
    Path | None, typer.Option("-o", "--output", metavar="OUT", help="Write the model to OUT.")
]
Assume = Annotated[
    list[str] | None,
    typer.Option(metavar="FACT", help="A fact that already holds for the model, such as qdq."),
]
Show = Annotated[bool, typer.Option("--print", help="Print the resulting graph as text.")]
Output = Annotated[
    Path | None,
    typer.Option(
        "-o",
        "--output",
        metavar="OUT",
        help="Output; by default <stem>.<recipe>.onnx, or <folder>.<recipe>.",
    ),
]
RecipeName = Annotated[str, typer.Option("--recipe", "-r", help="A recipe's name or a .toml file.")]
RecipeSamples = Annotated[
    int | None,
    typer.Option(
        parser=cli_options.whole(1),
        metavar="N",
        help="Calibration samples; by default as the recipe says.",
    ),
]
RecipeLength = Annotated[
    int | None,
    typer.Option(
        parser=cli_options.whole(2),
        metavar="N",
        help="Tokens per calibration sample; by default as the recipe says.",
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PASS.OPTION=VALUE", help="Change an option of the recipe."),
]
Budget = Annotated[
    str | None,
    typer.Option(
        metavar="BITS",
        help="Choose formats by layer, for this many bits per weight of the linear layers, such "
        "as 4.5bpw.",
    ),
]
MaxKl = Annotated[
    float | None,
    typer.Option(
        parser=cli_options.real(),
        metavar="X",
        help="Choose the smallest formats by layer, for about this divergence at the output.",
    ),
]
ReportFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Write the report on every layer to this .json or .html file."
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Keep a result that fails verification.")]
Verify = Annotated[
    bool, typer.Option("--verify/--no-verify", help="Compare the result with its source.")
]


def compile_model(
    model: Model,
    output: Output = None,
    recipe: RecipeName = "w4a8",
    target: Target = "ort-custom",
    calib: Calib = None,
    calib_samples: RecipeSamples = None,
    calib_length: RecipeLength = None,
    overrides: Overrides = None,
    budget: Budget = None,
    max_kl: MaxKl = None,
    exclude: Exclude = None,
    dump_ir: DumpIr = None,
    report: ReportFile = None,
    seed: Seed = 0,
    force: Force = False,
    verify: Verify = True,
    json: Json = False,
) -> None:
    """Quantize an ONNX model, or a folder of several.

    A file compiles to a file, with its weights beside it in OUT.<digits>.data. A model folder
    compiles to a folder that is ready to run: with the models that genai_config.json names, else
    model.onnx, else all that are there, such as encoder.onnx and decoder.onnx. A model that reads
    what another one computes is calibrated on that.

    [dim]Examples:[/]

      qc compile smol

      qc compile model.onnx -o small.onnx --recipe fptq --calib prompts.jsonl

      qc compile model.onnx --set plan-weights.group_size=64 --report layers.html

      qc compile model.onnx --target qdq --nodes-to-exclude lm_head

      qc compile smol --budget 4.5bpw --calib chapter.txt

      qc compile whisper --calib features.npz
    """
    _check(report)
    from qcompiler.compiler import compile as run

    quiet()
    with console.phases() as progress:
        result = run(
            model,
            recipe=recipe,
            output=output,
            target=target,
            calib=calib,
            calib_samples=calib_samples,
            calib_length=calib_length,
            overrides=overrides or [],
            budget=None if budget is None else cli_options.bits(budget),
            max_kl=max_kl,
            exclude=exclude or [],
            dump_ir=dump_ir,
            seed=seed,
            force=force,
            verify=verify,
            progress=progress,
        )
    _tell(result, report, json=json)


def _check(report: Path | None) -> None:
    """A report's place: better refused now than after minutes of work."""
    if report is None:
        return
    if report.suffix not in (".json", ".html"):
        raise typer.BadParameter("name a .json or .html file", param_hint="--report")
    with scratch_beside(file_place(report)):
        """It can be written there."""


def _tell(result: CompileResult, file: Path | None, *, json: bool) -> None:
    """Write the report where a file is named, and print it."""
    from qcompiler.report import summary, table, write_html, write_json

    report = result.report
    if file is not None:
        (write_html if file.suffix == ".html" else write_json)(report, file)
    if json:
        files = [str(each) for each in result.files]
        console.print_json(report.to_dict() | {"files": files})
        return
    for line in summary(report):
        console.say(line)
    for model in report.models:
        title = "" if model is report else f"{model.output.name}:"
        console.print_table(*table(model, grouped=True), title=title)


def sensitivity(
    model: Model,
    probe: Annotated[
        str, typer.Option(metavar="FORMAT", help="Format that each layer is rounded to.")
    ] = "int4 g128 sym",
    top: Annotated[
        int,
        typer.Option(
            parser=cli_options.whole(1), metavar="N", help="Layers to suggest for exclusion."
        ),
    ] = 3,
    calib: Calib = None,
    calib_samples: Samples = 4,
    calib_length: Length = 512,
    exclude: Exclude = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Rank layers by how much rounding them alone changes the model's output.

    Layers that read the same activation are rounded together. The divergence is the KL of logits,
    or the relative squared error of other outputs. --budget of [bold]qc compile[/] uses the same
    figures.

    [dim]Examples:[/]

      qc sensitivity smol --calib chapter.txt

      qc sensitivity model.onnx --top 5 --json
    """
    from qcompiler.driver import Calibration
    from qcompiler.sensitivity import exclusion, measure

    quiet()
    with console.phases() as progress:
        units = measure(
            model,
            probe=probe,
            calibration=Calibration(
                source=calib, samples=calib_samples, length=calib_length, seed=seed
            ),
            exclude=exclude or [],
            progress=progress,
        )
    pattern = exclusion(units[:top])
    if json:
        console.print_json({"units": [unit.to_dict() for unit in units], "exclusion": pattern})
        return
    total = sum(unit.divergence for unit in units) or 1.0
    rows = [
        [str(unit.rank), " + ".join(unit.layers), f"{unit.divergence:.2e}", f"{share:.1f}"]
        for unit in units
        for share in (100 * unit.divergence / total,)
    ]
    console.print_table(["rank", "layers", "divergence", "% of all"], rows, title=f"as {probe}")
    console.say()
    console.say(f"to keep the first {min(top, len(units))} in float:")
    console.say(f"--nodes-to-exclude {shlex.quote(pattern)}")


def opt(
    model: Model,
    pipeline: Pipeline,
    output: OptOutput = None,
    show: Show = False,
    calib: Calib = None,
    calib_samples: Samples = 16,
    calib_length: Length = 512,
    assume: Assume = None,
    target: Lowering = None,
    exclude: Exclude = None,
    dump_ir: DumpIr = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Run passes by hand, and print what each did.

    [dim]Examples:[/]

      qc opt model.onnx -p import,canonicalize --print

      qc opt model.onnx -p 'import,canonicalize,plan-weights{bits=8},plan-activations,
      quantize-weights,insert-qdq' --target ort-custom -o fast.onnx

      qc opt model.qdq.onnx -p merge-linears,lower-ort-custom --assume qdq -o fast.onnx
    """
    from qcompiler.driver import Calibration
    from qcompiler.ir import spilling_beside, stage_model
    from qcompiler.ir.printer import print_graph
    from qcompiler.opt import run_pipeline

    quiet()
    final = None if output is None else file_place(output)
    with spilling_beside(final) as work:
        with console.phases() as progress:
            result = run_pipeline(
                model,
                pipeline,
                calibration=Calibration(
                    source=calib, samples=calib_samples, length=calib_length, seed=seed
                ),
                assume=assume or [],
                target=target,
                exclude=exclude or [],
                dump_ir=dump_ir,
                output=final,
                progress=progress,
            )
        text = print_graph(result.graph) if show else None
        files: list[str] = []
        if final is not None:
            made = stage_model(result.graph, work, final.name)
            files = [str(path) for path in put_model(made, final)]
    if json:
        passes = [record.to_dict() for record in result.history]
        console.print_json({"passes": passes, "files": files, "graph": text})
    elif text is not None:
        console.say_text(text)
    else:
        _print_history(result.history)


def _print_history(history: Sequence[Record]) -> None:
    """What every pass did, and said of each layer."""
    for record in history:
        did = "changed the graph" if record.changed else "nothing to change"
        console.say(f"{record.name}: {did}, {record.seconds:.2f} s")
        for remark in record.remarks:
            console.say(f"  {'+' if remark.applied else '-'} {remark.layer}: {remark.message}")


@recipe_app.command(name="list", cls=Command)
def list_recipes(json: Json = False) -> None:
    """List the recipes that come with qcompiler."""
    from qcompiler.recipe import available, load

    recipes = [load(name) for name in available()]
    if json:
        console.print_json([recipe.to_dict() for recipe in recipes])
        return
    for recipe in recipes:
        console.say(f"{recipe.name}: {' '.join(recipe.description.split())}")


@recipe_app.command(name="show", cls=Command)
def show_recipe(
    name: Annotated[str, typer.Argument(help="A recipe's name or a .toml file.")],
    json: Json = False,
) -> None:
    """Show a recipe: its TOML, to copy and change, or every option with --json.

    [dim]Example:[/]  qc recipe show w4a8 > mine.toml
    """
    from qcompiler.recipe import load, text_of

    found = load(name)
    if json:
        console.print_json(found.to_dict())
        return
    console.say_text(text_of(name))


def quiet() -> None:
    """Keep graphsurgeon from warning on standard output, where results go."""
    from onnx_graphsurgeon.logger import G_LOGGER

    G_LOGGER.severity = G_LOGGER.ERROR
