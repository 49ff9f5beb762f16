"""A model on disk: an ONNX file, or a folder of one or of several that feed one another.

`open_package` answers, from the files alone, what every command asks first: which ONNX file, which
tokenizer, which special tokens, how many bytes. Weights are never read here.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import onnx
from tokenizers import Tokenizer

from qcompiler import settings
from qcompiler.commit import is_data_of
from qcompiler.errors import ModelError, shown
from qcompiler.files import TOKENIZER_BYTES, read_bytes, read_json, read_text
from qcompiler.folders import GENAI_CONFIG, model_files
from qcompiler.foreign import foreign_errors, silenced
from qcompiler.protos import outlined, read_proto
from qcompiler.settings import Settings
from qcompiler.soundness import check_model
from qcompiler.stored import external_files

TOKENIZER = "tokenizer.json"
SIDE_FILES = (
    TOKENIZER,
    "tokenizer_config.json",
    "chat_template.jinja",
    "special_tokens_map.json",
    "generation_config.json",
    "config.json",
)
"""Small files that describe a model to its users; they travel with it."""


@dataclass(frozen=True)
class ModelPackage:
    """A model file with what lies around it.

    `folder` is set when the user named a folder; `config` is its genai_config.json (or None);
    `tokenizer_file` is a tokenizer.json beside the ONNX file (or None).
    """

    onnx_path: Path
    folder: Path | None
    config: Settings | None
    tokenizer_file: Path | None

    @property
    def name(self) -> str:
        """A short name for tables: the folder's name, or the file's stem."""
        if self.folder is not None:
            return self.folder.resolve().name
        if self.onnx_path.stem == "model":
            return self.onnx_path.resolve().parent.name
        return self.onnx_path.stem

    def proto(self) -> onnx.ModelProto:
        """The model without its external data."""
        return read_proto(self.onnx_path)

    @cached_property
    def outline(self) -> onnx.ModelProto:
        """The same without the values of its larger tensors, read once: not to be changed."""
        return outlined(self.proto())

    def tokenizer(self) -> Tokenizer:
        """The tokenizer, with any truncation and padding it carries switched off.

        Raises ModelError when there is none, or it can't be read.
        """
        if self.tokenizer_file is None:
            raise ModelError(
                f"{self.onnx_path}: no tokenizer.json beside the model; put the tokenizer of the "
                "source model there"
            )
        content = read_bytes(self.tokenizer_file, TOKENIZER_BYTES, ModelError)
        what = f"{self.tokenizer_file} is not a usable tokenizer"
        with foreign_errors(ModelError, what, "copy that of the source model again"), silenced():
            tokenizer: Tokenizer = Tokenizer.from_buffer(content)
            tokenizer.no_truncation()
            tokenizer.no_padding()
            tokenizer.encode("a 1", add_special_tokens=True)  # some fail only when they are used
        return tokenizer

    @cached_property
    def data_files(self) -> tuple[Path, ...]:
        """The external-data files the model refers to, each found to hold what is claimed."""
        return external_files(self.outline, self.onnx_path)

    @property
    def files(self) -> tuple[Path, ...]:
        """The ONNX file and its data."""
        return (self.onnx_path, *self.data_files)

    def refuse_overwriting(self, output: Path) -> None:
        """ModelError where writing `output` would replace the model, its folder, or its data.

        So for a name that a model can't hold: it names the file of its data.
        """
        if output.suffix == ".onnx" and not _is_text(output.name):
            raise ModelError(f"output '{output}' has a name that is not UTF-8; choose one with -o")
        place = Path(os.path.realpath(output))  # of a link to itself, too
        files = [file.resolve() for file in self.files]
        taken = place in files
        if self.folder is not None:
            taken |= self.folder.resolve().is_relative_to(place)
        beside = [file.name for file in files if file.parent == place.parent]
        if taken or any(is_data_of(name, place.name) for name in beside):
            raise ModelError(
                f"output '{output}' would overwrite its source; choose another with -o"
            )

    def size_bytes(self) -> int:
        """Bytes of the ONNX file and of the external-data files it refers to."""
        return sum(file.stat().st_size for file in self.files)

    def bos_id(self) -> int | None:
        """The begin-of-text token, or None where the model's files name none."""
        for found in self._token_settings():
            if (bos := settings.token(found, "bos_token_id")) is not None:
                return bos
        return self._token_of("bos_token")

    def eos_ids(self) -> tuple[int, ...]:
        """The tokens that end a text; empty where the model's files name none."""
        for found in self._token_settings():
            if (eos := settings.tokens(found, "eos_token_id")) is not None:
                return eos
        end = self._token_of("eos_token")
        return () if end is None else (end,)

    def context_length(self) -> int | None:
        """Tokens the model reads at most, or None where its files don't say."""
        for found in self._token_settings():
            for key in ("context_length", "max_position_embeddings"):
                if (limit := settings.count(found, key)) is not None:
                    return limit
        return None

    def frame(self) -> tuple[list[int], list[int]]:
        """The tokens that the tokenizer puts before and after a text, e.g. [CLS] and [SEP].

        Often a decoder has a begin-of-text token (`bos_id`) that it does not start plain text with.
        """
        if self.tokenizer_file is None:
            return [], []
        tokenizer = self.tokenizer()
        bare = tokenizer.encode("a", add_special_tokens=False).ids
        framed = tokenizer.encode("a", add_special_tokens=True).ids
        for i in range(len(framed) - len(bare) + 1):
            if framed[i : i + len(bare)] == bare:
                return framed[:i], framed[i + len(bare) :]
        return [], []

    def special_ids(self) -> frozenset[int]:
        """Tokens that are no text: the tokenizer's special ones, and begin and end of text."""
        special = set(self.eos_ids())
        if (bos := self.bos_id()) is not None:
            special.add(bos)
        if self.tokenizer_file is not None:
            added = self.tokenizer().get_added_tokens_decoder()
            special.update(token for token, about in added.items() if about.special)
        return frozenset(special)

    def chat_template(self) -> str | None:
        """The Jinja chat template beside the model, or None."""
        file = self.onnx_path.parent / "chat_template.jinja"
        if file.is_file():
            return read_text(file, ModelError)
        return settings.text(self._side("tokenizer_config.json"), "chat_template")

    def _token_settings(self) -> Iterator[Settings]:
        if self.config is not None:
            yield settings.table(self.config, "model")
        yield self._side("generation_config.json")
        yield self._side("config.json")

    def _token_of(self, role: str) -> int | None:
        found = self._side("tokenizer_config.json")
        content = settings.text(found, role) or settings.text(
            settings.table(found, role), "content"
        )
        if content is None or self.tokenizer_file is None:
            return None
        return self.tokenizer().token_to_id(content)

    def _side(self, name: str) -> Settings:
        file = self.onnx_path.parent / name
        return read_json(file, ModelError) if file.is_file() else {}


