"""One call in a process of its own, under limits: what it gave, or how it died."""

from __future__ import annotations

import faulthandler
import json
import os
import resource
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_WALL_SECONDS = 120


@dataclass(frozen=True)
class Ended:
    """How a call ended."""

    result: dict[str, Any] | None
    """What it gave; None where its process died."""
    signal: int
    """The signal that it died of, 0 for none."""
    cpu_seconds: float
    trace: str
    """Where Python was when it died."""


def call(
    function: Callable[[], dict[str, Any]], scratch: Path, *, cpu_seconds: int, extra_bytes: int
) -> Ended:
    """Run `function` in a fork that has everything loaded; `scratch` is an empty folder."""
    told, trace = scratch / "told.json", scratch / "trace.txt"
    child = os.fork()
    if child == 0:
        _run(function, told, trace, cpu_seconds, extra_bytes)
    _, status, usage = os.wait4(child, 0)
    died = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    return Ended(
        result=json.loads(told.read_text()) if told.exists() and not died else None,
        signal=died,
        cpu_seconds=usage.ru_utime + usage.ru_stime,
        trace=trace.read_text() if trace.exists() else "",
    )


def _run(
    function: Callable[[], dict[str, Any]],
    told: Path,
    trace: Path,
    cpu_seconds: int,
    extra_bytes: int,
) -> None:
    """In the fork; never returns."""
    code = 1
    try:
        # Kept open, and over a number that nothing else has: it is written to at the very end.
        file = os.open(trace, os.O_RDWR | os.O_CREAT)
        faulthandler.enable(file)
        for limit in (signal.SIGXCPU, signal.SIGALRM):
            faulthandler.register(limit, file, chain=True)
        nothing = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(nothing, descriptor)
        signal.alarm(_WALL_SECONDS)  # for what waits and takes no time
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds + 5))
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + extra_bytes
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        told.write_text(json.dumps(function()))
        code = 0
    finally:
        os._exit(code)
