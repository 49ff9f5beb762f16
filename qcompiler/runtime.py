"""Find and load the op library: the kernels of the ``ai.qcompiler`` ops for ONNX Runtime."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from qcompiler.errors import RuntimeLibraryError
from qcompiler.foreign import runtime_errors

if TYPE_CHECKING:
    import onnxruntime

LIBRARY_VARIABLE = "QCOMPILER_LIBRARY"
"""Environment variable that names a library file to use instead of the installed one."""

CUDA_LIBRARY_VARIABLE = "QCOMPILER_CUDA_LIBRARY"
"""The same for the library with the kernels for NVIDIA GPUs."""

ISA_VARIABLE = "QCOMPILER_ISA"
"""Environment variable that forces the kernels of one ISA; the library reads it when it loads."""

CUDA_LIBRARY = "libqcompiler_ops_cuda.so"
"""Its name where models ask for it; it is built on Linux only."""

_SUFFIX = {"Darwin": ".dylib", "Windows": ".dll"}.get(platform.system(), ".so")
LIBRARY = f"libqcompiler_ops{_SUFFIX}"
"""The op library's name."""
_FOLDER = "lib"


def library_path() -> Path:
    """The op library's file.

    Raises RuntimeLibraryError where it was not built, or the override names no file.
    """
    return _override(LIBRARY_VARIABLE) or installed_library("qcompiler_ops")


def cuda_library_path() -> Path | None:
    """The file of the op library for NVIDIA GPUs; None where it was not built.

    Raises RuntimeLibraryError where the override names no file.
    """
    override = _override(CUDA_LIBRARY_VARIABLE)
    if override:
        return override
    path = _installed_path("qcompiler_ops_cuda")
    return path if path.is_file() else None


def installed_library(stem: str) -> Path:
    """A shared library that was installed with the package.

    Raises RuntimeLibraryError where it is missing.
    """
    path = _installed_path(stem)
    if not path.is_file():
        raise RuntimeLibraryError(
            f"{path.name} is not installed with qcompiler: it is compiled when the package is, so "
            f"reinstall it with a C++17 compiler at hand (pip install . from a checkout), or set "
            f"{LIBRARY_VARIABLE} to the file"
        )
    return path


def _installed_path(stem: str) -> Path:
    name = f"lib{stem}{_SUFFIX}"
    # An editable install keeps built files apart from the sources; importlib knows both places.
    return Path(str(resources.files("qcompiler").joinpath(_FOLDER, name)))


def _override(variable: str) -> Path | None:
    value = os.environ.get(variable)
    if not value:
        return None
    path = Path(value)
    if not path.is_file():
        raise RuntimeLibraryError(f"{variable}={value} names no file; unset it")
    return path.resolve()


def register(session_options: onnxruntime.SessionOptions, *, cuda: bool = False) -> None:
    """Make the ops' kernels available to sessions created with `session_options`.

    `cuda`: for sessions with the CUDA provider, the library that has kernels for it and for the
    CPU, where it was built. Only one of the two can be registered: ONNX Runtime takes a domain
    once.

    Raises RuntimeLibraryError where the library is missing or does not load.
    """
    path = (cuda_library_path() if cuda else None) or library_path()
    with runtime_errors(RuntimeLibraryError, f"{path} does not load", "install qcompiler again"):
        session_options.register_custom_ops_library(str(path))


@dataclass(frozen=True)
class RuntimeInfo:
    """What `info` tells. bytes: the file's size. isa: the kernels that sessions here get.

    cuda: the file of the library for NVIDIA GPUs, or "not built".
    """

    path: str
    bytes: int
    sha256: str
    isa: str
    cuda: str
    onnxruntime: str


def info() -> dict[str, str | int]:
    """The library's file, the kernels it uses on this CPU, and ONNX Runtime's version.

    Raises RuntimeLibraryError where the library is missing or does not load.
    """
    import onnxruntime  # noqa: PLC0415  (slow to import, and only needed here)

    path = library_path()
    register(onnxruntime.SessionOptions())
    return asdict(
        RuntimeInfo(
            path=str(path),
            bytes=path.stat().st_size,
            sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
            isa=_isa(path),
            cuda=str(cuda_library_path() or "not built"),
            onnxruntime=onnxruntime.__version__,
        )
    )


def _isa(path: Path) -> str:
    try:
        ask = ctypes.CDLL(str(path)).qcompiler_isa
    except (OSError, AttributeError) as error:
        raise RuntimeLibraryError(
            f"{path} is not the op library: {error}; unset {LIBRARY_VARIABLE}"
        ) from error
    ask.restype = ctypes.c_char_p
    name: bytes | None = ask()
    if name is None:
        raise RuntimeLibraryError(
            f"{ISA_VARIABLE}={os.environ.get(ISA_VARIABLE)} names no kernels that run on this CPU"
        )
    return name.decode("ascii", "replace")
