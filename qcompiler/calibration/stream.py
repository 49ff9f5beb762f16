"""Activations over calibration data, layer after layer, each node computed once.

A graph is cut into stages: stage i holds the nodes the i-th wanted tensor needs and no earlier one
did. Each stage runs as a model of its own over all feeds, from the tensors that earlier stages left
to it. So only what is live at one place of the model is ever held, in memory or in files (`held`),
the time grows with the depth and not with its square, and the nodes ahead may still be changed: a
layer sees its inputs as the layers before it, quantized in the meantime, compute them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from qcompiler import ir, memory
from qcompiler.calibration.graph_session import NOT_RUNNING, REPAIR, graph_session
from qcompiler.calibration.held import Arrays, Held, Room
from qcompiler.calibration.stages import Stage, cut, part
from qcompiler.errors import CalibrationError
from qcompiler.foreign import runtime_errors
from qcompiler.ir import interface

Array = np.ndarray[Any, Any]
Feed = Mapping[str, Array]


def stream(
    graph: gs.Graph, names: Sequence[str], feeds: Sequence[Feed]
) -> Iterator[Sequence[Array]]:
    """The values of each tensor of `names` in turn, one array a feed.

    The graph is cut when the first is asked for. From then on inputs of nodes may be replaced by
    constants, as long as the node is not needed for the tensors already given; what computes a
    tensor may not change.

    The arrays live on for the nodes ahead: what is changed in them in place, those nodes see, as if
    what computes the tensor had changed with them. Only arrays of `feeds` are read-only. Where
    there is a scratch folder, many of them lie there and are mapped as they are asked for.

    CalibrationError if the data does not fit the model.
    """
    for (values,) in stream_together(graph, [(name,) for name in names], feeds):
        yield values


def stream_together(
    graph: gs.Graph, groups: Sequence[tuple[str, ...]], feeds: Sequence[Feed]
) -> Iterator[tuple[Sequence[Array], ...]]:
    """Like `stream`, for groups of tensors: the graph is not cut between those of one group."""
    memory.release()
    room = Room()
    unfed = {str(each.name): ir.array(each) for each in interface.defaults(graph)}
    stages = cut(graph, groups)
    read = {name for stage in stages for name in stage.done}
    live: list[_Live] = [
        {name: Held(_read_only(v)) for name, v in {**unfed, **feed}.items() if name in read}
        for feed in feeds
    ]
    for stage in stages:
        if stage.leaves:
            _run(graph, stage, live, room)
        yield tuple(Arrays([values[name] for values in live]) for name in stage.wanted)
        for values in live:
            _drop(values, stage.done)


_Live = dict[str, Held]
"""What the stages ahead read of one feed."""


def _drop(values: _Live, names: Set[str]) -> None:
    """Drop the values of these names, as far as they are there."""
    for name in names & values.keys():
        del values[name]


def _read_only(values: Array) -> Array:
    """The same values for all but writing."""
    view = values.view()
    view.flags.writeable = False
    return view


def _run(graph: gs.Graph, stage: Stage, live: list[_Live], room: Room) -> None:
    """Run a stage over every feed; its results join the live tensors."""

    def bounded(model: onnx.ModelProto) -> onnx.ModelProto:
        ends = {*stage.reads, *stage.leaves}
        inner = [info for info in model.graph.value_info if info.name not in ends]
        del model.graph.input[:], model.graph.output[:], model.graph.value_info[:]
        model.graph.value_info.extend(inner)
        for name in stage.reads:
            value = live[0][name].array()
            kind = onnx.helper.np_dtype_to_tensor_dtype(value.dtype)
            # Feeds may differ in length: only the rank is the same.
            info = onnx.helper.make_tensor_value_info(name, kind, [None] * value.ndim)
            model.graph.input.append(info)
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in stage.leaves)
        return model

    with graph_session(part(graph, stage), bounded) as session:
        for values in live:
            with runtime_errors(CalibrationError, NOT_RUNNING, REPAIR):
                results = session.run(
                    list(stage.leaves), {name: values[name].array() for name in stage.reads}
                )
            for name, value in zip(stage.leaves, results, strict=True):
                values[name] = room.put(np.asarray(value))
            del results
            _drop(values, stage.done.difference(stage.wanted))
