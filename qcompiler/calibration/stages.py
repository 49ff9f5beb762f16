"""A graph in stages, of which each adds the nodes that some tensors need beside those before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import onnx_graphsurgeon as gs

from qcompiler.errors import CalibrationError
from qcompiler.ir.order import outer_reads, topological


@dataclass(frozen=True)
class Stage:
    """The nodes some wanted tensors add to those before them, and the tensors at the cuts."""

    wanted: tuple[str, ...]
    nodes: tuple[gs.Node, ...]
    reads: tuple[str, ...]
    leaves: tuple[str, ...]
    """What the stage computes that it or a later one hands on."""
    done: frozenset[str]
    """What is there up to this stage, and no later one reads."""


def cut(graph: gs.Graph, groups: Sequence[tuple[str, ...]]) -> list[Stage]:
    """The stages of groups of tensors, one each. CalibrationError where a tensor is unknown."""
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
    stages: list[Stage] = []
    for index, group in enumerate(groups):
        made = dict.fromkeys(output.name for node in own[index] for output in node.outputs)
        wanted = set(group)
        stages.append(
            Stage(
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


def part(graph: gs.Graph, stage: Stage) -> gs.Graph:
    """The nodes of a stage as a graph that has no inputs or outputs yet."""
    return gs.Graph(
        nodes=list(stage.nodes),
        opset=graph.opset,
        import_domains=graph.import_domains,
        functions=graph.functions,
        ir_version=graph.ir_version,
    )
