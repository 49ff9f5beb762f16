"""The report as one HTML file that needs nothing else."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from pathlib import Path

from qcompiler.commit import put_text
from qcompiler.escapes import printable
from qcompiler.report.build import FolderReport, Report
from qcompiler.report.layers import Layer
from qcompiler.report.text import COLUMNS, summary, table, told_share, told_size

_FULL_SCALE_DB = 50.0
_BAR = 50  # width of a full bar in pixels
_DONE = "hsl(150 55% 40%)"
_LEFT = ("hsl(38 85% 55%)", "hsl(25 75% 50%)", "hsl(12 60% 55%)", "hsl(210 15% 65%)")
"""Colours of what stays, the largest first; the last one for all that follow."""
_FIGURES = ("K x N", "SNR dB", "MB")

_STYLE = """
body { font: 13px/1.45 system-ui, sans-serif; color: #1d2733; margin: 2rem auto; max-width: 90rem;
       padding: 0 1rem }
h1 { font-size: 1.3rem } h2 { font-size: 1.05rem; margin-top: 2rem }
.summary p { margin: .2rem 0 } .summary p:first-child { font-weight: 600 }
table { border-collapse: collapse }
th, td { text-align: left; padding: .25rem .5rem; border-bottom: 1px solid #e3e8ee;
         vertical-align: top; white-space: nowrap; font-variant-numeric: tabular-nums }
th { position: sticky; top: 0; background: #f4f6f9 }
th.figure, td.figure { text-align: right }
.layers { width: 100% }
.layers td:first-child { font-family: ui-monospace, monospace; font-size: 12px; line-height: 19px;
                         white-space: normal; overflow-wrap: anywhere; min-width: 8rem }
.layers td:last-child { white-space: normal; min-width: 11rem; color: #5b6876 }
tr:hover td { background: #f4f6f9 }
tr.float td { color: #8a5a00; background: #fff8ec }
tr.other td { color: #7a8694 }
td svg { margin-right: .5rem }
svg.weights { display: block; width: 100%; height: 1.1rem; border-radius: 3px }
ul.weights { list-style: none; padding: 0; display: flex; flex-wrap: wrap; gap: .2rem 1.2rem }
ul.weights span { display: inline-block; width: .7rem; height: .7rem; margin-right: .4rem }
"""


def _safe(text: str) -> str:
    return html.escape(printable(text))


def write_html(report: Report | FolderReport, path: Path) -> None:
    """Write the report as a self-contained page."""
    put_text(path, render(report))


def render(report: Report | FolderReport) -> str:
    """The page's text."""
    title = _safe(f"qc: {report.output.name}")
    if isinstance(report, FolderReport):
        body = _lines(summary(report)[:1])
        for model in report.models:
            body += f"<h1>{_safe(model.output.name)}</h1>\n{_model(model)}\n"
    else:
        body = _model(report)
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style></head><body>\n<h1>{title}</h1>\n{body}\n"
        "</body></html>\n"
    )


def _model(report: Report) -> str:
    """All about one model."""
    return (
        f"{_lines(summary(report))}\n{_weights(report)}<h2>Layers</h2>\n{_layers(report)}\n"
        f"<h2>Passes</h2>\n{_passes(report)}"
    )


def _lines(told: Sequence[str]) -> str:
    return f'<div class="summary">{"".join(f"<p>{_safe(line)}</p>" for line in told)}</div>'


def _weights(report: Report) -> str:
    """What became of the weights, as one bar of shares and what the colours stand for."""
    found = report.weights
    if found is None or not found.bytes:
        return ""
    parts = [("quantized", found.quantized_bytes), *found.rest.items()]
    parts = [(what, size) for what, size in parts if size]
    bars, legend, start = "", "", 0.0
    for index, (what, size) in enumerate(parts):
        hue = _DONE if what == "quantized" else _LEFT[min(index, len(_LEFT)) - 1]
        label = _safe(f"{what}: {told_size(size)}")
        width = 100 * size / found.bytes
        bars += (
            f'<rect x="{start:.3f}" width="{width:.3f}" height="1" fill="{hue}">'
            f"<title>{label}</title></rect>"
        )
        legend += f'<li><span style="background:{hue}"></span>{label}, {width:.1f}%</li>\n'
        start += width
    told = _safe(told_share(found))
    return (
        f'<h2>Weights</h2>\n<svg class="weights" viewBox="0 0 100 1" preserveAspectRatio="none" '
        f'role="img" aria-label="{told} quantized">{bars}</svg>\n'
        f'<ul class="weights">\n{legend}</ul>\n'
    )


def _layers(report: Report) -> str:
    _, rows = table(report)
    head = "".join(f"<th{_align(name)}>{_safe(name)}</th>" for name in COLUMNS)
    body = "\n".join(_row(layer, cells) for layer, cells in zip(report.layers, rows, strict=True))
    return f'<table class="layers"><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table>'


def _align(column: str) -> str:
    return ' class="figure"' if column in _FIGURES else ""


def _row(layer: Layer, cells: list[str]) -> str:
    kind = (
        "" if layer.quantized else ' class="other"' if layer.kind == "other" else ' class="float"'
    )
    shown = [_safe(cell) for cell in cells]
    noise = COLUMNS.index("SNR dB")
    shown[noise] = _bar(layer.sqnr_db) + shown[noise]
    cells = [f"<td{_align(name)}>{cell}</td>" for name, cell in zip(COLUMNS, shown, strict=True)]
    return f"<tr{kind}>{''.join(cells)}</tr>"


def _bar(decibel: float | None) -> str:
    """Signal-to-noise as a bar: 50 dB fills it."""
    if decibel is None or math.isnan(decibel):
        return ""
    width = _BAR * min(max(decibel, 0.0), _FULL_SCALE_DB) / _FULL_SCALE_DB
    hue = int(120 * width / _BAR)
    return (
        f'<svg width="{_BAR}" height="9" role="img" aria-label="{decibel:.1f} dB">'
        f'<rect width="{_BAR}" height="9" fill="#e3e8ee"/>'
        f'<rect width="{width:.1f}" height="9" fill="hsl({hue} 60% 45%)"/></svg>'
    )


def _passes(report: Report) -> str:
    rows = "\n".join(
        f'<tr><td>{_safe(step.name)}</td><td class="figure">{step.seconds:.3f}</td>'
        f"<td>{'yes' if step.changed else 'no'}</td></tr>"
        for step in report.passes
    )
    return (
        '<table><thead><tr><th>pass</th><th class="figure">seconds</th>'
        "<th>changed the graph</th></tr></thead>"
        f"<tbody>\n{rows}\n</tbody></table>"
    )
