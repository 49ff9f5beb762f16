"""qcompiler: a quantizing compiler for ONNX.

import qcompiler

result = qcompiler.compile("model.onnx", recipe="w4a8")
options.register_custom_ops_library(str(qcompiler.library_path()))
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = ["CompileResult", "QcError", "__version__", "compile", "library_path"]

if TYPE_CHECKING:
    from qcompiler.compiler import CompileResult, compile
    from qcompiler.errors import QcError
    from qcompiler.runtime import library_path

_PUBLIC = {
    "CompileResult": "qcompiler.compiler",
    "QcError": "qcompiler.errors",
    "compile": "qcompiler.compiler",
    "library_path": "qcompiler.runtime",
}


def __getattr__(name: str) -> Any:
    # Imported on first use: an app that only wants library_path() need not load the compiler.
    if name not in _PUBLIC:
        raise AttributeError(f"module 'qcompiler' has no attribute '{name}'")
    from importlib import import_module  # noqa: PLC0415

    return getattr(import_module(_PUBLIC[name]), name)
