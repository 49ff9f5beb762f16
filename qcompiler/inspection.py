"""What is in a model: types, sizes, operators, linear layers and the edges equalization can use."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import onnx
import onnx_graphsurgeon as gs

from qcompiler import ir, ops
from qcompiler.analysis.activation_qdq import activation_qdq
from qcompiler.analysis.foldable import find_fold_edges
from qcompiler.analysis.inventory import Holding
from qcompiler.analysis.layers import Layer, find_layers
from qcompiler.analysis.qdq import quantized_layer
from qcompiler.analysis.tables import Table, find_tables
from qcompiler.errors import PassError
from qcompiler.formats import Granularity, WeightFormat, grid_of
from qcompiler.models import ModelPackage, open_package, open_packages
from qcompiler.passmanager import PassContext, PassManager, Record
from qcompiler.recipe import parse_pipeline
from qcompiler.remarks import Divided, LeftAlone

FLOAT = "float"
"""The `activation` of a layer whose input stays in float."""

QUANTIZABLE = ("linear layers", "embeddings")
"""What recipes can quantize, as `Inspection.weights` calls it."""

_TYPES = {code: name.lower() for name, code in onnx.TensorProto.DataType.items()}


@dataclass(frozen=True, kw_only=True)
class LayerInfo:
    """A linear layer, quantized or not, as it is in the file."""

    name: str
    op: str
    K: int
    N: int
    scheme: str
    """Weight scheme, such as "int4 g32 asym", or its float type."""
    activation: str
    """How its input becomes int8; "float" where it does not."""
    nbytes: int
    """Of its weight in the file, with what else it reads of constants, such as scales; what it
    shares with a table counts at both."""


@dataclass(frozen=True, kw_only=True)
class EdgeInfo:
    """An activation that linear layers read: what could absorb a scale, or why nothing can."""

    activation: str
    kind: str
    readers: tuple[str, ...]
    veto: str | None


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """The answer of `inspect`."""

    path: Path
    ir_version: int
    opsets: Mapping[str, int]
    metadata: Mapping[str, str]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    sizes: Mapping[str, tuple[int, int]]
    """Element type -> (initializers, bytes)."""
    operators: Mapping[str, int]
    layers: tuple[LayerInfo, ...]
    edges: tuple[EdgeInfo, ...]
    left_alone: Mapping[str, str]
    """Nodes that multiply matrices or hold large constants and are no linear layer or table, with
    the reason."""
    weights: Mapping[str, int]
    """Bytes of the constants by what reads them, the most first: "linear layers" and "embeddings"
    could be quantized. Empty where the model was not analyzed."""
    note: str | None
    """Why there are no edges, if there are none to look for."""

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        sizes = {kind: {"count": n, "bytes": size} for kind, (n, size) in self.sizes.items()}
        return asdict(self) | {"path": str(self.path), "sizes": sizes}


def inspect(model: str | Path) -> Inspection:
    """Look into an ONNX file or the folder of one model; ModelError if it is none."""
    return _inspected(open_package(model))


def inspect_all(model: str | Path) -> list[Inspection]:
    """Look into all models of a folder; ModelError where there is none."""
    return [_inspected(package) for package in open_packages(model)]


def _inspected(package: ModelPackage) -> Inspection:
    proto, path = package.outline, package.onnx_path
    graph = ir.read_model(path)
    facts = Inspection(
        path=path,
        ir_version=proto.ir_version,
        opsets={entry.domain or "ai.onnx": entry.version for entry in proto.opset_import},
        metadata={entry.key: entry.value for entry in proto.metadata_props},
        inputs=tuple(map(_described, graph.inputs)),
        outputs=tuple(map(_described, graph.outputs)),
        sizes=_sizes(graph),
        operators=_operators(graph),
        layers=tuple(_quantized(graph)),
        edges=(),
        left_alone={},
        weights={},
        note=None,
    )
    return _analyzed(facts, graph)


def _analyzed(facts: Inspection, graph: gs.Graph) -> Inspection:
    """Float linear layers and foldable edges, on the canonical form of the graph."""
    try:
        manager = PassManager(
            parse_pipeline("import,fold-constants,split-experts,canonicalize,fuse-norm")
        )
        graph, _ = manager.run(graph, PassContext())
    except PassError as error:
        return replace(facts, note=str(error))
    graphs = ir.graphs(graph)
    found = [find_layers(each) for each in graphs]
    layers = [layer for each, _ in found for layer in each]
    tables = [table for each in graphs for table in find_tables(each)]
    known = {layer.name for layer in facts.layers}
    floats = tuple(
        LayerInfo(
            name=layer.name,
            op=layer.node.op,
            K=layer.shape[0],
            N=layer.shape[1],
            scheme=_type_name(layer.weight),
            activation=FLOAT,
            nbytes=ir.nbytes(layer.weight),
        )
        for layer in layers
    )
    edges = tuple(
        EdgeInfo(
            activation=edge.name,
            kind=edge.kind,
            readers=tuple(reader.name for reader in edge.readers),
            veto=edge.veto,
        )
        for edge in find_fold_edges(graph, found[0][0])
    )
    said = [remark for record in manager.history for remark in record.remarks]
    divided = {remark.layer for remark in said if isinstance(remark, Divided)}
    kept = {
        remark.layer: remark.message
        for remark in said
        if isinstance(remark, LeftAlone) and remark.layer not in divided
    }
    kept |= {other.name: other.reason for _, others in found for other in others}
    return replace(
        facts,
        layers=floats + facts.layers,
        edges=edges,
        left_alone={name: reason for name, reason in kept.items() if name not in known},
        weights=_weights(manager.history, layers, tables, divided),
    )


def _weights(
    history: Sequence[Record],
    layers: Sequence[Layer],
    tables: Sequence[Table],
    divided: Iterable[str],
) -> dict[str, int]:
    """Bytes of the source's constants by what reads them; `divided`: nodes that became layers."""
    counted = next(record.inventory for record in history if record.inventory is not None)
    linear, embedding = QUANTIZABLE
    families = {table.name: embedding for table in tables}
    families |= dict.fromkeys([*(layer.name for layer in layers), *divided], linear)

    def family(holding: Holding) -> str:
        found = [families[name] for name in holding.readers if name in families]
        return holding.sort or next(iter(found or holding.readers.values()))

    return counted.shares(family)


