"""The report for a terminal: a summary, and a table of layers."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from qcompiler.report.build import FolderReport, Report
from qcompiler.report.layers import Layer
from qcompiler.report.weights import Weights

COLUMNS = ("layer", "K x N", "weight", "SNR dB", "activations", "transforms", "op", "MB", "note")

_OUTPUTS = 3  # outputs that a summary names
_ASIDE = {
    "exact": "no quantized layer reaches",
    "beside": "too little to judge by",
    "state": "caches that the model reads again",
    "labels": "no floats",
    "skipped": "not compared",
}


def summary(report: Report | FolderReport) -> list[str]:
    """The outcome in a few lines: sizes, counts, quality; of a folder, first of it and then of each
    model."""
    if isinstance(report, FolderReport):
        each = [line for model in report.models for line in summary(model)]
        return [f"{_sizes(report)}, {len(report.models)} models", *each]
    if report.copied is not None:
        return [f"{report.output}: {told_size(report.output_bytes)}, as it was: {report.copied}"]
    counts = report.counts
    linears = f"{counts['linear_quantized']} of {counts['linear']} linear layers"
    tables = f"{counts['embedding_quantized']} of {counts['embedding']} embeddings"
    done = f"quantized {linears}, {tables}"
    if report.weights is not None:
        done += f": {told_share(report.weights)}"
    lines = [
        _sizes(report),
        f"recipe {report.recipe['name']}, target {report.target}, calibration {report.calibration}",
        done + _transforms(counts),
    ]
    if report.weights is not None and report.weights.rest:
        lines.append(f"the rest: {told_sizes(report.weights.rest)}")
    lines += _not_transformed(report)
    if report.ops:
        lines.append("ops: " + ", ".join(f"{count} {op}" for op, count in report.ops.items()))
    lines += _verification(report)
    return lines


def _sizes(report: Report | FolderReport) -> str:
    before, after = report.source_bytes / 1e6, report.output_bytes / 1e6
    return (
        f"{report.output}: {before:.1f} MB -> {after:.1f} MB ({report.ratio:.1f} times smaller) "
        f"in {report.seconds:.1f} s"
    )


def told_share(weights: Weights) -> str:
    """How much of the weights is quantized, such as "96.1% of 90.3 MB of weights"."""
    share = 100 * weights.quantized_bytes / max(weights.bytes, 1)
    if weights.quantized_bytes < weights.bytes:
        share = min(share, 99.9)  # whole only where nothing is left
    return f"{share:.1f}% of {told_size(weights.bytes)} of weights"


def told_sizes(sizes: Mapping[str, int]) -> str:
    """Sizes with what has them, such as "LSTM 2.1 MB, vectors and small constants 3.4 kB"."""
    return ", ".join(f"{what} {told_size(size)}" for what, size in sizes.items())


def told_size(size: int) -> str:
    """A size in the unit that suits it."""
    for unit, scale in (("MB", 1e6), ("kB", 1e3)):
        if size >= 0.1 * scale:
            return f"{size / scale:.1f} {unit}"
    return f"{size} bytes"


def _transforms(counts: Mapping[str, int]) -> str:
    """How many linear layers were prepared in which way."""
    ways = {"norm folded": "norm_folded", "rotated": "rotated", "equalized": "equalized"}
    done = [f"{way} {counts[key]}" for way, key in ways.items() if counts[key]]
    return f"; {', '.join(done)}" if done else ""


def _not_transformed(report: Report) -> list[str]:
    """How many layers the recipe wanted to prepare and could not, by what was not done."""
    messages = [message for layer in report.layers for message in layer.not_transformed]
    found = Counter(message.split(":")[0] for message in messages)
    told = ", ".join(f"{what} {count}" for what, count in found.most_common())
    return [f"not transformed: {told} (--report FILE says why)"] if told else []


def _verification(report: Report) -> list[str]:
    found = report.verification
    if found is None:
        return ["not verified"]
    outputs = found["outputs"]
    judged = [each for each in outputs if each["role"] == "judged"]
    line = f"signal-to-noise of the output {_decibel(found['sqnr_db'])} dB"
    if len(judged) > 1:
        judged.sort(key=lambda each: each["sqnr_db"])
        line = f"signal-to-noise of the outputs: {_few([_with_ratio(each) for each in judged])}"
    if found["samples"] > 1:
        line += f" (worst sample {_decibel(found['worst_sample_db'])} dB)"
    if found["top1_agreement"] is not None:
        line += f", same most likely token {100 * found['top1_agreement']:.1f}%"
    seen = "held-back" if found["held_back"] else "of the calibration"
    return [f"{line}, on {found['samples']} {seen} samples", *_beside(outputs), *_elsewhere(found)]


def _beside(outputs: Sequence[Mapping[str, Any]]) -> list[str]:
    """What is to be said of the outputs that are not judged."""
    named = {role: [each for each in outputs if each["role"] == role] for role in _ASIDE}
    told = {
        "exact": [
            each["name"] if each["sqnr_db"] in (None, math.inf) else _with_ratio(each)
            for each in named["exact"]
        ],
        "beside": [_with_ratio(each) for each in named["beside"]],
        "state": _caches(named["state"]),
        "labels": [f"{each['name']} {100 * each['equal']:.1f}% equal" for each in named["labels"]],
        "skipped": _by_note(named["skipped"]),
    }
    return [f"{_ASIDE[role]}: {_few(names)}" for role, names in told.items() if names]


def _with_ratio(output: Mapping[str, Any]) -> str:
    return f"{output['name']} {_decibel(output['sqnr_db'])} dB"


def _by_note(outputs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Outputs with the same note together."""
    names: dict[str, list[str]] = {}
    for each in outputs:
        names.setdefault(each["note"], []).append(each["name"])
    return [f"{_few(same)} ({note})" for note, same in names.items()]


