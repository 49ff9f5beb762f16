"""Whether a model is sound, asked once, before anything reads it: the rest relies on it.

Names are text. Inputs and outputs have types. Nodes have the inputs, outputs and attributes that
ONNX's operators ask for. Functions do not call themselves. What is stored is there (`stored`).
How nodes fit together is seen later. What no exporter means is refused even where ONNX Runtime
overlooks it; other models that it runs are not.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import onnx
from onnx import AttributeProto, TensorProto, numpy_helper

from qcompiler.errors import ModelError
from qcompiler.functions import require_bounded
from qcompiler.protos import (
    CONTRIB_DOMAIN,
    ELEMENT_TYPES,
    all_graphs,
    all_nodes,
    all_tensors,
    has_unknown_type,
    nodes_below,
)
from qcompiler.stored import check_tensors, external_files

_NEWEST = 1 << 31
"""No opset has this number: ONNX counts in 32 bits."""
_COUNTS = frozenset({"num_heads", "kv_num_heads", "bits", "block_size", "K", "N"})
"""Attributes of ONNX Runtime's operators that divide something."""
_LEAST = {"axis": -_NEWEST, "batch_dims": 0, "group": 1, "q_num_heads": 1, "kv_num_heads": 1}
"""Attributes of ONNX's operators by which memory is found, or that divide something."""
_LENIENT = frozenset({"Resize"})
"""Operators of which older opsets ask for inputs that exporters leave out, and nobody reads."""
_UNEVEN = frozenset({"DFT", "LayerNormalization"})
"""Operators whose last input ONNX Runtime reads even where its name is empty."""
_TYPED_FROM = 2
"""The IR version from which attributes say their type."""

_VALUES = {
    AttributeProto.TENSOR: "t",
    AttributeProto.GRAPH: "g",
    AttributeProto.SPARSE_TENSOR: "sparse_tensor",
    AttributeProto.TYPE_PROTO: "tp",
}
"""Where attributes that are messages have them."""


def check_model(model: onnx.ModelProto, path: Path) -> tuple[Path, ...]:
    """ModelError, naming the place, where a model can't be relied on, or its data files: these."""
    with _naming(path):
        _check_text(model)
        _check_opsets(model)
        _check_interface(model.graph)
        require_bounded(model)
        check_nodes(model)
    check_tensors(model, path)
    files = external_files(model, path)
    with _naming(path):
        _check_loops(model)
    return files


@contextmanager
def _naming(path: Path) -> Generator[None, None, None]:
    try:
        yield
    except ModelError as error:
        raise ModelError(f"{path}: {error}; export the model again") from None


def _check_text(model: onnx.ModelProto) -> None:
    """Protobuf gives bytes for what is not UTF-8, and takes no such value back."""
    for what, texts in _texts(model):
        try:
            "".join(texts)
        except TypeError:
            raise ModelError(f"{what} is not UTF-8") from None


def _texts(model: onnx.ModelProto) -> Iterator[tuple[str, Iterable[Any]]]:
    """Every string, with what it is."""
    about = (model.producer_name, model.producer_version, model.domain, model.doc_string)
    yield "what the model says of itself", about
    yield "metadata", (text for each in model.metadata_props for text in (each.key, each.value))
    owners: list[Any] = [model, *model.functions]
    for owner in owners:
        yield "the domain of an opset", (each.domain for each in owner.opset_import)
    for each in model.functions:
        signature = (*each.input, *each.output, *each.attribute)
        yield "a name in a function", (each.name, each.domain, each.overload, *signature)
    for node in all_nodes(model):
        yield "the name of a node", (node.name, node.op_type, node.domain, node.doc_string)
        yield "the name of what a node reads or writes", (*node.input, *node.output)
        for attribute in node.attribute:
            named = (attribute.name, attribute.ref_attr_name, attribute.doc_string)
            yield "the name of an attribute", named
    for graph in all_graphs(model):
        yield "the name of a graph", (graph.name, graph.doc_string)
        for value in (*graph.input, *graph.output, *graph.value_info):
            sizes = (dim.dim_param for dim in value.type.tensor_type.shape.dim)
            yield "the name of an input, output or size", (value.name, value.doc_string, *sizes)
    for tensor in all_tensors(model):
        yield "the name of a tensor", (tensor.name, tensor.doc_string)
        said = (text for each in tensor.external_data for text in (each.key, each.value))
        yield "what a tensor says of its data file", said


def _check_opsets(model: onnx.ModelProto) -> None:
    owners: list[tuple[Any, Any]] = [(model, model.graph), *((f, f) for f in model.functions)]
    for owner, graph in owners:
        versions = [entry.version for entry in owner.opset_import if not entry.domain]
        for version in versions:
            if not 0 < version < _NEWEST:
                raise ModelError(f"there is no opset {version}")
            if version != versions[0]:
                raise ModelError(f"it has two opsets, {versions[0]} and {version}")
        if not versions and any(not node.domain for node in nodes_below(graph.node)):
            raise ModelError("it does not say which opset its operators are of")


