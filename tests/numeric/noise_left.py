"""How many dB of signal to noise each lossy pass leaves on the blocks of block_models.py.

Measured on 64 inputs of each block, against the outputs just before the pass. Where the numbers
come from, for values spread as a normal distribution (a step s makes noise of s²/12):

- int4 weights in groups of 32: the largest of 32 values is 2.1σ, so a symmetric step is 2.1σ/7 and
  leaves 21.4 dB a layer; an asymmetric one, (2 · 2.1σ)/15, leaves 22.0. The perceptron has four
  products in a row: 6 dB less, 15.4 and 16.0. Multiples of one number as scales take up to 0.6 of
  it; searched ranges, GPTQ and GPTAQ add up to 2 dB. A bit more or less is worth 6 dB.
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

TABLE, ROTATED_TABLE, INT4_TABLE = 30.1, 29.2, 11.1
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


W4A8 = after(INT4_TABLE, (12.6, 15.4, 18.3), (29.4, 28.7, 38.9))
FPTQ = after(TABLE, (6.8, 11.2, 15.5), (23.8, 30.8, 31.4))

NOISE_DB = {
    "w4a8 on ort-custom": W4A8,
    "w4a8 on ort-contrib": W4A8 | {"lower-ort-contrib": (28.4, 30.4, 37.8)},
    "w4a8-fast on ort-custom": after(TABLE, (10.1, 15.3, 16.9), (30.0, 35.7, 39.3)),
    "w4a8-fast on ort-custom, rotated": after(
        ROTATED_TABLE, (11.5, 15.6, 16.9), (27.6, 35.1, 39.3)
    ),
    "fptq on ort-custom": FPTQ,
    "measured on ort-custom": after(TABLE, (7.7, 11.4, 15.5), (22.9, 28.5, 31.4)),
    "smoothquant on qdq": after(TABLE, (8.7, 13.5, 15.5), (30.4, 35.7, 39.4)),
    "smoothquant+ on ort-custom": after(TABLE, (8.8, 12.9, 15.5), (28.4, 34.6, 39.4)),
    "aweq on ort-custom": after(TABLE, (8.2, 13.5, 15.5), (30.8, 35.4, 39.4))
    | {"correct-bias": (23.4, 26.3, 19.9)},
    "awq on ort-custom": after(TABLE, (11.7, 15.1, 16.9), (25.6, 35.6, 39.3)),
    "os+ on ort-custom": after(TABLE, (9.0, 13.1, 15.5), (25.2, 32.0, 39.4)),
    "aqas on ort-custom": after(TABLE, (11.9, 16.5, 16.9), (28.2, 33.6, 39.3)),
    "gptq on ort-custom": after(TABLE, (8.4, 12.7, 16.1), (22.4, 25.4, 40.1)),
    "w4a8 within a budget": after(TABLE, (20.0, 20.2, 18.6), (30.7, 36.1, 39.4)),
    "quarot on ort-custom": after(ROTATED_TABLE, (9.5, 12.7, 16.1), (35.4, 25.7, 40.1)),
    "qoq on ort-custom": after(ROTATED_TABLE, (12.5, 15.1, 17.6), (35.6, 28.3, 39.0)),
    "w4a8 with tweaked norms": W4A8 | {"tweak-norms": (19.9, 26.5, EXACT)},
    "w4a8 on cuda": W4A8 | {"half-precision": (33.9, 38.6, 41.4)},
    "fptq on cuda": FPTQ | {"half-precision": (33.3, 37.0, 37.1)},
    "rtn on ort-contrib": after(TABLE, (7.7, 11.4, 15.5), (23.0, 29.3, 39.4))
    | {"lower-ort-contrib": (24.3, 30.5, 38.4)},
    "groups of 16 on ort-contrib": after(TABLE, (13.3, 17.1, 18.1), (30.9, 35.2, 39.2))
    | {"lower-ort-contrib": (30.5, 34.8, 37.2)},
    "w3a8 on ort-custom": after(INT4_TABLE, (9.2, 10.8, 13.0), (30.2, 28.3, 40.1)),
    "w2a8 on ort-custom": after(INT4_TABLE, (5.2, 5.4, 7.6), (30.9, 28.9, 39.7)),
    "five bits on ort-custom": after(TABLE, (12.5, 16.6, 22.2), (23.1, 27.1, 39.6)),
    "six bits on qdq": after(TABLE, (18.5, 22.9, 27.2), (22.1, 27.7, 40.0)),
}
"""By pipeline and pass."""
