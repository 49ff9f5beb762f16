"""Equalization scales s: X ← X / s, W ← diag(s) · W leaves X·W as it was.

Notation: m_k = max |X_k| over calibration tokens, W a K × N weight, k an input channel. What is
here follows from a few numbers a channel; `scale_search` chooses among such scales by their error.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float32]

_EPSILON = 1e-5


def logarithmic(absmax: NDArray[Any]) -> Float:
    """FPTQ's logarithmic activation equalization: s_k = m_k / log2(2 + m_k), m_k ≥ 1e-5.

    `absmax` [K] → scales [K]. Source: FPTQ, arXiv 2308.15987.
    """
    m = np.maximum(np.asarray(absmax, np.float64), _EPSILON)
    return (m / np.log2(2.0 + m)).astype(np.float32)


def smoothquant(absmax: NDArray[Any], weight_absmax: NDArray[Any], alpha: float = 0.5) -> Float:
    """SmoothQuant: s_k = m_k^α / max|W_k|^(1-α), over all weights that read channel k.

    `absmax` [K], `weight_absmax` [K] → scales [K]. Source: SmoothQuant, arXiv 2211.10438.
    """
    m = np.maximum(np.asarray(absmax, np.float64), _EPSILON)
    w = np.maximum(np.asarray(weight_absmax, np.float64), _EPSILON)
    return np.maximum(m**alpha / w ** (1.0 - alpha), _EPSILON).astype(np.float32)


def ranges(activation: NDArray[Any], weight: NDArray[Any]) -> Float:
    """Equal ranges on both sides: s_k = sqrt(r_xk / r_wk), r = max - min of a channel.

    `activation` [K]: r of X_k; `weight` [K]: r of row k over all weights that read it → scales [K].
    Afterwards both ranges are sqrt(r_xk · r_wk), which maximizes the product of the channels'
    precisions, range over range of the whole tensor. Source: AWEQ, arXiv 2311.01305, as we read it:
    the equalization of weights that follow each other in Nagel et al., arXiv 1906.04721, with the
    activation in place of the first.
    """
    x = np.maximum(np.asarray(activation, np.float64), _EPSILON)
    w = np.maximum(np.asarray(weight, np.float64), _EPSILON)
    return np.maximum(np.sqrt(x / w), _EPSILON).astype(np.float32)


def activation_aware(mean_magnitude: NDArray[Any], exponent: float) -> Float:
    """AWQ: s_k = E[|X_k|]^a over the geometric mean of its extremes.

    `mean_magnitude` [K] → scales [K]. Source: AWQ, arXiv 2306.00978.
    """
    m = np.maximum(np.asarray(mean_magnitude, np.float64), _EPSILON)
    return normalized((m**exponent).astype(np.float32))


def outlier_suppressing(absmax: NDArray[Any], threshold: float) -> Float:
    """Outlier Suppression+: s_k = max(1, m_k / t), so that only channels beyond t are scaled.

    `absmax` [K], t > 0 → scales [K]. Source: Outlier Suppression+, arXiv 2304.09145, without its
    shift of channels, as QQQ, arXiv 2406.09904, uses it.
    """
    return np.maximum(np.asarray(absmax, np.float64) / threshold, 1.0).astype(np.float32)


def normalized(scale: Float) -> Float:
    """Scales divided by the geometric mean of their extremes.

    Multiplying every scale by one constant changes nothing mathematically, but keeps weights and
    activations near the magnitude they had. Source: AWQ's normalisation, arXiv 2306.00978.
    """
    center = float(np.sqrt(float(scale.max()) * float(scale.min())))
    return (scale / max(center, _EPSILON)).astype(np.float32)
