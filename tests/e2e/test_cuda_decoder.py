"""Decoders for the CUDA provider: the same text as on the CPU, on a GPU and an emulated one.

The emulated GPU computes the ops inside a session on the CPU, whose own kernels do the rest.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import qcompiler
from qcompiler import runtime
from qcompiler.decoding import Decoder
from qcompiler.errors import ModelError, RuntimeLibraryError
from qcompiler.export import export_model
from qcompiler.feeds import Signature
from qcompiler.models import open_package
from qcompiler.numerics.rounding import sqnr_db
from qcompiler.session import CPU, CUDA, create_session
from qcompiler.targets import TARGETS

pytestmark = pytest.mark.slow

EMULATED = "QCOMPILER_CUDA_EMULATED_LIBRARY"
EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "synthetic_decoder.py"
PROMPT = (504, 3575, 282, 4649, 314)
NEW = 4


@pytest.fixture(scope="module")
def decoder(smollm2_genai, tmp_path_factory) -> Path:
    """Two layers of random weights, as onnxruntime-genai builds them."""
    folder = tmp_path_factory.mktemp("synthetic")
    sizes = ("--hidden=128", "--inner=256", "--layers=2", "--heads=4", "--kv-heads=2")
    subprocess.run(
        [sys.executable, EXAMPLE, smollm2_genai, folder / "hf", *sizes],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        check=True,
    )
    export_model(folder / "hf", folder / "float", dialect="genai")
    return folder / "float"


@pytest.fixture(scope="module")
def compiled(decoder) -> dict[str, Path]:
    """The decoder by target."""
    return {
        target: qcompiler.compile(
            decoder, recipe="rtn", target=target, output=decoder.with_name(target), calib_samples=2
        ).output
        for target in ("ort-custom", "cuda")
    }


@pytest.fixture(params=["emulated", "gpu"])
def on_gpu(request, monkeypatch):
    """on_gpu(folder): a session whose ops run on a GPU."""
    if request.param == "gpu":
        ort.preload_dlls()

        def create(folder: Path) -> ort.InferenceSession:
            try:
                return create_session(folder, library=True, providers=(CUDA, CPU))
            except ModelError as error:
                pytest.skip(str(error))

        return create
    try:
        library = os.environ.get(EMULATED) or str(
            runtime.installed_library("qcompiler_cuda_emulated")
        )
    except RuntimeLibraryError as error:
        pytest.skip(str(error))

    def create_emulated(folder: Path) -> ort.InferenceSession:
        with monkeypatch.context() as patch:
            patch.setenv(runtime.LIBRARY_VARIABLE, library)
            return create_session(folder, library=True)

    return create_emulated


def decode(session: ort.InferenceSession, folder: Path) -> tuple[list[int], np.ndarray]:
    """Greedy tokens after the prompt, and the logits that chose each."""
    decoder = Decoder(session, Signature.of(open_package(folder)), capacity=len(PROMPT) + NEW)
    logits = [decoder.step(np.asarray([PROMPT]))[0]]
    while len(logits) < NEW:
        logits.append(decoder.step(np.asarray([[logits[-1].argmax()]]))[0])
    return [int(each.argmax()) for each in logits], np.stack(logits)


def test_a_decoder_says_the_same_on_gpu_and_cpu(compiled, on_gpu):
    text, logits = decode(on_gpu(compiled["cuda"]), compiled["cuda"])
    text_cpu, logits_cpu = decode(create_session(compiled["cuda"]), compiled["cuda"])
    float32, logits_32 = decode(create_session(compiled["ort-custom"]), compiled["ort-custom"])
    assert text == text_cpu == float32
    # The same sums in another order, and attention and norms in float16 against float32.
    assert sqnr_db(logits_cpu, logits) > 60.0
    assert sqnr_db(logits_32, logits) > 30.0


def test_everything_between_the_ops_is_float16(compiled):
    model = onnx.load(open_package(compiled["cuda"]).onnx_path, load_external_data=False)
    types = {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info}
    wide = [
        node.op_type
        for node in model.graph.node
        if any(types.get(name) == onnx.TensorProto.FLOAT for name in node.output)
    ]
    # The tables of rotary embeddings, the rows of the embedding, and what the logits come from.
    tables = ["Range", "Unsqueeze", "Mul", "Cos", "Sin"]
    assert sorted(wide) == sorted([*tables, "EmbeddingW8", "Cast"])
    kinds = {value.name: value.type.tensor_type.elem_type for value in model.graph.input}
    caches = [kind for name, kind in kinds.items() if name.startswith("past_key_values")]
    assert caches == [onnx.TensorProto.FLOAT16] * 4
    assert model.graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT


def session_options(folder: Path) -> dict:
    config = json.loads((folder / "genai_config.json").read_text("utf-8"))
    return config["model"]["decoder"]["session_options"]


def test_a_folder_asks_for_the_provider(compiled):
    options = session_options(compiled["cuda"])
    assert options["provider_options"] == [{"cuda": {}}]
    assert options["custom_ops_library"] == runtime.CUDA_LIBRARY
    assert session_options(compiled["ort-custom"])["provider_options"] == []
    built = runtime.cuda_library_path()
    if built is None:
        pytest.skip("the CUDA library was not built")
    assert (compiled["cuda"] / runtime.CUDA_LIBRARY).read_bytes() == built.read_bytes()


def test_a_library_that_was_not_built_is_asked_for(decoder, tmp_path, monkeypatch, caplog):
    cuda = TARGETS["cuda"]
    missing = replace(cuda.library, path=lambda: None)
    monkeypatch.setitem(TARGETS, "cuda", replace(cuda, library=missing))
    out = qcompiler.compile(
        decoder, recipe="rtn", target="cuda", output=tmp_path / "out", verify=False
    ).output
    assert f"{runtime.CUDA_LIBRARY} was not built" in caplog.text
    assert session_options(out)["custom_ops_library"] == runtime.CUDA_LIBRARY
    assert not (out / runtime.CUDA_LIBRARY).exists()
