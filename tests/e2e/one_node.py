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

    from qcompiler import ops, runtime
    from qcompiler.feeds import Signature
    from qcompiler.models import open_package

    model = onnx.load(path)
    nodes = [node for node in model.graph.node if node.domain == ops.DOMAIN]
    initializers = {each.name: each for each in model.graph.initializer}
    functions = {function.name: function for function in model.functions}
    inputs = {each.name for each in model.graph.input}
    known = {each.name for each in model.graph.output} | inputs
    wanted = list(
        dict.fromkeys(
            t
            for n in nodes
            for t in [*n.input, *n.output]
            if t and t not in inputs and t not in initializers
        )
    )
    for name in wanted:
        if name not in known:
            model.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    options = ort.SessionOptions()
    options.log_severity_level = 3
    runtime.register(options)
    session = ort.InferenceSession(model.SerializeToString(), options)
    ids = np.random.default_rng(0).integers(1000, 20000, (1, 20))
    feeds = Signature.of(open_package(path)).feeds(ids)
    values = dict(zip(wanted, session.run(wanted, feeds), strict=True)) | feeds
    (folder / "nodes").mkdir()
    for index, node in enumerate(nodes):
        fed = [name for name in node.input if name not in initializers]
        outputs = [name for name in node.output if name]
        graph = onnx.helper.make_graph(
            [node],
            "one",
            [
                onnx.helper.make_tensor_value_info(
                    name,
                    onnx.helper.np_dtype_to_tensor_dtype(values[name].dtype),
                    values[name].shape,
                )
                for name in fed
            ],
            [onnx.helper.make_empty_tensor_value_info(name) for name in outputs],
            [initializers[name] for name in node.input if name in initializers],
        )
        single = onnx.helper.make_model(
            graph,
            functions=[functions[node.op_type]],
            opset_imports=model.opset_import,
            ir_version=model.ir_version,
        )
        (folder / "nodes" / f"{index}.onnx").write_bytes(single.SerializeToString())
        names = json.dumps({"inputs": fed, "outputs": outputs})
        (folder / "nodes" / f"{index}.json").write_text(names, encoding="utf-8")
    used = {t: values[t] for n in nodes for t in [*n.input, *n.output] if t in values}
    np.savez(folder / "values.npz", **used)
    return len(nodes)


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
