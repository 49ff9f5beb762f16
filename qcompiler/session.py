"""Open an ONNX Runtime session, with the op library where the model needs it."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx
import onnxruntime as ort

from qcompiler import runtime
from qcompiler.errors import ModelError, RuntimeLibraryError
from qcompiler.foreign import runtime_errors
from qcompiler.models import find_package
from qcompiler.protos import all_nodes, read_proto

OP_DOMAIN = "ai.qcompiler"
CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
_MOST_THREADS = 1024
PROVIDERS = {"cpu": (CPU,), "cuda": (CUDA, CPU)}
"""Execution providers of a session, by the name that commands give them."""

EXTERNAL_FOLDER = "session.model_external_initializers_file_folder_path"
"""Session config entry: the folder of the external data of a model that is not read from a file."""

_MANY_NODES = 1000
"""From here on, ONNX Runtime's plan of its memory may take longer than all else."""

_VERY_MANY_NODES = 10_000
"""From here on, its rewriting of a graph may."""

_log = logging.getLogger(__name__)


def providers_of(name: str) -> tuple[str, ...]:
    """The execution providers of that name, one of PROVIDERS; ModelError for any other."""
    if name not in PROVIDERS:
        raise ModelError(f"no provider '{name}'; there are {', '.join(PROVIDERS)}")
    return PROVIDERS[name]


def create_session(
    path: str | Path,
    *,
    threads: int | None = None,
    library: bool | None = None,
    options: Mapping[str, str] | None = None,
    providers: Sequence[str] = (CPU,),
    model: onnx.ModelProto | None = None,
    held: onnx.ModelProto | None = None,
    brief: bool = False,
) -> ort.InferenceSession:
    """Load an ONNX file or model folder.

    `threads`: intra-op threads, None for ORT's choice. `library`: None registers the op library
    when the model uses it and it loads (without it the model runs by its function bodies: right,
    but slower); True insists; False never. With the CUDA provider it is the library that has
    kernels for it, where that was built. `options` are session config entries. `model` is loaded
    in place of what the ONNX file holds, with the external data beside the file. `held` is what the
    file holds, where the caller has read it. `brief`: the session runs a few times, and had better
    load soon (`load_soon`).

    Raises ModelError when ORT refuses the model, RuntimeLibraryError when `library=True` and the
    library does not load.
    """
    onnx_path = find_package(path).onnx_path
    session_options = ort.SessionOptions()
    session_options.log_severity_level = 4  # what goes wrong is raised
    if threads is not None:
        if threads < 1:
            raise ModelError(f"threads must be at least 1, not {threads}")
        if threads > _MOST_THREADS:  # each is started at once
            raise ModelError(f"threads must be at most {_MOST_THREADS}, not {threads}")
        session_options.intra_op_num_threads = threads
    for key, value in (options or {}).items():
        session_options.add_session_config_entry(key, value)
    loaded = model or held or read_proto(onnx_path)
    if brief:
        load_soon(session_options, loaded)
    _register(session_options, onnx_path, loaded, library, cuda=CUDA in providers)
    missing = [name for name in providers if name not in ort.get_available_providers()]
    if missing:
        have = ", ".join(ort.get_available_providers())
        raise ModelError(f"this onnxruntime has no {missing[0]}; it has {have}")
    with runtime_errors(ModelError, f"{onnx_path}: ONNX Runtime refuses it"):
        source: str | bytes = os.fspath(onnx_path)
        if model is not None:
            source = model.SerializeToString()
            folder = os.fspath(onnx_path.resolve().parent)
            session_options.add_session_config_entry(EXTERNAL_FOLDER, folder)
        session = ort.InferenceSession(source, session_options, list(providers))
    if providers and session.get_providers()[0] != providers[0]:
        raise ModelError(f"{providers[0]} does not start on this machine (driver or libraries)")
    return session


def load_soon(options: ort.SessionOptions, model: onnx.ModelProto) -> None:
    """Have ONNX Runtime leave out what takes the square of the number of nodes, if these are many.

    It plans which tensors share memory, and compares each with all that are free where sizes are
    not known: 5 s for 4000 nodes. Its allocator finds free memory at once; no result depends on it.
    Then it rewrites the graph to run faster than the few times that a session of ours runs it.
    """
    count = len(all_nodes(model))
    if count >= _MANY_NODES:
        options.enable_mem_reuse = False
    if count >= _VERY_MANY_NODES:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL


def _register(
    options: ort.SessionOptions,
    onnx_path: Path,
    model: onnx.ModelProto,
    library: bool | None,
    *,
    cuda: bool,
) -> None:
    ours = any(node.domain == OP_DOMAIN for node in all_nodes(model))
    if library is False or (library is None and not ours):
        return
    try:
        runtime.register(options, cuda=cuda)
    except RuntimeLibraryError as error:
        if library:
            raise
        _log.warning("%s runs without the op library, slower: %s", onnx_path, error)
