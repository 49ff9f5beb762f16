"""Tiny models of random weights, one for each of some fifty families of transformers.

Weights are drawn so that what quantization meets is there: norms with uneven weights, embeddings
with a few loud channels, activations of about one.
"""

from __future__ import annotations

import math
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

WORDS = 512
_SIZES: dict[str, Any] = {
    **{"hidden_size": 128, "intermediate_size": 256},
    **{"num_hidden_layers": 2, "num_attention_heads": 4},
}
_TEXT = _SIZES | {"vocab_size": WORDS, "max_position_embeddings": 512, "pad_token_id": 0}
_DECODER = _TEXT | {"bos_token_id": 1, "eos_token_id": 2}
_GROUPED = _DECODER | {"num_key_value_heads": 2}
_OLD: dict[str, Any] = {"vocab_size": WORDS, "bos_token_id": 1, "eos_token_id": 2}
_ROBERTA = _TEXT | {"max_position_embeddings": 514, "pad_token_id": 1}
_WINDOW = {"sliding_window": 32}
_GEMMA = _GROUPED | _WINDOW | {"head_dim": 32, "query_pre_attn_scalar": 32}
_EXPERTS = _GROUPED | {"num_experts": 4, "num_experts_per_tok": 2}
_PAIR: dict[str, Any] = {
    **{"vocab_size": WORDS, "d_model": 128, "max_position_embeddings": 256},
    **{"encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4},
    **{"decoder_attention_heads": 4, "encoder_ffn_dim": 256, "decoder_ffn_dim": 256},
    **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2},
}
_T5: dict[str, Any] = {
    **{"vocab_size": WORDS, "d_model": 128, "d_kv": 32, "d_ff": 256, "num_layers": 2},
    **{"num_heads": 4, "decoder_start_token_id": 0},
}
_IMAGE = _SIZES | {"image_size": 32, "patch_size": 8}
_WAVE = _SIZES | {
    **{"conv_dim": [32] * 3, "conv_stride": [5, 2, 2], "conv_kernel": [10, 3, 3]},
    **{"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4},
}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama": ("LlamaForCausalLM", _GROUPED),
    "Mistral": ("MistralForCausalLM", _GROUPED | _WINDOW | {"head_dim": 32}),
    "Qwen2": ("Qwen2ForCausalLM", _GROUPED | {"tie_word_embeddings": True}),
    "Qwen3": ("Qwen3ForCausalLM", _GROUPED | {"head_dim": 32, "tie_word_embeddings": True}),
    "Qwen3-MoE": (
        "Qwen3MoeForCausalLM",
        _EXPERTS | {"head_dim": 32, "moe_intermediate_size": 128, "norm_topk_prob": True},
    ),
    "Mixtral": (
        "MixtralForCausalLM",
        _GROUPED | {"num_local_experts": 4, "num_experts_per_tok": 2},
    ),
    "OLMoE": ("OlmoeForCausalLM", _EXPERTS),
    "gpt-oss": (
        "GptOssForCausalLM",
        _GROUPED | _WINDOW | {"head_dim": 32, "num_local_experts": 4, "num_experts_per_tok": 2},
    ),
    "Gemma 2": ("Gemma2ForCausalLM", _GEMMA),
    "Gemma 3": ("Gemma3ForCausalLM", _GEMMA),
    "Phi-2": ("PhiForCausalLM", _DECODER | {"partial_rotary_factor": 0.5}),
    "Phi-3": ("Phi3ForCausalLM", _DECODER | {"num_key_value_heads": 4, "sliding_window": 511}),
    "Granite": (
        "GraniteForCausalLM",
        _GROUPED | {"tie_word_embeddings": True, "attention_multiplier": 32**-0.5},
    ),
    "SmolLM3": ("SmolLM3ForCausalLM", _GROUPED | {"no_rope_layer_interval": 2}),
    "OLMo 2": ("Olmo2ForCausalLM", _GROUPED),
    "Falcon": (
        "FalconForCausalLM",
        _OLD
        | {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_kv_heads": 2}
        | {"new_decoder_architecture": True, "alibi": False, "bias": False},
    ),
    "GPT-NeoX": ("GPTNeoXForCausalLM", _DECODER),
    "GPT-2": ("GPT2LMHeadModel", _OLD | {"n_embd": 128, "n_layer": 2, "n_head": 4}),
    "OPT": ("OPTForCausalLM", _DECODER | {"ffn_dim": 256, "word_embed_proj_dim": 128}),
    "BLOOM": ("BloomForCausalLM", _OLD | {"hidden_size": 128, "n_layer": 2, "n_head": 4}),
    "StarCoder2": ("Starcoder2ForCausalLM", _GROUPED | _WINDOW),
    "LFM2": (
        "Lfm2ForCausalLM",
        _GROUPED | {"layer_types": ["conv", "full_attention"], "block_ff_dim": 256},
    ),
    "Mamba 2": (
        "Mamba2ForCausalLM",
        _OLD
        | {"hidden_size": 128, "num_hidden_layers": 2, "num_heads": 8, "head_dim": 32}
        | {"state_size": 16, "n_groups": 1},
    ),
    "Falcon-H1": (
        "FalconH1ForCausalLM",
        _GROUPED
        | {"mamba_d_ssm": 128, "mamba_n_heads": 4, "mamba_d_head": 32}
        | {"mamba_d_state": 16, "mamba_n_groups": 1},
    ),
    "BERT": ("BertModel", _TEXT),
    "RoBERTa": ("RobertaModel", _ROBERTA),
    "XLM-R": ("XLMRobertaModel", _ROBERTA),
    "DistilBERT": (
        "DistilBertModel",
        {"vocab_size": WORDS, "dim": 128, "hidden_dim": 256, "n_layers": 2, "n_heads": 4},
    ),
    "ELECTRA": ("ElectraModel", _TEXT | {"embedding_size": 64}),
    "MPNet": ("MPNetModel", _ROBERTA),
    "DeBERTa v3": (
        "DebertaV2Model",
        _TEXT
        | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 32}
        | {"norm_rel_ebd": "layer_norm", "share_att_key": True, "position_biased_input": False},
    ),
    "ModernBERT": (
        "ModernBertModel",
        _DECODER | {"local_attention": 16, "cls_token_id": 1, "sep_token_id": 2},
    ),
    "Nomic": ("NomicBertModel", _TEXT),
    "T5": ("T5ForConditionalGeneration", _T5),
    "BART": ("BartForConditionalGeneration", _PAIR),
    "Marian": ("MarianMTModel", _PAIR),
    "Whisper": (
        "WhisperForConditionalGeneration",
        {k: v for k, v in _PAIR.items() if k != "max_position_embeddings"}
        | {"num_mel_bins": 16, "max_source_positions": 60, "max_target_positions": 64}
        | {"suppress_tokens": None, "begin_suppress_tokens": None},
    ),
    "ViT": ("ViTModel", _IMAGE),
    "DINOv2": ("Dinov2Model", {k: v for k, v in _IMAGE.items() if k != "intermediate_size"}),
    "Swin": (
        "SwinModel",
        {"image_size": 32, "patch_size": 2, "embed_dim": 64, "depths": [2, 2]}
        | {"num_heads": [2, 4], "window_size": 4},
    ),
    "CLIP": (
        "CLIPModel",
        {"text_config": _TEXT | {"max_position_embeddings": 32, "eos_token_id": 2}}
        | {"vision_config": _IMAGE, "projection_dim": 64},
    ),
    "SigLIP": (
        "SiglipModel",
        {"text_config": _TEXT | {"max_position_embeddings": 32, "projection_size": 128}}
        | {"vision_config": _IMAGE},
    ),
    "wav2vec 2.0": ("Wav2Vec2ForCTC", _WAVE | {"vocab_size": 64}),
}
"""By name: the class of transformers, and its options."""


