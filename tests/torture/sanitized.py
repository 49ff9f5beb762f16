"""Builds of the op library with sanitizers, and the environment in which Python loads them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILDS = ROOT / "build" / "torture"
LIBRARY = "libqcompiler_ops.so"
TESTS = ROOT / "tests" / "runtime"

# By sanitizer: the value of QC_SANITIZE, the runtime to load before Python, and its options.
# Outputs and scratch memory begin as NaN (0xff), so that what nothing writes is seen.
_KINDS = {
    "asan": (
        "ON",
        "libasan.so",
        {
            "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1:detect_odr_violation=0"
            ":max_malloc_fill_size=1073741824:malloc_fill_byte=255",
            "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
        },
    ),
    "tsan": (
        "thread",
        "libtsan.so",
        {"TSAN_OPTIONS": f"suppressions={Path(__file__).parent / 'tsan.supp'}:exitcode=66"},
    ),
}


def build(kind: str, sources: Path = ROOT / "runtime") -> Path:
    """The library, built anew where sources have changed; minutes for the first time.

    Raises CalledProcessError where it does not build.
    """
    folder = BUILDS / kind
    sanitize = _KINDS[kind][0]
    flags = [f"-DQC_SANITIZE={sanitize}", "-DQC_CUDA=OFF", "-DQC_BUILD_TESTS=OFF"]
    for command in (
        ["cmake", "-S", str(sources), "-B", str(folder), *flags],
        ["cmake", "--build", str(folder), f"-j{os.cpu_count()}", "--target", "qcompiler_ops"],
    ):
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return folder / LIBRARY


def environment(kind: str, library: Path, **more: str) -> dict[str, str]:
    """For a Python that loads the library, behind the sanitizer's runtime and the C++ library.

    The sanitizer of races needs the library from the start: else the dynamic linker makes memory
    for its thread-local variables as they are used, and frees it out of the sanitizer's sight.
    """
    _, runtime, options = _KINDS[kind]
    first = [_file_of(name) for name in (runtime, "libstdc++.so")]
    preloaded = ":".join([*first, str(library)] if kind == "tsan" else first)
    paths = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
    return (
        os.environ
        | options
        | {"LD_PRELOAD": preloaded, "QCOMPILER_LIBRARY": str(library), "PYTHONPATH": paths}
        | more
    )


def _file_of(library: str) -> str:
    compiler = os.environ.get("CXX", "c++")
    asked = [compiler, f"-print-file-name={library}"]
    return subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip()
