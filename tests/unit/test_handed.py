"""What one model of a folder hands to another: told by names, types and sizes."""

from __future__ import annotations

from pathlib import Path

import model_folders as folders
import numpy as np
import onnx
import pytest
import tiny_models as tiny
from odd_models import model_of, normal

from qcompiler.calibration.handed import linked, shares_caches
from qcompiler.calibration.sources import load_source
from qcompiler.models import open_package, open_packages

STATES = ["batch", "encoder_sequence", 64]
CACHE = ["batch", 4, "past", 16]
TEXT, MASK, FLAG = ["batch", "sequence"], ["batch", "encoder_sequence"], [1]
PASTS = [f"past_key_values.0.{side}.value" for side in ("decoder", "encoder")]
PRESENTS = [f"present.0.{side}.value" for side in ("decoder", "encoder")]


def surface(inputs: dict[str, list], outputs: dict[str, list]) -> onnx.ModelProto:
    """A model that has these inputs and outputs, and computes nothing."""
    whole = ("input_ids", "encoder_attention_mask", "attention_mask")
    types = {name: tiny.INT if name in whole else tiny.FLOAT for name in inputs}
    types |= {"use_cache_branch": onnx.TensorProto.BOOL}
    nodes = [onnx.helper.make_node("Identity", [f"c{name}"], [name]) for name in outputs]
    constants = {
        f"c{name}": np.zeros([size if isinstance(size, int) else 1 for size in shape], np.float32)
        for name, shape in outputs.items()
    }
    return tiny.model_of(
        nodes,
        [tiny.value(name, types[name], shape) for name, shape in inputs.items()],
        [tiny.value(name, tiny.FLOAT, shape) for name, shape in outputs.items()],
        constants,
    )


def handed_over(folder: Path) -> dict[str, dict[str, tuple[str, str]]]:
    return {
        package.onnx_path.stem: {
            name: (link.giver.onnx_path.stem, link.name) for name, link in links.items()
        }
        for package, links in linked(open_packages(folder))
    }


def test_decoders_in_several_files_read_each_others_caches(tmp_path: Path) -> None:
    ids, mask = {"input_ids": TEXT}, {"encoder_attention_mask": MASK}
    states, logits = {"encoder_hidden_states": STATES}, {"logits": ["batch", "sequence", 300]}
    presents, pasts = dict.fromkeys(PRESENTS, CACHE), dict.fromkeys(PASTS, CACHE)
    folders.save(
        tmp_path,
        encoder_model=surface(ids | {"attention_mask": TEXT}, {"last_hidden_state": STATES}),
        decoder_model=surface(ids | mask | states, logits | presents),
        decoder_with_past_model=surface(ids | mask | pasts, logits | {PRESENTS[0]: CACHE}),
        decoder_model_merged=surface(
            ids | mask | states | pasts | {"use_cache_branch": FLAG}, logits | presents
        ),
    )
    encoded = {
        "encoder_hidden_states": ("encoder_model", "last_hidden_state"),
        "encoder_attention_mask": ("encoder_model", "attention_mask"),
    }
    found = handed_over(tmp_path)
    assert next(iter(found)) == "encoder_model"
    assert found == {
        "encoder_model": {},
        "decoder_model": encoded,
        "decoder_model_merged": encoded,
        "decoder_with_past_model": {
            "encoder_attention_mask": ("decoder_model", "encoder_attention_mask"),
            **{past: ("decoder_model", it) for past, it in zip(PASTS, PRESENTS, strict=True)},
        },
    }
    packages = {package.onnx_path.stem: package for package in open_packages(tmp_path)}
    every = list(packages.values())
    shared = {name for name, package in packages.items() if shares_caches(package, every)}
    assert shared == packages.keys() - {"encoder_model"}


