"""What bodies of If, Loop and Scan are given while a graph runs over calibration data.

If          where the branch is taken, what it reads of the graph around it
Loop, Scan  the same for the first turns of every sample, with their states and slices
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnxruntime as ort

from qcompiler import ir
from qcompiler.calibration.graph_session import REPAIR, graph_session
from qcompiler.errors import CalibrationError
from qcompiler.foreign import runtime_errors
from qcompiler.ir.bodies import lift, reads_around
from qcompiler.passmanager import Data

Array = np.ndarray[Any, Any]
Feed = dict[str, Array]

TURNS = 16
"""Turns of a loop that are kept of each sample."""


def recorded(graph: gs.Graph, holder: gs.Node, attribute: str, data: Data) -> list[Feed]:
    """Feeds for a body of `holder`, a node of `graph`; none where it never runs on the data, or in
    a way that is not known here. CalibrationError if the data does not fit the model."""
    place: Any = holder.attrs[attribute]
    around = [tensor for tensor in reads_around(place) if not ir.is_constant(tensor)]
    values = _values(graph, [*around, *holder.inputs], data)
    outside = [{str(t.name): value[t.name] for t in around} for value in values]
    read: list[Any] = list(holder.inputs)
    given = [[value.get(t.name) for t in read] for value in values]
    if holder.op == "If":
        taken = attribute == "then_branch"
        return [f for f, (x,) in zip(outside, given, strict=True) if bool(np.all(x)) is taken]
    turns = {"Loop": _loop, "Scan": _scan}.get(holder.op)
    if turns is None:
        return []
    body = lift(place, graph, ir.Namer(graph))
    try:
        with _Runner(body.graph, [str(tensor.name) for tensor in place.inputs]) as run:
            pairs = zip(given, outside, strict=True)
            return [feed for start, each in pairs for feed in turns(run, holder, start, each)]
    finally:
        body.put_back(body.graph)


def _values(graph: gs.Graph, tensors: Sequence[Any], data: Data) -> list[Feed]:
    """The values of tensors by name, for every sample."""
    constants = {t.name: ir.array(t) for t in tensors if ir.is_constant(t)}
    names = [str(t.name) for t in tensors if not ir.is_constant(t) and not t.is_empty()]
    found: list[Feed] = []
    for name, arrays in zip(names, data.stream(graph, names), strict=True):
        found = found or [dict(constants) for _ in arrays]
        for feed, value in zip(found, arrays, strict=True):
            feed[name] = np.array(value)
    return found


class _Runner:
    """A body in ONNX Runtime."""

    def __init__(self, graph: gs.Graph, names: Sequence[str]) -> None:
        """`names`: the inputs that its node fills, the first ones."""
        self._graph = graph
        self._names = names
        self._stack = ExitStack()
        self._session: ort.InferenceSession | None = None

    def __enter__(self) -> _Runner:
        return self

    def __exit__(self, *failure: object) -> None:
        self._stack.close()

    def feed(self, values: Sequence[Array], around: Feed) -> Feed:
        """What one turn reads."""
        return dict(zip(self._names, values, strict=True)) | around

    def __call__(self, feed: Mapping[str, Array]) -> list[Array]:
        """What one turn gives."""

        def typed(model: onnx.ModelProto) -> onnx.ModelProto:
            del model.graph.input[:]
            for name, value in feed.items():
                kind = onnx.helper.np_dtype_to_tensor_dtype(value.dtype)
                dims = [None] * value.ndim  # turns may differ in length
                model.graph.input.append(onnx.helper.make_tensor_value_info(name, kind, dims))
            return model

        what = "a loop does not run on the calibration data"
        with runtime_errors(CalibrationError, what, REPAIR):
            if self._session is None:
                self._session = self._stack.enter_context(graph_session(self._graph, typed))
            return [np.asarray(value) for value in self._session.run(None, dict(feed))]


def _loop(
    run: _Runner, holder: gs.Node, start: Sequence[Array | None], around: Feed
) -> Iterator[Feed]:
    """The turns of a Loop from M, the condition and the initial states."""
    count, keep, *rest = start
    states = [state for state in rest if state is not None]
    last = TURNS if count is None else min(TURNS, int(np.ravel(count)[0]))
    go = keep is None or bool(np.all(keep))
    for turn in range(last):
        if not go:
            return
        feed = run.feed([np.array(turn, np.int64), np.array(go), *states], around)
        yield feed
        result, *states = run(feed)[: 1 + len(states)]
        go = bool(np.all(result))


def _scan(
    run: _Runner, holder: gs.Node, start: Sequence[Array | None], around: Feed
) -> Iterator[Feed]:
    """The turns of a Scan from its initial states and the tensors it cuts."""
    values = [value for value in start if value is not None]
    count = int(ir.attribute(holder, "num_scan_inputs"))
    states, cut = values[:-count], values[-count:]
    axes = ir.attribute(holder, "scan_input_axes") or [0] * count
    back = ir.attribute(holder, "scan_input_directions") or [0] * count
    rows = [
        np.flip(np.moveaxis(value, axis, 0), 0) if reverse else np.moveaxis(value, axis, 0)
        for value, axis, reverse in zip(cut, axes, back, strict=True)
    ]
    for turn in range(min(TURNS, len(rows[0]))):
        feed = run.feed([*states, *(np.ascontiguousarray(each[turn]) for each in rows)], around)
        yield feed
        states = run(feed)[: len(states)]
