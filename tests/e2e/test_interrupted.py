"""Killed, out of disk, or refused: nothing half-written is left, and the message says why."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from qcompiler.models import open_package

QC = (sys.executable, "-m", "qcompiler")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Four linear layers of 1024 x 1024: big enough that writing takes a moment."""
    rng = np.random.default_rng(0)
    nodes, weights = [], []
    for index in range(4):
        values = rng.standard_normal((1024, 1024)).astype(np.float32) / 32
        weights.append(numpy_helper.from_array(values, f"w{index}"))
        nodes.append(helper.make_node("MatMul", [f"x{index}", f"w{index}"], [f"x{index + 1}"]))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x0", TensorProto.FLOAT, ["n", 1024])],
        [helper.make_tensor_value_info("x4", TensorProto.FLOAT, ["n", 1024])],
        weights,
    )
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    opsets = [helper.make_opsetid("", 21)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


def limited(size: int):
    """Files may grow to `size` bytes: what a full disk looks like to the program."""
    import resource

    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def made_constants(folder):
    """Whether a run has put a constant into its scratch folder."""
    return any(folder.glob(".out.onnx.*/.constants/*.bin"))


def written(folder):
    """Whether a run has begun to write its model."""
    return any(folder.glob(".out.onnx.*/result/*.data"))


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX resource limits")
@pytest.mark.parametrize("recipe", ["rtn", "w4a8-fast"])
def test_full_disk(model, tmp_path, recipe):
    out = tmp_path / "new" / "out.onnx"
    ran = subprocess.run(
        [*QC, "compile", str(model), "-o", str(out), "-r", recipe],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=limited(200_000),
    )
    assert ran.returncode == 1
    assert ran.stderr.startswith("error: ")
    assert len(ran.stderr.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
@pytest.mark.parametrize(("kill", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("until", [made_constants, written])
def test_polite_kill_leaves_nothing(model, tmp_path, kill, code, until):
    out = tmp_path / "out.onnx"
    for _ in range(5):
        running = start(model, out)
        wait(lambda: until(tmp_path), running)
        running.send_signal(kill)
        _, said = running.communicate(timeout=60)
        if running.returncode:
            break
        for path in tmp_path.iterdir():  # it was done before the signal came: once more
            path.unlink()
    assert running.returncode == code
    assert len(said.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
@pytest.mark.parametrize("until", [made_constants, written])
def test_after_a_hard_kill_the_next_run_cleans_up(model, tmp_path, until):
    out = tmp_path / "out.onnx"
    running = start(model, out)
    wait(lambda: until(tmp_path), running)
    running.kill()
    running.communicate()
    assert not out.exists()
    assert [p.name for p in tmp_path.iterdir() if not p.name.startswith(".")] == []
    subprocess.run([*QC, "compile", str(model), "-o", str(out), "-r", "rtn"], check=True)
    assert set(tmp_path.iterdir()) == {out, *open_package(out).data_files}
    onnx.checker.check_model(str(out))


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
def test_two_runs_for_one_output_leave_each_other_alone(model, tmp_path):
    out = tmp_path / "out.onnx"
    running = start(model, out)
    wait(lambda: written(tmp_path), running)
    subprocess.run([*QC, "compile", str(model), "-o", str(out), "-r", "rtn"], check=True)
    running.communicate(timeout=60)
    assert running.returncode == 0
    assert set(tmp_path.iterdir()) == {out, *open_package(out).data_files}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize(("attack", "rounds"), [("kills", 12), ("races", 6)])
def test_short_torture(attack, rounds):
    """The same for every command that writes, at random moments (tests/torture)."""
    script = Path(__file__).parents[1] / "torture" / f"{attack}.py"
    ran = subprocess.run(
        [sys.executable, str(script), "--rounds", str(rounds), "--seed", "0"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


def start(model, out):
    # The search of ranges and a check on many samples keep the run busy after writing.
    options = ["--set", "quantize-weights.search=mse", "--calib-samples", "4000"]
    return subprocess.Popen(
        [*QC, "compile", str(model), "-o", str(out), "-r", "rtn", *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        # A shell's background jobs ignore Ctrl-C, and so would this child of one.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )


def wait(happened, running):
    """Until a run has come to some point."""
    deadline = time.monotonic() + 60
    while not happened():
        assert running.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
