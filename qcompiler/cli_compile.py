"""The commands that compile and look into models: compile, inspect, opt, recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from qcompiler import console

recipe_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="The recipes that say how to quantize.",
)

Model = Annotated[str, typer.Argument(metavar="MODEL", help="ONNX file or model folder.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Target = Annotated[
    str,
    typer.Option("--target", "-t", help="What it runs on: ort-custom, cuda, ort-contrib or qdq."),
]
Calib = Annotated[
    str | None,
    typer.Option(
        metavar="SRC",
        help="Calibration data: random-tokens (usual for language models; some recipes "
        "name another), self, pydoc:first, "
        "a text, .jsonl or .npz file, a folder of .npz, or random.",
    ),
]
Samples = Annotated[int, typer.Option(min=1, help="Calibration samples.")]
Length = Annotated[int, typer.Option(min=2, help="Tokens a calibration sample.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of random calibration data.")]
Exclude = Annotated[
    list[str] | None,
    typer.Option(
        "--nodes-to-exclude", metavar="REGEX", help="Leave layers of such names in float."
    ),
]
DumpIr = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Write the graph after every pass there.")
]


def _bits(text: str) -> float:
    """4.5 of "4.5bpw"."""
    try:
        return float(text.removesuffix("bpw"))
    except ValueError:
        raise typer.BadParameter(
            f"'{text}' is no number of bits, such as 4.5bpw", param_hint="--budget"
        ) from None


def compile_model(
    model: Model,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="OUT", help="Usually <stem>.<recipe>.onnx."),
    ] = None,
    recipe: Annotated[
        str, typer.Option("--recipe", "-r", help="A recipe's name or a .toml file.")
    ] = "w4a8",
    target: Target = "ort-custom",
    calib: Calib = None,
    calib_samples: Annotated[
        int | None,
        typer.Option(min=1, help="Calibration samples; as the recipe says by default."),
    ] = None,
    calib_length: Length = 512,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="PASS.OPTION=VALUE", help="Change an option of the recipe."),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            metavar="BITS",
            help="Bits a weight of the linear layers, such as 4.5bpw: formats by layer.",
        ),
    ] = None,
    max_kl: Annotated[
        float | None,
        typer.Option(
            metavar="X", help="The smallest formats of about this divergence at the output."
        ),
    ] = None,
    exclude: Exclude = None,
    dump_ir: DumpIr = None,
    report: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the report on every layer: .json or .html."),
    ] = None,
    seed: Seed = 0,
    force: Annotated[
        bool, typer.Option("--force", help="Keep a result that fails verification.")
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Compare the result with its source.")
    ] = True,
    json: Json = False,
) -> None:
    """Quantize an ONNX model.

    A file compiles to a file, with its weights in OUT.data; a model folder in onnxruntime-genai's
    layout to a folder that is ready to run.

    [dim]Examples:[/]

      qc compile smol

      qc compile model.onnx -o small.onnx --recipe fptq --calib prompts.jsonl

      qc compile model.onnx --set quantize-weights.group_size=64 --report layers.html

      qc compile model.onnx --target qdq --nodes-to-exclude lm_head

      qc compile smol --budget 4.5bpw --calib chapter.txt
    """
    if report is not None and report.suffix not in (".json", ".html"):
        raise typer.BadParameter("name a .json or .html file", param_hint="--report")
    if report is not None:  # better refused now than after minutes of work
        report.parent.mkdir(parents=True, exist_ok=True)
    from qcompiler.compiler import compile as run
    from qcompiler.report import summary, table, write_html, write_json

    _quiet()
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
            budget=None if budget is None else _bits(budget),
            max_kl=max_kl,
            exclude=exclude or [],
            dump_ir=dump_ir,
            seed=seed,
            force=force,
            verify=verify,
            progress=progress,
        )
    if report is not None:
        (write_html if report.suffix == ".html" else write_json)(result.report, report)
    if json:
        files = [str(file) for file in result.files]
        console.print_json(result.report.to_dict() | {"files": files})
        return
    print("\n".join(summary(result.report)))
    console.print_table(*table(result.report, grouped=True))


def inspect(
    model: Model,
    every: Annotated[
        bool, typer.Option("--all", "-a", help="A row for each layer, not for each kind.")
    ] = False,
    json: Json = False,
) -> None:
    """Show what is in a model: types, sizes, operators, linear layers, foldable edges.

    [dim]Examples:[/]

      qc inspect model.onnx

      qc inspect smol.w4a8 --json
    """
    from qcompiler.inspection import inspect as run

    _quiet()
    with console.status(f"reading {model}"):
        found = run(model)
    if json:
        console.print_json(found.to_dict())
        return
    opsets = ", ".join(f"{domain} {version}" for domain, version in found.opsets.items())
    print(f"{found.path}: IR version {found.ir_version}, opsets {opsets}")
    for key, value in found.metadata.items():
        print(f"{key}: {value if len(value) <= 100 else value[:97] + '...'}")
    for title, entries in (("input", found.inputs), ("output", found.outputs)):
        for row in _folded([[entry] for entry in entries], every):
            print(f"{title} {row[0]}")
    rows = [[kind, str(n), console.megabytes(size)] for kind, (n, size) in found.sizes.items()]
    console.print_table(["initializers", "count", "MB"], rows)
    rows = [[op, str(count)] for op, count in found.operators.items()]
    console.print_table(["operator", "count"], rows)
    _print_layers(found, every)
    if found.note is not None:
        print(f"not analyzed further: {found.note}")


def _print_layers(found: Any, every: bool) -> None:
    rows = [
        [layer.name, layer.op, f"{layer.K} x {layer.N}", layer.scheme, layer.activation]
        for layer in found.layers
    ]
    if rows:
        columns = ["layer", "op", "K x N", "weight", "activations"]
        console.print_table(columns, _folded(rows, every))
    edges = [
        [edge.activation, edge.kind, str(len(edge.readers)), edge.veto or "foldable"]
        for edge in found.edges
    ]
    if edges:
        columns = ["activation", "edge", "readers", "equalization"]
        console.print_table(columns, _folded(edges, every))
    others = [[name, reason] for name, reason in found.left_alone.items()]
    if others:
        console.print_table(["no linear layer", "because"], _folded(others, every))


def _folded(rows: list[list[str]], every: bool) -> list[list[str]]:
    """One row for those that differ in numbers within names only, with their count."""
    from qcompiler.report.text import pattern, unnumbered

    if every:
        return rows
    groups: dict[tuple[str, ...], list[list[str]]] = {}
    for row in rows:
        key = (pattern(row[0]), *map(unnumbered, row[1:]))
        groups.setdefault(key, []).append(row)
    return [
        same[0] if len(same) == 1 else [f"{key[0]} ({len(same)})", *key[1:]]
        for key, same in groups.items()
    ]


def sensitivity(
    model: Model,
    probe: Annotated[
        str, typer.Option(metavar="FORMAT", help="What each layer is rounded to, for a try.")
    ] = "int4 g128 sym",
    top: Annotated[int, typer.Option(min=1, help="Layers to suggest for exclusion.")] = 3,
    calib: Calib = None,
    calib_samples: Samples = 4,
    calib_length: Length = 512,
    exclude: Exclude = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Rank layers by what rounding them alone does to the model's output.

    Layers that read the same activation are rounded together. The divergence is the KL of logits,
    or the relative squared error of other outputs. --budget of [bold]qc compile[/] uses the same
    figures.

    [dim]Examples:[/]

      qc sensitivity smol --calib chapter.txt

      qc sensitivity model.onnx --top 5 --json
    """
    from qcompiler.sensitivity import exclusion, measure

    _quiet()
    with console.phases() as progress:
        units = measure(
            model,
            probe=probe,
            calib=calib,
            calib_samples=calib_samples,
            calib_length=calib_length,
            exclude=exclude or [],
            seed=seed,
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
    print(f"\nto keep the first {min(top, len(units))} in float:\n--nodes-to-exclude '{pattern}'")


def opt(
    model: Model,
    pipeline: Annotated[
        str, typer.Option("-p", "--pipeline", help="Passes: name{option=value,...},name,...")
    ],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="OUT", help="Write the model there.")
    ] = None,
    show: Annotated[
        bool, typer.Option("--print", help="Print the resulting graph as text.")
    ] = False,
    calib: Calib = None,
    calib_samples: Samples = 16,
    calib_length: Length = 512,
    assume: Annotated[
        list[str] | None,
        typer.Option(metavar="FACT", help="What already holds of the model, such as qdq."),
    ] = None,
    target: Target = "ort-custom",
    exclude: Exclude = None,
    dump_ir: DumpIr = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Run passes by hand, and say what each did.

    [dim]Examples:[/]

      qc opt model.onnx -p import,canonicalize --print

      qc opt model.onnx -p 'import,canonicalize,plan-activations,quantize-weights{bits=8}' -o q.onnx

      qc opt model.qdq.onnx -p merge-linears,lower-ort-custom --assume qdq -o fast.onnx
    """
    from qcompiler.ir import spilling_beside, write_model
    from qcompiler.ir.printer import print_graph
    from qcompiler.opt import run_pipeline

    _quiet()
    with spilling_beside(output):
        with console.phases() as progress:
            result = run_pipeline(
                model,
                pipeline,
                calib=calib,
                calib_samples=calib_samples,
                calib_length=calib_length,
                seed=seed,
                assume=assume or [],
                target=target,
                exclude=exclude or [],
                dump_ir=dump_ir,
                output=output,
                progress=progress,
            )
        text = print_graph(result.graph) if show else None
        files = [] if output is None else [str(path) for path in write_model(result.graph, output)]
    if json:
        passes = [
            {
                "name": record.name,
                "changed": record.changed,
                "seconds": record.seconds,
                "remarks": [dict(vars(remark)) for remark in record.remarks],
            }
            for record in result.history
        ]
        console.print_json({"passes": passes, "files": files, "graph": text})
        return
    if text is not None:
        print(text, end="")
        return
    for record in result.history:
        did = "changed the graph" if record.changed else "nothing to change"
        print(f"{record.name}: {did}, {record.seconds:.2f} s")
        for remark in record.remarks:
            print(f"  {'+' if remark.applied else '-'} {remark.layer}: {remark.message}")


@recipe_app.command(name="list")
def list_recipes(json: Json = False) -> None:
    """List the recipes that come with qcompiler."""
    from qcompiler.recipe import available, load

    recipes = [load(name) for name in available()]
    if json:
        console.print_json([recipe.to_dict() for recipe in recipes])
        return
    for recipe in recipes:
        print(f"{recipe.name}: {' '.join(recipe.description.split())}")


@recipe_app.command(name="show")
def show_recipe(
    name: Annotated[str, typer.Argument(help="A recipe's name or a .toml file.")],
    json: Json = False,
) -> None:
    """Show a recipe: its TOML, to copy and change, or every option with --json.

    [dim]Example:[/]  qc recipe show w4a8 > mine.toml
    """
    from qcompiler.recipe import available, load

    found = load(name)
    if json:
        console.print_json(found.to_dict())
        return
    print(available().get(name, Path(name)).read_text(encoding="utf-8"), end="")


def _quiet() -> None:
    """Keep graphsurgeon from warning on standard output, where results go."""
    from onnx_graphsurgeon.logger import G_LOGGER

    G_LOGGER.severity = G_LOGGER.ERROR
