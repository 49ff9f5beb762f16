"""Gradients of single operators against torch's, and against differences in float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from qcompiler.autodiff import gradients
from qcompiler.ir.io import import_proto

STEP = 1e-6


@dataclass(frozen=True)
class Operator:
    """An ONNX operator, and what torch calls it."""

    op: str
    torch: Callable[..., Any] | None = None
    attrs: dict[str, Any] = field(default_factory=dict)
    outputs: int = 1
    domain: str = ""
    opset: int = 21

    def model(self, inputs: Sequence[np.ndarray], wanted: int = 0) -> onnx.ModelProto:
        """A model of this node alone, whose only output is that of index `wanted`."""
        names = [f"x{i}" if each is not None else "" for i, each in enumerate(inputs)]
        outputs = [f"y{i}" for i in range(self.outputs)]
        node = helper.make_node(
            self.op, names, outputs, domain=self.domain, name="node", **self.attrs
        )
        given = [
            helper.make_tensor_value_info(
                name, helper.np_dtype_to_tensor_dtype(each.dtype), [None] * each.ndim
            )
            for name, each in zip(names, inputs, strict=True)
            if each is not None
        ]
        graph = helper.make_graph([node], "one", given, [onnx.ValueInfoProto(name=f"y{wanted}")])
        opsets = [helper.make_opsetid("", self.opset), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10)


Inputs = Sequence[Any]
"""Arrays, None for what is left out."""


def computed(
    operator: Operator, cases: Sequence[Inputs], seeds: Sequence[np.ndarray], wanted: int = 0
) -> list[list[np.ndarray | None]]:
    """Gradients by case and input, None for inputs of integers, all cases in one call."""
    graph = import_proto(operator.model(cases[0], wanted))
    floats = [f"x{i}" for i, x in enumerate(cases[0]) if _is_float(x)]
    feeds = [{f"x{i}": x for i, x in enumerate(case) if x is not None} for case in cases]
    found = dict(gradients(graph, floats, f"y{wanted}", feeds, lambda i, _: seeds[i]))
    assert set(found) == set(floats)
    return [
        [found[f"x{i}"][at] if f"x{i}" in found else None for i in range(len(case))]
        for at, case in enumerate(cases)
    ]


def _is_float(x: Any) -> bool:
    return x is not None and x.dtype.kind == "f"


def torch_gradients(operator: Operator, case: Inputs, seed: np.ndarray, wanted: int = 0) -> list:
    """The same by torch, in float64."""
    import torch

    given = [None if x is None else torch.from_numpy(np.array(x)) for x in case]
    given = [x.double().requires_grad_() if _is_float(case[i]) else x for i, x in enumerate(given)]
    results = operator.torch(*given)
    result = results[wanted] if isinstance(results, list | tuple) else results
    result.backward(torch.from_numpy(seed).double())
    return [
        None if not _is_float(case[i]) else np.zeros(x.shape) if x.grad is None else x.grad.numpy()
        for i, x in enumerate(given)
    ]


def sizes_of(operator: Operator, case: Inputs, wanted: int = 0) -> tuple[int, ...]:
    """The sizes of an output."""
    return run64(operator, case, wanted).shape


def run64(operator: Operator, case: Inputs, wanted: int = 0) -> np.ndarray:
    """The output in float64, by ONNX's reference."""
    wide = [x.astype(np.float64) if _is_float(x) else x for x in case]
    feed = {f"x{i}": x for i, x in enumerate(wide) if x is not None}
    return reference(operator.model(wide, wanted)).run(None, feed)[0]


class Erf(OpRun):
    """The error function in the type of its input: ONNX's own rounds to float32."""

    op_domain = ""

    def _run(self, x):
        return (_erf(x),)


class Gelu(OpRun):
    """Of the same: ONNX's own is made of its Erf."""

    op_domain = ""

    def _run(self, x, approximate=None):
        if approximate == "tanh":
            return (x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),)
        return (x / 2 * (1 + _erf(x / np.sqrt(2))),)


def _erf(x: np.ndarray) -> np.ndarray:
    return np.vectorize(math.erf, otypes=[x.dtype])(x)


def reference(model: onnx.ModelProto) -> ReferenceEvaluator:
    """ONNX's reference, exact in float64."""
    return ReferenceEvaluator(model, new_ops=[Erf, Gelu])


def check(operator: Operator, cases: Sequence[Inputs], seed: int = 0, wanted: int = 0) -> None:
    """Against torch where it has the operator, and against differences along a direction."""
    draws = np.random.default_rng(seed)
    seeds = [
        draws.standard_normal(sizes_of(operator, case, wanted)).astype(np.float32) for case in cases
    ]
    for case, given, found in zip(
        cases, seeds, computed(operator, cases, seeds, wanted), strict=True
    ):
        if operator.torch is not None:
            expected = torch_gradients(operator, case, given, wanted)
            for one, other in zip(found, expected, strict=True):
                assert (one is None) == (other is None)
                if one is not None:
                    assert one.dtype == np.float32 and one.shape == other.shape
                    atol = 2e-5 * max(1.0, np.abs(other).max(initial=0.0))
                    np.testing.assert_allclose(one, other, rtol=2e-5, atol=atol)
        differences(operator, case, given, found, draws, wanted)


def differences(
    operator: Operator,
    case: Inputs,
    seed: np.ndarray,
    found: Sequence[np.ndarray | None],
    draws: np.random.Generator,
    wanted: int,
) -> None:
    """Each gradient along a random direction against central differences."""
    for index, gradient in enumerate(found):
        if gradient is None:
            continue
        direction = draws.standard_normal(gradient.shape)
        ends = []
        for sign in (1, -1):
            moved = [x.astype(np.float64) if _is_float(x) else x for x in case]
            moved[index] = moved[index] + sign * STEP * direction
            ends.append((run64(operator, moved, wanted) * seed).sum())
        expected = (ends[0] - ends[1]) / (2 * STEP)
        scale = np.abs(gradient * direction).sum() + 1.0
        assert abs((gradient * direction).sum() - expected) < 2e-5 * scale
