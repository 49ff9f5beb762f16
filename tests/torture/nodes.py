"""Mutated nodes of every op, run by the library under address and undefined-behaviour sanitizers.

    python tests/torture/nodes.py --rounds 50000 --seed 0 [--minutes M] [--isa avx2 ...]

Each round is one node, and every node is run by one ISA of those this machine has, in turn. A
finding is a report of a sanitizer, a crash, a hang, a result that is not the reference's within the
stated tolerance, one that depends on what memory held, or a function body that disagrees. Findings
are printed as they come, with the command that repeats them; the last line sums up.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from sanitized import TESTS, build, environment

sys.path.insert(0, str(TESTS))

from fuzzing import Tally
from isas import ARCHITECTURE, names
from kernel_library import KernelLibrary

from qcompiler import ops
from qcompiler.runtime import ISA_VARIABLE

SLICE = 500  # nodes that one process runs


@dataclass
class Sum:
    """What the slices of an ISA gave."""

    tally: Tally = field(default_factory=Tally)
    nodes: int = 0
    seconds: float = 0.0  # of CPU time
    findings: list[str] = field(default_factory=list)

    def add(self, other: Sum) -> None:
        self.tally.add(other.tally)
        self.nodes += other.nodes
        self.seconds += other.seconds
        self.findings += other.findings


@dataclass(frozen=True)
class Worker:
    """Runs slices of cases, each in a process of its own."""

    library: Path
    isa: str
    seed: int
    bodies: int

    def run(self, first: int, count: int, result: Sum) -> None:
        """Cases [first, first + count). A crash is a finding, and the case behind it is next."""
        end = first + count
        while first < end:
            with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
                before = time.monotonic()
                process = subprocess.Popen(
                    [sys.executable, str(TESTS / "fuzzing.py"), *self._cases(first, end - first)],
                    env=environment("asan", self.library, **{ISA_VARIABLE: self.isa}),
                    stdout=out,
                    stderr=err,
                )
                _, status, usage = os.wait4(process.pid, 0)
                process.returncode = os.waitstatus_to_exitcode(status)
                result.seconds += usage.ru_utime + usage.ru_stime
                out.seek(0)
                err.seek(0)
                lines = out.read().splitlines()
                first = self._read(lines, err.read(), process.returncode, first, end, result)
            if time.monotonic() - before < 0.2 and not lines:
                result.findings.append("the process does not start")
                return

    def _cases(self, first: int, count: int) -> list[str]:
        return [str(n) for n in (self.seed, first, count, self.bodies)]

    def _read(
        self, lines: list[str], errors: str, code: int, first: int, end: int, result: Sum
    ) -> int:
        """Adds what a process printed; the case to go on with."""
        tried = [line for line in lines if line.partition(":")[0].isdigit()]
        for line in (line for line in lines if line.startswith("FINDING ")):
            index = int(line.split()[1].rstrip(":"))
            case = next(each for each in tried if each.startswith(f"{index}:"))
            result.findings.append(self._told(index, f"{line}\n  {case}"))
        if code in (0, 1) and lines and lines[-1].startswith("{"):
            result.tally.add(Tally.read(lines[-1]))
            result.nodes += end - first
            return end
        last = int(tried[-1].partition(":")[0]) if tried else first
        result.nodes += last + 1 - first
        how = "hangs" if code == -27 else f"ends with {code}"
        report = "\n  ".join(errors.splitlines()[:25])
        result.findings.append(self._told(last, f"{how}: {tried[-1] if tried else ''}\n  {report}"))
        return last + 1

    def _told(self, index: int, what: str) -> str:
        return (
            f"[{self.isa}] {what}\n  repeat: python tests/torture/nodes.py --isa {self.isa} "
            f"--seed {self.seed} --first {index} --rounds 1 --bodies 1"
        )


def runnable() -> list[str]:
    """The ISAs that this machine has, best first."""
    kernels = KernelLibrary()
    return [n for n in names(ARCHITECTURE) if kernels.choose(kernels.cpu_flags(), n) is not None]


def slices(options: argparse.Namespace) -> Iterator[tuple[str, int, int]]:
    """ISA, first case and count, the ISAs in turn."""
    for number, first in enumerate(range(0, options.rounds, SLICE)):
        isa = options.isa[number % len(options.isa)]
        yield isa, options.first + first, min(SLICE, options.rounds - first)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=50_000, help="nodes in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first node")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin nothing after")
    parser.add_argument("--isa", nargs="+", default=runnable(), choices=names(ARCHITECTURE))
    parser.add_argument("--bodies", type=int, default=3, help="every so many nodes, its body too")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--library", type=Path, help="a build to use, instead of one made here")
    options = parser.parse_args()
    library = options.library.resolve() if options.library else build("asan")
    sums = {isa: Sum() for isa in options.isa}
    end = time.monotonic() + 60 * options.minutes

    def work(part: tuple[str, int, int]) -> tuple[str, Sum]:
        isa, first, count = part
        result = Sum()
        if time.monotonic() < end:
            Worker(library, isa, options.seed, options.bodies).run(first, count, result)
        return isa, result

    with ThreadPoolExecutor(options.workers) as pool:
        for isa, result in pool.map(work, slices(options)):
            print("\n".join(result.findings), end="\n" if result.findings else "", flush=True)
            sums[isa].add(result)
    return report(sums)


def report(sums: dict[str, Sum]) -> int:
    """Prints the figures; 1 where there are findings or an op never ran."""
    whole = Tally()
    for isa, each in sums.items():
        whole.add(each.tally)
        rate = each.nodes / each.seconds if each.seconds else 0.0
        print(f"{isa}: {each.nodes} nodes, {rate:.0f} per second of CPU time")
    for op in ops.OP_TYPES:
        print(
            f"{op}: {whole.accepted[op]} accepted, {whole.refused[op]} refused, "
            f"{whole.bodies[op]} runs of its body, which refused {whole.bodies_refused[op]} more"
        )
    findings = sum(len(each.findings) for each in sums.values())
    nodes = sum(each.nodes for each in sums.values())
    print(
        f"nodes: {nodes} nodes, {whole.runs} runs, {whole.accepted.total()} accepted, "
        f"{whole.bodies.total()} beside their bodies, {findings} findings"
    )
    return int(findings > 0)


if __name__ == "__main__":
    sys.exit(main())
