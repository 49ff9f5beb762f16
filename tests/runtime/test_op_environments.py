"""The ops in other environments: the oldest ONNX Runtime promised, and each ISA forced."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from isas import ARCHITECTURE, names
from linear_models import X_SCALE, assert_same_bits, embedding_model, linear_model, wanted
from op_checks import BOTH
from plane_cases import FORMS, make_planes
from single_node import FLOAT_TYPES
from test_op_attention import attention_model, expected, feeds

from qcompiler import runtime
from qcompiler.numerics import reference

SCRIPT = Path(__file__).parent / "run_models.py"
OLDEST = "QCOMPILER_OLDEST_ORT_PYTHON"
OLDEST_VERSION = "1.20."


@pytest.fixture(scope="module")
def cases():
    """Case name -> model, feeds, the wanted outputs side by side."""
    rng = np.random.default_rng(9)
    x = rng.normal(size=(2, 4, 100)).astype(np.float32)
    x = (x.view(np.uint32) & 0xFFFF0000).view(np.float32)  # bfloat16 leaves it as it is
    x[0, 0], x[1, 1, 7], x[1, 2, 8] = 0, np.inf, np.nan
    ids = rng.integers(-35, 35, (2, 5))
    cases = {}
    for form, (bits, grid) in FORMS.items():
        w = make_planes(100, 48, 32, bits=bits, grid=grid)
        bias = rng.normal(size=48).astype(np.float32)
        for x_scale in (None, X_SCALE):
            for dtype in FLOAT_TYPES:
                model = linear_model(w, bias, x_scale=x_scale, dtype=dtype, splits=(20, 0, 28))
                fed = x.astype(np.float16) if dtype == "float16" else x
                name = f"{form}_{x_scale}_{dtype}"
                cases[name] = (model, {"X": fed}, wanted(fed, w, bias, x_scale, dtype=dtype))
        table = make_planes(100, 35, 16, bits=bits, grid=grid)
        rows = reference.embedding(ids, table)
        cases[f"table_{form}"] = (embedding_model(table), {"ids": ids}, rows)
    return cases


def near(found, expected) -> None:
    np.testing.assert_allclose(found, expected, atol=5e-6)


def run_elsewhere(
    cases, folder, python, library, environment=None, compare=assert_same_bits
) -> str:
    for name, (model, fed, _) in cases.items():
        (folder / f"{name}.onnx").write_bytes(model.SerializeToString())
        np.savez(folder / f"{name}.npz", **fed)
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
    for name, (_, _, results) in cases.items():
        with np.load(folder / f"{name}.out.npz") as outputs:
            found = np.concatenate([outputs[key] for key in outputs.files], axis=-1)
        compare(found, results)
    return done.stdout.strip()


@BOTH
def test_oldest_onnxruntime(cases, tmp_path, library):
    python = os.environ.get(OLDEST)
    if not python:
        pytest.skip(f"{OLDEST} names no interpreter with ONNX Runtime {OLDEST_VERSION}x")
    assert run_elsewhere(cases, tmp_path, python, library).startswith(OLDEST_VERSION)


@BOTH
def test_attention_on_the_oldest_onnxruntime(tmp_path, library):
    """Its own operator sees one token more than a window, and knows no sinks."""
    python = os.environ.get(OLDEST)
    if not python:
        pytest.skip(f"{OLDEST} names no interpreter with ONNX Runtime {OLDEST_VERSION}x")
    cases = {}
    for window, softcap in ((-1, 0.0), (-1, 5.0), (20, 0.0), (20, 5.0)):
        if window > 0 and not library:
            continue
        model = attention_model(4, 2, 32, window=window, softcap=softcap)
        del model.graph.output[1:]
        fed = feeds(4, 2, 32, rows=5, room=60)
        options = {"window": None if window < 0 else window, "softcap": softcap}
        cases[f"{window}_{softcap}"] = (model, fed, expected(fed, 4, 32, **options)[0])
    ran = run_elsewhere(cases, tmp_path, python, library, compare=near)
    assert ran.startswith(OLDEST_VERSION)


@pytest.mark.parametrize("isa", names(ARCHITECTURE))
def test_forced_isa(cases, kernels, tmp_path, isa):
    if kernels.choose(kernels.cpu_flags(), isa) is None:
        pytest.skip(f"this machine has no {isa} kernels")
    run_elsewhere(cases, tmp_path, sys.executable, True, {runtime.ISA_VARIABLE: isa})


def test_an_unknown_isa_is_refused(cases, tmp_path):
    some = dict([next(iter(cases.items()))])
    with pytest.raises(AssertionError, match=r"QCOMPILER_ISA=z80 names no kernels .* reference"):
        run_elsewhere(some, tmp_path, sys.executable, True, {runtime.ISA_VARIABLE: "z80"})
