"""Targets: what a compiled model is to run on, each with everything that sets it apart."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qcompiler import runtime, versions
from qcompiler.errors import RecipeError, did_you_mean
from qcompiler.formats import (
    GROUP_SIZES,
    WIDTHS,
    GroupSize,
    LayerPlan,
    WeightFormat,
    candidates,
)

if TYPE_CHECKING:
    from qcompiler.passmanager import Pass


@dataclass(frozen=True, kw_only=True)
class OpLibrary:
    """The op library that a target's models want."""

    name: str
    """Its file's name where a model folder asks for it."""
    path: Callable[[], Path | None]
    """The file, None where it was not built."""


@dataclass(frozen=True, kw_only=True)
class Later:
    """What a later ONNX Runtime than the target's has kernels for, in weights of one width."""

    minimum_onnxruntime: str
    group_sizes: tuple[GroupSize, ...]


@dataclass(frozen=True, kw_only=True)
class Target:
    """What runs a compiled model."""

    name: str
    summary: str
    lowering: str
    """The passes behind a recipe's, as text."""
    minimum_onnxruntime: str
    widths: frozenset[int] | None = None
    """Bits of weights it has kernels for; None: of any."""
    grids: bool = True
    """Whether codes may be other than all whole numbers."""
    later: Mapping[int, Later] = field(default_factory=dict[int, Later])
    """Those of its widths that need more than `minimum_onnxruntime`."""
    library: OpLibrary | None = None
    provider_options: tuple[Mapping[str, Any], ...] = ()
    """What onnxruntime-genai is told of providers."""

    def passes(self) -> tuple[Pass, ...]:
        """The passes that turn Q/DQ into what it runs."""
        from qcompiler.recipe import parse_pipeline  # noqa: PLC0415  (slow; see `formats`)

        return parse_pipeline(self.lowering)

    def accepts(self, plan: LayerPlan) -> str | None:
        """Why it can't run a layer planned so, None where it can."""
        form = plan.weight
        if form is None or self.widths is None:
            return None
        if form.bits not in self.widths:
            return f"it has no kernels for weights of {form.bits} bits"
        if form.grid is not None and not self.grids:
            return f"it has no kernels for the grid '{form.grid.name}', only for 'even'"
        sizes = self._group_sizes(form.bits)
        if form.narrow and form.group_size not in sizes:
            some = ", ".join(map(str, sizes))
            return f"it has no kernels for groups of {form.group_size} channels, but for {some}"
        return self._too_old(form.bits)

    def least_group(self, bits: int) -> GroupSize:
        """The fewest channels of a group that it has kernels for, in weights of a width."""
        return self._group_sizes(bits)[0]

    def minimum_for(self, plans: Iterable[LayerPlan], required: Iterable[str] = ()) -> str:
        """The ONNX Runtime that a model planned so needs, whose nodes need those `required`."""
        widths = {plan.weight.bits for plan in plans if plan.weight is not None}
        later = [each.minimum_onnxruntime for bits, each in self.later.items() if bits in widths]
        return max([self.minimum_onnxruntime, *later, *required], key=versions.release)

    def _group_sizes(self, bits: int) -> tuple[GroupSize, ...]:
        return self.later[bits].group_sizes if bits in self.later else GROUP_SIZES

    def _too_old(self, bits: int) -> str | None:
        """Why the ONNX Runtime at hand has no kernels of a width, None where it has."""
        if bits not in self.later:
            return None
        least = self.later[bits].minimum_onnxruntime
        if versions.installed(least):
            return None
        here = versions.onnxruntime_here()
        return f"weights of {bits} bits need ONNX Runtime {least} or later, and this is {here}"

    def candidates(self) -> tuple[WeightFormat, ...]:
        """The formats that it can run, of those worth choosing from."""
        return tuple(
            form for form in candidates(self.grids) if self.accepts(LayerPlan(weight=form)) is None
        )

    def require(self, plans: Iterable[LayerPlan], where: str) -> None:
        """RecipeError for the first of `plans` that it can't run."""
        for plan in plans:
            reason = self.accepts(plan)
            if reason is not None:
                raise RecipeError(
                    f"target '{self.name}' can't run {where}, planned as {plan.weight}: {reason}; "
                    "choose another format, or --target qdq"
                )


_KNOWN = (
    Target(
        name="ort-custom",
        summary="ai.qcompiler ops with function bodies: any ONNX Runtime, fast with the library",
        lowering=(
            "fuse-norm,compute-rotary,merge-linears,lower-ort-custom,lower-attention,"
            "lower-multi-head-attention,lower-norm,lower-activation,decompose-norm"
        ),
        minimum_onnxruntime="1.20",
        widths=frozenset(WIDTHS),
        library=OpLibrary(name=runtime.LIBRARY, path=runtime.library_path),
    ),
    Target(
        name="cuda",
        summary="products and look-ups for ONNX Runtime's CUDA provider, the rest in float16",
        lowering=(
            "fuse-norm,compute-rotary,merge-linears,lower-ort-custom,half-precision,decompose-norm"
        ),
        minimum_onnxruntime="1.20",
        widths=frozenset(WIDTHS),
        library=OpLibrary(name=runtime.CUDA_LIBRARY, path=runtime.cuda_library_path),
        provider_options=({"cuda": {}},),
    ),
    Target(
        name="ort-contrib",
        summary="ONNX Runtime's own MatMulNBits and QMoE, no library",
        lowering="fuse-norm,compute-rotary,lower-ort-contrib,fuse-experts,decompose-norm",
        minimum_onnxruntime="1.23",
        widths=frozenset({2, 4, 8}),
        grids=False,
        # Since 1.24 it takes 2 bits in any groups, but without kernels it makes a float matrix of
        # them at every run: some fifty times slower for one token.
        later={2: Later(minimum_onnxruntime="1.28", group_sizes=(32, 64, 128))},
    ),
    Target(
        name="qdq",
        summary="standard QuantizeLinear and DequantizeLinear, for any runtime",
        lowering="decompose-norm",
        minimum_onnxruntime="1.20",
    ),
)

TARGETS: Mapping[str, Target] = {target.name: target for target in _KNOWN}
"""The targets by name."""


def get(name: str) -> Target:
    """A target by name; RecipeError with what was probably meant for an unknown one."""
    if name not in TARGETS:
        raise RecipeError(f"unknown target '{name}'; {did_you_mean(name, list(TARGETS))}")
    return TARGETS[name]
