"""qcompiler: a quantizing compiler for ONNX."""

from __future__ import annotations

__version__ = "0.1.0"
