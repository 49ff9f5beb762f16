"""The ops in other environments: the oldest ONNX Runtime promised, and each ISA forced."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from isas import ARCHITECTURE, names
from op_checks import BOTH
from op_models import BITS, assert_close, gather_model, make_layer, matmul_model

from qcompiler import runtime
from qcompiler.numerics import reference

SCRIPT = Path(__file__).parent / "run_models.py"
OLDEST = "QCOMPILER_OLDEST_ORT_PYTHON"
OLDEST_VERSION = "1.20."


@pytest.fixture(scope="module")
def cases():
    """Case name -> model, feeds, check of the outputs."""
    rng = np.random.default_rng(9)
    cases = {}
    for bits in BITS:
        for activation in ("row", "group", "static"):
            for dtype in ("float32", "float16", "bfloat16"):
                layer = make_layer(100, 48, 32, bits=bits, symmetric=activation == "row")
                model = matmul_model(layer, activation, dtype=dtype, splits=(20, 0, 28))
                x = rng.normal(size=(2, 4, 100)).astype(np.float32)
                x = (x.view(np.uint32) & 0xFFFF0000).view(np.float32)
                x[0, 0] = 0
                x[1, 1, 7] = np.inf
                x[1, 2, 8] = np.nan
                fed = x.astype(np.float16) if dtype == "float16" else x

                def check(outputs, layer=layer, fed=fed, activation=activation, dtype=dtype):
                    y = np.concatenate([o.astype(np.float32) for o in outputs], axis=-1)
                    expected = layer.expected(fed, activation)
                    assert_close(y, expected, layer.tolerance(fed, activation), dtype)

                cases[f"w{bits}_{activation}_{dtype}"] = (model, {"X": fed}, check)
    for bits in BITS:
        layer = make_layer(100, 35, 32, bits=bits, symmetric=False)
        ids = rng.integers(-35, 35, (2, 5))

        def check_gather(outputs, layer=layer, ids=ids):
            np.testing.assert_array_equal(outputs[0], reference.gather(ids, layer.w))

        cases[f"gather_w{bits}"] = (gather_model(layer), {"ids": ids}, check_gather)
    return cases


def run_elsewhere(cases, folder, python, library, environment=None) -> str:
    for name, (model, feeds, _) in cases.items():
        (folder / f"{name}.onnx").write_bytes(model.SerializeToString())
        np.savez(folder / f"{name}.npz", **feeds)
    command = [python, str(SCRIPT), str(folder)]
    if library:
        command.append(str(runtime.library_path()))
    done = subprocess.run(
        command,
        env=os.environ | (environment or {}),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for name, (_, _, check) in cases.items():
        with np.load(folder / f"{name}.out.npz") as outputs:
            check([outputs[key] for key in outputs.files])
    return done.stdout.strip()


@BOTH
def test_oldest_onnxruntime(cases, tmp_path, library):
    python = os.environ.get(OLDEST)
    if not python:
        pytest.skip(f"{OLDEST} names no interpreter with ONNX Runtime {OLDEST_VERSION}x")
    assert run_elsewhere(cases, tmp_path, python, library).startswith(OLDEST_VERSION)


@pytest.mark.parametrize("isa", names(ARCHITECTURE))
def test_forced_isa(cases, kernels, tmp_path, isa):
    if kernels.choose(kernels.cpu_flags(), isa) is None:
        pytest.skip(f"this machine has no {isa} kernels")
    run_elsewhere(cases, tmp_path, sys.executable, True, {runtime.ISA_VARIABLE: isa})


def test_an_unknown_isa_is_refused(cases, tmp_path):
    some = dict([next(iter(cases.items()))])
    with pytest.raises(AssertionError, match=r"QCOMPILER_ISA=z80 names no kernels .* reference"):
        run_elsewhere(some, tmp_path, sys.executable, True, {runtime.ISA_VARIABLE: "z80"})
