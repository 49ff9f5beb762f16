"""Weights beside a config.json: those of every family fit it, others are told of at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from qcompiler.errors import ExportError
from qcompiler.export.fit import check_fit

pytestmark = pytest.mark.slow
pytest.importorskip("torch")
pytest.importorskip("transformers")


def test_every_family_fits_until_a_weight_is_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "examples")
    from family_models import FAMILIES, make
    from safetensors.torch import load_file, save_file

    for name in FAMILIES:
        folder = tmp_path / name
        make(name, folder)
        check_fit(folder)
        file = folder / "model.safetensors"
        weights = load_file(file)
        # Weights of experts are put together first, and what does not fit is told of when loaded.
        matrices = [each for each in weights if weights[each].ndim == 2 and "experts" not in each]
        largest = max(matrices, key=lambda each: weights[each].numel())
        rows = len(weights[largest])
        weights[largest] = weights[largest][: rows // 2].clone()
        save_file(weights, file, metadata={"format": "pt"})
        with pytest.raises(ExportError, match=rf"{name}: .* has sizes \[.*; put the config\.json"):
            check_fit(folder)
