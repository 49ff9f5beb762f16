"""Runs each op of a compiled model alone, from its function; also a script for an older runtime.

usage: one_node.py FOLDER     (FOLDER as `tapped` left it); needs numpy and onnxruntime only.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort


def tapped(path: Path, folder: Path) -> int:
    """Run a model with the library, keep what every op reads and gives, and cut the ops out.

    Writes folder/values.npz, folder/nodes/<i>.onnx and <i>.json; returns the number of nodes.
    """
    import onnx

    from qcompiler import ops

    model = onnx.load(path)
    nodes = [node for node in model.graph.node if node.domain == ops.DOMAIN]
    stored = {each.name for each in model.graph.initializer}
    inputs = {each.name for each in model.graph.input}
    touched = dict.fromkeys(name for node in nodes for name in [*node.input, *node.output])
    wanted = [name for name in touched if name and name not in inputs | stored]
    values = _values(path, model, wanted)
    (folder / "nodes").mkdir()
    for index, node in enumerate(nodes):
        single = _one(model, node, values)
        (folder / "nodes" / f"{index}.onnx").write_bytes(single.SerializeToString())
        names = {
            "inputs": [each.name for each in single.graph.input],
            "outputs": [each.name for each in single.graph.output],
        }
        (folder / "nodes" / f"{index}.json").write_text(json.dumps(names), encoding="utf-8")
    np.savez(folder / "values.npz", **{name: values[name] for name in touched if name in values})
    return len(nodes)


def _values(path: Path, model, wanted: list[str]) -> dict[str, np.ndarray]:
    """The tensors `wanted` and the inputs of a run; what is wanted becomes an output."""
    import onnx

    from qcompiler import runtime
    from qcompiler.feeds import Signature
    from qcompiler.models import open_package

    known = {each.name for each in [*model.graph.output, *model.graph.input]}
    for name in wanted:
        if name not in known:
            model.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    options = ort.SessionOptions()
    options.log_severity_level = 3
    runtime.register(options)
    session = ort.InferenceSession(model.SerializeToString(), options)
    ids = np.random.default_rng(0).integers(1000, 20000, (1, 20))
    feeds = Signature.of(open_package(path)).feeds(ids)
    return dict(zip(wanted, session.run(wanted, feeds), strict=True)) | feeds


def _one(model, node, values: dict[str, np.ndarray]):
    """A model of one node, with its constants and its function."""
    import onnx
    from onnx import helper

    initializers = {each.name: each for each in model.graph.initializer}
    fed = [(name, values[name]) for name in node.input if name and name not in initializers]
    graph: onnx.GraphProto = helper.make_graph(
        [node],
        "one",
        [
            helper.make_tensor_value_info(
                name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape
            )
            for name, value in fed
        ],
        [helper.make_empty_tensor_value_info(name) for name in node.output if name],
        [initializers[name] for name in node.input if name in initializers],
    )
    return helper.make_model(
        graph,
        functions=[each for each in model.functions if each.name == node.op_type],
        opset_imports=model.opset_import,
        ir_version=model.ir_version,
    )


def run_nodes(folder: Path, values) -> float:
    """Largest difference of any output, relative to the largest value of that output."""
    worst = 0.0
    options = ort.SessionOptions()
    options.log_severity_level = 3
    for path in sorted(folder.glob("*.onnx")):
        names = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        session = ort.InferenceSession(path.read_bytes(), options)
        found = session.run(names["outputs"], {name: values[name] for name in names["inputs"]})
        for name, y in zip(names["outputs"], found, strict=True):
            scale = max(float(np.abs(y).max()), 1e-9)
            worst = max(worst, float(np.abs(y - values[name]).max()) / scale)
    return worst


if __name__ == "__main__":
    root = Path(sys.argv[1])
    with np.load(root / "values.npz") as stored:
        print(ort.__version__, run_nodes(root / "nodes", stored))
