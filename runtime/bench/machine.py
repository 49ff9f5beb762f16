"""What a machine is called: figures mean nothing without it."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict, dataclass
from pathlib import Path

import onnxruntime

from qcompiler import runtime


@dataclass(frozen=True)
class Machine:
    """Where figures were taken. `cores` are those this process may use; `isa` our kernels'."""

    cpu: str
    cores: int
    os: str
    onnxruntime: str
    isa: str

    @classmethod
    def here(cls) -> Machine:
        """This machine."""
        return cls(
            cpu=_cpu(),
            cores=cores(),
            os=f"{_distribution()}, {platform.system()} {platform.release().split('-')[0]}",
            onnxruntime=onnxruntime.__version__,
            isa=str(runtime.info()["isa"]),
        )

    def to_dict(self) -> dict[str, str | int]:
        """For JSON."""
        return asdict(self)


def cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu() -> str:
    """The model's name, with family and model number where the name alone says little."""
    facts: dict[str, str] = {}
    path = Path("/proc/cpuinfo")
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            facts.setdefault(key.strip(), value.strip())
    name = facts.get("model name") or platform.processor() or platform.machine()
    if "cpu family" in facts:
        name += f" (family {facts['cpu family']}, model {facts.get('model', '?')})"
    return name


def _distribution() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return platform.system()
