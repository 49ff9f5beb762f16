"""Gradients of a model's output with respect to its activations, computed by ONNX Runtime."""

from qcompiler.autodiff import attention as attention  # registers its spellings
from qcompiler.autodiff.backward import gradients
from qcompiler.autodiff.fisher import divergence_probe, fisher_probe

__all__ = ["divergence_probe", "fisher_probe", "gradients"]
