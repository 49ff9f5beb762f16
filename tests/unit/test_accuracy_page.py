"""The page and the plot of the ablation, from rows as they are measured."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
pytestmark = pytest.mark.skipif(not EXAMPLES.is_dir(), reason="no checkout")


def decoder(label: str, model: str, size: float, kl: float | None) -> dict:
    quality = {"perplexity": {"perplexity": 13.25, "low": 12.0, "high": 14.5}}
    if kl is not None:
        quality["divergence"] = {"kl": kl, "top1": 0.9}
    return {
        **{"label": label, "model": model, "size_bytes": size, "bits": 4.25},
        **{"seconds": 12.4, "peak_bytes": 1.26e9, "quality": quality, "others": {}},
    }


def on_other_texts(row: dict, **losses: float) -> dict:
    return row | {"others": {kind: {"divergence": {"kl": kl}} for kind, kl in losses.items()}}


def encoder(label: str) -> dict:
    row = decoder(label, "MiniLM", 2e7, None)
    found = {"mean_cosine": 0.98, "min_cosine": 0.9, "neighbour_agreement": 0.875}
    return row | {"quality": {"embeddings": found}, "bits": None, "peak_bytes": None}


def test_rows_become_tables_and_points(tmp_path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    from accuracy_page import write_page

    rows = [
        decoder("ONNX < int4", "SmolLM2", 8e7, 0.25),
        on_other_texts(decoder("w4a8", "SmolLM2", 9e7, 0.05), plays=0.07, law=0.125),
        decoder("llama.cpp", "SmolLM2", 9e7, None),
        encoder("w4a8"),
    ]
    write_page(rows, tmp_path, 4000, 4096)
    page = (tmp_path / "accuracy.md").read_text("utf-8")
    assert "4,000 tokens" in page
    assert "| w4a8 | 90.0 | 4.250 | 13.250 | 12.00-14.50 | 0.0500 | 90.0 | 12 | 1.3 |" in page
    assert "| llama.cpp | 90.0 | 4.250 | 13.250 | 12.00-14.50 | - | - | 12 | 1.3 |" in page
    assert "| w4a8 | 20.0 | - | 0.9800 | 0.900 | 87.5 | 12 | - |" in page
    assert "| KL on | pydoc | plays | law | worst |" in page
    assert "| w4a8 | 0.0500 | 0.0700 | 0.1250 | law |" in page
    assert page.count(" on | pydoc |") == 1  # MiniLM has no other texts here
    space = "{http://www.w3.org/2000/svg}"
    drawing = ElementTree.parse(tmp_path / "accuracy.svg").getroot()
    points = list(drawing.iter(f"{space}circle"))
    assert len(points) == 3  # llama.cpp has no divergence
    worse, better = points[:2]
    assert float(worse.get("cx", 0)) < float(better.get("cx", 0))
    assert float(worse.get("cy", 0)) < float(better.get("cy", 0))  # the y axis points down
    assert "ONNX < int4" in {text.text for text in drawing.iter(f"{space}text")}
