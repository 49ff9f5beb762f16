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

if TYPE_CHECKING:
    import onnxruntime

LIBRARY_VARIABLE = "QCOMPILER_LIBRARY"
"""Environment variable that names a library file to use instead of the installed one."""

ISA_VARIABLE = "QCOMPILER_ISA"
"""Environment variable that forces the kernels of one ISA; the library reads it when it loads."""

_SUFFIX = {"Darwin": ".dylib", "Windows": ".dll"}
_FOLDER = "lib"


def library_path() -> Path:
    """The op library's file.

    Raises RuntimeLibraryError where it was not built, or the override names no file.
    """
    override = os.environ.get(LIBRARY_VARIABLE)
    if override:
        path = Path(override)
        if not path.is_file():
            raise RuntimeLibraryError(f"{LIBRARY_VARIABLE}={override} names no file; unset it")
        return path.resolve()
    return installed_library("qcompiler_ops")


def installed_library(stem: str) -> Path:
    """A shared library that was installed with the package.

    Raises RuntimeLibraryError where it is missing.
    """
    name = f"lib{stem}{_SUFFIX.get(platform.system(), '.so')}"
    # An editable install keeps built files apart from the sources; importlib knows both places.
    path = Path(str(resources.files("qcompiler").joinpath(_FOLDER, name)))
    if not path.is_file():
        raise RuntimeLibraryError(
            f"{name} is not installed with qcompiler: it is compiled when the package is, so "
            f"reinstall it with a C++17 compiler at hand (pip install . from a checkout), or set "
            f"{LIBRARY_VARIABLE} to the file"
        )
    return path


def register(session_options: onnxruntime.SessionOptions) -> None:
    """Make the ops' kernels available to sessions created with `session_options`.

    Raises RuntimeLibraryError where the library is missing or does not load.
    """
    path = library_path()
    try:
        session_options.register_custom_ops_library(str(path))
    except Exception as error:  # onnxruntime's exceptions have no common public root
        raise RuntimeLibraryError(f"{path} does not load: {error}") from error


@dataclass(frozen=True)
class RuntimeInfo:
    """What `info` tells. bytes: the file's size. isa: the kernels that sessions here get."""

    path: str
    bytes: int
    sha256: str
    isa: str
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
            onnxruntime=onnxruntime.__version__,
        )
    )


def _isa(path: Path) -> str:
    library = ctypes.CDLL(str(path))
    library.qcompiler_isa.restype = ctypes.c_char_p
    name: bytes | None = library.qcompiler_isa()
    if name is None:
        raise RuntimeLibraryError(
            f"{ISA_VARIABLE}={os.environ.get(ISA_VARIABLE)} names no kernels that run on this CPU"
        )
    return name.decode()