def _described(tensor: Any) -> str:
    shape = "..." if tensor.shape is None else ", ".join(map(str, tensor.shape))
    return f"{tensor.name}: {_type_name(tensor)}[{shape}]"


def _type_name(tensor: Any) -> str:
    return _TYPES[ir.elem_type(tensor)]


def _sizes(graph: gs.Graph) -> dict[str, tuple[int, int]]:
    """Initializers and their bytes by element type, the largest first."""
    counts: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for tensor in ir.tensors_of(graph).values():
        if ir.is_constant(tensor):
            kind = _type_name(tensor)
            counts[kind] += 1
            sizes[kind] += ir.nbytes(tensor)
    return {kind: (counts[kind], size) for kind, size in sizes.most_common()}


def _operators(graph: gs.Graph) -> dict[str, int]:
    nodes = [node for each in ir.graphs(graph) for node in each.nodes]
    names = (f"{node.domain}.{node.op}" if node.domain else node.op for node in nodes)
    return dict(Counter(names).most_common())


def _quantized(graph: gs.Graph) -> Iterator[LayerInfo]:
    """Layers that are quantized in the file, in whichever of the targets' forms."""
    for node in graph.nodes:
        attrs: dict[str, Any] = dict(node.attrs)
        width = ops.width_of(node.op) if node.domain == ops.DOMAIN else None
        if width is not None:
            yield _own_op(node, width, attrs)
        elif node.op == "MatMulNBits":
            yield _nbits(node, attrs)
        elif node.op == "QMoE":
            yield from _quantized_experts(node, attrs)
        elif (found := quantized_layer(graph, node)) is not None:
            activation = activation_qdq(found)
            shape, granularity = found.weight.shape, Granularity.NONE
            if activation is not None:
                granularity = activation.granularity
            yield _info(
                found.name, "Q/DQ", shape, found.weight.form, granularity, found.weight.node
            )


