"""Hostile files, drawn anew: what was found once is kept in `tests/corpus`, and comes first."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hostile_files import BOUNDARIES, CORPUS, check
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

SEEDS = sorted(path for path in CORPUS.glob("*/*") if path.parent.name in BOUNDARIES)
EXAMPLES = {"template": 8}
"""Each is a process of its own."""


@pytest.mark.parametrize("seed", SEEDS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_corpus(seed: Path, tmp_path: Path) -> None:
    assert check(seed.parent.name, tmp_path, seed.read_bytes()) is None


def test_every_boundary_has_seeds() -> None:
    assert {path.name for path in CORPUS.iterdir()} >= set(BOUNDARIES)


@pytest.mark.parametrize("kind", BOUNDARIES)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_mutated(kind: str) -> None:
    with tempfile.TemporaryDirectory() as folder:

        @settings(
            max_examples=EXAMPLES.get(kind, 60),
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(st.data())
        def attack(data: st.DataObject) -> None:
            content = BOUNDARIES[kind].mutate(lambda options: data.draw(st.sampled_from(options)))
            found = check(kind, Path(folder), content)
            assert found is None, f"{found}: {content[:500]!r}"

        attack()
