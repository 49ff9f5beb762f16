"""How many dB of signal to noise each lossy pass leaves on the blocks of block_models.py.

Measured on 64 inputs of each block, against the outputs just before the pass. Where the numbers
come from, for values spread as a normal distribution (a step s makes noise of s²/12):

- int4 weights in groups of 32: the largest of 32 values is 2.1σ, so a symmetric step is 2.1σ/7 and
  leaves 21.4 dB a layer; an asymmetric one, (2 · 2.1σ)/15, leaves 22.0. The perceptron has four
  products in a row: 6 dB less, 15.4 and 16.0. Multiples of one number as scales take up to 0.6 of
  it; searched ranges, GPTQ and GPTAQ add up to 2 dB. A bit more or less is worth 6 dB, and the grid
  for Gaussian weights up to 1.
- int8 activations, a scale a token: the largest of 96 is 2.5σ, 45 dB a layer, 39 after four. A
  static scale covers the largest of all tokens, 4σ or more.
- The transformer blocks amplify both: channels of norms at eight times the others set the scales,
  and the softmax of large scores sharpens small differences.
- int8 tables in groups of 64: 2.4σ/127, 45 dB; int4 in groups of 32: 21 dB; the attention behind
  them takes 10 to 15 of these.
- float16 rounds values by up to a sixteenth of an int8 step: some codes move by one, which makes
  less noise than the rounding to int8.
- lower-ort-contrib swaps int8 activations a token for ones a block, another noise of the same size.
- compensate, correct-bias and tweak-norms move outputs by the error that they find.
"""

from __future__ import annotations

from math import inf as EXACT

MARGIN_DB = 0.8
"""Noise 20% larger or smaller. Weights changed in their last bits, and other kernels of the BLAS
library, move the numbers by 0.2, and ONNX Runtime's kernels differ between processors. Less noise
than stated is a pass that does less than it should, or one that has become better and says so
here."""

TABLE, ROTATED_TABLE, INT4_TABLE = 30.3, 30.0, 11.1
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


W4A8 = after(INT4_TABLE, (13.2, 17.7, 18.5), (29.7, 34.0, 39.6))
FPTQ = after(TABLE, (6.8, 11.2, 17.2), (24.0, 30.7, 31.0))

NOISE_DB = {
    "w4a8 on ort-custom": W4A8,
    "w4a8 on ort-contrib": W4A8 | {"lower-ort-contrib": (29.6, 34.2, 37.8)},
    "w4a8-fast on ort-custom": after(TABLE, (10.5, 15.8, 18.5), (31.0, 35.9, 39.3)),
    "w4a8-fast on ort-custom, rotated": after(
        ROTATED_TABLE, (11.8, 15.9, 18.5), (29.9, 35.4, 39.3)
    ),
    "fptq on ort-custom": FPTQ,
    "measured on ort-custom": after(TABLE, (7.6, 11.4, 17.2), (21.7, 28.3, 31.0)),
    "smoothquant on qdq": after(TABLE, (8.5, 13.3, 17.2), (30.3, 35.6, 39.2)),
    "smoothquant+ on ort-custom": after(TABLE, (9.7, 13.4, 17.2), (27.5, 33.9, 39.2)),
    "aweq on ort-custom": after(TABLE, (7.9, 13.1, 17.2), (31.2, 35.2, 39.2))
    | {"correct-bias": (23.9, 26.4, 22.0)},
    "awq on ort-custom": after(TABLE, (12.0, 16.1, 18.5), (26.6, 33.9, 39.3)),
    "abq on ort-custom": after(TABLE, (12.8, 16.4, 18.5), (28.0, 32.8, 39.3))
    | {"compensate": (28.2, EXACT, EXACT)},
    "os+ on ort-custom": after(TABLE, (8.7, 13.1, 17.2), (25.0, 32.1, 39.2)),
    "aqas on ort-custom": after(TABLE, (12.8, 16.5, 18.5), (28.1, 32.8, 39.3)),
    "gptq on ort-custom": after(TABLE, (8.1, 12.7, 16.7), (23.2, 28.7, 39.6)),
    "w4a8 within a budget": after(TABLE, (20.4, 20.6, 18.5), (31.0, 36.1, 39.3)),
    "quarot on ort-custom": after(ROTATED_TABLE, (9.7, 12.5, 16.7), (35.3, 29.2, 39.6)),
    "qoq on ort-custom": after(ROTATED_TABLE, (13.0, 16.3, 17.8), (35.7, 28.4, 39.6)),
    "w4a8 with tweaked norms": W4A8 | {"tweak-norms": (23.9, 33.3, EXACT)},
    "w4a8 on cuda": W4A8 | {"half-precision": (33.7, 40.0, 41.2)},
    "fptq on cuda": FPTQ | {"half-precision": (32.6, 36.9, 38.7)},
    "rtn on ort-contrib": after(TABLE, (7.6, 11.4, 17.2), (21.7, 29.1, 39.2))
    | {"lower-ort-contrib": (24.2, 30.4, 37.2)},
    "groups of 16 on ort-contrib": after(TABLE, (14.7, 18.7, 18.6), (27.3, 33.9, 39.4))
    | {"lower-ort-contrib": (27.7, 33.8, 37.5)},
    "w3a8 on ort-custom": after(INT4_TABLE, (8.9, 15.3, 15.0), (30.0, 32.7, 39.2)),
    "w2a8 on ort-custom": after(INT4_TABLE, (3.8, 8.7, 9.1), (29.6, 32.2, 38.8)),
    "five bits on ort-custom": after(TABLE, (12.2, 16.7, 23.3), (22.9, 27.5, 39.4)),
    "six bits on qdq": after(TABLE, (18.6, 23.6, 29.4), (21.0, 28.0, 39.3)),
}
"""By pipeline and pass."""
