"""Passes over the bodies of If, Loop and Scan: each is a graph of its own, with data of its own.

A body is compiled like a model, after the graph around it: its inputs over the calibration data are
recorded on the float graph. A body that never runs on the data is compiled as passes do without
any (`Pass.without_data`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import onnx_graphsurgeon as gs

from qcompiler import ir
from qcompiler.calibration.recorded import recorded
from qcompiler.calibration.supply import FeedData
from qcompiler.ir.bodies import Body, bodies_of, holds_matrices, lift
from qcompiler.passmanager import (
    Fact,
    Instrument,
    NoData,
    Pass,
    PassContext,
    PassManager,
    Record,
)
from qcompiler.patterns import matches
from qcompiler.remarks import Rounded

_UNSEEN = "rounded to nearest: it never runs on the calibration data"


def run_over_bodies(
    graph: gs.Graph,
    source: gs.Graph,
    passes: Sequence[Pass],
    ctx: PassContext,
    *,
    instruments: Sequence[Instrument],
    given: frozenset[Fact],
) -> list[list[Record]]:
    """Run passes over every body below `graph`, in place; what they said of each.

    `source`: the float graph before the first pass, on which data is recorded. `given`: facts that
    hold of every graph. CalibrationError if the data does not fit the model.
    """
    said: list[list[Record]] = []
    fresh = ir.Namer(graph)
    holders = {str(node.name): node for node in reversed(source.nodes)}
    steps = [step for step in passes if step.runs_in_bodies]
    without = [other for step in steps if (other := step.without_data()) is not None]
    for node, attribute in bodies_of(graph):
        place: Any = node.attrs[attribute]
        if not holds_matrices(place):
            continue
        body = lift(place, graph, fresh)
        holder = None if without == steps else holders.get(str(node.name))
        data = None if holder is None else _data(source, holder, attribute, body, ctx)
        inner = replace(ctx, data=data or NoData(), exclude=_matching(ctx, body.graph))
        manager = PassManager(without if data is None else steps, instruments, given=given)
        made, _ = manager.run(body.graph, inner)
        body.put_back(made)
        unseen = data is None and without != steps
        said.append(list(map(_unseen, manager.history)) if unseen else manager.history)
    return said


def _data(
    source: gs.Graph, holder: gs.Node, attribute: str, body: Body, ctx: PassContext
) -> FeedData | None:
    """What a body of `holder` is given over the calibration data; None where it never runs."""
    feeds = recorded(source, holder, attribute, ctx.data)
    if not feeds or not body.around.keys() <= feeds[0].keys():
        return None
    inputs: list[Any] = body.graph.inputs
    for tensor in inputs:  # what shape inference does not know
        value = feeds[0][tensor.name]
        tensor.dtype = tensor.dtype or value.dtype
        tensor.shape = [None] * value.ndim if tensor.shape is None else tensor.shape
    return FeedData(feeds, f"the inputs of '{holder.name}'")


def _matching(ctx: PassContext, body: gs.Graph) -> tuple[str, ...]:
    """The user's patterns that match a node of a body; others are meant for other graphs."""
    names = [node.name for each in ir.graphs(body) for node in each.nodes]
    return tuple(p for p in ctx.exclude if any(matches(p, name) for name in names))


def _unseen(record: Record) -> Record:
    remarks = (
        replace(each, message=f"{each.message}, {_UNSEEN}", fallback=_UNSEEN)
        if isinstance(each, Rounded)
        else each
        for each in record.remarks
    )
    return replace(record, remarks=tuple(remarks))
