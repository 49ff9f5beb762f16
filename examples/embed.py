"""Run a compiled model inside an app: python examples/embed.py MODEL.onnx

An app needs onnxruntime and the op library (a file: ship it along, or leave it out and the model
runs all the same, slower). qcompiler itself appears here only to find that file.
"""

from __future__ import annotations

import sys

import numpy as np
import onnxruntime as ort

import qcompiler.runtime

options = ort.SessionOptions()
options.register_custom_ops_library(str(qcompiler.runtime.library_path()))
session = ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])

# Eight tokens, an empty key/value cache where the model has one, batch 1.
SIZES = {"batch": 1, "past": 0, "head": 64, "kv_cache_dim": 64}


def size(dim: int | str | None) -> int:
    """A fixed size as it is; for a named one, what its name calls for."""
    if isinstance(dim, int):
        return dim
    return next((n for word, n in SIZES.items() if word in (dim or "")), 8)


TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int64)": np.int64}
feeds = {i.name: np.ones([size(d) for d in i.shape], TYPES[i.type]) for i in session.get_inputs()}
outputs = session.run(None, feeds)
for info, value in zip(session.get_outputs()[:3], outputs, strict=False):
    print(info.name, value.shape, value.dtype)
