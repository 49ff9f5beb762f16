"""Random operators draw the same numbers wherever the compiler evaluates a graph.

Without a seed ONNX Runtime draws anew in every session: passes would fit noise, and a comparison
of two models would be one of their draws. Here each node gets a seed of its own, from the name of
what it computes, which no pass changes. A node's numbers then depend on how often it has run in its
session, and on nothing else: graphs that run over the same feeds in the same order draw alike. The
compiled model keeps its nodes as they are.
"""

from __future__ import annotations

import hashlib

import onnx
import onnx_graphsurgeon as gs

from qcompiler import ir
from qcompiler.functions import inlined
from qcompiler.ir.io import import_proto
from qcompiler.protos import all_nodes

_OPS = frozenset(
    {
        *("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"),
        *("Bernoulli", "Multinomial", "Dropout"),
    }
)
_WHOLE = ("Dropout",)  # operators whose seed is an integer
_SEEDS = 1 << 24  # float32 holds all below


def draws(graph: gs.Graph) -> bool:
    """Whether a graph has operators that draw random numbers (or might: Dropout)."""
    graphs = [*ir.graphs(graph), *graph.functions]
    return any(node.op in _OPS and not node.domain for each in graphs for node in each.nodes)


def fix_seeds(model: onnx.ModelProto) -> bool:
    """Give each random operator that has no seed its own, in place; whether there is one."""
    nodes = [node for node in all_nodes(model) if node.op_type in _OPS and not node.domain]
    for node in nodes:
        if any(attribute.name == "seed" for attribute in node.attribute):
            continue
        seed = int.from_bytes(hashlib.sha256(node.output[0].encode()).digest()[:8]) % _SEEDS
        value = seed if node.op_type in _WHOLE else float(seed)
        node.attribute.append(onnx.helper.make_attribute("seed", value))
    return bool(nodes)


def with_fixed_seeds(model: onnx.ModelProto) -> onnx.ModelProto | None:
    """The model, changed, where it has random operators; None where it can be read as it is."""
    return model if fix_seeds(model) else None


def with_names_of_import(graph: gs.Graph) -> gs.Graph:
    """A source graph whose random operators have the names that they have behind `import`.

    Those in local functions get them when the functions are inlined.
    """
    drawn = any(node.op in _OPS for function in graph.functions for node in function.nodes)
    if not drawn:
        return graph
    model = inlined(ir.to_model(graph))
    return import_proto(model, ir.model_folder(graph))
