"""Activations over calibration data, layer after layer, each node computed once.

A graph is cut into stages: stage i holds the nodes the i-th wanted tensor needs and no earlier one
did. Each stage runs as a model of its own over all feeds, from the tensors that earlier stages left
to it. So only what is live at one place of the model is ever held, in memory or in files (`held`),
the time grows with the depth and not with its square, and the nodes ahead may still be changed: a
layer sees its inputs as the layers before it, quantized in the meantime, compute them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from qcompiler import ir, memory
from qcompiler.calibration.graph_session import NOT_RUNNING, REPAIR, graph_session
from qcompiler.calibration.held import Arrays, Held, Room
from qcompiler.errors import CalibrationError
from qcompiler.foreign import runtime_errors
from qcompiler.ir import interface
from qcompiler.ir.order import outer_reads, topological

Array = np.ndarray[Any, Any]
Feed = Mapping[str, Array]


@dataclass(frozen=True)
class _Stage:
    """The nodes some wanted tensors add to those before them, and the tensors at the cuts."""

    wanted: tuple[str, ...]
    nodes: tuple[gs.Node, ...]
    reads: tuple[str, ...]
    leaves: tuple[str, ...]
    """What the stage computes that it or a later one hands on."""
    done: frozenset[str]
    """What is there up to this stage, and no later one reads."""


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
    stages = _stages(graph, groups)
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


def _stages(graph: gs.Graph, groups: Sequence[tuple[str, ...]]) -> list[_Stage]:
    nodes: list[Any] = topological(graph)
    makers = {output.name: node for node in nodes for output in node.outputs if output.name}
    inputs: list[Any] = graph.inputs
    given = {str(tensor.name) for tensor in inputs}
    for name in chain.from_iterable(groups):
        if name not in makers and name not in given:
            raise CalibrationError(f"the graph computes no tensor '{name}'")
    first: dict[int, int] = {}  # the stage of each needed node
    for index, group in enumerate(groups):
        for name in group:
            _claim(name, index, makers, first)
    reads: list[dict[str, None]] = [{} for _ in groups]
    for node in nodes:
        if id(node) in first:
            stage = first[id(node)]
            for tensor in outer_reads(node):
                maker = makers.get(tensor.name)
                if tensor.name in given if maker is None else first[id(maker)] != stage:
                    reads[stage][str(tensor.name)] = None
    last = {name: at for at, group in enumerate(groups) for name in (*reads[at], *group)}
    done: list[list[str]] = [[] for _ in groups]
    for name, at in last.items():
        done[at].append(name)
    own: list[list[gs.Node]] = [[] for _ in groups]
    for node in nodes:
        if id(node) in first:
            own[first[id(node)]].append(node)
    stages: list[_Stage] = []
    for index, group in enumerate(groups):
        made = dict.fromkeys(output.name for node in own[index] for output in node.outputs)
        wanted = set(group)
        stages.append(
            _Stage(
                wanted=group,
                nodes=tuple(own[index]),
                reads=tuple(reads[index]),
                leaves=tuple(t for t in made if last.get(t, -1) > index or t in wanted),
                done=frozenset(done[index]),
            )
        )
    return stages


def _claim(name: str, stage: int, makers: Mapping[str, gs.Node], first: dict[int, int]) -> None:
    """Give a stage to every node a tensor needs that has none yet."""
    waiting = [name]
    while waiting:
        node = makers.get(waiting.pop())
        if node is None or id(node) in first:
            continue
        first[id(node)] = stage
        waiting += [tensor.name for tensor in outer_reads(node) if tensor.name in makers]


def _run(graph: gs.Graph, stage: _Stage, live: list[_Live], room: Room) -> None:
    """Run a stage over every feed; its results join the live tensors."""
    part = gs.Graph(
        nodes=list(stage.nodes),
        opset=graph.opset,
        import_domains=graph.import_domains,
        functions=graph.functions,
        ir_version=graph.ir_version,
    )

    def cut(model: onnx.ModelProto) -> onnx.ModelProto:
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

    with graph_session(part, cut) as session:
        for values in live:
            with runtime_errors(CalibrationError, NOT_RUNNING, REPAIR):
                results = session.run(
                    list(stage.leaves), {name: values[name].array() for name in stage.reads}
                )
            for name, value in zip(stage.leaves, results, strict=True):
                values[name] = room.put(np.asarray(value))
            del results
            _drop(values, stage.done.difference(stage.wanted))
