"""The benchmarks run, compare like with like, and end in a page and a chart."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from isas import ISAS
from plane_cases import make_planes

from qcompiler import runtime
from qcompiler.numerics.planes import WIDTHS
from qcompiler.numerics.reference import linear_a8

ROOT = Path(__file__).resolve().parents[2]
BENCH = ROOT / "runtime" / "bench"
PROGRAM = ROOT / "build" / "bench" / "cmake" / "bench" / "qcompiler_kernels_bench"
SVG = "{http://www.w3.org/2000/svg}"
# Prints nothing and writes what google-benchmark would.
STAND_IN = """\
#!{python}
import json, sys
out = next(a for a in sys.argv if a.startswith("--benchmark_out=")).split("=", 1)[1]
figures = {{"real_time": 200.0, "GOPS": 160.0, "GB/s": 45.0, "%peak": 34.0}}
memory = figures | {{"%bandwidth": 91.0}}
def entry(case, figures, aggregate="median"):
    width, place = case.split(" ")
    name = width.replace("/", "/avx512vnni/", 1) + "/M1/" + place + "/real_time"
    return {{"run_name": name, "aggregate_name": aggregate, **figures}}
entries = [
    entry("W4/4096x4096/g32 hot", figures),
    entry("W4/4096x4096/g32 hot", figures | {{"%peak": 77.0}}, "cv"),
    entry("W4/4096x4096/g32 memory", memory),
    entry("W2/4096x4096/g32 memory", memory | {{"real_time": 122.0}}),
    entry("W8/4096x4096/none memory", memory | {{"real_time": 366.0}}),
    entry("W4/576x960/g16 hot", figures | {{"%peak": 29.0}}),
]
with open(out, "w") as file:
    json.dump({{"context": {{"read_gb_per_s": "21.5"}}, "benchmarks": entries}}, file)
