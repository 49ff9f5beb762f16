"""Decoder graphs by onnxruntime-genai's model builder, run in a process of its own."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

from qcompiler.errors import ExportError
from qcompiler.export import kinds
from qcompiler.export.sources import is_decoder, package_folder, read_config

BUILDER = "onnxruntime_genai.models.builder"
_MISBUILT = {
    "Gemma3ForCausalLM": "it has rotary embeddings of two kinds, and the builder reads one",
    "SmolLM3ForCausalLM": "it has layers without rotary embeddings, and the builder adds them",
}
"""What the builder of onnxruntime-genai 0.18 lists, but fails on or builds wrongly."""


def obstacle(folder: Path) -> str | None:
    """Why the builder can't build the model of a Hugging Face folder; None where it can.

    Read from its source: to import it takes long. It may not be installed: `build` says so.
    """
    name = kinds.architecture(read_config(folder))
    if not is_decoder(folder):
        return "it is no decoder, and onnxruntime-genai's builder makes nothing else"
    if name in _MISBUILT:
        return f"onnxruntime-genai can't build {name}: {_MISBUILT[name]}"
    installed = package_folder("onnxruntime_genai")
    if installed is None:
        return None
    source = (installed / "models" / "builder.py").read_text(encoding="utf-8")
    if name not in re.findall(r'architectures\[0\] == "(\w+)"', source):
        return f"onnxruntime-genai can't build {name}"
    return None


def build(folder: Path, out: Path, cache: Path, precision: str) -> None:
    """Build the model of a Hugging Face `folder` into `out`, for the CPU.

    Raises ExportError with the builder's last lines when it fails.
    """
    if importlib.util.find_spec("onnxruntime_genai") is None:
        raise ExportError(
            "the genai dialect needs onnxruntime-genai: pip install 'qcompiler[export]' "
            "(on machines it has no wheel for, use --dialect torch)"
        )
    command = [
        *(sys.executable, "-m", BUILDER),
        *("-i", str(folder), "-o", str(out), "-p", precision, "-e", "cpu", "-c", str(cache)),
        *("--extra_options", "hf_token=false"),
        # Else layers with a sliding window have buffers of the window's size, which no graph of
        # standard operators, and no decoding from an empty cache, can be fed with.
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
            f"onnxruntime-genai's builder failed (exit code {done.returncode}): {cause}; use "
            "--dialect torch"
        )
