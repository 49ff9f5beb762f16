"""Reading GGUF: from one file to a folder as Hugging Face has them."""

from __future__ import annotations

from pathlib import Path

from qcompiler.export import fit, ties
from qcompiler.export.hf import libraries, quiet, refused


def gguf_to_folder(gguf: Path, out: Path, *, tie: bool = False) -> tuple[str, ...]:
    """Write a GGUF file as a float32 Hugging Face folder, tokenizer included.

    `tie`: of a table that the file holds twice, as embeddings and as head, one is kept. Returns
    what there is to say. Raises ExportError when the file or its architecture can't be read.
    """
    torch, transformers = libraries(needed_for="GGUF files")
    where = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    remedy = "download it again, or convert it anew"
    with quiet(transformers), refused(f"{gguf} can't be read", remedy):
        loaded, found = transformers.AutoModelForCausalLM.from_pretrained(
            **where,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
        fit.check_sizes(found, str(gguf), "its metadata", remedy)
        if found["missing_keys"]:
            raise fit.lacking(gguf, loaded, found, "its metadata", remedy)
        tokenizer = transformers.AutoTokenizer.from_pretrained(**where)
        notes = ties.settle(torch, loaded, tie=tie)
        config = loaded.config
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        # A model read from GGUF counts as quantized and can't be saved: its weights move to a
        # fresh one of the same shape.
        model = type(loaded)(config)
        model.load_state_dict(loaded.state_dict())
        model.tie_weights()
        model.save_pretrained(out)
        tokenizer.save_pretrained(out)
    return notes
