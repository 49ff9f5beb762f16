"""Fused operators spelled out in those that have rules: the same values, and a way back.

Operators of ONNX that it defines by a function, and local functions, become that function.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence, Set
from typing import Any, TypeAlias

import onnx
from onnx import defs, inliner

from qcompiler.autodiff.activity import active, depends
from qcompiler.autodiff.call import Call
from qcompiler.autodiff.kinds import Kinds, inferred
from qcompiler.autodiff.rules import RULES, operator
from qcompiler.autodiff.terms import Builder, Term
from qcompiler.functions import inlined
from qcompiler.ops import CONTRIB_DOMAIN

Spelling: TypeAlias = Callable[[Call], Sequence[Term | None]]

SPELLINGS: dict[tuple[str, str], Spelling] = {}
"""By domain and operator: the outputs of a node, in float32, None for those it can't give."""

_DEPTH = 8  # functions within functions of ONNX's


def spelling(*ops: str, domain: str = "") -> Callable[[Spelling], Spelling]:
    """Register how some operators are spelled out."""

    def register(made: Spelling) -> Spelling:
        for op in ops:
            SPELLINGS[domain, op] = made
        return made

    return register


def expanded(model: onnx.ModelProto, sources: Set[str]) -> onnx.ModelProto:
    """The model with what lies behind `sources` spelled out, as far as it has no rules."""
    if model.functions:
        model = inlined(model)
    for _ in range(_DEPTH):
        told = inferred(model)
        found = active(model.graph, sources, Kinds(told.graph))
        missing = {operator(n) for n in model.graph.node if _is_on_the_way(n, found)} - RULES.keys()
        if known := missing & SPELLINGS.keys():
            _spell(model, known, found, Kinds(told.graph))
            continue
        defined = [key for key in missing if not key[0] and _is_function(key[1], model)]
        if not defined:
            break
        del model.graph.value_info[:]
        model.graph.value_info.extend(told.graph.value_info)
        model = _as_functions(model, defined)
    return model


def _is_on_the_way(node: onnx.NodeProto, found: Set[str]) -> bool:
    return depends(node, found) and not found.isdisjoint(node.output)


def _schema(op: str, model: onnx.ModelProto) -> Any:
    """What ONNX says of an operator in the model's opset, None where that is nothing."""
    version = next(each.version for each in model.opset_import if not each.domain)
    try:
        return defs.get_schema(op, version, "")
    except defs.SchemaError:
        return None


def _is_function(op: str, model: onnx.ModelProto) -> bool:
    schema = _schema(op, model)
    return schema is not None and (schema.has_function or schema.has_context_dependent_function)


def _as_functions(model: onnx.ModelProto, keys: Sequence[tuple[str, str]]) -> onnx.ModelProto:
    """The model with these operators of ONNX as the functions that define them.

    The inliner does not know the defaults of attributes.
    """
    for node in model.graph.node:
        if operator(node) not in keys:
            continue
        stated = {attribute.name for attribute in node.attribute}
        for name, attribute in _schema(node.op_type, model).attributes.items():
            if name not in stated and attribute.default_value.type:
                node.attribute.append(attribute.default_value)
    return inliner.inline_selected_functions(model, list(keys), inline_schema_functions=True)


def _spell(
    model: onnx.ModelProto, keys: Set[tuple[str, str]], found: Set[str], kinds: Kinds
) -> None:
    graph = model.graph
    build = Builder(_names(graph))
    for node in graph.node:
        if operator(node) not in keys or not _is_on_the_way(node, found):
            build.nodes.append(node)
            continue
        call = Call(node, build, kinds)
        terms = SPELLINGS[operator(node)](call)
        for index, name in enumerate(node.output):
            if not name:
                continue
            term = terms[index] if index < len(terms) else None
            if term is None:
                raise call.refusal(f"its output {index} is not spelled out")
            _name(build, term, name, kinds.elem(name))
    nodes = onnx.GraphProto(node=build.nodes).node
    del graph.node[:]
    graph.node.extend(nodes)
    graph.initializer.extend(build.initializers)


def _name(build: Builder, term: Term, name: str, kind: int) -> None:
    """Let a term be the tensor of this name, in its type."""
    float32 = kind in (onnx.TensorProto.FLOAT, onnx.TensorProto.UNDEFINED)
    made = onnx.helper.make_node("Identity", [term.name], [name])
    if not float32:
        made = onnx.helper.make_node("Cast", [term.name], [name], to=kind)
    build.nodes.append(made)


