"""Models in and out of files.

Reading maps external data instead of loading it; writing streams every large initializer to a data
file beside the model, and puts both in place only when they are complete.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import numpy_helper
from onnx_graphsurgeon.ir.tensor import LazyValues

from qcompiler import commit, ops
from qcompiler.errors import FaultError, QcError
from qcompiler.ir import interface, scratch
from qcompiler.ir.attributes import export_graph, import_graph
from qcompiler.ir.casts import without_casts, write_casts
from qcompiler.ir.sparse import without_sparse
from qcompiler.ir.tensors import (
    MappedValues,
    nbytes,
    put_stored,
    spilled,
    spilled_proto,
    stored_type,
    stored_values,
)
from qcompiler.ir.walk import graphs, tensors_of
from qcompiler.protos import all_tensors, read_proto
from qcompiler.staging import scratch_beside
from qcompiler.stored import check_tensors, external_entry, external_files, packed_bits

EXTERNAL_THRESHOLD = 1024
"""Bytes from which an initializer goes to the data file."""

ALIGNMENT = 64
"""Offset alignment in the data file: one cache line, enough for every kernel's loads. ONNX Runtime
maps arrays from any offset."""


def _constants(graph: gs.Graph) -> Iterator[gs.Constant]:
    """The constants of a graph and its subgraphs, with those in attributes and inputs' defaults."""
    for each in graphs(graph):
        tensors: list[Any] = list(tensors_of(each).values())
        for node in each.nodes:
            if node.attrs:
                tensors += node.attrs.values()
        yield from [tensor for tensor in tensors if isinstance(tensor, gs.Constant)]
    yield from interface.defaults(graph)


def _detach(graph: gs.Graph, folder: Path | None) -> None:
    """Map what lies in files of `folder`; the rest becomes a tensor of its own, or a file.

    A part of a message keeps all of it in memory: here, the model with all its nodes.
    """
    store, read = scratch.active(), _read_for_sizes(graph)
    for tensor in _constants(graph):
        values = tensor._values
        if not isinstance(values, LazyValues) or isinstance(values, MappedValues):
            continue
        proto = onnx.TensorProto()
        if values.tensor.data_location == onnx.TensorProto.EXTERNAL and folder is not None:
            proto.CopyFrom(values.tensor)
            kept = scratch.find(folder / external_entry(proto)["location"])
            tensor._values = MappedValues(proto, folder, kept)
        elif (
            store is not None
            and len(values.tensor.raw_data) >= store.threshold
            and id(tensor) not in read
        ):
            tensor._values = spilled_proto(values.tensor, store)
        else:
            proto.CopyFrom(values.tensor)
            tensor._values = LazyValues(proto)


def _read_for_sizes(graph: gs.Graph) -> set[int]:
    """Ids of the constants that ONNX Runtime infers sizes from: it reads none in a file."""
    return {
        id(tensor)
        for each in graphs(graph)
        for node in each.nodes
        if node.op in ("Split", "SplitToSequence") and not node.domain
        for tensor in node.inputs[1:2]
        if isinstance(tensor, gs.Constant)
    }


def _in_memory(tensor: gs.Constant) -> np.ndarray[Any, Any]:
    """The values of a constant as they are stored, in memory."""
    held = stored_values(tensor)
    return np.array(held.load()) if isinstance(held, LazyValues) else held


def import_proto(model: onnx.ModelProto, folder: Path | None = None) -> gs.Graph:
    """A graph over a loaded model whose external data, if any, lies in `folder`."""
    graph = import_graph(without_sparse(model, "" if folder is None else str(folder)))
    _detach(graph, folder)
    return graph


def read_model(path: Path, files: Sequence[Path] | None = None) -> gs.Graph:
    """Read a model; its external data stays on disk and is mapped when a pass reads it.

    `files`: those of its external data, where it has been found sound (`soundness`). Raises
    ModelError for a missing, truncated or non-ONNX file and for external data that is missing,
    short, or outside the model's folder.
    """
    model = read_proto(path)
    if files is None:
        check_tensors(model, path)
        files = external_files(model, path)
    interface.without_habitual_inputs(model)
    try:
        return import_proto(model, _home(model, path, files))
    except QcError:
        raise
    except Exception as error:  # whatever graphsurgeon or onnx trips over in a malformed file
        raise FaultError(
            f"{path} is not valid ONNX ({type(error).__name__}: {error}); export it again"
        ) from error


