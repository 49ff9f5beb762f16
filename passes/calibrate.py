"""calibrate: statistics of the input of every linear layer, from calibration data.

An expert sees the tokens that are routed to it. Where these are few, the statistics of its input
are filled up with those of all tokens.

The graph is not changed; the driver runs a copy extended with reductions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import onnx_graphsurgeon as gs

from qcompiler.analysis.experts import ENOUGH, routed_rows
from qcompiler.analysis.layers import Layer, find_layers
from qcompiler.calibration.statistics import Statistics
from qcompiler.passmanager import Fact, Numerics, Pass, PassContext, PassResult


@dataclass(frozen=True, kw_only=True)
class Calibrate(Pass):
    """Collect min x_k, max x_k and E[x_k²] of every activation a linear layer reads."""

    name: ClassVar[str] = "calibrate"
    numerics: ClassVar[Numerics] = Numerics.EXACT
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.CANONICAL})
    provides: ClassVar[frozenset[Fact]] = frozenset({Fact.CALIBRATED})

    def without_data(self) -> None:
        return None

    def run(self, graph: gs.Graph, ctx: PassContext) -> PassResult:
        layers, _ = find_layers(graph)
        names = list(dict.fromkeys(str(layer.x.name) for layer in layers))
        if not names:
            return PassResult(graph=graph, changed=False)
        wholes = _wholes(layers)
        observed = ctx.data.observe(graph, list(dict.fromkeys([*names, *wholes.values()])))
        return PassResult(graph=graph, changed=False, statistics=_filled(observed, layers, wholes))


def _wholes(layers: Sequence[Layer]) -> dict[str, str]:
    """Inputs of layers that are some rows of a tensor, with the name of this."""
    found = {str(layer.x.name): routed_rows(layer.x) for layer in layers}
    return {name: str(rows.whole.name) for name, rows in found.items() if rows and rows.alike}


def _filled(observed: Statistics, layers: Sequence[Layer], wholes: Mapping[str, str]) -> Statistics:
    """The statistics of what layers read."""
    tensors = dict(observed.tensors)
    for layer in layers:
        name, enough = str(layer.x.name), ENOUGH * layer.shape[0]
        if name in wholes and wholes[name] in observed.tensors:
            whole = observed.tensors[wholes[name]]
            found = observed.tensors.get(name, replace(whole, tokens=0))
            if found.tokens < enough:
                tensors[name] = found.filled(whole, enough)
    for name in set(wholes.values()).difference(str(layer.x.name) for layer in layers):
        tensors.pop(name, None)
    return replace(observed, tensors=tensors)
