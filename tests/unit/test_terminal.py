"""What reaches a terminal or a pipe, whatever the names and the errors are."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from command_line import qc, refusal, short
from odd_models import W, linear

from qcompiler import console
from qcompiler.cli_errors import BUG
from qcompiler.errors import ModelError
from qcompiler.escapes import in_json, printable
from qcompiler.foreign import runtime_errors

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="POSIX files")


# Terminals


NASTY = "a\x1b[31m\x07\x9b\u202eb\u2066\udcff\u2028"


def test_escapes():
    assert printable(NASTY) == r"a\x1b[31m\x07\x9b\u202eb\u2066\xff\u2028"
    assert printable("a\nb\tc", lines=True) == "a\nb\tc"
    assert printable("a\nb\tc") == r"a\nb\tc"
    assert json.loads(in_json(json.dumps(NASTY, ensure_ascii=False))) == NASTY
    assert printable("añ😀\u200d中") == "añ😀\u200d中"


@pytest.fixture
def nasty(tmp_path) -> Path:
    made = linear(w=W)
    made.graph.node[0].name = "\x1b[31mfc\u202e\n"
    made.graph.input[0].name = made.graph.node[0].input[0] = "x\x1b]0;title\x07"
    made.metadata_props.add(key="k\x1b", value="v\x9b")
    onnx.save(made, tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def test_names_reach_no_terminal_as_they_are(nasty, tmp_path):
    report = tmp_path / "r.html"
    for arguments in (
        ("inspect", nasty, "-a"),
        ("compile", nasty, "--report", report),
        ("opt", nasty, "-p", "import", "--print"),
        ("opt", nasty, "-p", "import,canonicalize,plan-weights"),
        ("compile", nasty, "--nodes-to-exclude", "\x1b[2Jnot"),
        ("inspect", "nothere\x1b[31m\udcff"),
        ("inspect", nasty, "--json"),
    ):
        done = qc(*arguments)
        for sign in "\x1b\x07\x9b\u202e":
            assert sign not in done.output + done.stderr, arguments
        if "--json" in arguments:
            assert "\x1b" in json.dumps(json.loads(done.stdout), ensure_ascii=False).replace(
                "\\u001b", "\x1b"
            )
    page = report.read_text("utf-8")
    assert "fc" in page
    assert not any(sign in page for sign in "\x1b\x07\x9b\u202e")


def run(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "qcompiler", *map(str, arguments)],
        capture_output=True,
        check=False,
        env={**os.environ, **environment},
    )


@POSIX
def test_a_terminal_of_few_letters(tmp_path):
    folder = tmp_path / "modèle-中"
    folder.mkdir()
    try:
        path = Path(os.fsdecode(os.fsencode(folder) + b"/m\xff\x1b.onnx"))
        onnx.save(linear(w=W), path)
    except OSError:
        pytest.skip("the file system takes UTF-8 names only")
    for encoding in ("latin-1", "ascii"):
        plain = run("inspect", path, PYTHONIOENCODING=encoding)
        assert plain.returncode == 0, plain.stderr
        assert b"m\\xff\\x1b.onnx" in plain.stdout and b"\x1b" not in plain.stdout
        found = json.loads(run("inspect", path, "--json", PYTHONIOENCODING=encoding).stdout)
        assert found["path"] == str(path)
    bare = run("inspect", path, LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    assert bare.returncode == 0 and b"\\x1b.onnx" in bare.stdout


def test_outputs_that_models_can_not_name(model, tmp_path):
    output = str(tmp_path / "a\udcff.onnx")
    assert r"a\xff.onnx' has a name that is not UTF-8" in refusal("compile", model, "-o", output)
    assert "is not UTF-8" in refusal("opt", model, "-p", "import", "-o", output)


@POSIX
def test_names_that_are_not_utf8(model, tmp_path):
    try:
        data = Path(os.fsdecode(os.fsencode(tmp_path) + b"/f\xff.npz"))
        np.savez(data, x=np.random.default_rng(0).normal(size=(8, 64)).astype("f4"))
        source = model.rename(data.with_suffix(".onnx"))
    except OSError:
        pytest.skip("the file system takes UTF-8 names only")
    assert "has a name that is not UTF-8" in refusal("compile", source)
    for report in (data.with_suffix(".html"), data.with_suffix(".json")):
        options = ("--calib", data, "--report", report, "--dump-ir", tmp_path / "ir", "--json")
        done = qc("compile", source, "-o", tmp_path / "o.onnx", *options)
        assert done.exit_code == 0, done.stderr
        found = json.loads(done.stdout)
        assert found["source"] == str(source)
        assert "f\\xff.npz" in found["calibration"] or "f\udcff.npz" in found["calibration"]
        assert report.stat().st_size


def test_results_are_alone_on_standard_output(model, monkeypatch):
    def noisy(_path):
        print("noise")
        os.write(1, b"more noise\n")
        raise ModelError("no")

    monkeypatch.setattr("qcompiler.inspection.inspect_all", noisy)
    done = qc("inspect", model, "--json")
    assert done.stdout == "" and done.exit_code == 1


def test_noise_below_python_is_kept_out(tmp_path):
    script = (
        "import os, qcompiler.console as c\n"
        "with c.results_only():\n"
        "    print('noise'); os.system('echo deeper'); os.write(1, b'deep\\n')\n"
        "    c.print_json({'a': float('nan')})\n"
        "print('after')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert done.stdout == b'{\n  "a": null\n}\nafter\n'
    assert sorted(done.stderr.split()) == [b"deep", b"deeper", b"noise"]


@POSIX
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_standard_output_on_a_full_disk(model):
    with Path("/dev/full").open("wb") as full:
        command = [sys.executable, "-m", "qcompiler", "recipe", "list"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 1
    assert done.stderr.count(b"\n") == 1 and b"the disk is full" in done.stderr


def test_console_writes_what_a_stream_can_take(monkeypatch):
    out = io.TextIOWrapper(io.BytesIO(), "latin-1")
    monkeypatch.setattr(sys, "stdout", out)
    console.say("é中\x1b")
    console.print_json({"é": "中\x1b\u202e"})
    out.flush()
    text = out.buffer.getvalue().decode("latin-1")
    assert text.startswith("é\\u4e2d\\x1b\n")
    assert json.loads(text.split("\n", 1)[1]) == {"é": "中\x1b\u202e"}


# ONNX Runtime, and our own mistakes


@pytest.mark.parametrize(
    ("message", "kind", "told"),
    [
        ("std::bad_alloc", MemoryError, "std::bad_alloc"),
        ("[ONNXRuntimeError] : 6 : FAIL : it\nbroke", ModelError, "m.onnx: it broke; again"),
        ("x(): incompatible constructor arguments. The following " + "a" * 99, ModelError, "type"),
        ("/" * 50_000, ModelError, "m.onnx"),
    ],
    ids=short,
)
def test_errors_of_onnx_runtime(message, kind, told):
    start = time.process_time()
    with pytest.raises(kind) as caught, runtime_errors(ModelError, "m.onnx", "again"):
        raise RuntimeError(message)
    assert told in str(caught.value) and "\n" not in str(caught.value)
    assert time.process_time() - start < 5


def test_too_many_threads(decoder):
    told = refusal("bench", decoder, "--threads", "1000000")
    assert "threads must be at most 1024" in told


def test_libraries_that_are_none(tmp_path, monkeypatch):
    (tmp_path / "lib.so").write_bytes(b"\x7fELF" + bytes(100))
    monkeypatch.setenv("QCOMPILER_LIBRARY", str(tmp_path / "lib.so"))
    assert "lib.so does not load" in refusal("runtime", "info")


def test_a_mistake_of_ours_is_one_line(model, monkeypatch):
    def fails(_path):
        raise TypeError("oh\nno \x1b")

    monkeypatch.setattr("qcompiler.inspection.inspect_all", fails)
    from typer.testing import CliRunner

    from qcompiler.cli import app

    done = CliRunner().invoke(app, ["inspect", str(model)])
    assert done.exit_code == BUG
    assert done.stderr.count("\n") == 1
    assert "this is a bug of qc" in done.stderr and "QC_TRACEBACK=1" in done.stderr
    assert "TypeError: oh no" in done.stderr and "\x1b" not in done.stderr
    monkeypatch.setenv("QC_TRACEBACK", "1")
    assert "Traceback" in CliRunner().invoke(app, ["inspect", str(model)]).stderr
