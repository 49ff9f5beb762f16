"""docs/accuracy.md and its plot, from the rows that accuracy.py measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

INTRODUCTION = """\
# Accuracy

Written by `python examples/accuracy.py --docs docs`. Every row is measured against its float model,
on text that calibration has not seen. Half of `pydoc:first` and half of the model's own text
calibrate w4a8 and w4a8-small (64 windows of 256 tokens), `pydoc:first` the others (16 of 512) and
MiniLM (its sentences). `pydoc:second` evaluates ({tokens} tokens; both are halves of the help texts
that come with Python). Users' texts are of other kinds, so each model has a second table: its loss
on {others} tokens of texts of [other kinds](../examples/texts.py), and where it is worst.
Activations are int8, and sizes count everything: head, embedding, scales, tables. Seconds and
memory are those of `qc compile` without verification on two cores. Runs differ by chance, too:
other seeds of the rotations, or another processor, move a KL by some percent. ONNX Runtime's
k_quant has no row, because its quantizer (1.31) fails on these models.

The weights of SmolLM2-135M come from a 4-bit file and lie on its grid, which flatters some methods:
the dithered copy has noise of half a step on them, and judges better
([`examples/dither.py`](../examples/dither.py)).

![Quality against size](accuracy.svg)

"""
DECODER_HEAD = (
    *("", "MB", "bits a weight", "perplexity", "95% interval", "KL", "top-1 %", "s", "GB"),
)
ENCODER_HEAD = ("", "MB", "bits a weight", "mean cosine", "least cosine", "neighbours %", "s", "GB")
WIDTH, HEIGHT, LEFT, TOP, GAP = 820, 300, 60, 40, 50


def write_page(rows: Sequence[Mapping[str, Any]], docs: Path, tokens: int, others: int) -> None:
    """Write the page and the plot; `others` tokens were read of each text of other kinds."""
    parts = [INTRODUCTION.format(tokens=f"{tokens:,}", others=f"{others:,}")]
    models = list(dict.fromkeys(row["model"] for row in rows))
    for model in models:
        own = [row for row in rows if row["model"] == model]
        decoder = "perplexity" in own[0]["quality"]
        head = DECODER_HEAD if decoder else ENCODER_HEAD
        parts += [f"## {model}\n\n", _table(head, (_cells(row, decoder) for row in own)), "\n"]
        parts += _by_kind(own, "KL" if decoder else "1 - mean cosine")
    docs.mkdir(parents=True, exist_ok=True)
    text = "".join(parts).rstrip("\n") + "\n"
    (docs / "accuracy.md").write_text(text, encoding="utf-8")
    (docs / "accuracy.svg").write_text(_plot(rows, models), encoding="utf-8")


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    rule = ["---", *["---:"] * (len(columns) - 1)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (columns, rule, *rows))


def _by_kind(rows: Sequence[Mapping[str, Any]], loss: str) -> list[str]:
    """A table of the loss on each kind of text."""
    measured = [row for row in rows if row["others"]]
    if not measured:
        return []
    kinds = list(measured[0]["others"])
    cells: list[list[str]] = []
    for row in measured:
        found = {"pydoc": row["quality"], **row["others"]}
        losses = {kind: _loss(quality) or 0.0 for kind, quality in found.items()}
        worst = max(losses, key=lambda kind: losses[kind])
        cells.append([row["label"], *(f"{each:.4f}" for each in losses.values()), worst])
    return [_table((f"{loss} on", "pydoc", *kinds, "worst"), cells), "\n"]


def _cells(row: Mapping[str, Any], decoder: bool) -> list[str]:
    quality = row["quality"]
    start = [row["label"], f"{row['size_bytes'] / 1e6:.1f}", _number(row["bits"], 3)]
    end = [
        _number(row["seconds"], 0),
        "-" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e9:.1f}",
    ]
    if not decoder:
        found = quality["embeddings"]
        return [
            *start,
            f"{found['mean_cosine']:.4f}",
            f"{found['min_cosine']:.3f}",
            f"{100 * found['neighbour_agreement']:.1f}",
            *end,
        ]
    found, apart = quality["perplexity"], quality.get("divergence")
    low, high = found["low"], found["high"]
    return [
        *start,
        f"{found['perplexity']:.3f}",
        "-" if low is None else f"{low:.2f}-{high:.2f}",
        "-" if apart is None else f"{apart['kl']:.4f}",
        "-" if apart is None else f"{100 * apart['top1']:.1f}",
        *end,
    ]


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _plot(rows: Sequence[Mapping[str, Any]], models: Sequence[str]) -> str:
    """Points of each model: size along, loss up; the lower left corner is best."""
    height = len(models) * (HEIGHT + GAP) + TOP
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
        f'viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="10" fill="#222">',
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
    ]
    for index, model in enumerate(models):
        points = [
            (row["label"], row["size_bytes"] / 1e6, _loss(row["quality"]))
            for row in rows
            if row["model"] == model
        ]
        parts += _panel(model, points, TOP + index * (HEIGHT + GAP))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _loss(quality: Mapping[str, Any]) -> float | None:
    if "divergence" in quality:
        return float(quality["divergence"]["kl"])
    if "embeddings" in quality:
        return 1.0 - float(quality["embeddings"]["mean_cosine"])
    return None


def _panel(model: str, points: Sequence[tuple[str, float, float | None]], top: int) -> list[str]:
    shown = [(label, x, y) for label, x, y in points if y is not None]
    if not shown:
        return []
    low, high = min(x for _, x, _ in shown), max(x for _, x, _ in shown)
    most = max(y for _, _, y in shown) * 1.05
    span = max(high - low, 1e-9)
    what = "1 - mean cosine" if "MiniLM" in model else "KL from the float model"
    parts = [
        f'<text x="10" y="{top - 12}" font-size="13" font-weight="bold">'
        f"{escape(model)}: {what} against MB</text>",
        f'<line x1="{LEFT}" y1="{top}" x2="{LEFT}" y2="{top + HEIGHT}" stroke="#999"/>',
        f'<line x1="{LEFT}" y1="{top + HEIGHT}" x2="{WIDTH - 20}" y2="{top + HEIGHT}" '
        'stroke="#999"/>',
    ]
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = top + HEIGHT * (1 - share)
        parts.append(f'<text x="8" y="{y + 3:.0f}">{most * share:.3f}</text>')
        x = LEFT + 20 + (WIDTH - LEFT - 260) * share
        parts.append(f'<text x="{x:.0f}" y="{top + HEIGHT + 14}">{low + span * share:.1f}</text>')
    for label, size, loss in shown:
        x = LEFT + 20 + (WIDTH - LEFT - 260) * (size - low) / span
        y = top + HEIGHT * (1 - loss / most)
        colour = "#0072b2" if label.startswith("w4a8") else "#d55e00" if "ONNX" in label else "#777"
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>')
        parts.append(f'<text x="{x + 7:.1f}" y="{y + 3:.1f}">{escape(label)}</text>')
    return parts