def make(name: str, folder: Path) -> None:
    """Write a family's model and a tokenizer as a Hugging Face folder."""
    kind, options = FAMILIES[name]
    model_class = getattr(transformers, kind)
    torch.manual_seed(sum(map(ord, name)))
    model = model_class(model_class.config_class(**options)).float().eval()
    with torch.no_grad():
        for label, values in model.named_parameters():
            _draw(name, label.lower(), values.data)
    model.tie_weights()
    model.save_pretrained(folder)
    _tokenizer().save_pretrained(folder)


def _draw(name: str, label: str, values: Any) -> None:
    looked_up = any(word in label for word in ("embed", "wte", "wpe", "shared"))
    if values.ndim == 2 and looked_up:
        values.normal_(0.0, 1.0 / math.sqrt(values.shape[1]))
        values[:, :3] *= 4.0
    elif values.ndim >= 2 and "conv" not in label and "relative" not in label:
        values.normal_(0.0, 1.0 / math.sqrt(values[0].numel()))
        if name == "T5" and label.endswith(".q.weight"):
            values /= math.sqrt(_T5["d_kv"])  # its scores are not scaled
    elif values.ndim == 1 and label.endswith("weight") and ("norm" in label or "ln" in label):
        scales = torch.exp(0.3 * torch.randn_like(values))
        values.copy_(scales - 1.0 if name.startswith("Gemma") else scales)  # Gemma's are 1 + w
    elif values.ndim == 1 and label.endswith("bias"):
        values.normal_(0.0, 0.1)


def _tokenizer() -> Any:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>", "<unk>"]
    trainer = trainers.BpeTrainer(
        vocab_size=WORDS,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(topics.values(), trainer)
    names = dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), special, strict=True))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, **names)
