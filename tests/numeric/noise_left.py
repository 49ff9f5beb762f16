"""How many dB of signal to noise each lossy pass leaves on the blocks of block_models.py.

Measured on 64 inputs of each block, against the outputs just before the pass. Where the numbers
come from, for values spread as a normal distribution (a step s makes noise of s²/12):

- int4 weights in groups of 32: the largest of 32 values is 2.1σ, so a symmetric step is 2.1σ/7 and
  leaves 21.4 dB a layer; an asymmetric one, (2 · 2.1σ)/15, leaves 22.0. The perceptron has four
  products in a row: 6 dB less, 15.4 and 16.0. Searched ranges, GPTQ and GPTAQ add up to 2 dB.
- int8 activations, a scale a token: the largest of 96 is 2.5σ, 45 dB a layer, 39 after four. A
  static scale covers the largest of all tokens, 4σ or more.
- The transformer blocks amplify both: channels of norms at eight times the others set the scales,
  and the softmax of large scores sharpens small differences.
- int8 tables in groups of 64: 2.4σ/127, 45 dB; int4 in groups of 32: 21 dB; the attention behind
  them takes 10 to 15 of these.
- float16 rounds values by up to a sixteenth of an int8 step: some codes move by one, which makes
  less noise than the rounding to int8.
- lower-ort-contrib swaps int8 activations a token for ones a block, another noise of the same size.
- correct-bias and tweak-norms move outputs by the error that they find.
"""

from __future__ import annotations

from math import inf as EXACT

MARGIN_DB = 0.8
"""Noise 20% larger or smaller. Weights changed in their last bits, and other kernels of the BLAS
library, move the numbers by 0.2, and ONNX Runtime's kernels differ between processors. Less noise
than stated is a pass that does less than it should, or one that has become better and says so
here."""

TABLE, ROTATED_TABLE, INT4_TABLE = 30.1, 29.2, 11.5
"""quantize-embedding on the decoder; the others have no table."""

Noise = tuple[float, float, float]
"""Of the decoder, the encoder, the perceptron."""


def after(table: float, weights: Noise, activations: Noise) -> dict[str, Noise]:
    """What the passes of every recipe leave."""
    return {
        "quantize-embedding": (table, EXACT, EXACT),
        "quantize-weights": weights,
        "insert-qdq": activations,
    }


W4A8 = after(INT4_TABLE, (13.5, 16.1, 17.6), (30.5, 27.9, 39.2))
FPTQ = after(TABLE, (8.1, 11.4, 15.0), (24.7, 30.7, 31.4))

NOISE_DB = {
    "w4a8 on ort-custom": W4A8,
    "w4a8 on ort-contrib": W4A8 | {"lower-ort-contrib": (30.1, 29.9, 37.9)},
    "w4a8-fast on ort-custom": after(TABLE, (10.3, 15.9, 16.0), (31.0, 36.0, 39.6)),
    "w4a8-fast on ort-custom, rotated": after(
        ROTATED_TABLE, (11.7, 16.3, 16.0), (28.9, 35.9, 39.6)
    ),
    "fptq on ort-custom": FPTQ,
    "per group on ort-custom": after(TABLE, (7.9, 11.2, 15.0), (24.4, 30.7, 41.1)),
    "measured on ort-custom": after(TABLE, (7.9, 11.2, 15.0), (20.5, 27.5, 31.4)),
    "smoothquant on qdq": after(TABLE, (8.9, 13.3, 15.0), (30.4, 35.8, 40.1)),
    "smoothquant+ on ort-custom": after(TABLE, (9.8, 14.6, 15.0), (28.6, 33.4, 40.1)),
    "aweq on ort-custom": after(TABLE, (8.8, 13.5, 15.0), (30.6, 35.0, 40.1))
    | {"correct-bias": (25.5, 27.9, 19.4)},
    "awq on ort-custom": after(TABLE, (12.4, 16.6, 16.0), (26.6, 34.1, 39.6)),
    "os+ on ort-custom": after(TABLE, (9.4, 13.2, 15.0), (27.5, 31.3, 40.1)),
    "aqas on ort-custom": after(TABLE, (11.6, 16.5, 16.0), (28.4, 33.1, 39.6)),
    "gptq on ort-custom": after(TABLE, (7.6, 11.9, 15.5), (22.7, 25.1, 39.3)),
    "w4a8 within a budget": after(TABLE, (16.1, 16.9, 17.8), (30.7, 36.0, 39.5)),
    "quarot on ort-custom": after(ROTATED_TABLE, (9.1, 12.0, 15.5), (35.6, 25.3, 39.3)),
    "qoq on ort-custom": after(ROTATED_TABLE, (12.5, 15.1, 17.7), (35.4, 28.3, 39.1)),
    "w4a8 with tweaked norms": W4A8 | {"tweak-norms": (19.6, 26.6, EXACT)},
    "w4a8 on cuda": W4A8 | {"half-precision": (33.2, 38.6, 40.6)},
    "fptq on cuda": FPTQ | {"half-precision": (33.3, 37.2, 38.2)},
    "rtn on ort-contrib": after(TABLE, (7.9, 11.2, 15.0), (20.7, 28.1, 40.1))
    | {"lower-ort-contrib": (22.4, 28.9, 38.3)},
}
"""By pipeline and pass."""
