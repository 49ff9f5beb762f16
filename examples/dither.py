"""A copy of a model with noise on its weights, to judge quantization methods by.

    python examples/dither.py SOURCE OUTPUT [SEED]

Weights that came out of a 4-bit file lie on its grid, and a method that happens to use the same
grid looks perfect on them. Here every weight of a linear layer gains uniform noise of half a step
either way, a step being a fifteenth of the range of 32 consecutive input channels: what a 4-bit
file rounds away, put back at random. Weights that a look-up table shares stay as they are. Judge
methods with the copy as the reference.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompiler import ir
from qcompiler.analysis.layers import find_layers
from qcompiler.errors import QcError
from qcompiler.models import open_package
from qcompiler.passmanager import PassContext, PassManager
from qcompiler.recipe import parse_pipeline

GROUP = 32


def main() -> None:
    if len(sys.argv) not in (3, 4):
        sys.exit("usage: python examples/dither.py SOURCE OUTPUT [SEED]")
    dither_model(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]) if sys.argv[3:] else 0)


def dither_model(source: Path, output: Path, seed: int) -> None:
    """Write a model folder or file with dithered weights."""
    package = open_package(source)
    package.refuse_overwriting(output)
    random = np.random.default_rng(seed)
    manager = PassManager(parse_pipeline("import,canonicalize"))
    graph, _ = manager.run(ir.read_model(package.onnx_path), PassContext())
    count = 0
    for linear in find_layers(graph)[0]:
        if len(ir.consumers(linear.weight)) > 1:
            continue
        weight = ir.array(linear.weight)
        noisy = dithered(np.asarray(weight, np.float32), random).astype(weight.dtype)
        linear.node.inputs[1] = ir.constant(str(linear.weight.name), noisy)
        count += 1
    target = output
    if package.folder is not None:
        taken = {package.onnx_path, *package.data_files}
        shutil.copytree(
            package.folder,
            output,
            ignore=lambda folder, names: [n for n in names if Path(folder) / n in taken],
        )
        target = output / package.onnx_path.name
    ir.write_model(graph, target)
    print(f"{output}: noise on the weights of {count} layers, seed {seed}")


def dithered(weight: NDArray[Any], random: np.random.Generator) -> NDArray[Any]:
    """A weight [K, N] plus uniform noise of half a step of its group of input channels."""
    noise = random.uniform(-0.5, 0.5, weight.shape)
    for start in range(0, len(weight), GROUP):
        group = weight[start : start + GROUP]
        noise[start : start + GROUP] *= (group.max(axis=0) - group.min(axis=0)) / 15.0
    return weight + noise.astype(np.float32)


if __name__ == "__main__":
    try:
        main()
    except QcError as error:
        sys.exit(f"error: {error}")