def _is_text(name: str) -> bool:
    """Whether a name has an encoding: bytes of file names that are not UTF-8 have none."""
    return name.encode("utf-8", "replace").decode() == name


def open_package(path: str | Path) -> ModelPackage:
    """Find the ONNX file, config and tokenizer that `path` (a file or a folder) stands for.

    Raises ModelError if nothing is there, or several models, or it is no sound ONNX model
    (`soundness`).
    """
    return _opened(find_package(path))


def open_packages(path: str | Path) -> tuple[ModelPackage, ...]:
    """The same for a folder that may hold several models: all that belong together."""
    return tuple(_opened(package) for package in _find(Path(path)))


def find_package(path: str | Path) -> ModelPackage:
    """What `open_package` gives, for a model that has been opened already: nothing is read."""
    first, *more = _find(Path(path))
    if more:
        names = ", ".join(package.onnx_path.name for package in (first, *more))
        raise ModelError(f"{path} holds {1 + len(more)} models ({names}): name the file of one")
    return first


def _opened(package: ModelPackage) -> ModelPackage:
    model = package.proto()
    # As if these had been asked for: the file is read once.
    vars(package)["data_files"] = check_model(model, package.onnx_path)
    vars(package)["outline"] = outlined(model)
    return package


def _find(path: Path) -> tuple[ModelPackage, ...]:
    if path.is_dir():
        config = _genai_config(path)
        files = [path / name for name in model_files(path, config)]
    elif path.is_file():
        # A compiled variant beside its source is the same network: the config holds for it too.
        config = _genai_config(path.parent)
        files = [path]
    else:
        raise ModelError(f"{path}: no such file or folder")
    tokenizer = files[0].parent / TOKENIZER
    return tuple(
        ModelPackage(
            onnx_path=file,
            folder=path if path.is_dir() else None,
            config=config,
            tokenizer_file=tokenizer if tokenizer.is_file() else None,
        )
        for file in files
    )


def _genai_config(folder: Path) -> Settings | None:
    """A folder's genai_config.json, None without one; ModelError where it can't be one."""
    file = folder / GENAI_CONFIG
    if not file.is_file():
        return None
    config = found = read_json(file, ModelError)
    for key in ("model", "decoder", "session_options"):
        inner = found.get(key)
        if inner is not None and not isinstance(inner, dict):
            raise ModelError(
                f"{file}: '{key}' must be an object, not {shown(inner)}; repair or remove the file"
            )
        found = inner or {}
    return config
