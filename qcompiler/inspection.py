"""What is in a model: types, sizes, operators, linear layers and the edges equalization can use."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import onnx
import onnx_graphsurgeon as gs

from qcompiler import ir, ops
from qcompiler.analysis.foldable import find_fold_edges
from qcompiler.analysis.linears import find_linears
from qcompiler.analysis.qdq import activation_qdq, weight_dq
from qcompiler.errors import PassError
from qcompiler.models import open_package
from qcompiler.passmanager import PassContext, PassManager
from qcompiler.recipe import parse_pipeline
from qcompiler.report.layers import scheme as describe_scheme

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
    """Matrix products that are no linear layer, with the reason."""
    note: str | None
    """Why there are no edges, if there are none to look for."""

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        sizes = {kind: {"count": n, "bytes": size} for kind, (n, size) in self.sizes.items()}
        return asdict(self) | {"path": str(self.path), "sizes": sizes}


def inspect(model: str | Path) -> Inspection:
    """Look into an ONNX file or model folder; ModelError if it is none."""
    package = open_package(model)
    proto, path = package.proto(), package.onnx_path
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
        note=None,
    )
    return _analyzed(facts, graph)


def _analyzed(facts: Inspection, graph: gs.Graph) -> Inspection:
    """Float linear layers and foldable edges, on the canonical form of the graph."""
    try:
        manager = PassManager(parse_pipeline("import,canonicalize,fuse-norm"))
        graph, _ = manager.run(graph, PassContext())
    except PassError as error:
        return replace(facts, note=str(error))
    linears, others = find_linears(graph)
    known = {layer.name for layer in facts.layers}
    floats = tuple(
        LayerInfo(
            name=linear.name,
            op=linear.node.op,
            K=linear.shape[0],
            N=linear.shape[1],
            scheme=_type_name(linear.weight),
            activation="float",
        )
        for linear in linears
    )
    edges = tuple(
        EdgeInfo(
            activation=edge.name,
            kind=edge.kind,
            readers=tuple(reader.name for reader in edge.readers),
            veto=edge.veto,
        )
        for edge in find_fold_edges(graph, linears)
    )
    left_alone = {other.name: other.reason for other in others if other.name not in known}
    return replace(facts, layers=floats + facts.layers, edges=edges, left_alone=left_alone)


def _described(tensor: Any) -> str:
    shape = "..." if tensor.shape is None else ", ".join(map(str, tensor.shape))
    return f"{tensor.name}: {_type_name(tensor)}[{shape}]"


def _type_name(tensor: Any) -> str:
    return _TYPES[ir.elem_type(tensor)]


def _sizes(graph: gs.Graph) -> dict[str, tuple[int, int]]:
    """Initializers and their bytes by element type, the largest first."""
    counts: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for tensor in graph.tensors().values():
        if ir.is_constant(tensor):
            kind = _type_name(tensor)
            counts[kind] += 1
            sizes[kind] += ir.nbytes(tensor)
    return {kind: (counts[kind], size) for kind, size in sizes.most_common()}


def _operators(graph: gs.Graph) -> dict[str, int]:
    nodes = [*graph.nodes, *(n for sub in graph.subgraphs(recursive=True) for n in sub.nodes)]
    names = (f"{node.domain}.{node.op}" if node.domain else node.op for node in nodes)
    return dict(Counter(names).most_common())


def _quantized(graph: gs.Graph) -> Iterator[LayerInfo]:
    """Layers that are quantized in the file, in whichever of the targets' forms."""
    for node in graph.nodes:
        attrs: dict[str, Any] = dict(node.attrs)
        if node.domain == ops.DOMAIN and "K" in attrs:
            yield _own_op(node, attrs)
        elif node.op == "MatMulNBits":
            symmetric = len(node.inputs) < 4 or node.inputs[3].is_empty()
            integer = attrs.get("accuracy_level", 0) == 4
            yield LayerInfo(
                name=node.name,
                op="MatMulNBits",
                K=int(attrs["K"]),
                N=int(attrs["N"]),
                scheme=_scheme(int(attrs["bits"]), int(attrs["block_size"]), symmetric),
                activation="per-group" if integer else "float",
            )
        elif node.op == "MatMul":
            weight = weight_dq(node.inputs[1])
            if weight is not None:
                activation = activation_qdq(node.inputs[0])
                yield LayerInfo(
                    name=node.name,
                    op="Q/DQ",
                    K=weight.shape[0],
                    N=weight.shape[1],
                    scheme=_scheme(weight.bits, weight.group_size, weight.symmetric),
                    activation="float" if activation is None else activation.granularity.value,
                )


def _own_op(node: gs.Node, attrs: Mapping[str, Any]) -> LayerInfo:
    """A node of ours: `MatMulW4A8`, `MatMulW8A8Static`, `GatherW8`, ..."""
    channels, columns = int(attrs["K"]), int(attrs["N"])
    block = int(attrs.get("activation_block", 0))
    activation = "per-token" if block >= channels else "per-group"
    if node.op.endswith("Static"):
        activation = "per-tensor"
    elif node.op.startswith("Gather"):
        activation = "float"
    bits = 4 if "W4" in node.op else 8
    zeros = node.inputs[3]
    return LayerInfo(
        name=node.name,
        op=node.op,
        K=channels,
        N=columns,
        scheme=_scheme(bits, int(attrs["group_size"]), tuple(zeros.shape) == (1, 1, 1)),
        activation=activation,
    )


def _scheme(bits: int, group_size: int, symmetric: bool) -> str:
    return describe_scheme({"bits": bits, "group_size": group_size, "symmetric": symmetric})
