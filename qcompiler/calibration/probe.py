"""What a model gives when some of its constants are others, run after run in one session.

A model that draws random numbers gets a session for each variant: all see the same draws.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from qcompiler import memory
from qcompiler.calibration.draws import draws
from qcompiler.calibration.graph_session import NOT_RUNNING, REPAIR, graph_session
from qcompiler.errors import CalibrationError
from qcompiler.foreign import runtime_errors

Array = np.ndarray[Any, Any]


def probe(
    graph: Any,
    output: str,
    names: Sequence[str],
    feeds: Sequence[Mapping[str, Array]],
    variants: Iterable[Mapping[str, Array]],
) -> Iterator[list[Array]]:
    """The values of `output`, one array a feed, for each of `variants`.

    A variant gives constants of the graph, all among `names`, other values; what it leaves out
    keeps its own. CalibrationError if the data does not fit the model.
    """

    def open_up(model: onnx.ModelProto) -> onnx.ModelProto:
        # An initializer that is an input as well may be fed.
        stored = {tensor.name: tensor for tensor in model.graph.initializer}
        for name in names:
            tensor = stored[name]
            info = onnx.helper.make_tensor_value_info(name, tensor.data_type, tensor.dims)
            model.graph.input.append(info)
        del model.graph.output[:]
        model.graph.output.append(onnx.ValueInfoProto(name=output))
        return model

    memory.release()
    for batch in ([variant] for variant in variants) if draws(graph) else [variants]:
        with graph_session(graph, open_up) as session:
            for variant in batch:
                yield _outputs(session, output, feeds, variant)


def _outputs(
    session: ort.InferenceSession,
    output: str,
    feeds: Sequence[Mapping[str, Array]],
    variant: Mapping[str, Array],
) -> list[Array]:
    """The values of `output`, one array a feed."""
    needed = {item.name for item in session.get_inputs()}
    with runtime_errors(CalibrationError, NOT_RUNNING, REPAIR):
        return [
            np.asarray(
                session.run(
                    [output], {k: v for k, v in feed.items() if k in needed} | dict(variant)
                )[0]
            )
            for feed in feeds
        ]
