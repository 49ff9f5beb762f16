"""A Llama-shaped decoder of any size with random weights: speed and memory without a download.

    python examples/synthetic_decoder.py TOKENIZER OUT [--hidden 2048 --layers 16 ...]

TOKENIZER is any model folder that has one. OUT becomes a Hugging Face folder, for `qc export`; by
default of the shape of Llama 3.2 1B, but for its vocabulary. What such a model says means nothing.
"""

from __future__ import annotations

import argparse
from pathlib import Path


def write(
    tokenizer: Path,
    out: Path,
    *,
    hidden: int = 2048,
    inner: int = 8192,
    layers: int = 16,
    heads: int = 32,
    kv_heads: int = 8,
    seed: int = 0,
) -> Path:
    """Write the model into the folder `out`, which it returns."""
    import torch  # noqa: PLC0415  (slow to import)
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM  # noqa: PLC0415

    words = AutoTokenizer.from_pretrained(tokenizer)
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        vocab_size=len(words),
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
    )
    torch.manual_seed(seed)
    LlamaForCausalLM(config).save_pretrained(out)
    words.save_pretrained(out)
    return out


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("tokenizer", type=Path, help="a model folder with a tokenizer")
    parser.add_argument("out", type=Path, help="the folder to create")
    parser.add_argument("--hidden", type=int, default=2048, help="width of the residual stream")
    parser.add_argument("--inner", type=int, default=8192, help="width inside the MLP")
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--heads", type=int, default=32, help="heads of queries")
    parser.add_argument("--kv-heads", type=int, default=8, help="heads of keys and values")
    parser.add_argument("--seed", type=int, default=0, help="of the weights")
    write(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()