def _check_interface(graph: onnx.GraphProto) -> None:
    seen: set[str] = set()
    for value in graph.input:
        if value.name in seen:
            raise ModelError(f"two inputs are named '{value.name}'")
        seen.add(value.name)
        if value.type.WhichOneof("value") is None:
            raise ModelError(f"input '{value.name}' has no type")
    kinds: dict[str, str | None] = {}
    for value in graph.output:
        kind = value.type.WhichOneof("value")
        if kinds.setdefault(value.name, kind) != kind:
            raise ModelError(f"output '{value.name}' is there twice, with two types")
    for value in (*graph.input, *graph.output):
        if has_unknown_type(value.type):
            raise ModelError(f"input or output '{value.name}' has an unknown element type")


def check_nodes(model: onnx.ModelProto) -> None:
    """ModelError for a node that lacks what its operator needs.

    Functions are judged when they are inlined: only then are attributes what they refer to.
    """
    versions = {each.domain: each.version for each in model.opset_import}
    for node in nodes_below(model.graph.node):
        for attribute in node.attribute:
            _check_attribute(attribute, node, typed=model.ir_version >= _TYPED_FROM)
        _check_numbers(node)
        _check_types(node)
        form = _form(node.op_type, versions.get(node.domain, 0), node.domain)
        if form is not None:
            _check_form(node, form)
        if form is not None and not node.domain:
            _check_bodies(node)
            _check_outputs(node)


def _label(node: onnx.NodeProto) -> str:
    return f"node '{node.name}' ({node.op_type})" if node.name else f"a node ({node.op_type})"


def _check_attribute(attribute: AttributeProto, node: onnx.NodeProto, *, typed: bool) -> None:
    name = attribute.name
    if attribute.ref_attr_name:
        raise ModelError(f"attribute '{name}' of {_label(node)} refers to one of a function")
    if typed and attribute.type == AttributeProto.UNDEFINED:
        raise ModelError(f"attribute '{name}' of {_label(node)} has no type")
    field = _VALUES.get(attribute.type)  # pyright: ignore[reportCallIssue, reportArgumentType]
    if field is not None and not attribute.HasField(field):
        raise ModelError(f"attribute '{name}' of {_label(node)} has no value")


def _check_bodies(node: onnx.NodeProto) -> None:
    """The bodies of an If, Loop or Scan take and give what the node does."""
    if node.op_type not in ("If", "Loop", "Scan"):
        return
    have = len(node.input), len(node.output)
    bodies = [each.g for each in node.attribute if each.type == AttributeProto.GRAPH]
    if node.op_type == "If":
        fits = all(not g.input and len(g.output) == have[1] for g in bodies)
    elif node.op_type == "Loop":
        fits = all(
            (len(g.input), len(g.output)) == (have[0], have[1] + 1) and have[1] >= have[0] - 2
            for g in bodies
        )
    else:
        cut = next((each.i for each in node.attribute if each.name == "num_scan_inputs"), 0)
        # Before opset 9 the first input says how long the others are.
        fits = 0 < cut <= have[0] and all(
            have[0] - len(g.input) in (0, 1) and len(g.output) == have[1] for g in bodies
        )
    if not fits:
        raise ModelError(f"{_label(node)} and what it holds differ in their inputs and outputs")


def _check_loops(model: onnx.ModelProto) -> None:
    """ModelError for a Loop that plainly never ends once it begins; the tensors are sound."""
    nodes = [node for node in nodes_below(model.graph.node) if not node.domain]
    loops = [node for node in nodes if node.op_type == "Loop"]
    known = _known_scalars(model, nodes) if loops else {}
    for node in loops:
        most, go = node.input[:2]
        turns = known.get(most, 0) if most else _NEWEST
        body = next(each.g for each in node.attribute if each.name == "body")
        if turns >= _NEWEST and known.get(go, 1) and _goes_on(body, known):
            raise ModelError(f"{_label(node)} never ends: its body never changes the condition")


def _known_scalars(model: onnx.ModelProto, nodes: Iterable[onnx.NodeProto]) -> dict[str, int]:
    """Constants of one integer or truth value in the model file, by name."""
    tensors = {each.name: each for graph in all_graphs(model) for each in graph.initializer}
    for node in nodes:
        for each in node.attribute:
            if node.op_type == "Constant" and each.name == "value":
                tensors[node.output[0]] = each.t
    return {
        name: int(numpy_helper.to_array(each).item())
        for name, each in tensors.items()
        if each.data_type in (TensorProto.INT64, TensorProto.BOOL)
        and math.prod(each.dims) == 1
        and each.data_location != TensorProto.EXTERNAL
    }


