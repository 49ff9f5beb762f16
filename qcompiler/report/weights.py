"""Bytes of weights: how many were quantized, and what holds the rest."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

from qcompiler.analysis.inventory import Holding, Inventory
from qcompiler.report.layers import Layer

_QUANTIZED = "quantized"
_COMPUTED = "tables computed at load"
_FAMILIES = {"linear": "linear layers", "embedding": "embeddings"}


@dataclass(frozen=True, kw_only=True)
class Weights:
    """The constants of the source by what became of them, in bytes as the source stores them."""

    bytes: int
    """Of all constants."""
    quantized_bytes: int
    """Of those that became codes."""
    rest: Mapping[str, int]
    """What holds the others, the most first: operators, "linear layers", "embeddings",
    "quantized already", "indices and masks", "tables computed at load", "vectors and small
    constants"."""

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return dataclasses.asdict(self)


def weigh(
    layers: Sequence[Layer], inventory: Inventory, parts: Mapping[str, Sequence[str]]
) -> tuple[tuple[Layer, ...], Weights]:
    """The layers with the bytes that each held, and the sums.

    A constant is counted once: with the first of its readers that keeps it as it is, or where it is
    gone with the one that stores its codes. What a node held that was divided (`parts`) is that of
    its layers, each by its size.
    """
    rows = {layer.name: layer for layer in layers}
    inventory = _divided(inventory, rows, parts)
    held = dict.fromkeys(rows, 0)
    users: set[str] = set()
    for each in inventory.holdings:
        owner = _owner(each, rows)
        rows.setdefault(owner, Layer(name=owner, reason="no pass of the recipe rounds it"))
        held[owner] = held.get(owner, 0) + each.nbytes
        users |= {owner, *each.readers}
    shares = inventory.shares(lambda each: _family(each, rows[_owner(each, rows)]))
    weights = Weights(
        bytes=inventory.nbytes, quantized_bytes=shares.pop(_QUANTIZED, 0), rest=shares
    )
    weighed = [
        replace(row, bytes_before=held[name]) if row.quantized or name in users else row
        for name, row in rows.items()
    ]
    return tuple(weighed), weights


def _divided(
    inventory: Inventory, rows: Mapping[str, Layer], parts: Mapping[str, Sequence[str]]
) -> Inventory:
    """The inventory with the layers in the place of nodes that were divided."""
    holdings: list[Holding] = []
    for each in inventory.holdings:
        found = [rows[name] for reader in each.readers for name in parts.get(reader, ())]
        if not found or not parts.keys() >= each.readers.keys():
            holdings.append(each)
            continue
        ends = list(accumulate(((row.K or 0) * (row.N or 0) for row in found), initial=0))
        bounds = [each.nbytes * end // ends[-1] for end in ends]
        for row, start, stop in zip(found, bounds, bounds[1:], strict=False):
            readers = {row.name: "MatMul"}
            holdings.append(replace(each, nbytes=stop - start, readers=readers))
    return replace(inventory, holdings=tuple(holdings))


def _owner(holding: Holding, rows: Mapping[str, Layer]) -> str:
    """The reader that a constant is counted with."""
    readers = [rows[name] for name in holding.readers if name in rows]
    floats = [row for row in readers if not row.quantized]
    if floats or not readers:
        return floats[0].name if floats else next(iter(holding.readers))
    return max(readers, key=lambda row: row.bytes_after or 0).name


def _family(holding: Holding, owner: Layer) -> str:
    """What a constant is counted as."""
    if owner.quantized:
        return _QUANTIZED
    if owner.computed:
        return _COMPUTED
    family = _FAMILIES.get(owner.kind, holding.readers.get(owner.name, owner.kind))
    return holding.sort or family
