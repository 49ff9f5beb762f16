"""Mutated nodes of every op, on every ISA: refused, or computed as the reference and the function
body do. Never a crash. `tests/torture/nodes.py` runs more of them, under sanitizers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from fuzzing import CASE_SECONDS, Tally
from isas import ARCHITECTURE, names

from qcompiler import ops, runtime

CASES = 800
SEED = 2
BODIES = 2


@pytest.mark.parametrize("isa", names(ARCHITECTURE))
def test_mutated_nodes(kernels, isa):
    if kernels.choose(kernels.cpu_flags(), isa) is None:
        pytest.skip(f"this machine has no {isa} kernels")
    script = Path(__file__).with_name("fuzzing.py")
    done = subprocess.run(
        [sys.executable, str(script), *(str(n) for n in (SEED, 0, CASES, BODIES))],
        env=os.environ | {runtime.ISA_VARIABLE: isa},
        capture_output=True,
        text=True,
        timeout=40 * CASE_SECONDS,
        check=False,
    )
    lines = done.stdout.splitlines()
    findings = "\n".join(line for line in lines if line.startswith("FINDING"))
    assert done.returncode == 0, f"{findings}\nexit {done.returncode}, {lines[-1]}\n{done.stderr}"
    tally = Tally.read(lines[-1])
    assert set(tally.accepted) == set(tally.bodies) == set(ops.OP_TYPES)
    # Neither nearly all refused nor nearly all accepted.
    assert min(tally.accepted.total(), tally.refused.total()) > CASES / 4
