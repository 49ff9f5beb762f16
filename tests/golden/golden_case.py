"""The golden file format: sections of text, a graph in ONNX's own syntax, seeded weights.

    // Free comment, kept.
    options:
      quantize-weights{search=mse}          the pipeline, as for `qc opt -p`
      plan: fc per-token                    LAYER GRANULARITY [equalize] [WEIGHT FORMAT], * for all
      statistics: x absmax=ramp(1, 4)       TENSOR [absmax=GEN] [mean_square=GEN],
                                            or minimum=GEN and maximum=GEN in place of absmax
      calibrate: 3                          batches of random feeds for the calibrate pass
      exclude: lm_head                      a regular expression
    input:
      g (float[N, 32] x) => (float[N, 8] y) {
        // weight w float[32, 8] normal(seed=0, std=0.1)
        // feed ids ints(seed=1, low=0, high=8)
        [fc] y = MatMul(x, w)
      }
    expected:                               the printed graph, or the message of a *_reject case
    remarks:                                '+ layer: message', '-' where nothing was done
    learned:                                plan and statistics the passes added

Generators give values that are multiples of 1/128 (in float32: exact), so that sums of products
have no rounding and the expectations hold on every machine.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

HEADER = '<ir_version: 10, opset_import: ["" : 21]>\n'
SECTIONS = ("options", "input", "expected", "remarks", "learned")
STEP = 128.0


def _tame(values: np.ndarray) -> np.ndarray:
    return np.round(values * STEP) / STEP


def _normal(shape: tuple[int, ...], seed: int = 0, std: float = 1.0) -> np.ndarray:
    return _tame(np.random.default_rng(seed).standard_normal(shape) * std)


def _ints(shape: tuple[int, ...], seed: int = 0, low: int = 0, high: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).integers(low, high, shape)


def _ramp(shape: tuple[int, ...], start: float = -1.0, stop: float = 1.0) -> np.ndarray:
    return _tame(np.linspace(start, stop, int(np.prod(shape)))).reshape(shape)


def _full(shape: tuple[int, ...], value: float = 1.0) -> np.ndarray:
    return np.full(shape, value)


def _values(shape: tuple[int, ...], *values: float) -> np.ndarray:
    return np.asarray(values).reshape(shape)


def _picked(shape: tuple[int, ...], *values: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).choice(values, shape)


GENERATORS: dict[str, Callable[..., np.ndarray]] = {
    "normal": _normal,
    "ints": _ints,
    "ramp": _ramp,
    "full": _full,
    "values": _values,
    "picked": _picked,
}


def generate(call: str, shape: tuple[int, ...]) -> np.ndarray:
    """Evaluate a generator such as `normal(seed=0, std=0.1)` for a shape."""
    tree = ast.parse(call.strip(), mode="eval").body
    if not isinstance(tree, ast.Call) or not isinstance(tree.func, ast.Name):
        raise ValueError(f"'{call}' is no call of a generator: {', '.join(GENERATORS)}")
    if tree.func.id not in GENERATORS:
        raise ValueError(f"unknown generator '{tree.func.id}': {', '.join(GENERATORS)}")
    args = [ast.literal_eval(arg) for arg in tree.args]
    named = {str(word.arg): ast.literal_eval(word.value) for word in tree.keywords}
    return GENERATORS[tree.func.id](shape, *args, **named)


_WEIGHT = re.compile(r"\s*//\s*weight\s+(\S+)\s+(\w+)\[([\d,\s]*)\]\s+(.+)")
_FEED = re.compile(r"\s*//\s*feed\s+(\S+)\s+(.+)")
_STATISTIC = re.compile(r"(absmax|minimum|maximum|mean_square)=(\w+\([^)]*\))")


@dataclass(frozen=True)
class Case:
    """One golden file, read."""

    path: Path
    preamble: str
    sections: dict[str, str]
    pipeline: str
    context: dict[str, list[str]] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """'reject', 'nomatch' or 'rewrite', by the end of the file's name."""
        ending = self.path.stem.rpartition("_")[2]
        return ending if ending in ("reject", "nomatch") else "rewrite"

    def model(self) -> onnx.ModelProto:
        """The input graph with its weights."""
        lines, weights = [], []
        for line in self.sections["input"].splitlines():
            found = _WEIGHT.match(line)
            if found:
                name, kind, dims, call = found.groups()
                shape = tuple(int(dim) for dim in dims.split(",") if dim.strip())
                dtype = onnx.helper.tensor_dtype_to_np_dtype(
                    onnx.TensorProto.DataType.Value(kind.upper())
                )
                values = generate(call, shape).astype(dtype)
                weights.append(numpy_helper.from_array(values, name))
            elif not line.strip().startswith("//"):
                lines.append(line)
        text = "\n".join(lines)
        model = onnx.parser.parse_model(text if text.lstrip().startswith("<") else HEADER + text)
        model.graph.initializer.extend(weights)
        return model

    def feeds(self, model: onnx.ModelProto, seed: int) -> dict[str, np.ndarray]:
        """Seeded inputs: normal floats and small integers, or what `// feed` lines say."""
        given = dict(
            found.groups()
            for found in map(_FEED.match, self.sections["input"].splitlines())
            if found
        )
        symbols: dict[str, int] = {}
        feeds: dict[str, np.ndarray] = {}
        for entry in model.graph.input:
            kind = entry.type.tensor_type
            dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
            shape = tuple(
                symbols.setdefault(dim.dim_param, 2 + len(symbols))
                if dim.dim_param
                else dim.dim_value
                for dim in kind.shape.dim
            )
            usual = "normal(seed=0)" if np.issubdtype(dtype, np.floating) else "ints()"
            call = given.get(entry.name, usual)
            feeds[entry.name] = generate(re.sub(r"seed=\d+", f"seed={seed}", call), shape).astype(
                dtype
            )
        return feeds

    def statistics(self) -> dict[str, dict[str, str]]:
        """Generators of given statistics, by tensor and kind."""
        found: dict[str, dict[str, str]] = {}
        for line in self.context.get("statistics", []):
            tensor, _, rest = line.partition(" ")
            found[tensor] = dict(_STATISTIC.findall(rest))
        return found

    def write(self, **updated: str) -> None:
        """Write the file back with some sections replaced; empty sections are left out."""
        sections = {**self.sections, **updated}
        text = self.preamble
        for name in SECTIONS:
            if sections.get(name, "").strip():
                body = "\n".join(
                    f"  {line}" if line else "" for line in sections[name].strip("\n").splitlines()
                )
                text += f"{name}:\n{body}\n"
        self.path.write_text(text, encoding="utf-8")


