"""Models in stock ONNX Runtime, without the op library."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort

from qcompiler.ir import to_model


def open_session(model: onnx.ModelProto) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    # By default ONNX Runtime fuses a 4-bit DequantizeLinear into a MatMul with int8 activations.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    return ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def inner_values(
    graph, names: list[str], batches: list[dict[str, np.ndarray]]
) -> list[list[np.ndarray]]:
    """Tensors of a graph, by batch, each from one run of the whole graph."""
    model = to_model(graph)
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in dict.fromkeys(names))
    session = open_session(model)
    return [session.run(names, inputs) for inputs in batches]
