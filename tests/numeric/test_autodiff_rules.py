"""Rules of operators that multiply, move, reduce and normalize."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from gradient_checks import Operator, check, torch_gradients
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompiler.autodiff import gradients
from qcompiler.ir.io import import_proto

torch = pytest.importorskip("torch")
F = torch.nn.functional


def floats(*sizes: int, seed: int = 0) -> np.ndarray:
    draws = np.random.default_rng((seed, *sizes))
    return np.asarray(draws.standard_normal(sizes), np.float32)


def ints(*values: int) -> np.ndarray:
    return np.asarray(values, np.int64)


MATMUL = Operator("MatMul", torch.matmul)


@pytest.mark.parametrize(
    "cases",
    [
        [((2, 3), (3, 4)), ((5, 3), (3, 4))],
        [((2, 4, 3), (3, 5)), ((1, 2, 3), (3, 5))],
        [((2, 4, 3), (2, 3, 5)), ((2, 1, 3), (1, 3, 5)), ((1, 1, 3), (2, 3, 5))],
        [((2, 3, 4, 5), (1, 3, 5, 2)), ((2, 1, 4, 5), (2, 3, 5, 2))],
        [((4, 3), (2, 3, 5)), ((4, 3), (1, 3, 5))],
        [((3,), (3, 4)), ((2,), (2, 4))],
        [((3,), (2, 3, 4))],
        [((2, 4, 3), (3,)), ((1, 4, 3), (3,))],
        [((3,), (3,)), ((2,), (2,))],
    ],
    ids=str,
)
def test_matmul(cases) -> None:
    check(MATMUL, [[floats(*a), floats(*b, seed=1)] for a, b in cases])


@pytest.mark.parametrize("left", [0, 1])
@pytest.mark.parametrize("right", [0, 1])
def test_gemm(left: int, right: int) -> None:
    def by_torch(a, b, c=None):
        product = 0.5 * (a.T if left else a) @ (b.T if right else b)
        return product if c is None else product + 3.0 * c

    attrs = {"transA": left, "transB": right, "alpha": 0.5, "beta": 3.0}
    a, b = floats(*((3, 2) if left else (2, 3))), floats(*((4, 3) if right else (3, 4)))
    operator = Operator("Gemm", by_torch, attrs)
    for c in ((4,), (2, 1), (2, 4), ()):
        check(operator, [[a, b, floats(*c)]])
    check(operator, [[a, b]])


def test_shapes_come_back() -> None:
    x, other = floats(2, 3, 4), floats(1, 3, 4)
    cases = [[x, ints(3, -1)], [other, ints(3, -1)]]
    check(Operator("Reshape", lambda x, _: x.reshape(3, -1)), cases)
    check(Operator("Flatten", lambda x: x.reshape(x.shape[0] * 3, -1), {"axis": 2}), [[x], [other]])
    check(Operator("Squeeze", lambda x, _: x[0]), [[other, ints(0)]])
    check(Operator("Unsqueeze", lambda x, _: x[:, None]), [[x, ints(1)], [other, ints(1)]])
    check(Operator("Transpose", lambda x: x.permute(2, 1, 0)), [[x], [other]])
    perm = Operator("Transpose", lambda x: x.permute(1, 2, 0), {"perm": [1, 2, 0]})
    check(perm, [[x], [other]])


def test_repeated_values_add_up() -> None:
    x = floats(2, 1, 3)
    check(Operator("Expand", lambda x, n: x.expand(*n)), [[x, ints(2, 4, 3)]])
    check(
        Operator("Expand", lambda x, n: x.expand(*n)),
        [[x, ints(5, 2, 4, 3)], [x, ints(1, 2, 1, 3)]],
    )
    check(Operator("Tile", lambda x, n: x.repeat(*n)), [[x, ints(2, 3, 1)]])


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_concat_and_split(axis: int) -> None:
    join = Operator("Concat", lambda *xs: torch.cat(xs, axis), {"axis": axis})
    check(join, [[floats(2, 3), floats(2, 3, seed=1)], [floats(3, 3), floats(3, 3, seed=2)]])
    check(join, [[floats(2, 3)]])
    split = Operator("Split", lambda x, n: x.split(n.tolist(), axis), {"axis": axis}, outputs=2)
    for wanted in (0, 1):
        check(split, [[floats(4, 4), ints(1, 3)]], wanted=wanted)


def test_slices_and_look_ups() -> None:
    x = floats(4, 5)
    cut = Operator("Slice", lambda x, *_: x[1:3, 0:5:2])
    check(cut, [[x, ints(1, 0), ints(3, 5), ints(0, 1), ints(1, 2)]])
    back = Operator("Slice", lambda x, *_: x.flip(1)[:, 1:])
    check(back, [[x, ints(-2), ints(-9), ints(1), ints(-1)]])
    for axis in (0, 1):
        at = np.asarray([[0, 2], [2, -1]])
        look = Operator(
            "Gather",
            lambda x, i, axis=axis: x.index_select(axis, i.flatten() % x.shape[axis]).reshape(
                *x.shape[:axis], *i.shape, *x.shape[axis + 1 :]
            ),
            {"axis": axis},
        )
        check(look, [[x, at], [floats(3, 6), at]])
        check(look, [[x, np.asarray(1)]])
    element = Operator("GatherElements", lambda x, i: x.gather(1, i), {"axis": 1})
    check(element, [[x, np.asarray([[0, 0], [1, 2], [4, 0], [0, 1]])]])
    check(Operator("GatherND", lambda x, i: x[i[:, 0]]), [[x, np.asarray([[1], [1], [3]])]])


def test_pads() -> None:
    x, pads = floats(1, 3, 4), ints(0, 1, 2, 0, 0, 1)
    check(Operator("Pad", lambda x, _: F.pad(x, (2, 1, 1, 0))), [[x, pads]])
    mirror = {"mode": "reflect"}
    reflected = Operator("Pad", lambda x, _: F.pad(x[None], (2, 1, 1, 0), "reflect")[0], mirror)
    check(reflected, [[x, pads]])


def test_triangles_and_running_sums() -> None:
    x = floats(3, 4)
    check(Operator("Trilu", torch.tril, {"upper": 0}), [[x]])
    check(Operator("CumSum", lambda x, _: x.cumsum(1)), [[x, np.asarray(1)]])
    check(Operator("CumSum", None, {"exclusive": 1, "reverse": 1}), [[x, np.asarray(0)]])


@pytest.mark.parametrize(
    "attrs",
    [
        {},
        {"strides": [2], "pads": [1, 0]},
        {"strides": [3], "pads": [2, 2], "dilations": [2]},
        {"group": 2, "strides": [2]},
    ],
    ids=str,
)
def test_convolutions(attrs) -> None:
    group, strides = attrs.get("group", 1), attrs.get("strides", [1])
    pads, dilations = attrs.get("pads", [0, 0]), attrs.get("dilations", [1])
    w = torch.from_numpy(floats(4, 6 // group, 3, seed=1)).double()

    def conv(x):
        return F.conv1d(F.pad(x, pads), w, None, strides, 0, dilations, group)

    def back(x):
        y = F.conv_transpose1d(x, w, None, strides, 0, 0, group, dilations)
        return y[..., pads[0] : y.shape[-1] - pads[1]]

    for length in (9, 10, 11):
        constant(Operator("Conv", conv, attrs), floats(2, 6, length), w)
    constant(Operator("ConvTranspose", back, attrs), floats(2, 4, 5), w)


def constant(operator: Operator, x: np.ndarray, w) -> None:
    """Check with weights that are constants of the model."""
    seed = floats(*operator.torch(torch.from_numpy(x).double()).shape, seed=5)
    model = operator.model([x, w.float().numpy()])
    model.graph.initializer.append(onnx.numpy_helper.from_array(w.float().numpy(), "x1"))
    del model.graph.input[1]
    ((_, (found,)),) = gradients(import_proto(model), ["x0"], "y0", [{"x0": x}], lambda *_: seed)
    (wanted,) = torch_gradients(operator, [x], seed)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_two_axes_of_a_convolution() -> None:
    w = torch.from_numpy(floats(3, 2, 2, 3)).double()
    attrs = {"strides": [2, 3], "pads": [1, 0, 0, 2]}
    conv = Operator("Conv", lambda x: F.conv2d(F.pad(x, (0, 2, 1, 0)), w, None, (2, 3)), attrs)
    constant(conv, floats(2, 2, 6, 7), w)
    check(Operator("GlobalAveragePool", lambda x: x.mean((2, 3), True)), [[floats(2, 3, 4, 5)]])


def test_norms_of_channels() -> None:
    x, w, b, mean = floats(2, 3, 4), floats(3), floats(3, seed=1), floats(3, seed=2)
    variance = np.abs(floats(3, seed=3)) + 1

    def by_hand(x, w, b, mean, variance):
        w, b, mean, variance = (each[:, None] for each in (w, b, mean, variance))
        return (x - mean) / (variance + 1e-5).sqrt() * w + b

    check(Operator("BatchNormalization", by_hand), [[x, w, b, mean, variance]])

    def instance_norm(x, w, b):
        return F.instance_norm(x, None, None, w, b)

    check(Operator("InstanceNormalization", instance_norm), [[x, w, b]])


@pytest.mark.parametrize("strides", [[1, 1], [2, 3]])
def test_max_pool(strides) -> None:
    attrs = {"kernel_shape": [3, 2], "strides": strides, "pads": [1, 1, 1, 1]}

    def pool(x):
        padded = F.pad(x, (1, 1, 1, 1), value=-1e9)
        return F.max_pool2d(padded, (3, 2), strides)

    check(Operator("MaxPool", pool, attrs), [[floats(2, 3, 6, 7)]])


@pytest.mark.parametrize("reduction", ["none", "add"])
def test_scatters(reduction: str) -> None:
    def elements(x, at, values):
        put = torch.scatter if reduction == "none" else torch.scatter_add
        return put(x, 1, at, values)

    def rows(x, at, values):
        return torch.index_put(x, (at[:, 0],), values, accumulate=reduction == "add")

    x, places = floats(3, 4), np.asarray([[0, 3], [1, 2], [2, 0]])
    attrs = {"axis": 1, "reduction": reduction}
    check(Operator("ScatterElements", elements, attrs), [[x, places, floats(3, 2, seed=1)]])
    attrs = {"reduction": reduction}
    at = np.asarray([[2], [0]] + [[2]] * (reduction == "add"))
    check(Operator("ScatterND", rows, attrs), [[x, at, floats(len(at), 4, seed=1)]])


@pytest.mark.parametrize("equation", ["bij,bjk->bik", "bhid,bhjd->bhij", "ij,j->i", "ij->ji"])
def test_einsum(equation: str) -> None:
    sizes = dict(zip("bhijkd", (2, 3, 4, 5, 2, 3), strict=True))
    factors = equation.partition("->")[0].split(",")
    case = [floats(*(sizes[each] for each in own), seed=i) for i, own in enumerate(factors)]
    operator = Operator("Einsum", lambda *xs: torch.einsum(equation, *xs), {"equation": equation})
    check(operator, [case])


@pytest.mark.parametrize("largest", [0, 1])
def test_top_k(largest: int) -> None:
    def top(x, k):
        return x.topk(int(k), 1, bool(largest))

    attrs = {"axis": 1, "largest": largest}
    check(Operator("TopK", top, attrs, outputs=2), [[floats(3, 6), ints(2)]])


REDUCED = {
    "ReduceSum": torch.sum,
    "ReduceMean": torch.mean,
    "ReduceMax": torch.amax,
    "ReduceMin": torch.amin,
    "ReduceSumSquare": lambda x, axes, keep: (x * x).sum(axes, keep),
    "ReduceL2": lambda x, axes, keep: (x * x).sum(axes, keep).sqrt(),
    "ReduceL1": lambda x, axes, keep: x.abs().sum(axes, keep),
    "ReduceLogSumExp": torch.logsumexp,
}


@pytest.mark.parametrize("name", REDUCED)
@settings(max_examples=3)
@given(data=st.data())
def test_reductions(name: str, data) -> None:
    rank = data.draw(st.integers(1, 3))
    axes = data.draw(st.lists(st.integers(0, rank - 1), min_size=1, unique=True))
    keep = data.draw(st.booleans())
    cases = [[data.draw(st.integers(1, 3)) for _ in range(rank)] for _ in range(2)]
    operator = Operator(
        name, lambda x, _: REDUCED[name](x, tuple(axes), keep), {"keepdims": int(keep)}
    )
    check(operator, [[floats(*case), ints(*axes)] for case in cases])


def test_reductions_over_everything() -> None:
    x = floats(2, 3)
    check(Operator("ReduceSum", lambda x: x.sum(), {"keepdims": 0}), [[x]])
    check(Operator("ReduceMax", lambda x: x.amax(), {"keepdims": 0}), [[x]])
    same = {"noop_with_empty_axes": 1}
    check(Operator("ReduceSum", lambda x, _: x * 1, same), [[x, np.zeros(0, np.int64)]])


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_softmax(axis: int) -> None:
    cases = [[floats(2, 3, 4)], [floats(1, 5, 2)]]
    check(Operator("Softmax", lambda x: x.softmax(axis), {"axis": axis}), cases)
    check(Operator("LogSoftmax", lambda x: x.log_softmax(axis), {"axis": axis}), cases)


def layer_norm(x, w, b=None, axis: int = -1, epsilon: float = 1e-5):
    axes = tuple(range(axis % x.ndim, x.ndim))
    mean = x.mean(axes, keepdim=True)
    inverse = (((x - mean) ** 2).mean(axes, keepdim=True) + epsilon).rsqrt()
    y = (x - mean) * inverse * w
    return y if b is None else y + b, mean, inverse


@pytest.mark.parametrize("wanted", [0, 1, 2])
def test_layer_norm(wanted: int) -> None:
    cases = [[floats(n, 3, 8), floats(8, seed=1), floats(8, seed=2)] for n in (2, 4)]
    check(Operator("LayerNormalization", layer_norm, outputs=3), cases, wanted=wanted)


def test_layer_norm_of_several_axes_without_bias() -> None:
    operator = Operator("LayerNormalization", lambda x, w: layer_norm(x, w, axis=1), {"axis": 1})
    check(operator, [[floats(2, 3, 4), floats(3, 4, seed=1)]])


def rms_norm(x, w, epsilon: float = 1e-5):
    inverse = ((x * x).mean(-1, keepdim=True) + epsilon).rsqrt()
    return x * inverse * w, inverse


def test_rms_norm() -> None:
    cases = [[floats(n, 3, 8), floats(8, seed=1)] for n in (2, 4)]
    operator = Operator("RMSNormalization", lambda x, w: rms_norm(x, w)[0], opset=23)
    check(operator, cases)