def read_case(path: Path) -> Case:
    """Read a golden file; ValueError if it has no options or no input."""
    preamble = ""
    sections: dict[str, list[str]] = {}
    current: list[str] | None = None
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.rstrip().rstrip(":") in SECTIONS and line.rstrip().endswith(":"):
            current = sections.setdefault(line.rstrip()[:-1], [])
        elif current is None:
            preamble += line + "\n"
        else:
            current.append(line.removeprefix("  "))
    texts = {name: "\n".join(lines) for name, lines in sections.items()}
    for name in ("options", "input"):
        if not texts.get(name, "").strip():
            raise ValueError(f"{path} has no section '{name}:'")
    pipeline, *more = [line for line in texts["options"].splitlines() if line.strip()]
    context: dict[str, list[str]] = {}
    for line in more:
        key, _, value = line.partition(":")
        if key.strip() not in ("plan", "statistics", "calibrate", "exclude"):
            raise ValueError(f"{path}: unknown option '{key}'")
        context.setdefault(key.strip(), []).append(value.strip())
    return Case(path, preamble, texts, pipeline.strip(), context)


_NUMBER = re.compile(r"(?<![\w.:])-?\d+(?:\.\d+)?(?:e[+-]?\d+)?(?![\w.])")


def same_text(actual: str, expected: str, tolerance: float = 1e-4) -> bool:
    """Whether two texts agree, numbers that are not both integers to a relative tolerance."""
    if actual == expected:
        return True
    if _NUMBER.sub("#", actual) != _NUMBER.sub("#", expected):
        return False
    for one, other in zip(_NUMBER.findall(actual), _NUMBER.findall(expected), strict=True):
        whole = not any(c in ".e" for c in one + other)
        if whole and one != other:
            return False
        if not np.isclose(float(one), float(other), rtol=tolerance, atol=1e-9):
            return False
    return True
