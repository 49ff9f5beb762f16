"""compute-rotary: tables of rotary embeddings are computed when a session loads, not stored.

    cos_cache, sin_cache [P, h]  ->  Cos(A), Sin(A),  A = Range(0, P, 1) [P, 1] · frequencies [1, h]

ONNX Runtime folds them into constants when it loads the model. Only tables that these nodes
reproduce to 1e-6 are replaced.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler import ir, ops
from qcompiler.numerics.rotary import frequencies
from qcompiler.passmanager import Fact, Numerics, Pass, PassContext, PassResult
from qcompiler.remarks import Computed

# operator of com.microsoft -> inputs of its cosines and sines
_TABLES = {"GroupQueryAttention": (7, 8), "RotaryEmbedding": (2, 3)}


@dataclass(frozen=True, kw_only=True)
class ComputeRotary(Pass):
    """Replace the tables of rotary embeddings by what they are computed from."""

    name: ClassVar[str] = "compute-rotary"
    numerics: ClassVar[Numerics] = Numerics.EXACT
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.IMPORTED})

    min_bytes: int = 1 << 16
    """Smaller tables are left alone."""

    def run(self, graph: gs.Graph, ctx: PassContext) -> PassResult:
        namer = ir.Namer(graph)
        remarks: list[Computed] = []
        made: dict[tuple[int, int], tuple[gs.Variable, gs.Variable] | None] = {}
        for node in list(graph.nodes):
            places = _TABLES.get(node.op)
            if (
                places is None
                or node.domain != ops.CONTRIB_DOMAIN
                or len(node.inputs) <= max(places)
            ):
                continue
            tables = [node.inputs[place] for place in places]
            if not all(map(self._large, tables)):
                continue
            key = (id(tables[0]), id(tables[1]))
            if key not in made:
                made[key] = self._computed(graph, tables[0], tables[1], namer)
            computed = made[key]
            if computed is not None:
                for place, table in zip(places, computed, strict=True):
                    node.inputs[place] = table
                message = "its tables of rotary embeddings are computed when a session loads"
                remarks.append(Computed(layer=str(node.name), message=message))
        changed = any(computed is not None for computed in made.values())
        if changed:
            ir.remove_dead(graph)
        return PassResult(graph=graph, changed=changed, remarks=tuple(remarks))

    def _large(self, table: Any) -> bool:
        return (
            ir.is_constant(table)
            and table.dtype == np.float32
            and ir.nbytes(table) >= self.min_bytes
        )

    def _computed(
        self, graph: gs.Graph, cosines: Any, sines: Any, namer: ir.Namer
    ) -> tuple[gs.Variable, gs.Variable] | None:
        found = frequencies(ir.array(cosines), ir.array(sines))
        if found is None:
            return None
        positions, half = (int(size) for size in cosines.shape)
        base = f"{cosines.name}_angles"

        def node(op_type: str, inputs: list[Any], shape: list[int]) -> gs.Variable:
            output = gs.Variable(namer(f"{base}_{op_type}"), np.dtype(np.float32), shape)
            ir.add_node(graph, op_type, namer(f"{base}/{op_type}"), inputs, [output])
            return output

        bounds = [
            ir.constant(namer(f"{base}_{name}"), np.asarray(value, np.float32))
            for name, value in (("first", 0.0), ("end", positions), ("step", 1.0))
        ]
        axis = ir.constant(namer(f"{base}_axis"), np.asarray([1], np.int64))
        steps = node("Unsqueeze", [node("Range", bounds, [positions]), axis], [positions, 1])
        factors = ir.constant(namer(f"{base}_frequencies"), found[None])
        angles = node("Mul", [steps, factors], [positions, half])
        return node("Cos", [angles], [positions, half]), node("Sin", [angles], [positions, half])
