"""The same inputs give the same bytes, whatever the number of cores."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

QC = (sys.executable, "-m", "qcompiler")


def compiled(model: Path, output: Path, cores: set[int]) -> dict[str, bytes]:
    """Files of a model that a process compiled which may use `cores` alone."""
    command = [*QC, "compile", str(model), "-o", str(output), "--calib-samples", "8"]
    subprocess.run(
        [*command, "--no-verify"],
        check=True,
        capture_output=True,
        # BLAS and ONNX Runtime start as many threads as the process has cores.
        preexec_fn=partial(os.sched_setaffinity, 0, cores),
    )
    return {path.name: path.read_bytes() for path in output.iterdir()}


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="cores can't be chosen here")
def test_bytes_do_not_depend_on_the_number_of_cores(minilm, tmp_path):
    cores = os.sched_getaffinity(0)
    if len(cores) < 2:
        pytest.skip("this machine has one core")
    one = compiled(minilm, tmp_path / "one", {min(cores)})
    assert compiled(minilm, tmp_path / "all", cores) == one
