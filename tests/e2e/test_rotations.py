"""Rotated models are the models they were: real ones, and a small decoder with biases."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qcompiler import ir
from qcompiler.calibration.sources import load_source
from qcompiler.export.standard import export_torch
from qcompiler.feeds import Signature
from qcompiler.models import open_package
from qcompiler.passmanager import PassContext, PassManager
from qcompiler.recipe import parse_pipeline
from qcompiler.session import create_session

pytestmark = pytest.mark.slow

STEPS = "import,canonicalize,fuse-norm{standard_only=true},fold-norm,rotate{through_cache=true}"
EXACT = 1e-5
"""Of the largest output, over all layers; 3e-6 where all 30 of SmolLM2 are rotated."""


def rotated(source: Path, folder: Path) -> tuple[Path, dict[str, list[str]]]:
    """The model after the passes, and the layers by what was done to them."""
    manager = PassManager(parse_pipeline(STEPS))
    graph, _ = manager.run(ir.read_model(source), PassContext())
    made = ir.stage_model(graph, folder, "model.onnx")
    layers: dict[str, list[str]] = {}
    for remark in manager.history[-1].remarks:
        what = "heads" if "heads rotated" in remark.message else "stream"
        layers.setdefault(what if remark.applied else f"no {what}", []).append(remark.layer)
    return made.model, layers


def assert_same(source: Path, result: Path, feeds: dict[str, np.ndarray]) -> None:
    session = create_session(source, library=False)
    output = [session.get_outputs()[0].name]
    expected = session.run(output, feeds)[0]
    actual = create_session(result, library=False).run(output, feeds)[0]
    np.testing.assert_allclose(actual, expected, rtol=0, atol=EXACT * np.abs(expected).max())


@pytest.mark.parametrize(
    ("model", "counts"),
    [
        # Each layer, the table, and the small layer before the tied head.
        ("smollm2_first", {"stream": 41 + 2, "heads": 16}),
        ("smollm2_torch", {"stream": 57 + 2, "heads": 16}),
        # Its norms subtract the mean: 36 layers and 3 tables.
        ("minilm", {"no stream": 39, "heads": 12}),
    ],
)
def test_real_models(request, tmp_path, model, counts):
    package = open_package(request.getfixturevalue(model))
    path, layers = rotated(package.onnx_path, tmp_path)
    assert {what: len(set(names)) for what, names in layers.items()} == counts
    feeds = load_source("pydoc:second", package, samples=1, length=96).feeds[0]
    assert_same(package.onnx_path, path, dict(feeds))
    if model != "minilm":
        assert open_package(path).size_bytes() < 1.01 * package.size_bytes()


@pytest.mark.parametrize("tied", [True, False])
def test_a_small_decoder(tmp_path, tied):
    """Grouped heads, biases, norms far from one, a hidden size that is no power of two."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=200,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
        attention_bias=True,
        mlp_bias=True,
        max_position_embeddings=128,
    )
    model = transformers.LlamaForCausalLM(config)
    for name, parameter in model.named_parameters():
        if "norm" in name or "bias" in name:
            parameter.data.add_(torch.randn_like(parameter) * 0.5)
    source, exported = tmp_path / "source", tmp_path / "exported"
    exported.mkdir()
    model.save_pretrained(source)
    (source / "tokenizer.json").write_text("{}")
    export_torch(source, exported)
    result = tmp_path / "rotated"
    result.mkdir()
    path, layers = rotated(exported / "model.onnx", result)
    assert set(layers) == {"stream", "heads"}
    assert len(layers["stream"]) == 14 + 2 + tied
    assert len(layers["heads"]) == 4
    ids = np.random.default_rng(0).integers(0, 200, (2, 16))
    signature = Signature.of(open_package(exported))
    assert_same(exported / "model.onnx", path, signature.feeds(ids))
    # The cache holds rotated values: what one step writes the next one reads.
    session = create_session(path, library=False)
    names = [output.name for output in session.get_outputs()]
    first = session.run(names, signature.feeds(ids[:, :10]))
    past = signature.next_past(dict(zip(names, first, strict=True)))
    second = session.run(["logits"], signature.feeds(ids[:, 10:], past=past))[0]
    whole = create_session(exported, library=False).run(["logits"], signature.feeds(ids))[0]
    np.testing.assert_allclose(second, whole[:, 10:], rtol=0, atol=EXACT * np.abs(whole).max())


def test_experts_one_by_one(tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.OlmoeConfig(
        vocab_size=200,
        hidden_size=48,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_experts=2,
        num_experts_per_tok=1,
        max_position_embeddings=128,
    )
    model = transformers.OlmoeForCausalLM(config)
    for name, parameter in model.named_parameters():
        parameter.data.normal_(1.0 if "norm" in name else 0.0, 0.3)
    source, exported, result = (tmp_path / each for each in ("source", "exported", "rotated"))
    exported.mkdir()
    result.mkdir()
    model.save_pretrained(source)
    (source / "tokenizer.json").write_text("{}")
    export_torch(source, exported)
    path, layers = rotated(exported / "model.onnx", result)
    # The table, the head, four layers of attention, the router and two of each expert.
    assert len(set(layers["stream"])) == 2 + 4 + 1 + 2 * 2
    ids = np.random.default_rng(0).integers(0, 200, (2, 16))
    assert_same(exported / "model.onnx", path, Signature.of(open_package(exported)).feeds(ids))
