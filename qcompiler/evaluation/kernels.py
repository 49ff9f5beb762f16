"""Which kernels run the layers of a model on the CPU of this machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qcompiler import ops, runtime
from qcompiler.errors import RuntimeLibraryError
from qcompiler.inspection import LayerInfo, inspect

FUNCTION_BODY = "function body"
"""What ONNX Runtime runs of our ops without the library."""

_ANY_ISA = "plain C++"
"""The kernels of look-ups, which memory binds."""

FEW_ROWS: Mapping[str, str] = {"amxint8": "avx512vnni"}
"""ISAs whose kernels leave few rows to those of another."""


@dataclass(frozen=True, kw_only=True)
class LayerKernels:
    """A layer, and what runs it."""

    layer: LayerInfo
    many_rows: str
    """For many rows at a time, as of a prompt or a batch."""
    few_rows: str
    """For one or a few, as of a token."""

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self.layer) | {"many_rows": self.many_rows, "few_rows": self.few_rows}


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """The answer of `explain`."""

    model: Path
    isa: str | None
    """The kernels that the op library chose; None where the model has none of its ops, or it does
    not load."""
    without_library: str | None
    """Why it does not load."""
    layers: tuple[LayerKernels, ...]

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "model": str(self.model),
            "isa": self.isa,
            "without_library": self.without_library,
            "layers": [each.to_dict() for each in self.layers],
        }


def explain(model: str | Path) -> Explanation:
    """The kernels that a session on the CPU has for each linear layer and packed table.

    Raises ModelError for a model that can't be read.
    """
    found = inspect(model)
    isa, reason = None, None
    if any(layer.op in ops.OP_TYPES for layer in found.layers):
        try:
            isa = str(runtime.info()["isa"])
        except RuntimeLibraryError as error:
            reason = str(error)
    layers = tuple(_kernels(layer, isa) for layer in found.layers)
    return Explanation(model=found.path, isa=isa, without_library=reason, layers=layers)


def _kernels(layer: LayerInfo, isa: str | None) -> LayerKernels:
    if layer.op not in ops.OP_TYPES:
        many = few = f"{layer.op} of ONNX Runtime"
    elif isa is None:
        many = few = FUNCTION_BODY
    elif ops.is_look_up(layer.op):
        many = few = _ANY_ISA
    else:
        many, few = isa, FEW_ROWS.get(isa, isa)
    return LayerKernels(layer=layer, many_rows=many, few_rows=few)
