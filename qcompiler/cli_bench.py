"""The command `bench` of `qc`: how fast models run, and which kernels run them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from qcompiler import cli_options, console
from qcompiler.cli_compile import quiet
from qcompiler.cli_inspect import folded
from qcompiler.cli_options import Json, Models, Provider, Threads


def bench(
    models: Models,
    prompt_length: Annotated[
        int,
        typer.Option(parser=cli_options.whole(1), metavar="N", help="Prompt tokens, for prefill."),
    ] = 512,
    context: Annotated[
        int,
        typer.Option(parser=cli_options.whole(1), metavar="N", help="Tokens read before decoding."),
    ] = 128,
    rounds: Annotated[
        int,
        typer.Option(
            parser=cli_options.whole(1), metavar="N", help="Rounds; medians are reported."
        ),
    ] = 5,
    threads: Threads = None,
    provider: Provider = "cpu",
    explain: Annotated[
        bool,
        typer.Option(
            "--explain",
            help="Run nothing; show the kernel of this CPU that each layer gets: for many rows, as "
            "in a prompt, and for one or a few, as in decoding.",
        ),
    ] = False,
    json: Json = False,
) -> None:
    """Measure speed, several models side by side in alternating rounds.

    Decoders: prefill and decode in tokens/s. Encoders: latency of a sentence of 32 tokens, and
    sentences/s in batches of 8. Other models: latency on random inputs.

    With --explain, what would run: the op of each layer, its width and group, the bytes of its
    weight, which every token reads, and the kernel. "function body" means that the op library does
    not load, so that ONNX Runtime runs the op's definition: right, but slow.

    [dim]Examples:[/]

      qc bench smol smol.w4a8

      qc bench smol.w4a8 --prompt-length 2048 --threads 4 --json

      qc bench smol.w4a8 --explain
    """
    if explain:
        _explain(models, provider, json)
        return
    from qcompiler.evaluation.benchmark import Setting, benchmark

    setting = Setting(prompt_length=prompt_length, context=context, rounds=rounds)
    with console.progress("benchmarking") as advance:
        results = benchmark(models, setting, threads=threads, provider=provider, progress=advance)
    if json:
        console.print_json([result.to_dict() for result in results])
        return
    figures = {
        "prefill": "prefill tok/s",
        "decode": "decode tok/s",
        "latency_ms": "latency ms",
        "sentences_per_second": "sentences/s",
    }
    every = [result.to_dict() for result in results]
    shown = [key for key in figures if any(row[key] is not None for row in every)]
    columns = ["model", "size MB", *[figures[key] for key in shown], "load s", "memory MB"]
    console.print_table(columns, [_row(row, shown) for row in every])


def _row(row: Mapping[str, Any], shown: list[str]) -> list[str]:
    memory = row["memory_bytes"]
    return [
        row["model"],
        console.megabytes(row["size_bytes"]),
        *[console.number(row[key]) for key in shown],
        console.number(row["load_seconds"], 2),
        "-" if memory is None else console.megabytes(memory),
    ]


def _explain(models: Sequence[str], provider: str, json: bool) -> None:
    """Print which kernels run the layers of each model."""
    from qcompiler.evaluation.kernels import explain
    from qcompiler.report.text import told_size

    if provider != "cpu":
        raise typer.BadParameter("it tells of the CPU's kernels only", param_hint="--explain")
    quiet()
    with console.status("reading"):
        found = [explain(model) for model in models]
    if json:
        console.print_json([each.to_dict() for each in found])
        return
    for each in found:
        console.say(str(each.model))
        if each.without_library is not None:
            console.say(f"without the op library: {each.without_library}")
        rows = [
            [
                kernel.layer.name,
                kernel.layer.op,
                kernel.layer.scheme,
                f"{kernel.layer.K} x {kernel.layer.N}",
                told_size(kernel.layer.nbytes),
                kernel.many_rows,
                kernel.few_rows,
            ]
            for kernel in each.layers
        ]
        columns = ["layer", "op", "weight", "K x N", "bytes", "many rows", "few rows"]
        console.print_table(columns, folded(rows))