def _goes_on(body: onnx.GraphProto, known: Mapping[str, int]) -> bool:
    """Whether a body passes on the condition that it takes, or one that is always true."""
    copies = {each.output[0]: each.input[0] for each in body.node if each.op_type == "Identity"}
    name = body.output[0].name
    for _ in range(len(copies)):
        name = copies.get(name, name)
    return name == body.input[1].name or known.get(name, 0) != 0


def _check_numbers(node: onnx.NodeProto) -> None:
    """ONNX and ONNX Runtime crash by some of these, which they hold in 32 bits."""
    for each in node.attribute:
        if node.domain == CONTRIB_DOMAIN:
            least = 1 if each.name in _COUNTS else -_NEWEST
        elif not node.domain and each.name in _LEAST:
            least = _LEAST[each.name]
        else:
            continue
        if each.type == AttributeProto.INT and not least <= each.i < _NEWEST:
            raise ModelError(f"attribute '{each.name}' of {_label(node)} can't be {each.i}")


def _check_types(node: onnx.NodeProto) -> None:
    """Attributes that name an element type name one that there is."""
    for each in node.attribute:
        named = not node.domain and each.name in ("to", "dtype") and not each.ref_attr_name
        if named and each.type == AttributeProto.INT and each.i not in ELEMENT_TYPES:
            raise ModelError(f"'{each.name}' of {_label(node)} is no element type: {each.i}")


def _check_outputs(node: onnx.NodeProto) -> None:
    """ONNX's inference writes beside a list where Split has more outputs than it says.

    ONNX Runtime reads outputs of no name where it takes all that there are.
    """
    if node.op_type in ("Loop", "Split") and not all(node.output):
        raise ModelError(f"{_label(node)} has an output of no name, which crashes ONNX Runtime")
    said = next((each.i for each in node.attribute if each.name == "num_outputs"), None)
    if node.op_type == "Split" and said is not None and said < len(node.output):
        raise ModelError(
            f"{_label(node)} has {len(node.output)} outputs, and says that it has {said}"
        )


@dataclass(frozen=True)
class _Form:
    """What an operator asks for."""

    inputs: tuple[int, int]
    outputs: tuple[int, int]
    needed: tuple[str, ...]
    """The name of each input that can't be left out, empty for those that can."""
    repeats: bool
    """Whether the last input stands for any number of them."""
    required: frozenset[str]
    kinds: Mapping[str, str]
    """The types of its attributes, by name."""


@cache
def _form(op: str, version: int, domain: str) -> _Form | None:
    """The form of an operator of ONNX, or of its other domains; None for all others."""
    if not 0 < version < _NEWEST:
        return None
    try:
        schema = onnx.defs.get_schema(op, version, domain)
    except onnx.defs.SchemaError:
        return None
    attributes, option = schema.attributes, onnx.defs.OpSchema.FormalParameterOption
    return _Form(
        (schema.min_input, schema.max_input),
        (schema.min_output, schema.max_output),
        tuple("" if each.option == option.Optional else each.name for each in schema.inputs),
        bool(schema.inputs) and schema.inputs[-1].option == option.Variadic,
        frozenset(name for name, each in attributes.items() if each.required),
        {name: str(each.type).rpartition(".")[-1] for name, each in attributes.items()},
    )


def _check_form(node: onnx.NodeProto, form: _Form) -> None:
    _check_count(node, "inputs", node.input, form.inputs)
    _check_count(node, "outputs", node.output, form.outputs)
    _check_left_out(node, form)
    if not node.attribute and not form.required:
        return
    given = {each.name: each for each in node.attribute}
    if missing := sorted(form.required - given.keys()):
        raise ModelError(f"{_label(node)} has no attribute '{missing[0]}'")
    for name in given.keys() & form.kinds.keys():
        kind = AttributeProto.AttributeType.Name(given[name].type)
        if kind not in ("UNDEFINED", form.kinds[name]):
            raise ModelError(f"attribute '{name}' of {_label(node)} has the wrong type, {kind}")


def _check_count(
    node: onnx.NodeProto, what: str, names: Sequence[str], bounds: tuple[int, int]
) -> None:
    least, most = bounds
    if least <= len(names) <= most:
        return
    used = max((at for at, name in enumerate(names, 1) if name), default=0)
    if len(names) < least or used > most:
        raise ModelError(f"{_label(node)} has {len(names)} {what}, not {least} to {most}")


def _check_left_out(node: onnx.NodeProto, form: _Form) -> None:
    """ONNX Runtime overlooks an empty name, and crashes where the operator reads that input."""
    if all(node.input) or node.op_type in _LENIENT:
        return
    for at, name in enumerate(node.input):
        if name:
            continue
        needed = form.needed[at : at + 1] or form.needed[-1:] * form.repeats
        if any(needed):
            raise ModelError(f"{_label(node)} has no input {at}, '{needed[0]}'")
    if node.op_type in _UNEVEN and not node.input[-1]:
        raise ModelError(f"{_label(node)} has an input of no name, which crashes ONNX Runtime")
