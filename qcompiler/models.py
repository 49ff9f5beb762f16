"""A model on disk: an ONNX file, or a folder in onnxruntime-genai's layout.

`open_package` answers, from the files alone, what every command asks first: which ONNX file, which
tokenizer, which special tokens, how many bytes. Weights are never read here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from tokenizers import Tokenizer

from qcompiler.errors import ModelError, QcError
from qcompiler.protos import read_proto
from qcompiler.soundness import check_model
from qcompiler.stored import external_files

GENAI_CONFIG = "genai_config.json"
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
    config: Mapping[str, Any] | None
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

    def tokenizer(self) -> Tokenizer:
        """The tokenizer, with any truncation and padding it carries switched off.

        Raises ModelError when there is none, or it can't be read.
        """
        if self.tokenizer_file is None:
            raise ModelError(
                f"{self.onnx_path}: no tokenizer.json beside the model; put the tokenizer of the "
                "source model there"
            )
        try:
            tokenizer = Tokenizer.from_file(str(self.tokenizer_file))
        except Exception as error:  # the binding raises bare Exception
            raise ModelError(f"{self.tokenizer_file} is not a usable tokenizer: {error}") from error
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer

    def data_files(self) -> tuple[Path, ...]:
        """The external-data files the model refers to, each checked to hold what is claimed."""
        return external_files(self.proto(), self.onnx_path)

    def refuse_overwriting(self, output: Path) -> None:
        """ModelError where writing `output`, or the data beside it, would replace the model."""
        sources = [self.onnx_path, *self.data_files()]
        if self.folder is not None:
            sources.append(self.folder)
        results = [output, output.with_name(output.name + ".data")]
        if any(a.resolve() == b.resolve() for a in sources for b in results):
            raise ModelError(
                f"output '{output}' would overwrite its source; choose another with -o"
            )

    def size_bytes(self) -> int:
        """Bytes of the ONNX file and of the external-data files it refers to."""
        return sum(file.stat().st_size for file in (self.onnx_path, *self.data_files()))

    def bos_id(self) -> int | None:
        """The begin-of-text token, or None where the model's files name none."""
        for settings in self._token_settings():
            if isinstance(bos := settings.get("bos_token_id"), int):
                return bos
        return self._token_of("bos_token")

    def eos_ids(self) -> tuple[int, ...]:
        """The tokens that end a text; empty where the model's files name none."""
        for settings in self._token_settings():
            eos = settings.get("eos_token_id")
            if isinstance(eos, int):
                return (eos,)
            if isinstance(eos, list):
                return tuple(token for token in eos if isinstance(token, int))
        eos = self._token_of("eos_token")
        return () if eos is None else (eos,)

    def context_length(self) -> int | None:
        """Tokens the model reads at most, or None where its files don't say."""
        for settings in self._token_settings():
            for key in ("context_length", "max_position_embeddings"):
                if isinstance(limit := settings.get(key), int):
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
            return file.read_text(encoding="utf-8")
        template = self._side("tokenizer_config.json").get("chat_template")
        return template if isinstance(template, str) else None

    def _token_settings(self) -> Iterator[Mapping[str, Any]]:
        if self.config is not None:
            model = self.config.get("model")
            if isinstance(model, Mapping):
                yield model
        yield self._side("generation_config.json")
        yield self._side("config.json")

    def _token_of(self, role: str) -> int | None:
        content = self._side("tokenizer_config.json").get(role)
        if isinstance(content, dict):
            content = content.get("content")
        if not isinstance(content, str) or self.tokenizer_file is None:
            return None
        return self.tokenizer().token_to_id(content)

    def _side(self, name: str) -> Mapping[str, Any]:
        file = self.onnx_path.parent / name
        return read_json(file) if file.is_file() else {}


def open_package(path: str | Path) -> ModelPackage:
    """Find the ONNX file, config and tokenizer that `path` (a file or a folder) stands for.

    Raises ModelError if nothing is there, or it is no sound ONNX model (`soundness`).
    """
    package = find_package(path)
    check_model(package.proto(), package.onnx_path)
    return package


def find_package(path: str | Path) -> ModelPackage:
    """The same for a model that has been opened already: nothing is read."""
    path = Path(path)
    if path.is_dir():
        folder: Path | None = path
        config = _genai_config(path)
        onnx_path = path / _onnx_name(path, config)
    elif path.is_file():
        folder, onnx_path = None, path
        # A compiled variant beside its source is the same network: the config holds for it too.
        config = _genai_config(path.parent)
    else:
        raise ModelError(f"{path}: no such file or folder")
    if not onnx_path.is_file():
        raise ModelError(f"{path}: the folder holds no {onnx_path.name}; name the ONNX file itself")
    tokenizer = onnx_path.parent / TOKENIZER
    return ModelPackage(
        onnx_path=onnx_path,
        folder=folder,
        config=config,
        tokenizer_file=tokenizer if tokenizer.is_file() else None,
    )


def _genai_config(folder: Path) -> Mapping[str, Any] | None:
    file = folder / GENAI_CONFIG
    return read_json(file) if file.is_file() else None


def _onnx_name(folder: Path, config: Mapping[str, Any] | None) -> str:
    name: Any = "model.onnx"
    if config is not None:
        model = config.get("model")
        decoder = model.get("decoder") if isinstance(model, dict) else None
        name = decoder.get("filename", name) if isinstance(decoder, dict) else name
    if not isinstance(name, str) or Path(name).name != name:
        raise ModelError(f"{folder / GENAI_CONFIG}: the decoder's filename must be a plain name")
    return name


def read_json(file: Path, refusal: type[QcError] = ModelError) -> dict[str, Any]:
    """The object a JSON file holds; an error of type `refusal` where it holds none."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise refusal(f"{file} is not readable JSON: {error}") from error
    if not isinstance(value, dict):
        raise refusal(f"{file}: expected a JSON object")
    return value
