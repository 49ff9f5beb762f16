"""Mutated nodes: the library refuses them, or computes what the reference does. It never crashes.

Runs as a script in a process of its own, which prints each case before it tries it:

    python tests/runtime/test_op_fuzz.py SEED CASES
"""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import pytest
from fuzzing import open_session, run_apart
from op_models import (
    ACTIVATIONS,
    BITS,
    Layer,
    assert_close,
    gather_model,
    make_layer,
    matmul_model,
)

from qcompiler.formats import GROUP_SIZES
from qcompiler.numerics import reference

CASES = 700

WEIRD = (0, 1, -1, 16, 31, 32, 33, 64, 128, 256, 2**28, 2**28 + 1, 2**31, 2**62, -(2**63))
MOST_TERMS = 1e30  # float32 can't hold more: what is infinite first is not specified


@dataclass
class Case:
    """One node: what it is made of, and what is fed to it."""

    layer: Layer
    activation: str  # or "gather"
    dtype: str = "float32"
    splits: tuple[int, ...] = (0, 0, 0)
    attributes: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, np.ndarray] = field(default_factory=dict)
    fed: dict[str, np.ndarray] = field(default_factory=dict)
    x: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    structure: str = ""

    def __str__(self) -> str:
        w = self.layer.w
        tensors = {name: (str(t.dtype), t.shape) for name, t in self.tensors.items()}
        fed = {name: (str(t.dtype), t.shape) for name, t in self.fed.items()}
        return (
            f"{self.activation} {w.form.bits} bits K={w.K} N={w.N} group={w.form.group_size} "
            f"splits={self.splits} {self.dtype} X={self.x.shape} {self.attributes} {tensors} "
            f"fed {fed} {self.structure}"
        )

    def model(self) -> onnx.ModelProto:
        if self.activation == "gather":
            made = gather_model(
                self.layer,
                ids_type=str(self.x.dtype),
                attributes=self.attributes,
                tensors=self.tensors,
                functions=False,
            )
        else:
            made = matmul_model(
                self.layer,
                self.activation,
                dtype=self.dtype,
                splits=self.splits,
                attributes=self.attributes,
                tensors=self.tensors,
                as_inputs=tuple(self.fed),
                functions=False,
            )
        node, tensors = made.graph.node[0], made.graph.initializer
        if self.structure == "fewer inputs":
            node.input.pop()
        elif self.structure == "an input left out":
            node.input[1] = ""
        elif self.structure == "one more input":
            node.input.append(node.input[0])
        elif self.structure == "fewer outputs":
            node.output.pop()
        elif self.structure == "one more output":
            node.output.append("more")
        elif self.structure == "inputs swapped":
            node.input[1], node.input[2] = node.input[2], node.input[1]
        elif self.structure == "truncated constant" and tensors:
            tensors[0].raw_data = tensors[0].raw_data[:-7]
        elif self.structure == "no domain version":
            del made.opset_import[1:]
        # What the graph declares must not shield the kernel.
        for value in (*made.graph.input, *made.graph.output):
            value.type.tensor_type.ClearField("shape")
        return made

    def feeds(self) -> dict[str, np.ndarray]:
        return {"ids" if self.activation == "gather" else "X": self.x} | self.fed

    def check(self, outputs: list[np.ndarray]) -> None:
        """Outputs of an accepted node are the reference's on the tensors that it got."""
        values = self.tensors | self.fed
        matrix = {key: values[key] for key in ("W", "scales", "zero_points") if key in values}
        sizes = {key: self.attributes.get(key, getattr(self.layer.w, key)) for key in ("K", "N")}
        group = self.attributes.get("group_size", self.layer.w.form.group_size)
        form = dataclasses.replace(self.layer.w.form, group_size=group)
        w = dataclasses.replace(self.layer.w, **matrix, **sizes, form=form)
        with np.errstate(all="ignore"):
            if self.activation == "gather":
                np.testing.assert_array_equal(outputs[0], reference.gather(self.x, w))
                return
            layer = Layer(w, values.get("bias", self.layer.bias))
            scale = float(values.get("x_scale", np.float32(0.02)).reshape(()))
            activation = self.activation
            if (block := self.attributes.get("activation_block")) is not None:
                activation = "row" if block == w.K else "group"
            terms = layer.tolerance(self.x, activation, scale) * 1e5
            if not (np.nanmax(terms, initial=0) < MOST_TERMS and np.isfinite(w.scales).all()):
                return
            if self.dtype == "float16" and np.nanmax(terms, initial=0) > 6e4:
                return
            found = np.concatenate([y.astype(np.float32) for y in outputs], axis=-1)
            expected = layer.expected(self.x, activation, scale)
            # A bias of NaN has no tolerance, and needs none.
            assert_close(found, expected, np.nan_to_num(1e-5 * terms) + 1e-30, self.dtype)