def _names(graph: onnx.GraphProto) -> set[str]:
    names = {name for node in graph.node for name in (*node.input, *node.output)}
    return names | {each.name for each in (*graph.initializer, *graph.input)}


@spelling("SkipLayerNormalization", domain=CONTRIB_DOMAIN)
def skip_layer_norm(call: Call) -> Sequence[Term | None]:
    """LayerNorm(input + skip + bias), its mean and 1 / deviation, and the sum."""
    total = _skip_sum(call, 4)
    beta = call.x(3) if call.has(3) else None
    epsilon = call.attr("epsilon", 1e-12)
    inputs = [total, call.x(2), beta][: 3 if beta else 2]
    return *call.to.node("LayerNormalization", inputs, outputs=3, axis=-1, epsilon=epsilon), total


@spelling("SkipSimplifiedLayerNormalization", domain=CONTRIB_DOMAIN)
def skip_rms_norm(call: Call) -> Sequence[Term | None]:
    """RMSNorm(input + skip + bias) and the sum."""
    total = _skip_sum(call, 3)
    epsilon = call.attr("epsilon", 1e-12)
    inputs = [total, call.x(2)]
    y = call.to.node("SimplifiedLayerNormalization", inputs, axis=-1, epsilon=epsilon)[0]
    return y, None, None, total


def _skip_sum(call: Call, bias: int) -> Term:
    total = call.x(0) + call.x(1)
    return total + call.x(bias) if call.has(bias) else total


@spelling("BatchNormalization")
def batch_norm(call: Call) -> Sequence[Term | None]:
    """(x - μ) w / sqrt(σ² + ε) + b by constants of the channels, axis 1."""
    if call.attr("training_mode", 0):
        raise call.refusal("it is in training; export the model for inference")
    rest = [1] * (len(call.sizes(0)) - 2)
    w, b, mean, variance = (call.x(index).reshape(-1, *rest) for index in range(1, 5))
    deviation = (variance + call.attr("epsilon", 1e-5)).op("Sqrt")
    return ((call.x() - mean) * (w / deviation) + b,)


@spelling("InstanceNormalization")
def instance_norm(call: Call) -> Sequence[Term | None]:
    """(x - μ) w / sqrt(σ² + ε) + b, μ and σ² over the positions of each channel."""
    axes = range(2, len(call.sizes(0)))
    x = call.x() - call.x().mean(*axes)
    w, b = (call.x(index).reshape(-1, *[1] * len(axes)) for index in (1, 2))
    return (x / ((x * x).mean(*axes) + call.attr("epsilon", 1e-5)).op("Sqrt") * w + b,)


@spelling("Gelu")
def gelu(call: Call) -> Sequence[Term | None]:
    """x/2 (1 + erf(x / sqrt(2))), or by tanh where `approximate` says so."""
    return (_tanh_gelu if call.attr("approximate") == b"tanh" else _erf_gelu)(call.x())


@spelling("Gelu", domain=CONTRIB_DOMAIN)
def plain_gelu(call: Call) -> Sequence[Term | None]:
    """x/2 (1 + erf(x / sqrt(2)))."""
    return _erf_gelu(call.x())


@spelling("BiasGelu", domain=CONTRIB_DOMAIN)
def bias_gelu(call: Call) -> Sequence[Term | None]:
    """Gelu(x + b)."""
    return _erf_gelu(call.x(0) + call.x(1))


@spelling("FastGelu", domain=CONTRIB_DOMAIN)
def fast_gelu(call: Call) -> Sequence[Term | None]:
    """Gelu(x + b) by tanh."""
    return _tanh_gelu(call.x(0) + call.x(1) if call.has(1) else call.x(0))


@spelling("QuickGelu", domain=CONTRIB_DOMAIN)
def quick_gelu(call: Call) -> Sequence[Term | None]:
    """x sigmoid(α x)."""
    return (call.x() * (call.x() * call.attr("alpha", 1.702)).op("Sigmoid"),)


def _erf_gelu(x: Term) -> tuple[Term]:
    return (x * 0.5 * (1.0 + (x * math.sqrt(0.5)).op("Erf")),)


def _tanh_gelu(x: Term) -> tuple[Term]:
    """x/2 (1 + tanh(sqrt(2/π) (x + 0.044715 x³)))."""
    inner = (x + x * x * x * 0.044715) * math.sqrt(2 / math.pi)
    return (x * 0.5 * (1.0 + inner.op("Tanh")),)
