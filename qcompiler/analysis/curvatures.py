"""What the outputs of layers count at the output of the model, from gradients."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import onnx_graphsurgeon as gs

from qcompiler.analysis.layers import Layer
from qcompiler.numerics.curvature import Curvature, curvature
from qcompiler.passmanager import PassContext


def curvatures(
    graph: gs.Graph, layers: Sequence[Layer], ctx: PassContext, samples: int
) -> Iterator[tuple[str, Curvature]]:
    """Layers of a float graph by name, the last first, over so many calibration samples."""
    names = {str(layer.node.outputs[0].name): layer.name for layer in layers}
    outputs: list[Any] = graph.outputs
    output = str(outputs[0].name)
    found = ctx.data.gradients(graph, list(names), output, samples)
    for index, (tensor, gradients) in enumerate(found):
        ctx.tick("differentiating", index, len(names))
        yield names[tensor], curvature(gradients)
    ctx.tick("differentiating", len(names), len(names))
