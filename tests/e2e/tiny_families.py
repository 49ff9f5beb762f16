"""Tiny models of random weights from transformers, as each of PyTorch's exporters writes them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

WIDTH, WORDS = 64, 1100
_SIZES = {
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
}
_TEXT = _SIZES | {"vocab_size": WORDS}
_IMAGE = {"image_size": 32, "patch_size": 8}
_T5 = {"d_model": WIDTH, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4}
_MODERN = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1}
_MODERN |= {"sep_token_id": 2, "local_attention": 8, "global_attn_every_n_layers": 2}
_DEBERTA = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 16}
_DEBERTA |= {"norm_rel_ebd": "layer_norm", "share_att_key": True, "position_biased_input": False}
_WAVE = {"conv_dim": (32, 32), "conv_stride": (5, 2), "conv_kernel": (10, 3)}
_WAVE |= {"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}


@dataclass(frozen=True)
class Family:
    """A model class with its configuration, and what it reads and gives."""

    model: str
    config: str
    options: Mapping[str, Any]
    inputs: tuple[str, ...]
    output: str
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of a call that are no inputs."""


def _encoder(name: str, **options: Any) -> Family:
    inputs = ("input_ids", "attention_mask")
    return Family(f"{name}Model", f"{name}Config", _TEXT | options, inputs, "last_hidden_state")


def _decoder(name: str, model: str, **options: Any) -> Family:
    inputs, fixed = ("input_ids", "attention_mask"), {"use_cache": False}
    return Family(model, f"{name}Config", _TEXT | options, inputs, "logits", fixed)


def _image(name: str, **options: Any) -> Family:
    pixels = ("pixel_values",)
    return Family(f"{name}Model", f"{name}Config", options, pixels, "last_hidden_state")


_DISTIL = {"dim": WIDTH, "n_layers": 2, "n_heads": 4, "hidden_dim": 128}
_SWIN = {"image_size": 32, "patch_size": 2, "embed_dim": 32, "depths": [2, 2], "num_heads": [2, 4]}

FAMILIES = {
    "bert": _encoder("Bert"),
    "distilbert": _encoder("DistilBert", **_DISTIL),
    "modernbert": _encoder("ModernBert", **_MODERN),
    "deberta": _encoder("DebertaV2", **_DEBERTA, max_relative_positions=-1),
    "t5": Family(
        "T5ForConditionalGeneration",
        "T5Config",
        _T5 | {"vocab_size": WORDS, "decoder_start_token_id": 0, "tie_word_embeddings": False},
        ("input_ids", "attention_mask", "decoder_input_ids"),
        "logits",
        {"use_cache": False},
    ),
    "clip": Family(
        "CLIPModel",
        "CLIPConfig",
        {
            "text_config": _TEXT | {"max_position_embeddings": 32, "eos_token_id": 2},
            "vision_config": _SIZES | _IMAGE,
            "projection_dim": 48,
        },
        ("input_ids", "pixel_values", "attention_mask"),
        "logits_per_image",
    ),
    "vit": _image("ViT", **_SIZES, **_IMAGE),
    "swin": _image("Swin", **_SWIN, window_size=4),
    "siglip": _image("SiglipVision", **_SIZES, **_IMAGE),
    "dinov2": _image("Dinov2", **{k: v for k, v in _SIZES.items() if k[0] != "i"}, **_IMAGE),
    "wav2vec2": Family(
        "Wav2Vec2ForCTC",
        "Wav2Vec2Config",
        _SIZES | _WAVE | {"vocab_size": 64},
        ("input_values",),
        "logits",
    ),
    "llama": _decoder("Llama", "LlamaForCausalLM", num_key_value_heads=2),
    "gemma": _decoder("Gemma2", "Gemma2ForCausalLM", num_key_value_heads=2, head_dim=16),
    "qwen3": _decoder("Qwen3", "Qwen3ForCausalLM", num_key_value_heads=2, head_dim=16),
}


def tokenizer(folder: Path) -> None:
    """The least that the builder takes for one."""
    import transformers
    from tokenizers import Tokenizer, models

    words = {f"w{index}": index for index in range(300)}
    fast = Tokenizer(models.WordLevel(words, unk_token="w0"))
    transformers.PreTrainedTokenizerFast(tokenizer_object=fast).save_pretrained(folder)


def _values(torch: Any) -> dict[str, Any]:
    ids = torch.randint(5, 1000, (2, 12))
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "decoder_input_ids": torch.randint(5, 1000, (2, 7)),
        "pixel_values": torch.randn(2, 3, 32, 32),
        "input_values": torch.randn(2, 1600),
    }


def export(name: str, path: Path, *, dynamo: bool) -> dict[str, np.ndarray]:
    """Write a family's model; returns what it was traced with, by input."""
    import torch
    import transformers

    family = FAMILIES[name]
    torch.manual_seed(0)
    config = getattr(transformers, family.config)(**family.options)
    if dynamo is False:
        config._attn_implementation = "eager"
    model = getattr(transformers, family.model)(config).eval()
    values = {key: _values(torch)[key] for key in family.inputs}

    class Called(torch.nn.Module):
        """Inputs by position, one output."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *given: Any) -> Any:
            named = dict(zip(family.inputs, given, strict=True))
            return self.model(**named, **family.fixed)[family.output]

    options: dict[str, Any] = {"dynamo": dynamo}
    if not dynamo:
        open_axes = {
            key: {0: "batch"} | ({1: "time"} if v.ndim == 2 else {}) for key, v in values.items()
        }
        if "decoder_input_ids" in open_axes:
            open_axes["decoder_input_ids"] = {0: "batch", 1: "target"}
        options |= {"dynamic_axes": open_axes, "opset_version": 17}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Called().eval(),
            tuple(values.values()),
            str(path),
            input_names=list(values),
            output_names=[family.output],
            **options,
        )
    return {key: value.numpy() for key, value in values.items()}
