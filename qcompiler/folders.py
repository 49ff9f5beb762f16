"""Which ONNX files of a folder make up its model: one, or several that feed one another.

| folder | its files |
| --- | --- |
| genai_config.json names files in its sections, or in the parts of its decoder's pipeline | these |
| holds model.onnx | that |
| anything else | every .onnx, but for variants of others: decoder_int8.onnx beside decoder.onnx |
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from qcompiler import settings
from qcompiler.errors import ModelError
from qcompiler.settings import Settings

GENAI_CONFIG = "genai_config.json"
MODEL = "model.onnx"
_LONGEST_NAME = 200  # of a file; systems take 255 bytes
_VARIANT = re.compile(
    r"(.+?)([._-](quant(ized)?|[qu]?int\d+|q\d+(f\d+)?|w\d+a\d+|bnb\d+|qdq|"
    r"b?fp?\d+|b?float\d+|o\d|optimized))+",
    re.IGNORECASE,
)
"""The name of a model, and in what form this file has it."""


def model_files(folder: Path, config: Settings | None) -> tuple[str, ...]:
    """The names of the ONNX files that belong together, of a folder with its genai_config.json.

    ModelError where there is none, one is missing, or two are variants of the same model.
    """
    named = sections(folder, config)
    for name, section in named.items():
        if not (folder / name).is_file():
            raise ModelError(
                f"{folder}: the folder holds no {name}, which {GENAI_CONFIG} names for its "
                f"{section}; put it there, or name an ONNX file itself"
            )
    if named:
        return tuple(named)
    if (folder / MODEL).is_file():
        return (MODEL,)
    stems = sorted(each.stem for each in folder.glob("*.onnx") if each.is_file())
    if not stems:
        raise ModelError(f"{folder}: the folder holds no {MODEL}; name the ONNX file itself")
    return tuple(f"{stem}.onnx" for stem in _without_variants(folder, stems))


def sections(folder: Path, config: Settings | None) -> Mapping[str, str]:
    """The files that a genai_config.json names, each with the (first) section that does.

    ModelError for what can't be the name of a file.
    """
    found: dict[str, str] = {}
    named = {section: settings.table(config or {}, "model", section) for section in _model(config)}
    named |= {f"pipeline's {name}": part for name, part in pipeline(config).items()}
    for section, given in named.items():
        if "filename" not in given:
            continue
        name = given["filename"]
        plain = isinstance(name, str) and Path(name).name == name and len(name) < _LONGEST_NAME
        if not plain:
            raise ModelError(
                f"{folder / GENAI_CONFIG}: the {section}'s filename must be a plain name"
            )
        found.setdefault(name, section)
    return found


def pipeline(config: Settings | None) -> Mapping[str, Settings]:
    """The parts that a genai_config.json cuts its decoder into, in order, each by its name.

    They hand to each other what has one name, under the names of `output_names_forwarder`.
    """
    given = settings.table(config or {}, "model", "decoder").get("pipeline")
    steps = given if isinstance(given, list) else [given]
    return {
        name: settings.table(step, name)
        for step in steps
        if isinstance(step, Mapping)
        for name in step
    }


def _model(config: Settings | None) -> Settings:
    return settings.table(config or {}, "model")


def _without_variants(folder: Path, stems: Sequence[str]) -> list[str]:
    """Each model once: in its plain form, or in the only one that is there."""
    forms: dict[str, list[str]] = {}
    for stem in stems:
        forms.setdefault(_plain(stem, stems), []).append(stem)
    for plain, same in forms.items():
        if len(same) > 1 and plain not in same:
            names = " and ".join(f"{stem}.onnx" for stem in same)
            raise ModelError(
                f"{folder}: {names} look like variants of one model, and there is no "
                f"{plain}.onnx; name the ONNX file itself"
            )
    return [plain if plain in same else same[0] for plain, same in forms.items()]


def _plain(stem: str, stems: Sequence[str]) -> str:
    """The name of the model that a file holds in some form, as compiled files are named too."""
    parts = stem.split(".")
    for end in range(1, len(parts)):
        if (before := ".".join(parts[:end])) in stems:
            return before
    found = _VARIANT.fullmatch(stem)
    return stem if found is None else found[1]
