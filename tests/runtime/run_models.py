"""Runs every model of a folder; started by tests in another interpreter or environment.

usage: run_models.py FOLDER [LIBRARY]: reads <case>.onnx and <case>.npz (feeds), writes
<case>.out.npz. Needs numpy and onnxruntime only.
"""

import sys
from pathlib import Path

import numpy as np
import onnxruntime


def main() -> None:
    folder, *library = sys.argv[1:]
    for path in sorted(Path(folder).glob("*.onnx")):
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        if library:
            options.register_custom_ops_library(library[0])
        session = onnxruntime.InferenceSession(
            path.read_bytes(), options, providers=["CPUExecutionProvider"]
        )
        with np.load(path.with_suffix(".npz")) as feeds:
            outputs = session.run(None, dict(feeds))
        np.savez(path.with_suffix(".out.npz"), *outputs)
    print(onnxruntime.__version__)


main()
