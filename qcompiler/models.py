"""A model on disk: an ONNX file, or a folder in onnxruntime-genai's layout.

`open_package` answers, from the files alone, what every command asks first: which ONNX file, which
tokenizer, which special tokens, how many bytes. Weights are never read here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from tokenizers import Tokenizer

from qcompiler import literals, settings
from qcompiler.errors import ModelError, shown
from qcompiler.files import TOKENIZER_BYTES, read_bytes, read_json, read_text
from qcompiler.foreign import foreign_errors, one_line, silenced
from qcompiler.settings import Settings

_LONGEST_NAME = 200  # of a file; systems take 255 bytes
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

    def data_files(self) -> tuple[Path, ...]:
        """The external-data files the model refers to, each checked to hold what is claimed."""
        return external_files(self.proto(), self.onnx_path)

    def refuse_overwriting(self, output: Path) -> None:
        """ModelError where writing `output`, or the data beside it, would replace the model.

        So for a name that a model can't hold: it names the file of its data.
        """
        if output.suffix == ".onnx" and not _is_text(output.name):
            raise ModelError(f"output '{output}' has a name that is not UTF-8; choose one with -o")
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
    """Parse an ONNX file without loading external data; ModelError if it is not one."""
    try:
        model = onnx.load(str(path), load_external_data=False)
    except DecodeError as error:
        raise ModelError(
            f"{path} is not an ONNX model, or is cut off; export or copy it again"
        ) from error
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} can't be read: {one_line(error)}") from error
    if model.ir_version == 0 or not model.HasField("graph"):
        raise ModelError(f"{path} is not an ONNX model: it holds no graph")
    _write_plain_domains(model)
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

    def walk(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
        for node in nodes:
            yield node
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    yield from walk(attribute.g.node)
                for graph in attribute.graphs:
                    yield from walk(graph.node)

    yield from walk(model.graph.node)
    for function in model.functions:
        yield from walk(function.node)


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
        # "" is what some writers give for none.
        offset, length = (literals.whole(entries.get(key) or "0") for key in ("offset", "length"))
    except ValueError:
        offset = length = -1
    if offset < 0 or length < 0:
        raise ModelError(f"{where}: its external-data offset or length is not a byte count")
    return offset, length


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


def _onnx_name(folder: Path, config: Settings | None) -> str:
    found = settings.table(config or {}, "model", "decoder").get("filename", "model.onnx")
    plain = isinstance(found, str) and Path(found).name == found and len(found) < _LONGEST_NAME
    if not plain:
        raise ModelError(f"{folder / GENAI_CONFIG}: the decoder's filename must be a plain name")
    return found
