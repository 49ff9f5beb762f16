"""ONNX Runtime's MatMulNBits on CUDA, for runtime/bench/cuda.py; needs onnx and onnxruntime-gpu."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime as ort
import torch
from cuda_timing import event_microseconds
from onnx import TensorProto, helper, numpy_helper

CUDA = "CUDAExecutionProvider"
BITS = (4, 8)
"""Of weights that it has CUDA kernels for."""

if CUDA not in ort.get_available_providers():
    raise ImportError("this onnxruntime has no CUDA provider")


def model(K: int, N: int, bits: int, group_size: int, nodes: int) -> bytes:
    """`nodes` products of one fp16 X by weights of their own."""
    rng = np.random.default_rng(0)
    blocks = -(-K // group_size)
    made, values, outputs = [], [], []
    for i in range(nodes):
        codes = rng.integers(0, 256, (N, blocks, group_size * bits // 8), dtype=np.uint8)
        scales = (rng.uniform(0.5, 1.5, (N * blocks)) / 256).astype(np.float16)
        values += [numpy_helper.from_array(codes, f"W{i}")]
        values += [numpy_helper.from_array(scales, f"scales{i}")]
        made.append(
            helper.make_node(
                "MatMulNBits",
                ["X", f"W{i}", f"scales{i}"],
                [f"Y{i}"],
                domain="com.microsoft",
                K=K,
                N=N,
                bits=bits,
                block_size=group_size,
            )
        )
        outputs.append(helper.make_tensor_value_info(f"Y{i}", TensorProto.FLOAT16, ["rows", N]))
    graph = helper.make_graph(
        made,
        "nbits",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT16, ["rows", K])],
        outputs,
        values,
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    made_model: onnx.ModelProto = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return made_model.SerializeToString()


def contender(
    K: int, N: int, bits: int, group_size: int, copies: int
) -> Callable[[torch.Tensor], float]:
    """Microseconds of one product, as a function of X: a run of the model is a CUDA graph."""
    nodes = max(2, min(8, copies))
    serialized = model(K, N, bits, group_size, nodes)

    def measure(X: torch.Tensor) -> float:
        # A session for each shape, on torch's stream, so that torch's events see the run.
        options = ort.SessionOptions()
        options.log_severity_level = 3
        stream = torch.cuda.Stream()
        provider = {"user_compute_stream": str(stream.cuda_stream), "enable_cuda_graph": "1"}
        session = ort.InferenceSession(serialized, options, providers=[(CUDA, provider)])
        binding = session.io_binding()
        half = np.float16
        binding.bind_input("X", "cuda", 0, half, tuple(X.shape), X.data_ptr())
        keep = [torch.empty((len(X), N), dtype=torch.float16, device="cuda") for _ in range(nodes)]
        for i, Y in enumerate(keep):
            binding.bind_output(f"Y{i}", "cuda", 0, half, tuple(Y.shape), Y.data_ptr())
        with torch.cuda.stream(stream):
            for _ in range(3):  # these warm up and capture
                session.run_with_iobinding(binding)
            stream.synchronize()
            return event_microseconds(lambda: session.run_with_iobinding(binding)) / nodes

    return measure