def _home(model: onnx.ModelProto, path: Path, files: Iterable[Path]) -> Path:
    """The folder that external data is named from.

    A hub cache links model and data into a store under other names, and ONNX Runtime follows links
    out of a folder only where it opens the model itself: the tensors then name the store's files.
    """
    home = path.parent.resolve()
    if all(file.resolve().is_relative_to(home) for file in files):
        return home
    store = path.resolve().parent
    for tensor in all_tensors(model):
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = os.path.relpath((home / entry.value).resolve(), store)
    return store


@contextlib.contextmanager
def on_disk(graph: gs.Graph, folder: Path, above: int) -> Generator[onnx.ModelProto, None, None]:
    """The model of a graph whose arrays in memory of `above` bytes or more have gone to `folder`.

    Those already on disk stay where they are; files are named from `model_folder`, while it lasts.
    """
    store, read = scratch.Scratch(folder.resolve(), above), _read_for_sizes(graph)
    saved: list[tuple[gs.Constant, Any]] = []
    try:
        for tensor in tensors_of(graph).values():
            values = stored_values(tensor) if isinstance(tensor, gs.Constant) else None
            if id(tensor) in read:
                saved.append((tensor, tensor._values))
                put_stored(tensor, _in_memory(tensor))
            elif isinstance(values, np.ndarray) and values.nbytes >= above:
                saved.append((tensor, tensor._values))
                put_stored(tensor, spilled(tensor.name, values, store))
        yield to_model(graph)
    finally:
        for tensor, values in saved:
            tensor._values = values


def model_folder(graph: gs.Graph) -> Path | None:
    """The folder that `to_model` names files from, None where no initializer is mapped.

    Where they lie in several, it is one that has them all somewhere below it.
    """
    return _folder_of(_constants(graph))


def _folder_of(constants: Iterable[gs.Constant]) -> Path | None:
    stored = map(stored_values, constants)
    folders = {values.folder for values in stored if isinstance(values, MappedValues)}
    if len(folders) < 2:
        return next(iter(folders), None)
    return Path(os.path.commonpath(folders))


def to_model(graph: gs.Graph) -> onnx.ModelProto:
    """The ModelProto of a graph, with the function bodies of our ops it uses.

    Initializers still on disk stay references to their file, named from `model_folder`.
    """
    constants = list(_constants(graph))
    with _named_from(_folder_of(constants), constants), without_casts(constants) as casts:
        model = export_graph(graph)
    write_casts(model.graph, casts)
    used = {str(node.op) for each in graphs(graph) for node in each.nodes if _is_ours(node)}
    _attach_functions(model, used)
    return model


def _is_ours(node: gs.Node) -> bool:
    domain: Any = node.domain
    return bool(domain == ops.DOMAIN)


@contextlib.contextmanager
def _named_from(
    folder: Path | None, constants: Iterable[gs.Constant]
) -> Generator[None, None, None]:
    """Constants with the files of mapped ones named from one folder, for as long as it lasts."""
    saved: list[tuple[gs.Constant, Any]] = []
    try:
        for tensor in constants:
            values = stored_values(tensor)
            if not isinstance(values, MappedValues) or values.folder == folder:
                continue
            proto = onnx.TensorProto()
            proto.CopyFrom(values.tensor)
            for entry in proto.external_data:
                if entry.key == "location":
                    entry.value = os.path.relpath(values.folder / entry.value, folder)
            saved.append((tensor, tensor._values))
            put_stored(tensor, LazyValues(proto))
        yield
    finally:
        for tensor, values in saved:
            tensor._values = values


def _attach_functions(model: onnx.ModelProto, used: Iterable[str]) -> None:
    """Give a model the bodies of the ops `used` of ours, as far as it has none."""
    present = {(function.domain, function.name) for function in model.functions}
    version = max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=0)
    for op_type in sorted(used):
        if op_type in ops.OP_TYPES and (ops.DOMAIN, op_type) not in present:
            function = ops.function(op_type)
            for entry in function.opset_import:
                if not entry.domain:  # one model may not mix two versions of an operator
                    entry.version = max(entry.version, version)
            model.functions.append(function)


def _raw_bytes(values: Any) -> bytes | memoryview:
    if isinstance(values, MappedValues):
        if packed_bits(values.tensor.data_type):
            return values.packed()
        return np.ascontiguousarray(values.load()).reshape(-1).view(np.uint8).data
    if isinstance(values, LazyValues):
        proto = values.tensor
        if proto.HasField("raw_data"):
            return proto.raw_data
        return numpy_helper.from_array(numpy_helper.to_array(proto)).raw_data
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8).data


