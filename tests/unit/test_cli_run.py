"""The commands that run models: what they print, and how they fail."""

from __future__ import annotations

import errno
import json
import subprocess
import sys

import pytest
import tiny_models as tiny
from command_line import qc

import qcompiler.evaluation
from qcompiler import __version__, runtime
from qcompiler.errors import RuntimeLibraryError


@pytest.fixture
def folder(tmp_path):
    return tiny.save(tiny.decoder(tiny.embedding()), tmp_path / "small", config=tiny.CONFIG)


@pytest.fixture
def words(tmp_path):
    file = tmp_path / "words.txt"
    file.write_text(tiny.text(200))
    return file


def test_version_and_help():
    assert qc("--version").stdout.strip() == f"qc {__version__}"
    for command in ("export", "eval", "bench", "generate"):
        result = qc(command, "--help")
        assert result.exit_code == 0
        assert "Examples" in result.stdout
        assert "--json" in result.stdout


def test_help_needs_no_heavy_module():
    code = (
        "import sys; from qcompiler.entry import main; sys.argv = ['qc', '--version']\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print(sorted({'onnx', 'onnxruntime', 'numpy', 'torch', 'tokenizers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_eval_of_encoders_shows_intervals(tmp_path):
    exact, other, text = tiny.two_encoders(tmp_path)
    options = ("eval", other, "--text", text, "--reference", exact)
    (record,) = json.loads(qc(*options, "--json").stdout)
    found = record["embeddings"]
    assert found["cosine_low"] < found["mean_cosine"] < found["cosine_high"]
    assert found["neighbour_low"] <= found["neighbour_agreement"] <= found["neighbour_high"]
    header, row = qc(*options).stdout.splitlines()
    assert header.count("95% interval") == 2
    assert f"{found['cosine_low']:.4f}-{found['cosine_high']:.4f}" in row
    assert f"{100 * found['neighbour_low']:.1f}-{100 * found['neighbour_high']:.1f}" in row


def test_eval_table_and_json(folder, words):
    result = qc("eval", folder, "--text", words, "--reference", folder, "--window", 50)
    assert result.exit_code == 0
    header, row = result.stdout.splitlines()
    assert header.split()[:4] == ["model", "size", "MB", "perplexity"]
    assert row.split()[0] == "small"
    assert row.split()[-2:] == ["0.0000", "100.0"]
    result = qc("eval", folder, "--text", words, "--window", 50, "--json")
    (record,) = json.loads(result.stdout)
    assert record["perplexity"]["tokens"] == 200 - 4
    assert "divergence" not in record


def test_bench_side_by_side(folder, tmp_path):
    plain = tiny.save(tiny.decoder(tiny.embedding(), cache=False), tmp_path / "plain")
    options = ["--prompt-length", 8, "--context", 4, "--rounds", 1]
    result = qc("bench", folder, plain, *options)
    assert result.exit_code == 0
    header, first, second = result.stdout.splitlines()
    assert "decode tok/s" in header
    assert "latency" not in header
    assert first.startswith("small")
    assert " - " in second  # no cache, no decode figure
    records = json.loads(qc("bench", folder, *options, "--json").stdout)
    assert records[0]["prefill"] > 0


def test_generate_streams_and_reports(folder):
    result = qc("generate", folder, "w1 w2", "--max-new-tokens", 3)
    assert result.exit_code == 0
    assert len(result.stdout.split()) == 3
    assert "3 tokens" in result.stderr
    record = json.loads(qc("generate", folder, "w1 w2", "--max-new-tokens", 3, "--json").stdout)
    assert record["text"].split() == result.stdout.split()


def test_runtime_commands(monkeypatch, tmp_path):
    library = tmp_path / "lib.so"
    monkeypatch.setattr(runtime, "library_path", lambda: library)
    assert qc("runtime", "path").stdout.strip() == str(library)
    assert json.loads(qc("runtime", "path", "--json").stdout) == {"path": str(library)}

    def missing():
        raise RuntimeLibraryError("not built;\nreinstall it")

    monkeypatch.setattr(runtime, "library_path", missing)
    result = qc("runtime", "path")
    assert result.exit_code == 1
    assert result.stderr == "error: not built; reinstall it\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["eval", "nowhere.onnx"],
        ["bench", "nowhere.onnx"],
        ["generate", "nowhere.onnx", "Hi"],
        ["export", "nowhere", "out"],
    ],
)
def test_refusals_are_one_line(arguments):
    result = qc(*arguments)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("error: nowhere")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["no-such-command"],
        ["bench"],
        ["eval", "m", "--window", "1"],
        ["export", "a", "b", "--dialect", "other"],
        ["generate", "m", "p", "--temperature", "-1"],
        ["generate", "m", "p", "--provider", "tpu"],
    ],
)
def test_usage_errors(arguments):
    assert qc(*arguments).exit_code == 2


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (MemoryError(), 1, "out of memory"),
        (OSError(errno.ENOSPC, "No space left", "out.onnx"), 1, "out.onnx: the disk is full"),
        (PermissionError(errno.EACCES, "Denied", "out.onnx"), 1, "out.onnx: no permission"),
        (IsADirectoryError(errno.EISDIR, "Is a directory", "x"), 1, "x: Is a directory"),
    ],
)
def test_system_errors(monkeypatch, error, code, message):
    def fail(*_args, **_kwargs):
        raise error

    monkeypatch.setattr(qcompiler.evaluation, "evaluate", fail)
    result = qc("eval", "m")
    assert result.exit_code == code
    assert result.stderr.startswith(f"error: {message}")
    assert result.stderr.count("\n") == 1
