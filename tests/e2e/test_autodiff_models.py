"""Gradients at every layer's output of whole models are torch's, whoever exported them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_families import FAMILIES, export, tokenizer

from qcompiler.analysis.layers import find_layers
from qcompiler.autodiff import gradients
from qcompiler.export import export_model
from qcompiler.opt import run_pipeline

pytestmark = pytest.mark.slow
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SMALL: dict[str, Any] = {
    **{"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4},
    **{"num_key_value_heads": 2, "intermediate_size": 96, "vocab_size": 300},
}


def canonical(path: Path) -> Any:
    return run_pipeline(path, "import,fold-constants,canonicalize,fuse-norm").graph


def layer_outputs(graph: Any, output: str) -> dict[str, np.ndarray]:
    """The weights [K, N] of layers by their outputs; not that of the model's."""
    layers = {str(layer.node.outputs[0].name): layer for layer in find_layers(graph)[0]}
    return {name: np.array(layer.matrix()) for name, layer in layers.items() if name != output}


def torch_gradients(
    model: Any, feed: Mapping[str, np.ndarray], field: str, seed: np.ndarray, **fixed: Any
) -> list[tuple[np.ndarray, np.ndarray]]:
    """The weight [K, N] of each linear layer, and the gradient at its product."""
    found: list[tuple[Any, Any]] = []

    def keep(module: Any, _: Any, result: Any) -> None:
        result.retain_grad()
        found.append((module.weight, result))

    hooks = [
        module.register_forward_hook(keep)
        for module in model.modules()
        if isinstance(module, torch.nn.Linear)
    ]
    given = {name: torch.from_numpy(value) for name, value in feed.items()}
    model(**given, **fixed)[field].backward(torch.from_numpy(seed))
    for hook in hooks:
        hook.remove()
    pairs = [(w.detach().numpy().T, y.grad) for w, y in found]
    return [(w, grad.numpy()) for w, grad in pairs if grad is not None]


def expected(weight: np.ndarray, known: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """The gradient at a layer, whose columns may be those of several of torch's in a row."""
    for start in range(len(known)):
        for count in (1, 2, 3):
            some = known[start : start + count]
            if len({w.shape[0] for w, _ in some}) > 1:
                continue
            joined = np.concatenate([w for w, _ in some], axis=1)
            if joined.shape == weight.shape and np.allclose(joined, weight, atol=1e-6):
                return np.concatenate([grad for _, grad in some], axis=-1)
    raise AssertionError("torch has no such layer")


def compare(
    graph: Any,
    output: str,
    feeds: list[dict[str, np.ndarray]],
    model: Any,
    inputs: list[dict[str, np.ndarray]],
    field: str,
    sizes: list[tuple[int, ...]],
    **fixed: Any,
) -> int:
    """Compare all layers; how many there are."""
    draws = np.random.default_rng(0)
    seeds = [draws.standard_normal(size).astype(np.float32) for size in sizes]
    known = [
        torch_gradients(model, feed, field, seed, **fixed)
        for feed, seed in zip(inputs, seeds, strict=True)
    ]
    weights = layer_outputs(graph, output)
    order = []
    for name, values in gradients(graph, list(weights), output, feeds, lambda i, _: seeds[i]):
        order.append(name)
        for found, each in zip(values, known, strict=True):
            wanted = expected(weights[name], each).reshape(found.shape)
            scale = np.abs(wanted).max()
            assert scale > 0
            np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=2e-5 * scale, err_msg=name)
    assert order == list(weights)[::-1]
    return len(order)


@pytest.mark.parametrize("dialect", ["genai", "torch"])
def test_decoder(tmp_path: Path, dialect: str) -> None:
    torch.manual_seed(0)
    made = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL)).eval()
    made.save_pretrained(tmp_path / "hf")
    tokenizer(tmp_path / "hf")
    export_model(tmp_path / "hf", tmp_path / "out", dialect=dialect)
    graph = canonical(tmp_path / "out")
    draws = np.random.default_rng(0)
    ids = [draws.integers(0, 300, size) for size in ((2, 7), (1, 11))]
    inputs = [{"input_ids": each, "attention_mask": np.ones_like(each)} for each in ids]
    feeds = []
    for given in inputs:
        batch, length = given["input_ids"].shape
        whole = given | {"position_ids": np.tile(np.arange(length), (batch, 1))}
        names = [str(tensor.name) for tensor in graph.inputs]
        empty = np.zeros((batch, 2, 0, 32), np.float32)
        feeds.append({name: whole.get(name, empty) for name in names})
    sizes = [(*each.shape, 300) for each in ids]
    count = compare(graph, "logits", feeds, made, inputs, "logits", sizes, use_cache=False)
    assert count == 2 * {"genai": 5, "torch": 7}[dialect]


@pytest.mark.parametrize(("name", "layers"), [("bert", 12), ("wav2vec2", 14)])
def test_encoder(tmp_path: Path, name: str, layers: int) -> None:
    path, family = tmp_path / "model.onnx", FAMILIES[name]
    feed = export(name, path, dynamo=False)
    torch.manual_seed(0)
    config = getattr(transformers, family.config)(**family.options)
    config._attn_implementation = "eager"
    made = getattr(transformers, family.model)(config).eval()
    with torch.no_grad():
        result = made(**{key: torch.from_numpy(value) for key, value in feed.items()})
    sizes = [tuple(result[family.output].shape)]
    count = compare(canonical(path), family.output, [feed], made, [feed], family.output, sizes)
    assert count == layers
