"""Versions of ONNX Runtime: which one is here, and which of two is the later."""

from __future__ import annotations


def release(version: str) -> tuple[int, int]:
    """Major and minor number."""
    major, minor = version.split(".")[:2]
    return int(major), int(minor)


def onnxruntime_here() -> str:
    """The version of the ONNX Runtime that is installed."""
    import onnxruntime  # noqa: PLC0415  (slow, and few ask)

    return str(onnxruntime.__version__)


def installed(least: str) -> bool:
    """Whether the ONNX Runtime that is installed is this version or a later one."""
    return release(onnxruntime_here()) >= release(least)