def _info(
    name: str,
    op: str,
    shape: tuple[int, int],
    form: WeightFormat,
    granularity: Granularity,
    reader: gs.Node,
) -> LayerInfo:
    """A layer; `reader`: the node that reads its weight."""
    activation = FLOAT if granularity is Granularity.NONE else granularity.value
    return LayerInfo(
        name=name,
        op=op,
        K=shape[0],
        N=shape[1],
        scheme=str(form),
        activation=activation,
        nbytes=sum(ir.nbytes(each) for each in reader.inputs if ir.is_constant(each)),
    )


def _nbits(node: gs.Node, attrs: Mapping[str, Any]) -> LayerInfo:
    """A node of ONNX Runtime's own."""
    form = WeightFormat(
        bits=int(attrs["bits"]),
        group_size=int(attrs["block_size"]),
        symmetric=ir.given(node.inputs, 3) is None,
    )
    integer = attrs.get("accuracy_level", 0) == 4
    granularity = Granularity.PER_GROUP if integer else Granularity.NONE
    shape = (int(attrs["K"]), int(attrs["N"]))
    return _info(node.name, node.op, shape, form, granularity, node)


def _quantized_experts(node: gs.Node, attrs: Mapping[str, Any]) -> Iterator[LayerInfo]:
    """The layers of ONNX Runtime's QMoE, with those of all experts side by side."""
    integer = attrs.get("accuracy_level", 0) == 4
    granularity = Granularity.PER_GROUP if integer else Granularity.NONE
    bits = int(attrs.get("expert_weight_bits", 4))
    given: list[Any] = [*node.inputs, *[gs.Variable.empty()] * _QMOE_INPUTS]
    for which, (first, zeros) in _QMOE_LAYERS.items():
        read = [each for each in (*given[first : first + 3], given[zeros]) if ir.is_constant(each)]
        if not ir.is_constant(given[first]):
            continue
        experts, outputs, width = map(int, given[first].shape)
        form = WeightFormat(
            bits=bits,
            group_size=int(attrs["block_size"]) if "block_size" in attrs else None,
            symmetric=given[zeros].is_empty(),
        )
        yield LayerInfo(
            name=f"{node.name}/{which}",
            op=node.op,
            K=width * 8 // bits,
            N=experts * outputs,
            scheme=str(form),
            activation=FLOAT if granularity is Granularity.NONE else granularity.value,
            nbytes=sum(ir.nbytes(each) for each in read),
        )


_QMOE_LAYERS = {"fc1": (2, 11), "fc2": (5, 12), "fc3": (8, 13)}
"""Inputs with the codes and zero points of QMoE's layers; scales and biases follow the codes."""
_QMOE_INPUTS = 14


def _own_op(node: gs.Node, width: int, attrs: Mapping[str, Any]) -> LayerInfo:
    """A node of ours: `LinearW4A8`, `LinearT2A8Static`, `EmbeddingW8`, ..."""
    channels = int(attrs["K"])
    if ops.is_static(node.op):
        granularity = Granularity.PER_TENSOR
    elif ops.is_look_up(node.op):
        granularity = Granularity.NONE
    else:
        granularity = Granularity.PER_TOKEN
    form = WeightFormat.planned(width, int(attrs.get("group_size", channels)), symmetric=False)
    if "levels" in attrs:
        form = replace(form, grid=grid_of(attrs["levels"], width))
    return _info(node.name, node.op, (channels, int(attrs["N"])), form, granularity, node)
