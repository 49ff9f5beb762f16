"""The demo's last step: one table and one file from what was measured before."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

DEMO = Path(__file__).resolve().parents[2] / "examples" / "demo.py"


@pytest.fixture
def demo():
    spec = importlib.util.spec_from_file_location("demo", DEMO)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_table_of_finished_steps(demo, tmp_path, monkeypatch, capsys):
    for name in ("smollm2-fp32", "smollm2-int4", "smollm2-w4a8"):
        (tmp_path / name).mkdir()
    quality = {
        "size_bytes": 95_000_000,
        "perplexity": {"perplexity": 12.3456},
        "divergence": {"kl": 0.125},
    }
    speed = {"prefill": 1234.5, "decode": 150.2, "load_seconds": 0.0625}
    (tmp_path / "quality.json").write_text(json.dumps([quality] * 3))
    (tmp_path / "speed.json").write_text(json.dumps([speed] * 3))
    monkeypatch.setattr(demo, "open_package", lambda path: path)
    monkeypatch.setattr(demo, "generate", lambda *_args, **_kw: SimpleNamespace(text="Paris."))
    monkeypatch.setattr(sys, "argv", ["demo.py", str(tmp_path)])
    demo.main()
    printed = capsys.readouterr().out
    assert "SmolLM2-135M-Instruct" in printed
    ours = next(line for line in printed.splitlines() if line.startswith("qcompiler w4a8"))
    assert ours.split()[-6:] == ["95.0", "12.346", "0.1250", "1234", "150", "0.06"]
    assert len(json.loads((tmp_path / "results.json").read_text())["models"]) == 3
