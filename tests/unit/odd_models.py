"""Small models in ONNX's text form, for tests of odd and broken input."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

RANDOM = np.random.default_rng(0)
K, N = 64, 96


def normal(*shape: int, std: float = 0.1) -> np.ndarray:
    return RANDOM.normal(0, std, shape).astype(np.float32)


W, SQUARE = normal(K, N), normal(N, N)


def model_of(text: str, **weights) -> onnx.ModelProto:
    """A model in ONNX's text form with its weights, arrays or tensors."""
    made = onnx.parser.parse_model('<ir_version: 10, opset_import: ["" : 21]>\n' + text)
    for name, values in weights.items():
        tensor = values
        if not isinstance(values, TensorProto):
            tensor = numpy_helper.from_array(np.asarray(values), name)
        tensor.name = name
        made.graph.initializer.append(tensor)
    return made


def linear(**weights) -> onnx.ModelProto:
    return model_of("g (float[n, 64] x) => (float[n, 96] y) { y = MatMul(x, w) }", **weights)


def open_rank() -> onnx.ModelProto:
    made = linear(w=W)
    made.graph.output[0].type.tensor_type.ClearField("shape")
    return made


def no_rank_input() -> onnx.ModelProto:
    made = open_rank()
    made.graph.input[0].type.tensor_type.ClearField("shape")
    return made


def edited(path: Path, **fields: str) -> Path:
    """A file whose first weight is said to lie elsewhere in its data."""
    model = onnx.load(path, load_external_data=False)
    entries = {entry.key: entry for entry in model.graph.initializer[0].external_data}
    for key, value in fields.items():
        entries[key].value = value
    path.write_bytes(model.SerializeToString())
    return path
