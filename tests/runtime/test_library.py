"""Finding and loading the library."""

from __future__ import annotations

import subprocess
import sys

import onnxruntime
import pytest

from qcompiler import ops, runtime
from qcompiler.errors import RuntimeLibraryError


def test_info(kernels, monkeypatch):
    monkeypatch.delenv(runtime.ISA_VARIABLE, raising=False)
    info = runtime.info()
    assert info["path"] == str(runtime.library_path())
    assert info["isa"] == kernels.choose(kernels.cpu_flags())
    assert info["bytes"] > 10_000
    assert info["cuda"] == str(runtime.cuda_library_path() or "not built")
    assert info["onnxruntime"] == onnxruntime.__version__
    monkeypatch.setenv(runtime.ISA_VARIABLE, "reference")
    code = "from qcompiler import runtime; print(runtime.info()['isa'])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "reference\n"


def test_override(monkeypatch, tmp_path):
    file = tmp_path / "other.so"
    monkeypatch.setenv(runtime.LIBRARY_VARIABLE, str(file))
    with pytest.raises(RuntimeLibraryError, match="names no file"):
        runtime.library_path()
    file.write_text("not a library")
    assert runtime.library_path() == file
    with pytest.raises(RuntimeLibraryError, match="does not load"):
        runtime.register(onnxruntime.SessionOptions())


def test_missing_library_says_what_to_do():
    with pytest.raises(RuntimeLibraryError, match="reinstall it with a C"):
        runtime.installed_library("no_such_library")


def test_override_of_the_cuda_library(monkeypatch, tmp_path):
    file = tmp_path / "other.so"
    monkeypatch.setenv(runtime.CUDA_LIBRARY_VARIABLE, str(file))
    with pytest.raises(RuntimeLibraryError, match=r"QCOMPILER_CUDA_LIBRARY=.* names no file"):
        runtime.register(onnxruntime.SessionOptions(), cuda=True)
    runtime.register(onnxruntime.SessionOptions())
    file.write_text("not a library")
    with pytest.raises(RuntimeLibraryError, match="does not load"):
        runtime.register(onnxruntime.SessionOptions(), cuda=True)


@pytest.mark.parametrize("cuda", [False, True], ids=["cpu", "cuda"])
def test_only_two_symbols_are_exported(cuda):
    path = runtime.cuda_library_path() if cuda else runtime.library_path()
    if path is None:
        pytest.skip("the CUDA library was not built")
    try:
        table = subprocess.check_output(["nm", "-D", "--defined-only", path], text=True)
    except FileNotFoundError:
        pytest.skip("nm (binutils) is not installed")
    assert {line.split()[-1] for line in table.splitlines()} == {
        "RegisterCustomOps",
        "qcompiler_isa",
    }


@pytest.mark.parametrize("op_type", ops.OP_TYPES)
def test_functions(op_type):
    function = ops.function(op_type)
    assert (function.domain, function.name) == (ops.DOMAIN, op_type)
    imports = {each.domain: each.version for each in function.opset_import}
    assert imports.pop("") == ops.ONNX_OPSET
    assert imports in ({}, {"com.microsoft": 1})
    if "W" in function.input:
        assert {"K", "N", "layout"} <= set(function.attribute)
        assert ("group_size" in function.attribute) == ("groups" in function.input)


def test_unknown_function():
    with pytest.raises(ValueError, match=r"the ops are .*LinearW4A8, "):
        ops.function("LinearW7A8")
