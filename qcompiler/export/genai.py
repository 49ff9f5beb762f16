"""Decoder graphs by onnxruntime-genai's model builder, run in a process of its own."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

from qcompiler.errors import ExportError

BUILDER = "onnxruntime_genai.models.builder"
_TAIL_LINES = 8


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
        tail = " | ".join(line.strip() for line in done.stdout.splitlines()[-_TAIL_LINES:])
        raise ExportError(
            f"onnxruntime-genai's builder failed (exit code {done.returncode}): {tail}; "
            "--dialect torch may work"
        )
