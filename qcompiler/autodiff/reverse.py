"""Reverse mode: from gradients at some tensors of a model to those at others, as nodes added to it.

Gradients are float32, whatever types the model computes in. A tensor's is the sum of what its
readers give. There is none through integers and truth values, nor to what depends on no source.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass

import onnx
from onnx import helper

from qcompiler.autodiff.activity import active, depends
from qcompiler.autodiff.call import Call
from qcompiler.autodiff.kinds import Kinds, inferred
from qcompiler.autodiff.reduction import sum_to
from qcompiler.autodiff.rules import RULES, operator
from qcompiler.autodiff.terms import FLOAT, Builder, Term
from qcompiler.ops import CONTRIB_DOMAIN


@dataclass(frozen=True)
class Added:
    """Inputs and outputs that a model has got, by the tensor whose gradient they are."""

    given: Mapping[str, str]
    found: Mapping[str, str]


def add_gradients(
    model: onnx.ModelProto, given: Sequence[str], towards: Sequence[str], wanted: Sequence[str]
) -> Added:
    """Add to a model the nodes that give the gradients of some tensors, its only outputs then.

    `given`: tensors that have a gradient from outside, a new input. `towards`: tensors whose
    gradient is an output if it can be anything but zero; of `wanted`, it is in any case.
    CalibrationError for a node on the way that has no rule.
    """
    graph = model.graph
    kinds = Kinds(inferred(model).graph)
    build = Builder(_names(graph))
    reached = active(graph, {*towards, *wanted}, kinds)
    inputs = {name: build.name("d/given") for name in given}
    sums = {name: Term(build, at) for name, at in inputs.items()}
    for node in reversed(graph.node):
        if depends(node, reached) and not sums.keys().isdisjoint(reached.intersection(node.output)):
            call = Call(node, build, kinds, tuple(map(sums.get, node.output)))
            _reverse(call, reached, sums)
    asked = dict.fromkeys([*(name for name in towards if name in sums), *wanted])
    # Two tensors may have one gradient, but not one output.
    found = {
        name: (sums.get(name) or Term(build, name).zeros()).op("Identity").name for name in asked
    }
    graph.node.extend(build.nodes)
    graph.initializer.extend(build.initializers)
    for name, at in inputs.items():
        graph.input.append(helper.make_tensor_value_info(at, FLOAT, kinds.sizes(name)))
    del graph.output[:]
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in found.values())
    if all(entry.domain != CONTRIB_DOMAIN for entry in model.opset_import):
        model.opset_import.append(helper.make_opsetid(CONTRIB_DOMAIN, 1))
    return Added(inputs, found)


def _reverse(call: Call, reached: Set[str], sums: dict[str, Term]) -> None:
    """Add what a node gives to the gradients of its inputs."""
    node = call.node
    towards = [index for index, name in enumerate(node.input) if name in reached]
    found = RULES.get(operator(node))
    if found is None:
        raise call.refusal("there is no rule for this operator")
    gradients = found.formula(call)
    for index in towards:
        given = gradients[index] if index < len(gradients) else None
        if given is None:
            raise call.refusal(f"there is no rule for its input {index}")
        if found.broadcasts:
            given = sum_to(given, call.kinds.sizes(node.output[0]), call, index)
        name = node.input[index]
        sums[name] = sums[name] + given if name in sums else given


def _names(graph: onnx.GraphProto) -> Iterable[str]:
    for node in graph.node:
        yield from (*node.input, *node.output)
    yield from (each.name for each in (*graph.initializer, *graph.input, *graph.output))
