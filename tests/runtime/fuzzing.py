"""Runs a fuzz test in a process of its own, which a crash ends without ending the tests."""

from __future__ import annotations

import subprocess
import sys

import onnxruntime as ort

from qcompiler import runtime

TIME_LIMIT = 120


def run_apart(script: str, seed: int, cases: int) -> str:
    """Run `script SEED CASES`, which prints each case before it tries it; its last line."""
    done = subprocess.run(
        [sys.executable, script, str(seed), str(cases)],
        capture_output=True,
        text=True,
        timeout=TIME_LIMIT,
        check=False,
    )
    last = "\n".join(done.stdout.splitlines()[-1:])
    assert done.returncode == 0, f"exit {done.returncode} at case {last}\n{done.stderr[-2000:]}"
    return last


def open_session(model: bytes) -> ort.InferenceSession:
    """A session with the library, of a model that may be refused."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 2
    runtime.register(options)
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