def make_case(rng: np.random.Generator) -> Case:
    """A valid node, then up to three things about it changed."""
    gather = rng.random() < 0.2
    layer = make_layer(
        int(rng.choice([1, 7, 32, 33, 64, 100, 160, 257])),
        int(rng.choice([1, 15, 16, 17, 35, 64, 130])),
        int(rng.choice(GROUP_SIZES)),
        bits=int(rng.choice(BITS)),
        symmetric=bool(rng.random() < 0.5),
        bias=bool(rng.random() < 0.5),
        seed=int(rng.integers(1000)),
    )
    leading = tuple(int(size) for size in rng.choice([0, 1, 2, 3, 7], rng.integers(0, 4)))
    if gather:
        case = Case(layer, "gather")
        kind = rng.choice(["int64", "int32"])
        case.x = rng.integers(-layer.w.N, layer.w.N, leading).astype(kind)
        changes = [change_attribute, change_tensor, change_values, change_ids, change_structure]
    else:
        first = int(rng.integers(1, layer.w.N + 1))
        second = int(rng.integers(0, layer.w.N - first + 1))
        case = Case(layer, str(rng.choice(ACTIVATIONS)), str(rng.choice(["float32", "float16"])))
        case.splits = (first, second, layer.w.N - first - second)
        case.x = rng.standard_normal((*leading, layer.w.K)).astype(case.dtype)
        changes = [
            change_attribute,
            change_tensor,
            change_values,
            change_splits,
            change_x,
            change_structure,
            feed_tensor,
            feed_tensor,
        ]
    for index in rng.integers(0, len(changes), rng.integers(0, 4)):
        changes[index](case, rng)
    return case


def change_attribute(case: Case, rng: np.random.Generator) -> None:
    names = ["K", "N", "group_size", "layout"]
    if case.activation in ("row", "group"):
        names.append("activation_block")
    name = str(rng.choice(names))
    w = case.layer.w
    near = [w.K, w.K + 1, w.K - 1, w.N, w.N - 1, w.N + 1, w.form.group_size, *WEIRD]
    other = [None, 1.5, "text", [1, 2], np.float32(np.nan).item()]
    case.attributes[name] = (near + other)[rng.integers(len(near) + len(other))]


def change_splits(case: Case, rng: np.random.Generator) -> None:
    n = case.layer.w.N
    choices = [
        [n, 0, 0],
        [0, n, 0],
        [n + 1, -1, 0],
        [n],
        [],
        None,
        n,
        [n - 1, 0, 1],
        [2**62, 2**62, n],
        [n, 0, 0, 0],
        [-(2**63), n, 0],
    ]
    chosen = choices[rng.integers(len(choices))]
    case.attributes["splits"] = chosen if chosen != [] else None
    if isinstance(chosen, list) and len(chosen) == 3 and min(chosen) >= 0:
        case.splits = tuple(chosen)


def names_of(case: Case) -> list[str]:
    names = ["W", "scales", "zero_points"]
    if case.activation != "gather":
        names.append("bias")
    if case.activation == "static":
        names.append("x_scale")
    return names


def tensor_of(case: Case, name: str) -> np.ndarray:
    known = case.layer.inputs() | {"x_scale": np.array(0.02, np.float32)}
    return case.tensors.get(name, known[name])


