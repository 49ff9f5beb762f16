"""The script behind docs/models.md, for one family; the page has all that the script knows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "examples" / "families.py"

pytestmark = pytest.mark.slow
pytest.importorskip("torch")
pytest.importorskip("transformers")


def test_a_family_is_right_at_once_and_step_by_step(tmp_path: Path) -> None:
    page = tmp_path / "models.md"
    real = "## Real models\n\nWritten by hand.\n"
    page.write_text(f"# Models\n\nan old table\n\n{real}")
    command = [sys.executable, SCRIPT, "GPT-2", "--out", page]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    table, kept = page.read_text("utf-8").split("\n\n##", 1)
    assert f"##{kept}" == real
    assert "old" not in table
    *_, row = table.splitlines()
    name, route, layers, rotated, left, whole, steps, _ = row.strip("| ").split(" | ")
    assert (name, route, layers, rotated, left) == (
        "GPT-2",
        "torch",
        "10 of 10",
        "stream, heads",
        "-",
    )
    assert min(float(whole), float(steps)) > 25


def test_the_page_has_every_family(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(SCRIPT.parent)
    from family_models import FAMILIES

    table, _, _ = (ROOT / "docs" / "models.md").read_text("utf-8").partition("## Real models")
    rows = table.splitlines()
    names = [row.split("|")[1].split(",")[0].strip() for row in rows if row.startswith("| ")]
    assert set(names[2:]) == set(FAMILIES)
