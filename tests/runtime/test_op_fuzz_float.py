"""Mutated nodes of the float ops: refused, or computed as the reference does, never a crash.

Runs as a script in a process of its own, which prints each case before it tries it:

    python tests/runtime/test_op_fuzz_float.py SEED CASES
"""

from __future__ import annotations

import sys

import numpy as np
import pytest
from fuzzing import open_session, run_apart
from test_op_activation import activation_model
from test_op_attention import attention_model, expected
from test_op_attention import feeds as attention_feeds
from test_op_multi_head_attention import encoder_model
from test_op_multi_head_attention import expected as encoder_expected
from test_op_multi_head_attention import feeds as encoder_feeds
from test_op_norm import feeds as norm_feeds
from test_op_norm import norm_model

from qcompiler.numerics import reference

CASES = 1000
HEADS, KV, D = 4, 2, 16
WEIRD = (0, 1, -1, 2, 3, 7, 16, 300, 301, 2**31 - 1, -(2**31))
STRUCTURES = ("fewer inputs", "an input left out", "one more input", "fewer outputs", "swapped")


def subject(rng):
    """A model, its feeds, and a function that gives what it should compute of changed feeds."""
    kind = rng.choice(["attention", "encoder", "layer", "rms", "gate", "gelu"])
    if kind == "attention":
        rows, room = int(rng.integers(0, 10)), int(rng.integers(0, 80))
        fed = attention_feeds(HEADS, KV, D, rows=rows, room=room, seed=int(rng.integers(99)))

        def wanted(now):
            # Other lengths than those of a full cache are tested elsewhere.
            same = all(np.array_equal(now[name], fed[name]) for name in ("seqlens_k", "total"))
            if not same or now["X"].shape[:2] != (1, rows) or rows == 0:
                return None
            return expected(now, HEADS, D)

        return attention_model(HEADS, KV, D), fed, wanted
    if kind == "encoder":
        batch, rows, keys = (int(n) for n in rng.integers(0, 80, 3) // (30, 1, 1))
        mask = [batch, KV, rows, keys]
        for axis in range(3):
            mask[axis] = 1 if rng.random() < 0.5 else mask[axis]
        fed = encoder_feeds(batch, rows, keys, KV, D, mask=mask, seed=int(rng.integers(99)))

        def attended(now):
            return [encoder_expected(now, KV, D)] if now["K"].shape[1] else None

        return encoder_model(KV, D), fed, attended
    # Of two or three values the variance may be all rounding.
    shape = (*(int(n) for n in rng.integers(0, 70, 2)), int(rng.integers(8, 70)))
    if kind == "gate":
        gate, up = rng.normal(size=(2, *shape)).astype(np.float32)
        model = activation_model("SwiGLU")
        return model, {"gate": gate, "up": up}, lambda now: [reference.swiglu(**now)]
    if kind == "gelu":
        x = rng.normal(size=shape).astype(np.float32)
        return activation_model("Gelu"), {"X": x}, lambda now: [reference.gelu(**now)]
    centers = bool(kind == "layer")

    def normalized(now):
        return reference.add_norm(now["X"], now["skip"], now["weight"], now.get("bias"), 1e-5)

    return norm_model(centers), norm_feeds(centers, shape), normalized


def mutated(rng, model, fed):
    """A name for what was changed, in place."""
    node = model.graph.node[0]
    if rng.random() < 0.15:
        structure = str(rng.choice(STRUCTURES))
        if structure == "fewer inputs":
            node.input.pop()
        elif structure == "an input left out":
            node.input[int(rng.integers(len(node.input)))] = ""
        elif structure == "one more input":
            node.input.append(node.input[0])
        elif structure == "fewer outputs":
            node.output.pop()
        elif len(node.input) > 1:
            node.input[0], node.input[1] = node.input[1], node.input[0]
        return structure
    if node.attribute and rng.random() < 0.15:
        attribute = node.attribute[int(rng.integers(len(node.attribute)))]
        attribute.i = attribute.f = int(rng.choice(WEIRD))
        return f"{attribute.name} = {attribute.i}"
    name = str(rng.choice(sorted(fed)))
    value = fed[name]
    if value.dtype == np.int32:
        fed[name] = np.full(value.shape, rng.choice(WEIRD), np.int32)
        return f"{name} = {fed[name].tolist()}"
    if rng.random() < 0.3:
        fed[name] = np.where(rng.random(value.shape) < 0.1, np.nan, value).astype(np.float32)
        return f"NaN in {name}"
    shape = list(value.shape)
    if shape and rng.random() < 0.8:
        axis = int(rng.integers(len(shape)))
        shape[axis] = int(rng.choice([0, 1, shape[axis] + 1, max(0, shape[axis] - 1), 64]))
    else:
        shape = [*shape, 1] if rng.random() < 0.5 else shape[1:]
    fed[name] = rng.normal(size=shape).astype(np.float32)
    return f"{name} has shape {shape}"


def run(seed: int, cases: int) -> tuple[int, int]:
    """How many were computed and how many refused."""
    rng = np.random.default_rng(seed)
    counts = [0, 0]
    for case in range(cases):
        model, fed, wanted = subject(rng)
        change = mutated(rng, model, fed) if rng.random() < 0.8 else "as it is"
        print(case, model.graph.node[0].op_type, change, flush=True)
        model.ClearField("functions")
        for value in (*model.graph.input, *model.graph.output):
            value.type.tensor_type.ClearField("shape")  # must not shield the kernel
        try:
            outputs = open_session(model.SerializeToString()).run(None, fed)
        except Exception as error:  # ONNX Runtime's errors share no other base class
            assert str(error)
            counts[1] += 1
            continue
        counts[0] += 1
        if change == "as it is" or " has shape " in change:
            truth = wanted(fed)
            for found, value in zip(outputs, truth or (), strict=False):
                np.testing.assert_allclose(found, value, rtol=1e-4, atol=1e-5)
    return counts[0], counts[1]


@pytest.mark.parametrize("seed", [0, 1])
def test_mutated_nodes(seed):
    computed, refused = map(int, run_apart(__file__, seed, CASES).split()[::2])
    assert min(computed, refused) > CASES // 10


if __name__ == "__main__":
    print("{} computed, {} refused".format(*run(int(sys.argv[1]), int(sys.argv[2]))))