def other_shape(tensor: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The tensor cut, grown, flattened, turned, of another rank, or empty."""
    axis = int(rng.integers(tensor.ndim)) if tensor.ndim else 0
    size = list(tensor.shape)
    how = int(rng.integers(8))
    if how == 0 or not tensor.ndim or not tensor.size:
        return tensor.reshape((1, *size))
    if how == 1:
        return tensor.reshape(-1)
    if how == 2:
        return np.ascontiguousarray(tensor.T)
    if how == 3:
        return np.take(tensor, range(size[axis] - 1), axis)
    if how == 4:
        return np.take(tensor, range(0), axis)
    if how == 5:
        return np.concatenate([tensor, np.take(tensor, [0], axis)], axis)
    if how == 6:
        return tensor.reshape(-1)[0]
    return tensor.reshape(-1)[:1].reshape((1,) * tensor.ndim)


def other_type(tensor: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    with np.errstate(all="ignore"):
        return tensor.astype(str(rng.choice(["float32", "float16", "int8", "uint8", "int64"])))


def change_tensor(case: Case, rng: np.random.Generator) -> None:
    name = str(rng.choice(names_of(case)))
    change = other_type if rng.random() < 0.3 else other_shape
    case.tensors[name] = np.asarray(change(tensor_of(case, name), rng))
    case.fed.pop(name, None)


def change_values(case: Case, rng: np.random.Generator) -> None:
    """Any bytes are codes, scales and zero points."""
    name = str(rng.choice(names_of(case)))
    tensor = tensor_of(case, name)
    raw = rng.integers(0, 256, tensor.nbytes, dtype=np.uint8)
    case.tensors[name] = raw.view(tensor.dtype).reshape(tensor.shape)
    case.fed.pop(name, None)


def feed_tensor(case: Case, rng: np.random.Generator) -> None:
    """A tensor that is an input of the model, often of a shape that does not fit."""
    if case.structure:
        return
    name = str(rng.choice(names_of(case)))
    tensor = np.asarray(tensor_of(case, name))
    case.tensors[name] = tensor
    case.fed[name] = np.asarray(other_shape(tensor, rng)) if rng.random() < 0.7 else tensor


def change_x(case: Case, rng: np.random.Generator) -> None:
    how = int(rng.integers(5))
    if how == 0:
        case.x = np.asarray(other_shape(case.x, rng)) if case.x.size else case.x
    elif how == 1:
        case.x = np.asarray(1, case.x.dtype)
    elif how == 2:
        case.x = np.zeros((0, 3, case.layer.w.K), case.x.dtype)
    elif how == 3:
        case.x = np.ones((50, case.layer.w.K), case.x.dtype)
    elif case.x.size:
        case.x = case.x.copy()
        case.x.reshape(-1)[rng.integers(case.x.size)] = rng.choice([np.nan, np.inf, -np.inf, 6e4])


def change_ids(case: Case, rng: np.random.Generator) -> None:
    if case.x.size:
        limits = np.iinfo(case.x.dtype)
        n = case.layer.w.N
        wrong = [n, -n - 1, limits.max, limits.min, n + 15]
        case.x = np.asarray(case.x).copy()
        case.x.reshape(-1)[rng.integers(case.x.size)] = wrong[rng.integers(len(wrong))]


def change_structure(case: Case, rng: np.random.Generator) -> None:
    if not case.fed:
        case.structure = str(
            rng.choice(
                [
                    "fewer inputs",
                    "an input left out",
                    "one more input",
                    "fewer outputs",
                    "one more output",
                    "inputs swapped",
                    "truncated constant",
                    "no domain version",
                ]
            )
        )


def main(seed: int, cases: int) -> None:
    rng = np.random.default_rng(seed)
    accepted = 0
    for index in range(cases):
        case = make_case(rng)
        print(f"{index}: {case}", flush=True)
        try:
            model = case.model().SerializeToString()
        except (ValueError, TypeError, OverflowError):
            continue  # protobuf itself can't hold it
        try:
            outputs = open_session(model).run(None, case.feeds())
        except Exception:  # ONNX Runtime's errors share no other base class
            continue
        accepted += 1
        if not case.structure:
            case.check([np.asarray(y) for y in outputs])
    print(f"accepted {accepted} of {cases}")


@pytest.mark.parametrize("seed", [0])
def test_no_mutation_crashes(seed: int) -> None:
    accepted = int(run_apart(__file__, seed, CASES).split()[1])
    assert CASES / 10 < accepted < CASES  # neither all refused nor all accepted


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