@pytest.mark.parametrize(
    "others",
    [
        {"one": STATES, "two": STATES},
        {"one": ["batch", "n", 32]},
        {"one": ["batch", 64]},
    ],
    ids=["two could give it", "another width", "another rank"],
)
def test_what_can_not_be_told_is_not_handed(tmp_path: Path, others: dict[str, list]) -> None:
    models = {
        name: surface({"x": [1]}, {"last_hidden_state": shape}) for name, shape in others.items()
    }
    reader = surface({"input_ids": TEXT, "encoder_hidden_states": STATES}, {"logits": TEXT})
    folders.save(tmp_path, decoder=reader, **models)
    assert not any(handed_over(tmp_path).values())


def test_an_output_may_have_out_behind_the_name(tmp_path: Path) -> None:
    hidden = ["batch", 2, 64]
    folders.save(
        tmp_path,
        encoder=surface({"src": TEXT}, {"memory_out": STATES, "hidden_out": hidden}),
        decoder=surface(
            {"prefix": TEXT, "memory": STATES, "hidden": hidden},
            {"logprobs": ["batch", 300], "hidden_out": hidden},
        ),
    )
    handed = {name: ("encoder", f"{name}_out") for name in ("memory", "hidden")}
    assert handed_over(tmp_path) == {"encoder": {}, "decoder": handed}


def test_models_in_a_circle(tmp_path: Path) -> None:
    folders.save(
        tmp_path,
        a=surface({"x": STATES}, {"y": STATES}),
        b=surface({"y": STATES}, {"x": STATES}),
    )
    assert handed_over(tmp_path) == {"a": {}, "b": {"y": ("a", "y")}}


def test_numbered_caches_of_genai_reach_their_inputs(tmp_path: Path) -> None:
    cross = "float[batch, 4, n, 16]"
    encoder = model_of(
        f"e (float[batch, n, 64] x) => ({cross} present_key_cross_0, {cross} present_key_cross_1)"
        " { a = MatMul (x, w) r = Reshape (a, s) present_key_cross_0 = Transpose <perm=[0,2,1,3]>"
        " (r) present_key_cross_1 = Neg (present_key_cross_0) }",
        w=normal(64, 64),
        s=np.array([0, 0, 4, 16]),
    )
    decoder = model_of(
        f"d (int64[batch, t] input_ids, {cross} in_0, {cross} in_1)"
        " => (float[batch, t, 300] logits) { e = Gather (E, input_ids)"
        " m = Add (in_0, in_1) c = ReduceSum (m) y = Add (e, c)"
        " logits = MatMul (y, w) }",
        E=normal(300, 64),
        w=normal(64, 300),
    )
    config = {
        "model": {
            "decoder": {"filename": "d.onnx", "inputs": {"cross_past_key_names": "in_%d"}},
            "encoder": {
                "filename": "e.onnx",
                "outputs": {"cross_present_key_names": "present_key_cross_%d"},
            },
        }
    }
    folder = folders.save(tmp_path / "g", config, e=encoder, d=decoder)
    (_, nothing), (_, links) = linked(open_packages(folder))
    assert not nothing
    found = {name: link.name for name, link in links.items()}
    assert found == {"in_0": "present_key_cross_0", "in_1": "present_key_cross_1"}


def test_a_batch_reaches_a_decoder_text_by_text(tmp_path: Path) -> None:
    """An encoder may read many sentences at once where a decoder reads one text."""
    numbers = np.arange(4, dtype=np.float32).reshape(4, 1, 1)
    handed = {
        "encoder_hidden_states": np.broadcast_to(numbers, (4, 5, folders.WIDTH)),
        "encoder_attention_mask": np.ones((4, 5), np.int64),
    }
    package = open_package(folders.pair(tmp_path) / "decoder.onnx")
    made = load_source("random-tokens", package, samples=6, length=8, handed=[handed])
    rows = [feed["encoder_hidden_states"][0, 0, 0] for feed in made.feeds]
    assert rows == [0, 1, 2, 3, 0, 1]
    assert all(feed["encoder_attention_mask"].shape == (1, 5) for feed in made.feeds)