class _DataFile:
    """The data file of a model, as it grows; arrays of the same bytes are stored once."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._whole = hashlib.sha256()
        self._offsets: dict[bytes, int] = {}

    def add(self, data: bytes | memoryview) -> int:
        """The offset of these bytes."""
        digest = hashlib.sha256(data).digest()
        if digest not in self._offsets:
            self._write(b"\0" * (-self._file.tell() % ALIGNMENT))
            self._offsets[digest] = self._file.tell()
            self._write(data)
        return self._offsets[digest]

    def _write(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        self._whole.update(data)

    def name(self, model: str) -> str:
        """What it is called beside a model file, complete as it is."""
        return commit.data_name(model, self._whole.hexdigest())


def _spill(tensor: gs.Constant, file: _DataFile) -> onnx.TensorProto:
    """Append a constant's bytes to the data file; returns the reference that stands for it.

    Its first entry is the location, to be filled in when the file has a name.
    """
    held = stored_values(tensor)
    data = _raw_bytes(held)
    offset = file.add(data)
    proto = onnx.TensorProto(name=tensor.name)
    if isinstance(held, LazyValues):
        proto.data_type = held.tensor.data_type
        proto.dims.extend(held.tensor.dims)
    else:
        values = np.asarray(held)
        proto.data_type = onnx.helper.np_dtype_to_tensor_dtype(values.dtype)
        proto.dims.extend(values.shape)
    proto.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", ""), ("offset", offset), ("length", len(data))):
        proto.external_data.add(key=key, value=str(value))
    return proto


@contextlib.contextmanager
def _spilled(graph: gs.Graph, folder: Path, name: str) -> Generator[Path, None, None]:
    """The graph with every large constant replaced by its reference, for as long as it lasts.

    Gives the file in `folder` that they lie in, the data of a model file of that name.
    """
    saved: list[tuple[gs.Constant, Any]] = []
    references: list[onnx.TensorProto] = []
    seen: set[int] = set()
    unnamed = folder / ".data"
    inline: list[tuple[gs.Constant, Any]] = []
    read = _read_for_sizes(graph)
    try:
        with unnamed.open("xb") as opened:
            file = _DataFile(opened)
            for each in graphs(graph):
                for tensor in [*tensors_of(each).values(), *interface.defaults(each)]:
                    if not isinstance(tensor, gs.Constant) or id(tensor) in seen:
                        continue
                    seen.add(id(tensor))
                    if stored_type(tensor) == onnx.TensorProto.STRING:
                        continue
                    mapped = isinstance(stored_values(tensor), MappedValues)
                    if not mapped and nbytes(tensor) < EXTERNAL_THRESHOLD:
                        continue
                    if id(tensor) in read:
                        inline.append((tensor, tensor._values))
                        put_stored(tensor, _in_memory(tensor))
                    else:
                        saved.append((tensor, tensor._values))
                        references.append(_spill(tensor, file))
        data = unnamed.rename(folder / file.name(name))
        for (tensor, _), proto in zip(saved, references, strict=True):
            proto.external_data[0].value = data.name
            put_stored(tensor, LazyValues(proto))
        yield data
    finally:
        for tensor, values in (*saved, *inline):
            tensor._values = values


def _inline_attribute_tensors(graph: gs.Graph) -> None:
    for each in graphs(graph):
        for node in each.nodes:
            for value in node.attrs.values():
                if isinstance(value, gs.Constant) and isinstance(value._values, MappedValues):
                    value._values = np.array(value._values.load())


def stage_model(
    graph: gs.Graph, folder: Path, name: str, *, metadata: dict[str, str] | None = None
) -> commit.Made:
    """Write a model file of that name, and its data, into a scratch folder."""
    _inline_attribute_tensors(graph)
    with _spilled(graph, folder, name) as data:
        model = to_model(graph)
    if metadata:
        onnx.helper.set_model_props(model, metadata)
    (folder / name).write_bytes(model.SerializeToString())
    if not data.stat().st_size:
        data.unlink()
        return commit.Made(folder / name, None)
    return commit.Made(folder / name, data)


def write_model(
    graph: gs.Graph, path: Path, *, metadata: dict[str, str] | None = None
) -> list[Path]:
    """Write a model and its data file, named by its content; returns the files written.

    Whenever the run ends, the old model or the new one is there, whole. OutputError where no file
    can go; OSError (disk full, no permission) passes through after the scratch folder is gone.
    """
    final = commit.file_place(path)
    with scratch_beside(final) as work:
        return commit.put_model(stage_model(graph, work, final.name, metadata=metadata), final)
