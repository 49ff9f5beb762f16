"""Observers as a graph transform: the model computes its own statistics.

    X [..., K]  ->  Reshape [-1, K] -> ReduceMin(0)              low     [K]
                                    -> ReduceMax(0)              high    [K]
                                    -> ReduceSumSquare(0)        energy  [K]

The model's own outputs are dropped, so whatever only they need (the language-model head) is not
even computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper

from qcompiler import ir, memory
from qcompiler.analysis.layers import reader_of
from qcompiler.calibration.graph_session import NOT_RUNNING, REPAIR, graph_session
from qcompiler.calibration.statistics import Statistics, TensorStatistics
from qcompiler.errors import CalibrationError
from qcompiler.foreign import runtime_errors

_PREFIX = "qcompiler.observe"


def with_observers(model: onnx.ModelProto, channels: Mapping[str, int]) -> onnx.ModelProto:
    """The model with statistics as its only outputs; `channels` gives K of each tensor name."""
    observed = onnx.ModelProto()
    observed.CopyFrom(model)
    graph = observed.graph
    del graph.output[:]
    axes = helper.make_tensor(f"{_PREFIX}.axes", onnx.TensorProto.INT64, [1], [0])
    graph.initializer.append(axes)
    observers: dict[str, list[onnx.NodeProto]] = {}
    for index, (name, size) in enumerate(channels.items()):
        tag = f"{_PREFIX}.{index}"
        shape = helper.make_tensor(f"{tag}.shape", onnx.TensorProto.INT64, [2], [-1, size])
        graph.initializer.append(shape)
        observers[name] = _observer(name, tag, axes.name)
        for suffix, kind in (
            ("low", onnx.TensorProto.FLOAT),
            ("high", onnx.TensorProto.FLOAT),
            ("energy", onnx.TensorProto.FLOAT),
            ("count", onnx.TensorProto.INT64),
        ):
            graph.output.append(helper.make_tensor_value_info(f"{tag}.{suffix}", kind, None))
    # Each activation is reduced right where it is computed, so that they need not all be kept.
    nodes: list[onnx.NodeProto] = []
    for given in graph.input:
        nodes += observers.get(given.name, [])
    for node in graph.node:
        nodes.append(node)
        for output in node.output:
            nodes += observers.get(output, [])
    made = onnx.GraphProto(node=nodes)
    del graph.node[:]
    graph.node.extend(made.node)
    return observed


def _observer(name: str, tag: str, axes: str) -> list[onnx.NodeProto]:
    rows = f"{tag}.rows"
    return [
        helper.make_node("Cast", [name], [f"{tag}.float"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Reshape", [f"{tag}.float", f"{tag}.shape"], [rows]),
        helper.make_node("ReduceMin", [rows, axes], [f"{tag}.low"], keepdims=0),
        helper.make_node("ReduceMax", [rows, axes], [f"{tag}.high"], keepdims=0),
        helper.make_node("ReduceSumSquare", [rows, axes], [f"{tag}.energy"], keepdims=0),
        helper.make_node("Shape", [rows], [f"{tag}.count"], start=0, end=1),
    ]


def observe(
    graph: Any,
    names: Sequence[str],
    feeds: Iterable[Mapping[str, np.ndarray[Any, Any]]],
    *,
    source: str,
    progress: Callable[[int], None] | None = None,
) -> Statistics:
    """Run a graph over `feeds` and reduce the activations `names` ([..., K] each).

    CalibrationError if the data does not fit the model, or an activation is not finite.
    """
    tensors = ir.tensors_of(graph)
    channels = {}
    for name in names:
        shape, layer = tensors[name].shape, reader_of(graph, tensors[name])
        width = shape[-1] if shape else None
        size = width if layer is None else layer.shape[0]
        if layer is not None and isinstance(width, int) and width != size:
            raise CalibrationError(
                f"node '{layer.name}' multiplies {width} channels by a weight of {size}; "
                "repair the model"
            )
        if not isinstance(size, int):
            raise CalibrationError(f"the channels of activation '{name}' are not known")
        channels[name] = size
    memory.release()
    with graph_session(graph, lambda model: with_observers(model, channels)) as session:
        return _reduce(session, list(channels), feeds, source, progress)


def _reduce(
    session: ort.InferenceSession,
    names: list[str],
    feeds: Iterable[Mapping[str, np.ndarray[Any, Any]]],
    source: str,
    progress: Callable[[int], None] | None,
) -> Statistics:
    needed = {item.name for item in session.get_inputs()}
    wanted = [
        f"{_PREFIX}.{index}.{suffix}"
        for index in range(len(names))
        for suffix in ("low", "high", "energy", "count")
    ]
    lowest: dict[str, Any] = {}
    highest: dict[str, Any] = {}
    energy: dict[str, Any] = {}
    tokens = dict.fromkeys(names, 0)
    for step, feed in enumerate(feeds):
        with runtime_errors(CalibrationError, NOT_RUNNING, REPAIR):
            results = session.run(wanted, {k: v for k, v in feed.items() if k in needed})
        for index, name in enumerate(names):
            low, high, square, count = (np.asarray(r) for r in results[4 * index : 4 * index + 4])
            if not np.isfinite(square).all():
                raise CalibrationError(
                    f"activation '{name}' is not finite on the calibration data; "
                    "check the model in float, or exclude the layers that read it"
                )
            if not count[0]:  # the extremes of nothing are infinite; no data, no statistics
                continue
            lowest[name] = np.minimum(lowest.get(name, np.inf), low)
            highest[name] = np.maximum(highest.get(name, -np.inf), high)
            energy[name] = energy.get(name, 0.0) + square.astype(np.float64)
            tokens[name] += int(count[0])
        if progress is not None:
            progress(step + 1)
    if not any(tokens.values()):
        raise CalibrationError("the calibration source gave no data")
    return Statistics(
        {
            name: TensorStatistics(
                np.asarray(lowest[name], np.float32),
                np.asarray(highest[name], np.float32),
                np.asarray(energy[name] / tokens[name], np.float32),
                tokens[name],
            )
            for name in names
            if tokens[name]
        },
        source,
    )
