"""Observers as a graph transform: the model computes its own statistics.

    X [..., K]  ->  Reshape [-1, K] -> ReduceMin(0)              low     [K]
                                    -> ReduceMax(0)              high    [K]
                                    -> ReduceSumSquare(0)        energy  [K]

The model's own outputs are dropped, so whatever only they need (the language-model head) is not
even computed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper

from qcompiler import ir
from qcompiler.calibration.statistics import Statistics, TensorStatistics
from qcompiler.errors import CalibrationError
from qcompiler.ir import scratch
from qcompiler.session import one_line

_PREFIX = "qcompiler.observe"
_LARGE = 64 << 10  # bytes from which an initializer goes through a file


def with_observers(model: onnx.ModelProto, channels: Mapping[str, int]) -> onnx.ModelProto:
    """The model with statistics as its only outputs; `channels` gives K of each tensor name."""
    observed = onnx.ModelProto()
    observed.CopyFrom(model)
    graph = observed.graph
    del graph.output[:]
    axes = helper.make_tensor(f"{_PREFIX}.axes", onnx.TensorProto.INT64, [1], [0])
    graph.initializer.append(axes)
    # ONNX Runtime visits the last leaf first: deepest layers come first here, so that it reduces
    # each activation right after computing it and need not keep them all.
    for index, (name, size) in reversed(list(enumerate(channels.items()))):
        tag = f"{_PREFIX}.{index}"
        shape = helper.make_tensor(f"{tag}.shape", onnx.TensorProto.INT64, [2], [-1, size])
        graph.initializer.append(shape)
        graph.node.extend(
            [
                helper.make_node("Cast", [name], [f"{tag}.float"], to=onnx.TensorProto.FLOAT),
                helper.make_node("Reshape", [f"{tag}.float", f"{tag}.shape"], [f"{tag}.rows"]),
                helper.make_node(
                    "ReduceMin", [f"{tag}.rows", axes.name], [f"{tag}.low"], keepdims=0
                ),
                helper.make_node(
                    "ReduceMax", [f"{tag}.rows", axes.name], [f"{tag}.high"], keepdims=0
                ),
                helper.make_node(
                    "ReduceSumSquare", [f"{tag}.rows", axes.name], [f"{tag}.energy"], keepdims=0
                ),
                helper.make_node("Shape", [f"{tag}.rows"], [f"{tag}.count"], start=0, end=1),
            ]
        )
        for suffix, kind in (
            ("low", onnx.TensorProto.FLOAT),
            ("high", onnx.TensorProto.FLOAT),
            ("energy", onnx.TensorProto.FLOAT),
            ("count", onnx.TensorProto.INT64),
        ):
            graph.output.append(helper.make_tensor_value_info(f"{tag}.{suffix}", kind, None))
    return observed


@contextmanager
def graph_session(
    graph: Any, change: Callable[[onnx.ModelProto], onnx.ModelProto]
) -> Generator[ort.InferenceSession, None, None]:
    """A session over a graph whose model `change` has been applied to, for as long as it lasts.

    Initializers stay in the files they are mapped from; large ones in memory go to one first, for
    inside a model ONNX Runtime would copy them twice. CalibrationError if it refuses the model.
    """
    store = scratch.active()
    beside = None if store is None else store.folder
    with tempfile.TemporaryDirectory(prefix="qcompiler-", dir=beside) as folder:
        with ir.on_disk(graph, Path(folder), _LARGE) as model:
            session = _session(change(model), ir.model_folder(graph))
        yield session


def _session(model: onnx.ModelProto, folder: Path | None) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is raised, on one line
    # Packed copies of the weights would nearly double the memory of a session this short-lived.
    options.add_session_config_entry("session.disable_prepacking", "1")
    # By default ONNX Runtime rounds the activations of 4-bit layers once more.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    if folder is not None:
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", str(folder)
        )
    try:
        return ort.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # ONNX Runtime's errors share no other base class
        raise CalibrationError(
            f"ONNX Runtime refuses the model: {one_line(error)}; repair it, or export it in float32"
        ) from None


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
    tensors = graph.tensors()
    channels = {}
    for name in names:
        shape = tensors[name].shape
        readers = [n for n in ir.consumers(tensors[name]) if n.op == "MatMul"]
        size = readers[0].inputs[1].shape[0] if readers else (shape[-1] if shape else None)
        if not isinstance(size, int):
            raise CalibrationError(f"the channels of activation '{name}' are not known")
        channels[name] = size
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
        try:
            results = session.run(wanted, {k: v for k, v in feed.items() if k in needed})
        except Exception as error:  # ONNX Runtime's errors share no other base class
            raise CalibrationError(
                f"the model does not run on the calibration data: {one_line(error)}"
            ) from None
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
