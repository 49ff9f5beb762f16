"""What else a model folder holds goes into the compiled one, and so does the op library."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qcompiler.errors import ModelError
from qcompiler.files import read_json
from qcompiler.folders import GENAI_CONFIG, pipeline
from qcompiler.models import ModelPackage
from qcompiler.targets import Target

_log = logging.getLogger(__name__)


def check_companions(packages: Sequence[ModelPackage], target: Target) -> None:
    """RuntimeLibraryError where the op library that belongs beside the models of a folder is
    missing: to be known before the long passes."""
    if packages[0].folder is not None and target.library is not None:
        target.library.path()


def put_companions(packages: Sequence[ModelPackage], result: Path, target: Target) -> list[Path]:
    """Copy tokenizer, configuration and whatever is beside the models of a folder into `result`.

    The op library of the target comes too, and genai_config.json names it. Returns what was put.
    """
    folder = packages[0].folder
    assert folder is not None  # the caller asks for folders only
    skip = {file.resolve() for package in packages for file in package.files}
    copied: list[Path] = []
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.resolve() not in skip:
            shutil.copyfile(path, result / path.name)
            copied.append(result / path.name)
    if target.library is None:
        return copied
    library = target.library.path()
    if library is None:
        _log.warning(
            "%s was not built with this qcompiler, for want of nvcc: put it beside the model",
            target.library.name,
        )
    else:
        shutil.copyfile(library, result / library.name)
        copied.append(result / library.name)
    if (result / GENAI_CONFIG).is_file():
        name = target.library.name if library is None else library.name
        _name_library(result / GENAI_CONFIG, packages, name, target)
    return copied


def _name_library(
    config: Path, packages: Sequence[ModelPackage], library: str, target: Target
) -> None:
    """Have onnxruntime-genai load the op library, with the provider that the target needs."""
    data = read_json(config, ModelError)
    model = _object(data, "model")
    decoder = _object(model, "decoder")
    if len(packages) == 1 and not pipeline(data):
        decoder["filename"] = packages[0].onnx_path.name
    _object(decoder, "session_options")
    for section in (*model.values(), *pipeline(data).values()):
        # The decoder's options hold for all that have none of their own.
        if isinstance(section, dict) and isinstance(section.get("session_options"), dict):
            options: dict[str, Any] = section["session_options"]
            options["custom_ops_library"] = library
            if target.provider_options:
                options["provider_options"] = list(target.provider_options)
    config.write_text(json.dumps(data, indent=4), encoding="utf-8")


def _object(settings: dict[str, Any], key: str) -> dict[str, Any]:
    """The object at a key, put there where there is none."""
    if settings.get(key) is None:
        settings[key] = {}
    inner: dict[str, Any] = settings[key]
    return inner
