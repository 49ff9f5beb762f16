"""Models that tests of the command line share."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import tiny_models as tiny
from odd_models import W, linear


@pytest.fixture
def decoder(tmp_path: Path) -> Path:
    """The folder of a decoder with a cache."""
    made = tiny.decoder(tiny.embedding(), head_dim=tiny.HIDDEN)
    return tiny.save(made, tmp_path / "d", config=tiny.CONFIG)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A file with one linear layer."""
    onnx.save(linear(w=W), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"
