"""A model on disk: an ONNX file, or a folder in onnxruntime-genai's layout.

`open_package` answers, from the files alone, what every command asks first: which ONNX file, which
tokenizer, which special tokens, how many bytes. Weights are never read here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError
from tokenizers import Tokenizer

from qcompiler.errors import ModelError, QcError
from qcompiler.functions import nodes_below, require_bounded

ONNX_DOMAIN = "ai.onnx"
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

    Raises ModelError if nothing is there or it is no ONNX model.
    """
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
    read_proto(onnx_path)
    tokenizer = onnx_path.parent / TOKENIZER
    return ModelPackage(
        onnx_path=onnx_path,
        folder=folder,
        config=config,
        tokenizer_file=tokenizer if tokenizer.is_file() else None,
    )


def read_proto(path: Path) -> onnx.ModelProto:
    """Parse an ONNX file without loading external data; ModelError if it is not one, or
    its functions have no end."""
    try:
        model = onnx.load(str(path), load_external_data=False)
    except DecodeError as error:
        raise ModelError(
            f"{path} is not an ONNX model, or is cut off; export or copy it again"
        ) from error
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} can't be read: {error}") from error
    if model.ir_version == 0 or not model.HasField("graph"):
        raise ModelError(f"{path} is not an ONNX model: it holds no graph")
    _write_plain_domains(model)
    require_bounded(model, str(path))
    return model


def _write_plain_domains(model: onnx.ModelProto) -> None:
    """ONNX's own domain has two names, '' and 'ai.onnx': from here on, the first."""
    for node in all_nodes(model):
        if node.domain == ONNX_DOMAIN:
            node.ClearField("domain")
    for owner in (model, *model.functions):
        domains = {entry.domain for entry in owner.opset_import}
        for entry in [each for each in owner.opset_import if each.domain == ONNX_DOMAIN]:
            if "" in domains:
                owner.opset_import.remove(entry)
            else:
                entry.domain = ""


def all_nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Every node: of the graph, of its subgraphs, and of the model's local functions."""

    yield from nodes_below(model.graph.node)
    for function in model.functions:
        yield from nodes_below(function.node)


def all_tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every stored tensor: initializers and constants, at any depth."""

    def of_graph(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield sparse.values
            yield sparse.indices

    yield from of_graph(model.graph)
    for node in all_nodes(model):
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            if attribute.HasField("g"):
                yield from of_graph(attribute.g)
            for graph in attribute.graphs:
                yield from of_graph(graph)


def check_tensors(model: onnx.ModelProto, onnx_path: Path) -> None:
    """ModelError where a stored tensor has no known type, a bad shape, or too few bytes."""
    known = onnx.helper.get_all_tensor_dtypes() - {onnx.TensorProto.UNDEFINED}
    for tensor in all_tensors(model):
        where = f"{onnx_path}: tensor '{tensor.name}'"
        if tensor.data_type not in known:
            raise ModelError(f"{where} has the unknown element type {tensor.data_type}")
        if any(dim < 0 for dim in tensor.dims):
            raise ModelError(f"{where} has a negative dimension; export the model again")
        have, need = _claimed_bytes(tensor, where), _stored_bytes(tensor)
        if None not in (have, need) and have != need:
            raise ModelError(
                f"{where} holds {have} bytes, its shape and type need {need}; export the model "
                "again"
            )


def _claimed_bytes(tensor: onnx.TensorProto, where: str) -> int | None:
    """Bytes that a tensor says it has, None where its values are spelled out one by one."""
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        return _byte_range(entries, where)[1] if "length" in entries else None
    return len(tensor.raw_data) if tensor.HasField("raw_data") else None


def _stored_bytes(tensor: onnx.TensorProto) -> int | None:
    """Bytes of a tensor in the file, None for the narrow types that came after int4."""
    count = math.prod(tensor.dims)
    if tensor.data_type in (onnx.TensorProto.INT4, onnx.TensorProto.UINT4):
        return (count + 1) // 2
    if tensor.data_type > onnx.TensorProto.INT4:
        return None
    return count * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize


def external_files(model: onnx.ModelProto, onnx_path: Path) -> tuple[Path, ...]:
    """The distinct external-data files of `model`, in order of first use.

    Raises ModelError when a reference leaves the model's folder, names no file, or reaches beyond
    the file's end.
    """
    # A hub cache links model and data into one store: the linked file's own folder counts as home.
    homes = {onnx_path.parent.resolve(), onnx_path.resolve().parent}
    sizes: dict[Path, int] = {}
    for tensor in all_tensors(model):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = entries.get("location", "")
        where = f"{onnx_path}: tensor '{tensor.name}'"
        file = onnx_path.parent / location
        inside = not Path(location).is_absolute() and ".." not in Path(location).parts
        if not location or not inside or not _within(file.resolve(), homes):
            raise ModelError(f"{where}: its data '{location}' lies outside the model's folder")
        if file not in sizes:
            if not file.is_file():
                raise ModelError(f"{where}: its data file {file} is missing")
            sizes[file] = file.stat().st_size
        end = sum(_byte_range(entries, where))
        if end > sizes[file]:
            raise ModelError(
                f"{where}: {file} is cut off: {end} bytes needed, {sizes[file]} there; "
                "copy or export the model again"
            )
    return tuple(sizes)


def _within(file: Path, homes: Iterable[Path]) -> bool:
    return any(file.is_relative_to(home) for home in homes)


def _byte_range(entries: Mapping[str, str], where: str) -> tuple[int, int]:
    """Offset and length of external data, 0 where they are not given."""
    try:
        offset, length = int(entries.get("offset", 0)), int(entries.get("length", 0))
    except ValueError:
        offset = length = -1
    if offset < 0 or length < 0:
        raise ModelError(f"{where}: its external-data offset or length is not a byte count")
    return offset, length


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
