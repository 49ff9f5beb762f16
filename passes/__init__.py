"""Graph passes: one rewrite per file, each registered by one line here."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qcompiler.passmanager import Pass

# name in a recipe -> module:class, imported when first asked for
_PASSES: dict[str, str] = {
    "import": "import_model:ImportModel",
    "fold-constants": "fold_constants:FoldConstants",
    "split-experts": "split_experts:SplitExperts",
    "canonicalize": "canonicalize:Canonicalize",
    "fold-norm": "fold_norm:FoldNorm",
    "rotate": "rotate:Rotate",
    "plan-weights": "plan_weights:PlanWeights",
    "calibrate": "calibrate:Calibrate",
    "plan-activations": "plan_activations:PlanActivations",
    "allocate-bits": "allocate_bits:AllocateBits",
    "equalize": "equalize:Equalize",
    "quantize-weights": "quantize_weights:QuantizeWeights",
    "quantize-embedding": "quantize_embedding:QuantizeEmbedding",
    "compensate": "compensate:Compensate",
    "insert-qdq": "insert_qdq:InsertQdq",
    "correct-bias": "correct_bias:CorrectBias",
    "tweak-norms": "tweak_norms:TweakNorms",
    "merge-linears": "merge_linears:MergeLinears",
    "fuse-norm": "fuse_norm:FuseNorm",
    "compute-rotary": "compute_rotary:ComputeRotary",
    "lower-ort-custom": "lower_ort_custom:LowerOrtCustom",
    "lower-attention": "lower_attention:LowerAttention",
    "lower-multi-head-attention": "lower_multi_head_attention:LowerMultiHeadAttention",
    "lower-norm": "lower_norm:LowerNorm",
    "lower-activation": "lower_activation:LowerActivation",
    "lower-ort-contrib": "lower_ort_contrib:LowerOrtContrib",
    "fuse-experts": "fuse_experts:FuseExperts",
    "half-precision": "half_precision:HalfPrecision",
    "decompose-norm": "decompose_norm:DecomposeNorm",
}

_EXTRA: dict[str, type[Pass]] = {}


def register(cls: type[Pass]) -> type[Pass]:
    """Make a pass from outside this tree known under its name; usable as a class decorator."""
    _EXTRA[cls.name] = cls
    return cls


def registry() -> dict[str, type[Pass]]:
    """Every known pass by its recipe name."""
    known: dict[str, type[Pass]] = {}
    for name, place in _PASSES.items():
        module, attribute = place.split(":")
        known[name] = getattr(import_module(f"qcompiler.passes.{module}"), attribute)
    return known | _EXTRA
