"""From a torch model to graphs: what is traced, with which inputs, under which names."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qcompiler.errors import ExportError
from qcompiler.export import kinds
from qcompiler.export.kinds import Axes, Role

OPSET = 21  # the first with blocked int4 DequantizeLinear
_EXAMPLE = {
    **{"batch": 2, "sequence": 6, "past_sequence": 4, "total_sequence": 10},
    **{"encoder_sequence": 7, "images": 3, "samples": 4000, "height": 96, "width": 128},
}
"""Sizes to trace with, no two of one input alike: equal ones would count as one axis."""


@dataclass(frozen=True)
class Graph:
    """One ONNX file: `call` gets the model and the inputs by name, and returns the outputs."""

    file: str
    inputs: dict[str, Axes]
    outputs: tuple[str, ...]
    call: Callable[[Any, dict[str, Any]], tuple[Any, ...]]
    floats: frozenset[str] = field(default_factory=frozenset)
    """Inputs that are no whole numbers."""


def write(torch: Any, graph: Graph, model: Any, folder: Path) -> None:
    """Trace `graph` and write it into `folder`, its weights beside it in FILE.data."""
    names = tuple(graph.inputs)

    def forward(self: Any, *given: Any) -> tuple[Any, ...]:
        return graph.call(self.model, dict(zip(names, given, strict=True)))

    # torch exports modules, not functions.
    module = type("Traced", (torch.nn.Module,), {"forward": forward})()
    module.model = model
    open_axes = tuple(
        {at: size for at, size in enumerate(axes) if isinstance(size, str)}
        for axes in graph.inputs.values()
    )
    # Other kernels lay their results out in memory as the operators that replace them do not.
    attention = torch.nn.attention
    with attention.sdpa_kernel(attention.SDPBackend.MATH):
        program = torch.onnx.export(
            module.eval(),
            tuple(example(torch, graph).values()),
            dynamo=True,
            input_names=list(names),
            output_names=list(graph.outputs),
            dynamic_shapes=(open_axes,),
            opset_version=OPSET,
            external_data=True,
            verbose=False,
        )
    program.save(str(folder / graph.file), external_data=True)


def example(torch: Any, graph: Graph) -> dict[str, Any]:
    """Values for the inputs of a graph."""
    values = {}
    for name, axes in graph.inputs.items():
        shape = [_EXAMPLE[size] if isinstance(size, str) else size for size in axes]
        if name in graph.floats:
            values[name] = torch.linspace(-1, 1, torch.Size(shape).numel()).reshape(shape)
        elif name.endswith(kinds.MASK):
            values[name] = torch.ones(shape, dtype=torch.int64)
        elif name == kinds.POSITIONS:
            past = _EXAMPLE["past_sequence"]
            values[name] = torch.arange(past, past + shape[1]).repeat(shape[0], 1)
        elif name == kinds.TYPES:
            values[name] = torch.zeros(shape, dtype=torch.int64)
        else:
            values[name] = torch.arange(torch.Size(shape).numel()).reshape(shape)
    return values


def whole(
    torch: Any, model: Any, role: Role, config: Mapping[str, Any], preprocessor: Mapping[str, Any]
) -> tuple[Graph, bool]:
    """A model as one graph, and whether its outputs depend on weights that are NaN.

    Outputs are those of kinds.OUTPUTS that it gives, else its vectors, and of an image also the one
    that sums them up, unless that is NaN. ExportError where it gives none of them.
    """
    parameters = inspect.signature(model.forward).parameters
    names = kinds.inputs_of(role, model.main_input_name, parameters, config)
    both = kinds.TEXT in names and kinds.PIXELS in names
    inputs = {name: kinds.axes_of(name, config, preprocessor, beside_text=both) for name in names}
    floats = frozenset(names) & {kinds.PIXELS, kinds.SAMPLES, kinds.FEATURES}
    fixed = {"use_cache": False} if "use_cache" in parameters else {}

    def answer(model: Any, given: dict[str, Any]) -> Any:
        return model(**given, **fixed)

    probe = Graph("model.onnx", inputs, (), answer, floats)
    with torch.no_grad():
        answered = answer(model, example(torch, probe))
    tensors = {name: each for name, each in answered.items() if isinstance(each, torch.Tensor)}
    made_up = {name for name, each in tensors.items() if each.isnan().any()}
    outputs = tuple(name for name in kinds.OUTPUTS if name in tensors)
    if not outputs and kinds.VECTORS in tensors:
        outputs = (kinds.VECTORS,)
        if kinds.PIXELS in names and kinds.POOLED in tensors.keys() - made_up:
            outputs = (kinds.VECTORS, kinds.POOLED)
    if not outputs:
        known = ", ".join((*kinds.OUTPUTS, kinds.VECTORS))
        raise ExportError(
            f"{type(model).__name__} gives none of the outputs that are known ({known}); "
            f"{kinds.OTHER_MEANS}"
        )

    def call(model: Any, given: dict[str, Any]) -> tuple[Any, ...]:
        answered = answer(model, given)
        return tuple(answered[name] for name in outputs)

    graph = Graph("model.onnx", inputs, outputs, call, floats)
    return graph, not made_up.isdisjoint(outputs)
