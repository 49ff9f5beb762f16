"""Gradients at activations over data, in stages: forward once, then backward from the last.

The graph is cut as for a stream (`calibration.stages`). What is live at the cuts is kept. Backward,
the model of a stage computes its nodes again, from there and from the gradients of what it hands on
(gradient checkpointing). So memory holds what is live at the cuts, and the activations of one stage
over one feed.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import helper

from qcompiler import ir
from qcompiler.autodiff.expand import expanded
from qcompiler.autodiff.kinds import MAYBE_FLOAT
from qcompiler.autodiff.reverse import Added, add_gradients
from qcompiler.calibration.graph_session import NOT_RUNNING, REPAIR, graph_session
from qcompiler.calibration.held import Arrays, Held, Room
from qcompiler.calibration.stages import Stage, cut, part
from qcompiler.calibration.stream import stream, stream_together
from qcompiler.errors import CalibrationError
from qcompiler.foreign import runtime_errors
from qcompiler.ir import interface
from qcompiler.ir.order import outer_reads, topological

Array = np.ndarray[Any, Any]
Feed = Mapping[str, Array]
Seed = Callable[[int, Array], Array]
"""The gradient at the output, from the index of a feed and the output there."""

_TOGETHER = 8  # tensors of a stage: about those of a layer of a decoder


def gradients(
    graph: gs.Graph, names: Sequence[str], output: str, feeds: Sequence[Feed], seed: Seed
) -> Iterator[tuple[str, Sequence[Array]]]:
    """d(Σ seed(i, y_i) y_i) / d(tensor) for each tensor of `names`, the last of the graph first.

    One array a feed, in float32, of the tensor's sizes: zeros where the output does not depend on
    the tensor. `y_i` is the output for feed i. The graph is canonical; it may compute in any float
    type. Attention looks at the tokens of a feed alone, and caches must be empty.

    CalibrationError for an operator on the way that has no rule, If, Loop and Scan among them, for
    gradients that are not finite, and if the data does not fit the model.
    """
    given, made, beside = _ordered(graph, names, output)
    if beside:
        for name, arrays in zip(beside, stream(graph, beside, feeds), strict=True):
            yield name, [np.zeros(each.shape, np.float32) for each in arrays]
    ends = list(dict.fromkeys([*made, output]))
    starts = range(0, len(ends), _TOGETHER)
    stages = cut(graph, [tuple(ends[at : at + _TOGETHER]) for at in starts])
    values = _forward(graph, stages, feeds)
    walk, reached = _Walk(graph, len(feeds), values), _reached(graph, names)
    for index, stage in reversed(list(enumerate(stages))):
        wanted = [name for name in made if name in stage.wanted]
        towards = [name for name in stage.reads if name in reached]
        with ExitStack() as opened:
            if stage is stages[-1]:
                seeds = opened.enter_context(_seeds(graph, stage, output, values, seed))
                walk.found[output] = [_Computed(partial(seeds, at)) for at in range(len(feeds))]
            walk.back(stage, towards, wanted)
        for name in reversed(wanted):
            yield name, _arrays(walk.found[name])
        earlier = {name for each in stages[:index] for name in each.reads}
        for name in {*stage.reads, *stage.leaves}.difference(earlier):
            values.pop(name, None)
        for name in {output, *stage.leaves}:
            walk.found.pop(name, None)
    for name in reversed(given):
        if name in walk.found:
            yield name, _arrays(walk.found[name])
        else:
            yield name, [np.zeros(feed[name].shape, np.float32) for feed in feeds]


@dataclass(frozen=True)
class _Computed:
    """The gradient at the output for one feed, computed when it is asked for."""

    array: Callable[[], Array]


def _arrays(found: Sequence[Held | _Computed]) -> Arrays:
    return Arrays([each for each in found if isinstance(each, Held)])


def _ordered(
    graph: gs.Graph, names: Sequence[str], output: str
) -> tuple[list[str], list[str], list[str]]:
    """The wanted inputs of the graph, what the output depends on in order, and the others."""
    asked = set(names)
    given: list[str] = []
    made: list[str] = []
    beside: list[str] = []
    inputs: list[Any] = graph.inputs
    nodes: list[Any] = topological(graph)
    needed = {output}
    for node in reversed(nodes):
        if any(tensor.name in needed for tensor in node.outputs):
            needed.update(tensor.name for tensor in outer_reads(node))
    for tensor in chain(inputs, *(node.outputs for node in nodes)):
        name = str(tensor.name)
        if name not in asked:
            continue
        if ir.elem_type(tensor) not in MAYBE_FLOAT:
            raise CalibrationError(f"'{name}' holds no floats: it has no gradient")
        asked.discard(name)
        (given if not tensor.inputs else made if name in needed else beside).append(name)
    for name in asked:
        raise CalibrationError(f"the graph computes no tensor '{name}'")
    return given, made, beside


def _reached(graph: gs.Graph, names: Sequence[str]) -> set[str]:
    """The tensors that depend on some, with these."""
    reached = set(names)
    nodes: list[Any] = topological(graph)
    for node in nodes:
        if any(tensor.name in reached for tensor in outer_reads(node)):
            reached.update(tensor.name for tensor in node.outputs)
    return reached


def _forward(
    graph: gs.Graph, stages: Sequence[Stage], feeds: Sequence[Feed]
) -> dict[str, Sequence[Array]]:
    """What the stages read, by tensor and feed."""
    unfed = {str(each.name): ir.array(each) for each in interface.defaults(graph)}
    inputs: list[Any] = graph.inputs
    read = {name for stage in stages for name in stage.reads}
    values: dict[str, Sequence[Array]] = {}
    for tensor in inputs:
        name = str(tensor.name)
        if name in read:
            values[name] = [{**unfed, **feed}[name] for feed in feeds]
    handed = [tuple(name for name in stage.leaves if name in read) for stage in stages[:-1]]
    if handed:
        for group, arrays in zip(handed, stream_together(graph, handed, feeds), strict=True):
            values.update(zip(group, arrays, strict=True))
    return values


@contextmanager
def _seeds(
    graph: gs.Graph,
    stage: Stage,
    output: str,
    values: Mapping[str, Sequence[Array]],
    seed: Seed,
) -> Generator[Callable[[int], Array], None, None]:
    """The gradients at the output by feed: logits of all of them at once would be too many."""

    def bounded(model: onnx.ModelProto) -> onnx.ModelProto:
        _bound(model, {name: values[name] for name in stage.reads})
        model.graph.output.append(onnx.ValueInfoProto(name=output))
        return model

    with graph_session(part(graph, stage), bounded) as session:

        def compute(index: int) -> Array:
            with runtime_errors(CalibrationError, NOT_RUNNING, REPAIR):
                inputs = {name: values[name][index] for name in stage.reads}
                y = np.asarray(session.run([output], inputs)[0])
            given = np.asarray(seed(index, y), np.float32)
            if given.shape != y.shape:
                raise ValueError(f"the seed has sizes {given.shape}, the output has {y.shape}")
            return given

        yield compute


@dataclass(frozen=True)
class _Walk:
    """The way back through the stages, over all feeds."""

    graph: gs.Graph
    feeds: int
    values: Mapping[str, Sequence[Array]]
    """What stages read, by tensor and feed."""
    found: dict[str, Sequence[Held | _Computed]] = field(default_factory=dict)
    """Gradients by tensor and feed: sums over the stages behind."""
    room: Room = field(default_factory=Room)

    def back(self, stage: Stage, towards: Sequence[str], wanted: Sequence[str]) -> None:
        """Run a stage backward over every feed; what it gives joins the gradients found."""
        given = [t.name for node in stage.nodes for t in node.outputs if t.name in self.found]
        if not wanted and not (given and towards):
            return
        added: list[Added] = []

        def reversed_model(model: onnx.ModelProto) -> onnx.ModelProto:
            _bound(model, {name: self.values[name] for name in stage.reads})
            model = expanded(model, {*towards, *wanted})
            added.append(add_gradients(model, given, towards, wanted))
            return model

        with graph_session(part(self.graph, stage), reversed_model) as session:
            (ends,) = added
            earlier = {name: self.found[name] for name in towards if name in self.found}
            sums: dict[str, list[Held]] = {name: [] for name in ends.found}
            for index in range(self.feeds if sums else 0):
                inputs = {name: self.values[name][index] for name in stage.reads}
                inputs |= {at: self.found[name][index].array() for name, at in ends.given.items()}
                with runtime_errors(CalibrationError, NOT_RUNNING, REPAIR):
                    results = session.run(list(ends.found.values()), inputs)
                for name, result in zip(ends.found, results, strict=True):
                    total = np.asarray(result)
                    if name in earlier:
                        total = total + earlier[name][index].array()
                    if not np.isfinite(total).all():
                        raise CalibrationError(f"the gradient at '{name}' is not finite")
                    sums[name].append(self.room.put(total))
                del results
            self.found.update(sums)


def _bound(model: onnx.ModelProto, reads: Mapping[str, Sequence[Array]]) -> None:
    """Let a model read these tensors, with the sizes that they have: one name for equal ones."""
    graph = model.graph
    inner = [value for value in graph.value_info if value.name not in reads]
    del graph.input[:], graph.output[:], graph.value_info[:]
    graph.value_info.extend(inner)
    for name, arrays in reads.items():
        shapes = [values.shape for values in arrays]
        sizes = [_size(each) for each in zip(*shapes, strict=True)]
        kind = helper.np_dtype_to_tensor_dtype(arrays[0].dtype)
        graph.input.append(helper.make_tensor_value_info(name, kind, sizes))


def _size(by_feed: Sequence[int]) -> int | str:
    """A size that is the same for all feeds, or a name for one that is not."""
    return by_feed[0] if len(set(by_feed)) == 1 else "n" + "_".join(map(str, by_feed))