"""

pytestmark = pytest.mark.skipif(not BENCH.is_dir(), reason="no checkout")


@pytest.fixture
def bench_path(monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(BENCH))


def run(out: Path, *arguments: str | Path) -> str:
    command = [sys.executable, BENCH / "run.py", "--quick", "--out", out, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def load(file: Path):
    return json.loads(file.read_text("utf-8"))


@pytest.fixture
def stand_in(tmp_path) -> Path:
    program = tmp_path / "kernels"
    program.write_text(STAND_IN.format(python=sys.executable), encoding="utf-8")
    program.chmod(0o755)
    return program


@pytest.fixture
def demo(tmp_path, monkeypatch) -> Path:
    """What `make demo` leaves, but tiny."""
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "unit"))
    import tiny_models

    for name in ("fp32", "int4", "w4a8"):
        model = tiny_models.decoder(tiny_models.embedding())
        tiny_models.save(model, tmp_path / "demo" / f"smollm2-{name}")
    return tmp_path / "demo"


@pytest.fixture
def encoder_models(tmp_path, monkeypatch) -> Path:
    """An exported encoder, but tiny: a table and a layer."""
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "unit"))
    import tiny_models
    from onnx import helper

    rng = np.random.default_rng(0)
    table, weight = (rng.normal(size=shape).astype(np.float32) for shape in ((8, 32), (32, 32)))
    model = tiny_models.model_of(
        [
            helper.make_node("Gather", ["E", "input_ids"], ["e"]),
            helper.make_node("MatMul", ["e", "W"], ["last_hidden_state"]),
        ],
        [tiny_models.value("input_ids", tiny_models.INT, ["batch", "sequence"])],
        [tiny_models.value("last_hidden_state", tiny_models.FLOAT, ["batch", "sequence", 32])],
        {"E": table, "W": weight},
    )
    tiny_models.save(model, tmp_path / "encoder" / "fp32")
    return tmp_path / "encoder"


def test_everything_ends_in_a_page(tmp_path, stand_in, demo, encoder_models) -> None:
    out, docs = tmp_path / "out", tmp_path / "docs"
    places = ("--kernels", stand_in, "--demo", demo, "--encoder", encoder_models, "--docs", docs)
    run(out, *places)
    nodes = load(out / "nodes.json")
    assert nodes["machine"]["cpu"] and nodes["machine"]["onnxruntime"]
    assert {row["group_size"] for row in nodes["rows"] if row["bits"] == 4} == {16, 32, 128}
    assert {row["bits"] for row in nodes["rows"]} == {2, 3, 4, 6, 8}
    for row in nodes["rows"]:
        theirs = {"DynamicQuantizeMatMul", "MatMul fp32"}
        assert set(row["ratios"]) - {"MatMulNBits"} == theirs
        assert "MatMulNBits" in row["ratios"] or row["bits"] in {2, 3, 6}
        for op, ratio in row["ratios"].items():
            times = row["milliseconds"]
            assert ratio == pytest.approx(times[op] / times["Linear"])
    (models,) = load(out / "models.json")["runs"]
    assert models["ours"] == "smollm2-w4a8"
    assert {"smollm2-fp32", "smollm2-int4"} <= set(models["ratios"])
    assert set(models["ratios"]["smollm2-int4"]) == {"prefill", "decode"}

    (encoder,) = load(out / "encoder.json")["rows"]
    assert set(encoder["ratios"]) == {"fp32", "ORT int8"}
    assert all(milliseconds > 0 for milliseconds in encoder["milliseconds"].values())

    page = (docs / "benchmarks.md").read_text("utf-8")
    assert nodes["machine"]["cpu"] in page
    assert "| avx512vnni | W4 | g32 | 34 |" in page  # the median, not the variation
    assert "| avx512vnni | 576x960 | g16 | 29 |" in page
    assert "| avx512vnni | W4 | g32 | 45.0 | 91 |" in page
    assert "| avx512vnni | g32 | memory | 0.61 | 1.83 | 200 |" in page  # W8 in no groups
    assert "| smollm2-int4 |" in page
    assert "A sentence encoder" in page
    drawing = ElementTree.parse(docs / "benchmarks.svg").getroot()
    shown = [text.text for text in drawing.iter(f"{SVG}text")]
    for row in (row for row in nodes["rows"] if row["bits"] == 4):
        quantized = [ratio for op, ratio in row["ratios"].items() if op != "MatMul fp32"]
        assert all(f"{ratio:.2f}x" in shown for ratio in quantized)


def test_what_is_missing_is_skipped_aloud(tmp_path, encoder_models) -> None:
    (tmp_path / "models.json").write_text("of an earlier run")
    said = run(tmp_path, "--demo", tmp_path / "nothing", "--encoder", encoder_models)
    assert "kernels: skipped, google-benchmark is not installed" in said
    assert "models: skipped, no models in" in said
    assert not (tmp_path / "models.json").exists()


def test_an_encoder_that_is_not_installed(tmp_path, bench_path, monkeypatch, capsys) -> None:
    import encoder
    import run as everything

    monkeypatch.setattr(encoder, "SOURCE", "package:none_of_this_name")
    everything.run_encoder(tmp_path, tmp_path / "encoder.json", quick=True)
    assert "encoder: skipped, " in capsys.readouterr().out
    assert not (tmp_path / "encoder.json").exists()


@pytest.mark.skipif(not os.access(PROGRAM, os.X_OK), reason="`make bench` has not built it")
def test_kernels_are_measured(tmp_path, bench_path) -> None:
    import kernels

    out = tmp_path / "kernels.json"
    command = [
        PROGRAM,
        "--quick",
        f"--benchmark_out={out}",
        "--benchmark_filter=/M1/",
    ]
    subprocess.run(command, check=True, capture_output=True)
    measured = kernels.read(load(out))
    assert "reference" in kernels.isas(measured)
    large = 5 * 3 + 1  # bits and groups; of 8 bits there are none
    small = 2 * 2  # matrices and groups
    assert len(measured) == len(kernels.isas(measured)) * (large + small) * 2  # places
    for kernel in measured:
        assert kernel.rows == 1 and kernel.figures["GOPS"] > 0 and kernel.figures["GB/s"] > 0
        symbol = next(isa.symbol for isa in ISAS if isa.name == kernel.isa)
        assert ("%peak" in kernel.figures) == (BENCH / f"probe_{symbol}.cc").is_file()
        assert ("%bandwidth" in kernel.figures) == (kernel.place == "memory")


def test_contenders_compute_the_same_layer(bench_path) -> None:
    import nodes
    from contest import open_session

    X = np.random.default_rng(1).normal(size=(5, 256)).astype(np.float32)
    results = {
        name: open_session(model, 1).run(None, {"X": X})[0]
        for name, model in nodes.contenders(256, 96).items()
    }
    for form in nodes.FORMS:
        w = nodes.Layer.random(256, 96, form).planes()
        exact = X @ w.dequantized()
        bias = np.zeros(1, np.float32)
        np.testing.assert_array_equal(results.pop(f"Linear {form}"), linear_a8(X, w, bias))
        if (theirs := results.pop(f"MatMulNBits {form}", None)) is not None:
            # 8-bit activations leave 40 dB or so, a layer that is another one none.
            assert sqnr_db(theirs, exact) > 30, form
        else:
            assert form.bits in {2, 3, 6}
    first = X @ nodes.Layer.random(256, 96, nodes.FORMS[0]).planes().dequantized()
    assert sqnr_db(results.pop("MatMul fp32"), first) > 100
    # With AVX2 alone, ONNX Runtime's products of 8 by 8 bits saturate in 16.
    least = 20 if runtime.info()["isa"] == "avx2" else 30
    assert sqnr_db(results.pop("DynamicQuantizeMatMul"), first) > least
    assert not results


def sqnr_db(result: np.ndarray, exact: np.ndarray) -> float:
    noise = float(np.square(result - exact).sum())
    return 10 * float(np.log10(np.square(exact).sum() / max(noise, 1e-30)))


def test_charts_escape_and_scale(bench_path) -> None:
    import chart

    drawn = chart.draw([chart.Panel("a < b", {"x": {"one": 2.0, "two": 0.5}})], "here & now")
    root = ElementTree.fromstring(drawn)
    assert {"a < b", "here & now", "2.00x"} <= {text.text for text in root.iter(f"{SVG}text")}
    bars = [float(bar.get("width", 0)) for bar in root.iter(f"{SVG}rect")][-2:]
    assert bars[0] == pytest.approx(4 * bars[1])


def test_llama_cpp_is_optional(bench_path, monkeypatch, capsys) -> None:
    import llama
    import run as everything

    monkeypatch.setattr(llama, "available", lambda: False)
    assert everything.gguf() is None
    assert "llama-cpp-python is not installed" in capsys.readouterr().out


def test_cuda_bench_says_what_it_needs(tmp_path) -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    command = [sys.executable, BENCH / "cuda.py", "--library", tmp_path / "any.so", "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "error: no CUDA device" in done.stderr


@pytest.mark.parametrize("bits", WIDTHS)
def test_cuda_bench_unpacks_the_layout(bench_path, bits) -> None:
    """What the benchmark checks results against, for weights that it did not make itself."""
    torch = pytest.importorskip("torch")
    import cuda

    w = make_planes(100, 35, 32, bits=bits)
    tensors = [None if a is None else torch.from_numpy(a) for a in (w.W, w.groups, w.scales)]
    weights = cuda.Weights(w.K, w.N, w.bits, w.group_size, *tensors)
    np.testing.assert_array_equal(weights.integers().numpy(), w.weights())


@pytest.mark.parametrize("bits", [3, 8])
def test_cuda_bench_checks_results(bench_path, emulated, bits, monkeypatch) -> None:
    pytest.importorskip("torch")
    import cuda

    library = cuda.Library(Path(emulated.path), cuda.LinearTuning(0, 0), "cpu")
    cuda.check(library, bits, 32)
    run = library.run

    def run_with_another_scale(product, scratch):
        product.static_scale = 0.5
        run(product, scratch)

    monkeypatch.setattr(library, "run", run_with_another_scale)
    with pytest.raises(SystemExit, match="results are wrong"):
        cuda.check(library, bits, 32)


@pytest.mark.parametrize("bits", WIDTHS)
def test_cuda_bench_has_weights_that_are_int8(bench_path, bits) -> None:
    pytest.importorskip("torch")
    import cuda

    values = cuda.Weights.random(96, 40, bits, 16, "cpu").integers()
    assert values.shape == (96, 40)
    assert 50 < values.abs().max() <= 127


@pytest.mark.parametrize("bits", [4, 8])
def test_cuda_contender_is_a_model(bench_path, bits) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("torch")
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has no CUDA provider")
    import cuda_nbits

    session = onnxruntime.InferenceSession(
        cuda_nbits.model(128, 32, bits, 32, 2), providers=["CPUExecutionProvider"]
    )
    outputs = session.run(None, {"X": np.ones((3, 128), np.float16)})
    assert [y.shape for y in outputs] == [(3, 32)] * 2
