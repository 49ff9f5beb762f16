"""Fixtures of the runtime tests."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnxruntime
import pytest
from cuda_library import CudaLibrary
from isas import ARCHITECTURE, names
from kernel_library import KernelLibrary

from qcompiler import runtime
from qcompiler.errors import RuntimeLibraryError
from qcompiler.session import CPU, CUDA


@pytest.fixture(scope="session")
def kernels() -> KernelLibrary:
    return KernelLibrary()


@pytest.fixture(params=names(ARCHITECTURE))
def isa(request, kernels) -> str:
    """Each ISA that this machine runs."""
    if kernels.choose(kernels.cpu_flags(), request.param) is None:
        pytest.skip(f"this machine has no {request.param} kernels")
    return request.param


@pytest.fixture(scope="session")
def session():
    """session(model, library=..., threads=...) -> onnxruntime.InferenceSession on the CPU.

    `level`: which optimizations of the graph ONNX Runtime makes; all of them unless stated.
    """

    def create(model, *, library=True, threads=2, level=None):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        if level is not None:
            options.graph_optimization_level = level
        options.log_severity_level = 4
        if library:
            runtime.register(options)
        return onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    return create


def cuda_library(stem: str) -> CudaLibrary:
    try:
        library = CudaLibrary(stem)
    except RuntimeLibraryError:
        pytest.skip(f"{stem} was not built")
    if not library.devices():
        pytest.skip("no CUDA device")
    return library


@pytest.fixture(scope="session")
def emulated() -> CudaLibrary:
    """The CUDA kernels on the emulated GPU."""
    return cuda_library("qcompiler_cuda_emulated")


@pytest.fixture(scope="session")
def cuda_device() -> CudaLibrary:
    """The CUDA kernels on a real GPU."""
    return cuda_library("qcompiler_cuda_test")


@pytest.fixture(params=["qcompiler_cuda_emulated", "qcompiler_cuda_test"], scope="session")
def cuda(request) -> CudaLibrary:
    """The CUDA kernels, on the emulated GPU and on a real one."""
    return cuda_library(request.param)


@pytest.fixture
def emulated_session(emulated):
    """session(model): the CUDA ops as ops for the CPU, on the emulated GPU."""

    def create(model):
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.register_custom_ops_library(emulated.path)
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=[CPU])

    return create


@pytest.fixture
def cuda_path() -> Path:
    path = runtime.cuda_library_path()
    if path is None:
        pytest.skip("the CUDA library was not built")
    return path


@pytest.fixture
def gpu_session(cuda_path, cuda_device):
    """session(model, **provider options) with the CUDA provider alone."""
    if CUDA not in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has no CUDA provider")
    onnxruntime.preload_dlls()  # CUDA's libraries may lie with PyTorch
    any_model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 21]> g (float x) => (float y) { y = Identity(x) }'
    )
    providers = onnxruntime.InferenceSession(
        any_model.SerializeToString(), providers=[CUDA, CPU]
    ).get_providers()
    if CUDA not in providers:
        pytest.skip("onnxruntime's CUDA provider does not start here")

    def create(model, **provider):
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        # A node that falls back to the CPU would pass unnoticed otherwise.
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        runtime.register(options, cuda=True)
        return onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=[(CUDA, provider)]
        )

    return create
