"""The ISAs that have kernels, as the list that the library is built from names them."""

from __future__ import annotations

import platform
import re
from dataclasses import dataclass
from pathlib import Path

RUNTIME = Path(__file__).parents[2] / "runtime"
LIST = RUNTIME / "kernels" / "dispatch" / "isas.inc"
MACHINES = {"x86_64": "x86", "AMD64": "x86", "aarch64": "arm64", "arm64": "arm64"}
ARCHITECTURE = MACHINES.get(platform.machine(), "other")


@dataclass(frozen=True)
class Isa:
    """A row: what it is called, where it runs, and the CPU flags it needs."""

    name: str
    symbol: str
    architecture: str  # "any": wherever there is C++
    flags: frozenset[str]
    only_forced: bool


def _rows(macro: str) -> list[list[str]]:
    lines = re.findall(rf"^{macro}\((.*)\)$", LIST.read_text("utf-8"), re.M)
    return [
        [field.strip('"') for field in re.split(r', (?=[^"]*(?:"[^"]*"[^"]*)*$)', line)]
        for line in lines
    ]


def _flags(expression: str) -> frozenset[str]:
    """`kAvx2 | kFma` -> avx2, fma."""
    return frozenset(name[1:].lower() for name in expression.split(" | ") if name != "0")


FLAGS = {
    flag[1:].lower(): 1 << int(number)
    for macro in ("QC_X86_FLAG", "QC_ARM_FLAG")
    for number, flag, *_ in _rows(macro)
}
_SIMDS = {simd: (where, _flags(needs)) for where, simd, needs, *_ in _rows("QC_SIMD")}
ISAS = tuple(
    Isa(name, symbol, _SIMDS[base][0], _SIMDS[base][1] | _flags(more), chosen == "kForced")
    for name, symbol, base, more, *_, chosen in _rows("QC_ISA")
)


def names(architecture: str) -> list[str]:
    """Those that a library for an architecture has, best first."""
    return [isa.name for isa in ISAS if isa.architecture in (architecture, "any")]