def _few(names: Sequence[str]) -> str:
    """The first names of a list, and how many more there are."""
    more = f" and {len(names) - _OUTPUTS} more" if len(names) > _OUTPUTS else ""
    return ", ".join(names[:_OUTPUTS]) + more


def _caches(outputs: Sequence[Mapping[str, Any]]) -> list[str]:
    """How many there are, and how good at least."""
    if not outputs:
        return []
    least = min(each["sqnr_db"] for each in outputs)
    return [f"{len(outputs)}, each with {_decibel(least)} dB or more"]


def _elsewhere(found: Mapping[str, Any]) -> list[str]:
    """The same on default data, where the user gave some."""
    usual = found["default_data"]
    if usual is None:
        return []
    if usual["sqnr_db"] is None:
        return [usual["source"]]
    return [f"on default data ({usual['source']}): {_decibel(usual['sqnr_db'])} dB"]


def table(report: Report, *, grouped: bool = False) -> tuple[list[str], list[list[str]]]:
    """Columns and one row a layer.

    `grouped` folds layers whose names differ in numbers only, and whose treatment is the same,
    into one row that says how many they are.
    """
    groups: dict[tuple[object, ...], list[Layer]] = {}
    for index, layer in enumerate(report.layers):
        key: tuple[object, ...] = (index,)
        if grouped:
            key = (pattern(layer.name), layer.K, layer.N, *_treatment(layer))
        groups.setdefault(key, []).append(layer)
    return list(COLUMNS), [_row(layers, whole=not grouped) for layers in groups.values()]


def pattern(name: str) -> str:
    """A layer's name with its numbers as stars: the same for every block of a model."""
    return re.sub(r"\d+", "*", name)


def unnumbered(text: str) -> str:
    """A text with the numbers in the names it quotes as stars."""
    # Possessive: a long name without a closing quote is looked through once.
    return re.sub(r"'[^'\d]*+\d[^']*'", lambda found: pattern(found[0]), text)


def _treatment(layer: Layer) -> list[str]:
    merged = f"one node with {len(layer.merged_with)} more" if layer.merged_with else ""
    return [
        layer.scheme or "float",
        layer.activation or "-",
        "; ".join(_prepared(layer)) or "-",
        layer.op or "-",
        unnumbered(_note(layer, merged)),
    ]


def _prepared(layer: Layer) -> list[str]:
    """What was done to a layer before it was quantized, without its details."""
    messages = [message for message in (layer.norm_folded, *layer.rotated) if message]
    found = [re.split(r",| \(", message)[0] for message in messages]
    return found + ([layer.equalized.replace(" through ", ", ")] if layer.equalized else [])


def _note(layer: Layer, merged: str) -> str:
    return layer.reason or layer.not_equalized or merged or "; ".join(layer.not_transformed)


def _whole_note(layer: Layer, merged: str) -> str:
    """All that is said of a layer."""
    equalized = layer.not_equalized and f"not equalized: {layer.not_equalized}"
    return "; ".join(filter(None, (layer.reason, equalized, merged, *layer.not_transformed)))


def _measured(layers: Sequence[Layer]) -> str:
    """The worst output errors of layers for each way to round their inputs."""
    found = [layer.activation_errors for layer in layers if layer.activation_errors]
    if not found:
        return ""
    worst = {way: max(errors[way] for errors in found) for way in found[0]}
    told = ", ".join(f"{100 * error:.2g}% {way}" for way, error in worst.items())
    return f"output error {'up to ' if len(layers) > 1 else ''}{told}"


def short(name: str) -> str:
    """The telling part of a long layer name: '/model/layers.0/mlp/up_proj/MatMul' -> 'up_proj'."""
    parts = [part for part in re.split(r"[/]", name) if part]
    if len(parts) > 1 and parts[-1] in ("MatMul", "Gemm", "Gather"):
        parts.pop()
    return parts[-1] if parts else name


def _routed(layers: Sequence[Layer]) -> str:
    """How many calibration tokens experts had."""
    found = [layer.tokens for layer in layers if layer.tokens is not None]
    if not found:
        return ""
    least, most = min(found), max(found)
    return f"{least if least == most else f'{least} to {most}'} calibration tokens"


def _row(layers: Sequence[Layer], *, whole: bool) -> list[str]:
    first = layers[0]
    name = first.name if len(layers) == 1 else f"{pattern(first.name)} ({len(layers)})"
    size = "-" if first.K is None else f"{first.K} x {first.N}"
    weight, activation, transforms, op, note = _treatment(first)
    if len(layers) == 1:
        merged = ", ".join(short(name) for name in first.merged_with)
        note = (_whole_note if whole else _note)(first, merged and f"with {merged}")
    note = "; ".join(filter(None, (note, _measured(layers), _routed(layers))))
    ratios = [layer.sqnr_db for layer in layers if layer.sqnr_db is not None]
    worst, best = (min(ratios), max(ratios)) if ratios else (None, None)
    noise = _decibel(worst) if worst == best else f"{_decibel(worst)}..{_decibel(best)}"
    megabytes = _megabytes(layers)
    return [name, size, weight, noise, activation, transforms, op, megabytes, note]


def _megabytes(layers: Sequence[Layer]) -> str:
    """Bytes of weights before and after; of layers that keep theirs the one figure."""
    before = sum(layer.bytes_before or 0 for layer in layers)
    after = sum(layer.bytes_after or 0 for layer in layers)
    if layers[0].quantized:
        return f"{before / 1e6:.2f} -> {after / 1e6:.2f}"
    return f"{before / 1e6:.2f}" if before else "-"


def _decibel(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
