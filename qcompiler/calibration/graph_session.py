"""A graph in ONNX Runtime, with as little memory as it can do with.

Weights stay in the files they are mapped from, and nothing is computed that no output needs.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort
from onnx import helper

from qcompiler import ir
from qcompiler.calibration.draws import fix_seeds
from qcompiler.errors import CalibrationError
from qcompiler.foreign import runtime_errors
from qcompiler.ir import scratch
from qcompiler.protos import reads
from qcompiler.session import EXTERNAL_FOLDER, load_soon

REPAIR = "repair it, or export it in float32"
"""The remedy for a model that does not run."""
NOT_RUNNING = "the model does not run on the calibration data"
"""What is said of it where it stops."""

_LARGE = 64 << 10  # bytes from which an initializer goes through a file


def _prune(graph: onnx.GraphProto) -> None:
    """Drop the nodes that no output needs: ONNX Runtime would compute them."""
    needed = {output.name for output in graph.output}
    kept: list[onnx.NodeProto] = []
    for node in reversed(graph.node):  # in order: what a node reads is made before it
        if not needed.isdisjoint(node.output):
            kept.append(node)
            needed |= reads(node)
    if len(kept) < len(graph.node):
        del graph.node[:]
        graph.node.extend(reversed(kept))


def _look_up_columns(graph: onnx.GraphProto) -> None:
    """Rows of a transposed table become its columns, transposed: the same values.

        Gather(Transpose(W), ids, axis=0)  ->  Transpose(Gather(W, ids, axis=1))

    ONNX Runtime would keep a second, transposed table in memory, beside the mapped one.
    """
    turned = {
        node.output[0]: node.input[0]
        for node in graph.node
        if node.op_type == "Transpose" and _attribute(node, "perm") == [1, 0]
    }
    if not turned:
        return
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.op_type != "Gather" or node.input[0] not in turned or _attribute(node, "axis"):
            nodes.append(node)
            continue
        ids, tag = node.input[1], f"{node.output[0]}.columns"
        flat = helper.make_tensor(f"{tag}.flat", onnx.TensorProto.INT64, [1], [-1])
        graph.initializer.append(flat)
        table = turned[node.input[0]]
        nodes += [
            helper.make_node("Reshape", [ids, flat.name], [f"{tag}.ids"]),
            helper.make_node("Gather", [table, f"{tag}.ids"], [tag], axis=1),
            helper.make_node("Transpose", [tag], [f"{tag}.rows"], perm=[1, 0]),
            helper.make_node("Shape", [ids], [f"{tag}.lead"]),
            helper.make_node("Shape", [tag], [f"{tag}.width"], start=0, end=1),
            helper.make_node("Concat", [f"{tag}.lead", f"{tag}.width"], [f"{tag}.shape"], axis=0),
            helper.make_node("Reshape", [f"{tag}.rows", f"{tag}.shape"], [node.output[0]]),
        ]
    made = onnx.GraphProto(node=nodes)
    del graph.node[:]
    graph.node.extend(made.node)


def _attribute(node: onnx.NodeProto, name: str) -> Any:
    """An attribute of a node of ONNX's own domain; None where it is not set."""
    given = (each for each in node.attribute if each.name == name and not node.domain)
    return next(map(helper.get_attribute_value, given), None)


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
            changed = change(model)
            fix_seeds(changed)
            _look_up_columns(changed.graph)
            _prune(changed.graph)
            session = _session(changed, ir.model_folder(graph))
        yield session


def _session(model: onnx.ModelProto, folder: Path | None) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is raised, on one line
    # In the order of the nodes, so that an activation goes when its last reader there has run; and
    # without a plan of one run's memory, of which the next run, of another length, takes a second.
    options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
    options.enable_mem_pattern = False
    load_soon(options, model)
    # Packed copies of the weights would nearly double the memory of a session this short-lived.
    options.add_session_config_entry("session.disable_prepacking", "1")
    # By default ONNX Runtime rounds the activations of 4-bit layers once more.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    if folder is not None:
        options.add_session_config_entry(EXTERNAL_FOLDER, str(folder))
    with runtime_errors(CalibrationError, "ONNX Runtime refuses the model", REPAIR):
        return ort.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
