"""Decoder graphs by onnxruntime-genai's model builder, run in a process of its own."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from qcompiler import settings
from qcompiler.errors import ExportError
from qcompiler.export import kinds
from qcompiler.export.sources import CONFIG, has_tokenizer, is_decoder, package_folder, read_config

BUILDER = "onnxruntime_genai.models.builder"
_STATES = "it keeps states that are no keys and values, and the builder's can't be fed"
_UNUSABLE = {
    "Gemma3ForCausalLM": "it has rotary embeddings of two kinds, and the builder reads one",
    "SmolLM3ForCausalLM": "it has layers without rotary embeddings, and the builder adds them",
    "GraniteMoeHybridForCausalLM": _STATES,
    "Lfm2ForCausalLM": _STATES,
    "Lfm2MoeForCausalLM": _STATES,
}
"""What the builder lists, but fails on, builds wrongly, or builds as no decoder of ours runs it."""
_ALL_SLIDING = ("MistralForCausalLM", "Phi3ForCausalLM")
"""With a sliding window in all layers. The builder drops it where the config has no layer types."""


def obstacle(folder: Path) -> str | None:
    """Why the builder can't build the model of a Hugging Face folder; None where it can.

    Read from its source: to import it takes long. It may not be installed: `build` says so.
    """
    name = kinds.architecture(read_config(folder))
    if not is_decoder(folder):
        return "it is no decoder, and onnxruntime-genai's builder makes nothing else"
    if name in _UNUSABLE:
        return f"onnxruntime-genai can't build {name}: {_UNUSABLE[name]}"
    installed = package_folder("onnxruntime_genai")
    if installed is None:
        return None
    source = (installed / "models" / "builder.py").read_text(encoding="utf-8")
    if name not in re.findall(r'architectures\[0\] == "(\w+)"', source):
        return f"onnxruntime-genai can't build {name}"
    if not has_tokenizer(folder):
        return "the folder holds no tokenizer, and onnxruntime-genai's builder needs one"
    return None


def build(folder: Path, out: Path, work: Path, precision: str) -> None:
    """Build the model of a Hugging Face `folder` into `out`, for the CPU; `work` is for scratch.

    Raises ExportError with the builder's last line when it fails.
    """
    if importlib.util.find_spec("onnxruntime_genai") is None:
        raise ExportError(
            "the genai dialect needs onnxruntime-genai: pip install 'qcompiler[export]', on "
            "machines that it has wheels for"
        )
    command = [
        *(sys.executable, "-m", BUILDER),
        *("-i", str(adapted(folder, work / "adapted")), "-o", str(out), "-p", precision),
        *("-e", "cpu", "-c", str(work / "cache"), "--extra_options", "hf_token=false"),
        # Else a layer with a sliding window wants a buffer of its size, never an empty one.
        "windowed_kv_cache=false",
    ]
    # The source is a local folder: nothing may go looking for it on the network.
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    done = subprocess.run(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode != 0 or not (out / "model.onnx").is_file():
        # The last line of a traceback is the cause.
        said = [line.strip() for line in done.stdout.splitlines() if line.strip()]
        cause = said[-1] if said else "it said nothing"
        raise ExportError(
            f"onnxruntime-genai's builder failed (exit code {done.returncode}): {cause}"
        )


def adapted(folder: Path, copy: Path) -> Path:
    """The folder, or a copy whose config says what the builder reads; weights are linked."""
    config = read_config(folder)
    edited = _edited(config)
    if edited == config:
        return folder
    copy.mkdir(parents=True)
    for file in folder.iterdir():
        (copy / file.name).symlink_to(file.resolve())
    (copy / CONFIG).unlink()
    (copy / CONFIG).write_text(json.dumps(edited), encoding="utf-8")
    return copy


def _edited(config: dict[str, Any]) -> dict[str, Any]:
    """The same model, in the words of the builder."""
    name, edited = kinds.architecture(config), dict(config)
    layers = settings.count(config, "num_hidden_layers")
    if name in _ALL_SLIDING and layers and settings.count(config, "sliding_window"):
        edited.setdefault("layer_types", ["sliding_attention"] * layers)
    if name != "Phi3ForCausalLM":
        return edited
    scaled = False
    for key in ("rope_scaling", "rope_parameters"):
        rope = settings.table(config, key)
        if "longrope" in (rope.get("type"), rope.get("rope_type")):
            edited[key] = {**rope, "type": "longrope"}
            scaled = True
    if not scaled and "max_position_embeddings" in config:
        # Where they differ, the builder looks for scaled rotary embeddings.
        edited["original_max_position_embeddings"] = config["max_position_embeddings"]
    return edited
