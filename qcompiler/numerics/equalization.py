"""Equalization scales s: X ← X / s, W ← diag(s) · W leaves X·W as it was.

Notation: m_k = max |X_k| over calibration tokens, W a K × N weight, k an input channel.
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


def normalized(scale: Float) -> Float:
    """Scales divided by the geometric mean of their extremes.

    Multiplying every scale by one constant changes nothing mathematically, but keeps weights and
    activations near the magnitude they had. Source: AWQ's normalisation, arXiv 2306.00978.
    """
    center = float(np.sqrt(float(scale.max()) * float(scale.min())))
    return (scale / max(center, _EPSILON)).astype(np.float32)
