"""The command `inspect` of `qc`: what is in a model, in words and tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from qcompiler import console
from qcompiler.cli_compile import Model, quiet
from qcompiler.cli_options import Json

if TYPE_CHECKING:
    from qcompiler.inspection import Inspection


def inspect(
    model: Model,
    every: Annotated[
        bool,
        typer.Option("--all", "-a", help="One row per layer, not per group of similar layers."),
    ] = False,
    json: Json = False,
) -> None:
    """Show what is in a model: sizes, operators, what could be quantized, foldable edges.

    Of a folder of several models, what is in each.

    [dim]Examples:[/]

      qc inspect model.onnx

      qc inspect smol.w4a8 --json
    """
    from qcompiler.inspection import inspect_all as run

    quiet()
    with console.status(f"reading {model}"):
        found = run(model)
    if json:
        each = [one.to_dict() for one in found]
        console.print_json(each[0] if len(each) == 1 else {"models": each})
        return
    for one in found:
        _print(one, every)


def _print(found: Inspection, every: bool) -> None:
    opsets = ", ".join(f"{domain} {version}" for domain, version in found.opsets.items())
    console.say(f"{found.path}: IR version {found.ir_version}, opsets {opsets}")
    for key, value in found.metadata.items():
        console.say(f"{key}: {value if len(value) <= 100 else value[:97] + '...'}")
    for title, entries in (("input", found.inputs), ("output", found.outputs)):
        for row in folded([[entry] for entry in entries], every):
            console.say(f"{title} {row[0]}")
    rows = [[kind, str(n), console.megabytes(size)] for kind, (n, size) in found.sizes.items()]
    console.print_table(["initializers", "count", "MB"], rows)
    rows = [[op, str(count)] for op, count in found.operators.items()]
    console.print_table(["operator", "count"], rows)
    if found.weights:
        _print_weights(found.weights)
    _print_layers(found, every)
    if found.note is not None:
        console.say(f"not analyzed further: {found.note}")


def _print_weights(sizes: Mapping[str, int]) -> None:
    """What could be quantized, and what holds the rest."""
    from qcompiler.inspection import QUANTIZABLE
    from qcompiler.report.text import told_size

    rows = [
        [what, told_size(size), "can be quantized" if what in QUANTIZABLE else "stays as it is"]
        for what, size in sizes.items()
    ]
    console.print_table(["weights of", "size", ""], rows)


def _print_layers(found: Inspection, every: bool) -> None:
    rows = [
        [layer.name, layer.op, f"{layer.K} x {layer.N}", layer.scheme, layer.activation]
        for layer in found.layers
    ]
    if rows:
        columns = ["layer", "op", "K x N", "weight", "activations"]
        console.print_table(columns, folded(rows, every))
    edges = [
        [edge.activation, edge.kind, str(len(edge.readers)), edge.veto or "foldable"]
        for edge in found.edges
    ]
    if edges:
        columns = ["activation", "edge", "readers", "equalization"]
        console.print_table(columns, folded(edges, every))
    others = [[name, reason] for name, reason in found.left_alone.items()]
    if others:
        console.print_table(["not quantized", "because"], folded(others, every))


def folded(rows: list[list[str]], every: bool = False) -> list[list[str]]:
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
