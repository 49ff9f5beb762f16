"""Folders of several models: what belongs together, what feeds what, and that all go as one."""

from __future__ import annotations

import json
from pathlib import Path

import model_folders as folders
import numpy as np
import onnx
import pytest
from command_line import qc, refusal

import qcompiler
from qcompiler import recipe
from qcompiler.compiler import _HELD_BACK
from qcompiler.decoding import Decoder
from qcompiler.driver import Calibration, Job, open_jobs
from qcompiler.errors import ModelError, RuntimeLibraryError
from qcompiler.feeds import Signature
from qcompiler.models import open_packages
from qcompiler.numerics.rounding import sqnr_db
from qcompiler.recipe import options_of
from qcompiler.report import FolderReport
from qcompiler.session import create_session

FAST = ("--recipe", "w4a8-fast", "--calib-samples", "8", "--calib-length", "32")
STATIC = ("plan-activations.policy=measured", "plan-activations.tolerance=1")


@pytest.fixture
def pair(tmp_path: Path) -> Path:
    return folders.pair(tmp_path / "pair")


def run(model: Path, **feeds: np.ndarray) -> dict[str, np.ndarray]:
    session = create_session(model)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, feeds), strict=True))


def jobs(folder: Path, calib: Path | None = None, name: str = "w4a8") -> dict[str, Job]:
    """The jobs of a folder, by name, in order."""
    chosen = recipe.load(name)
    calibration = Calibration(source=calib, samples=4, length=24, held_back=_HELD_BACK)
    opened = open_jobs(
        open_packages(folder), chosen.passes, target=None, calibration=calibration, preferred=None
    )
    return {job.package.onnx_path.stem: job for job in opened}


def both(folder: Path) -> np.ndarray:
    """What encoder and decoder of a folder say to a text."""
    random = np.random.default_rng(0)
    text = {"input_ids": random.integers(0, folders.WORDS, (3, 9))}
    mask = np.ones((3, 9), np.int64)
    mask[0, 6:] = 0
    states = run(folder / "encoder.onnx", **text, attention_mask=mask)["last_hidden_state"]
    return run(
        folder / "decoder.onnx",
        input_ids=random.integers(0, folders.WORDS, (3, 5)),
        encoder_hidden_states=states,
        encoder_attention_mask=mask,
    )["logits"]


# As one


def test_a_pair_compiles_as_one(pair: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    result = qc("compile", pair, *FAST, "--report", report)
    assert result.exit_code == 0, result.stderr
    output = pair.with_name("pair.w4a8-fast")
    assert {path.name for path in output.iterdir() if path.suffix != ".data"} == {
        *("encoder.onnx", "decoder.onnx", "config.json", "libqcompiler_ops.so"),
    }
    data = json.loads(report.read_text())
    names = [Path(model["output"]).name for model in data["models"]]
    assert names == ["encoder.onnx", "decoder.onnx"], "the one that feeds the other goes first"
    for side in ("source", "output"):
        folder = Path(data[side])
        sizes = [
            path.stat().st_size for path in folder.iterdir() if path.suffix in (".onnx", ".data")
        ]
        assert data[f"{side}_bytes"] == sum(sizes)
    assert all(model["verification"]["sqnr_db"] > 15 for model in data["models"])
    assert "encoder_attention_mask from encoder.onnx on" in data["models"][1]["calibration"]
    assert f"{output}/decoder.onnx:" in result.stdout and "2 models" in result.stdout
    assert sqnr_db(both(pair), both(output)) > 20
    assert sqnr_db(both(pair), both(output)) < 60, "it is quantized"


def test_the_page_tells_of_each(pair: Path, tmp_path: Path) -> None:
    page = tmp_path / "r.html"
    assert qc("compile", pair, *FAST, "--report", page).exit_code == 0
    text = page.read_text()
    assert text.count("<h2>Layers</h2>") == 2
    assert "<h1>encoder.onnx</h1>" in text and "<h1>decoder.onnx</h1>" in text


def test_a_decoder_is_calibrated_on_what_its_encoder_gives(pair: Path) -> None:
    found = jobs(pair)
    given, read = found["encoder"].supply.feeds, found["decoder"].supply.feeds
    assert len(read) == 4 + _HELD_BACK
    encoder = create_session(pair / "encoder.onnx")
    for before, feed in zip(given, read, strict=True):
        (states,) = encoder.run(None, dict(before))
        np.testing.assert_allclose(feed["encoder_hidden_states"], states, rtol=1e-5)
        np.testing.assert_array_equal(feed["encoder_attention_mask"], before["attention_mask"])
    assert len({feed["input_ids"].tobytes() for feed in read}) == len(read)


def test_static_scales_hold_what_the_encoder_gives(pair: Path) -> None:
    """Noise has no value beyond 5, and the encoder gives none below 19."""
    result = qcompiler.compile(pair, recipe="gptq", overrides=STATIC, calib_samples=64)
    assert isinstance(result.report, FolderReport)
    layers = [layer for report in result.report.models for layer in report.layers]
    assert {layer.activation for layer in layers if layer.name == "cross"} == {"per-tensor"}
    assert sqnr_db(both(pair), both(result.output)) > 20


def test_arrays_are_for_the_models_that_read_them(tmp_path: Path) -> None:
    folder = folders.save(
        tmp_path / "m", encoder=folders.sound_encoder(), decoder=folders.decoder(masked=False)
    )
    random = np.random.default_rng(0)
    sound = random.standard_normal((7, 1, 30, folders.BINS)).astype(np.float32)
    np.savez(tmp_path / "sound.npz", input_features=sound)
    found = jobs(folder, tmp_path / "sound.npz")
    (states,) = create_session(folder / "encoder.onnx").run(None, {"input_features": sound[0]})
    first = found["decoder"].supply.feeds[0]
    np.testing.assert_allclose(first["encoder_hidden_states"], states, rtol=1e-5)
    assert first["input_ids"].shape == (1, 24)
    assert "random-tokens" in found["decoder"].supply.told
    # What the user brings is taken before what the encoder would give.
    np.savez(
        tmp_path / "all.npz",
        input_features=sound,
        input_ids=random.integers(0, folders.WORDS, (7, 1, 5)),
        encoder_hidden_states=np.ones((7, 1, 4, folders.WIDTH), np.float32),
    )
    found = jobs(folder, tmp_path / "all.npz")
    assert np.all(found["decoder"].supply.feeds[0]["encoder_hidden_states"] == 1)
    assert found["encoder"].supply.feeds[0]["input_features"].shape == (1, 30, folders.BINS)
    np.savez(tmp_path / "none.npz", pixels=sound)
    said = refusal("compile", folder, "--calib", tmp_path / "none.npz")
    assert "suits none of encoder.onnx, decoder.onnx" in said
    for missing, cause in (("nowhere", "no calibration source"), ("nowhere.npz", "is no file")):
        assert cause in refusal("compile", folder, "--calib", tmp_path / missing)


# Layouts


GENAI = {
    "model": {
        "type": "whisper",
        "vocab_size": folders.WORDS,
        "encoder": {
            "filename": "first.onnx",
            "inputs": {"audio_features": "input_features"},
            "outputs": {"encoder_hidden_states": "sound"},
        },
        "decoder": {
            "filename": "second.onnx",
            "inputs": {"input_ids": "input_ids", "encoder_hidden_states": "heard"},
            "outputs": {"logits": "logits"},
        },
    }
}


def genai(folder: Path) -> Path:
    first = folders.sound_encoder("sound")
    second = folders.decoder(states="heard", masked=False)
    return folders.save(folder, GENAI, first=first, second=second)


def test_genai_config_names_models_and_what_they_hand_over(tmp_path: Path) -> None:
    folder = genai(tmp_path / "g")
    onnx.save(folders.table(), folder / "model.onnx")  # beside, and not named
    result = qcompiler.compile(folder, recipe="w4a8-fast", calib_samples=8, calib_length=32)
    assert isinstance(result.report, FolderReport)
    assert [report.output.name for report in result.report.models] == ["first.onnx", "second.onnx"]
    assert all(report.counts["linear_quantized"] for report in result.report.models)
    assert "; heard from first.onnx on random: " in result.report.models[1].calibration
    assert (result.output / "model.onnx").read_bytes() == (folder / "model.onnx").read_bytes()
    model = json.loads((result.output / "genai_config.json").read_text())["model"]
    assert model["decoder"]["session_options"]["custom_ops_library"] == "libqcompiler_ops.so"
    assert model["encoder"] == GENAI["model"]["encoder"]
    assert model["decoder"]["filename"] == "second.onnx"
    assert set(result.files) == set(result.output.iterdir())


@pytest.mark.parametrize("own", [False, True], ids=["shared options", "own options"])
def test_onnxruntime_genai_finds_the_library_for_both(tmp_path: Path, own: bool) -> None:
    genai_runtime = pytest.importorskip("onnxruntime_genai")
    folder = genai(tmp_path / "g")
    file = folder / "genai_config.json"
    config = json.loads(file.read_text())
    sizes = {"num_attention_heads": 4, "num_key_value_heads": 4, "num_hidden_layers": 1}
    config["model"] |= dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), 1)
    config["model"]["context_length"] = 32
    for section in ("encoder", "decoder"):
        config["model"][section] |= sizes | {"head_size": 16, "hidden_size": folders.WIDTH}
    if own:
        config["model"]["encoder"]["session_options"] = {}
    file.write_text(json.dumps(config | {"search": {"max_length": 32}}))
    output = qcompiler.compile(folder, recipe="rtn").output
    for name in ("first.onnx", "second.onnx"):
        model = onnx.load(output / name, load_external_data=False)
        assert model.functions
        del model.functions[:]  # by these it would run without the library
        (output / name).write_bytes(model.SerializeToString())
    genai_runtime.Model(str(output))


def test_a_model_with_nothing_to_quantize_is_copied(tmp_path: Path) -> None:
    folder = folders.save(tmp_path / "m", embed_tokens=folders.table(), decoder=folders.body())
    onnx.save(
        folders.table(),
        folder / "embed_tokens.onnx",
        save_as_external_data=True,
        location="embed.data",
        size_threshold=256,
    )
    result = qc("compile", folder, *FAST, "--json")
    assert result.exit_code == 0, result.stderr
    table, body = json.loads(result.stdout)["models"]
    assert table["copied"].startswith("nothing this recipe can quantize")
    assert body["copied"] is None and body["counts"]["linear_quantized"] == 1
    assert "inputs_embeds from embed_tokens.onnx on random-tokens" in body["calibration"]
    assert "WARNING" not in body["calibration"], "nothing of it is drawn"
    output = folder.with_name("m.w4a8-fast")
    for name in ("embed_tokens.onnx", "embed.data"):
        assert (output / name).read_bytes() == (folder / name).read_bytes()
    lines = qc("compile", folder, *FAST).stdout.splitlines()
    assert any("embed_tokens.onnx: " in line and "as it was: nothing" in line for line in lines)


def test_a_decoder_that_goes_on_reads_the_caches_of_the_first(tmp_path: Path) -> None:
    first, after = folders.stepping_decoders()
    folder = folders.save(tmp_path / "m", decoder_model=first, decoder_with_past_model=after)
    found = jobs(folder)
    for job in found.values():
        assert not any(options_of(step).get("through_cache") for step in job.passes)
    alone = jobs(folders.save(tmp_path / "one", model=after))["model"]
    assert any(options_of(step).get("through_cache") for step in alone.passes)
    output = qcompiler.compile(folder, calib_samples=16, calib_length=32).output
    ids = np.random.default_rng(0).integers(0, folders.WORDS, (2, 12))

    def stepped(place: Path) -> np.ndarray:
        start = run(place / "decoder_model.onnx", input_ids=ids[:, :8])
        past = {"past_key_values.0.value": start["present.0.value"]}
        end = run(place / "decoder_with_past_model.onnx", input_ids=ids[:, 8:], **past)
        return np.concatenate([start["logits"], end["logits"]], 1)

    assert sqnr_db(stepped(folder), stepped(output)) > 18


def test_both_branches_of_a_merged_decoder_have_data(tmp_path: Path) -> None:
    folder = folders.save(tmp_path / "m", model=folders.merged_decoder())
    result = qc("compile", folder, "--calib-samples", "16", "--calib-length", "32", "--json")
    assert result.exit_code == 0, result.stderr
    layers = [each for each in json.loads(result.stdout)["layers"] if each["quantized"]]
    assert {each["name"].split("/")[0] for each in layers} == {"then_branch", "else_branch"}
    assert not any("never runs" in (each["reason"] or "") for each in layers)
    output = folder.with_name("m.w4a8") / "model.onnx"
    ids = np.random.default_rng(0).integers(0, folders.WORDS, (2, 12))

    def stepped(model: Path) -> np.ndarray:
        past = {"past_key_values.0.value": np.zeros((2, 4, 0, 16), np.float32)}
        flag = {"use_cache_branch": np.array([False])}
        start = run(model, input_ids=ids[:, :8], **past, **flag)
        past = {"past_key_values.0.value": start["present.0.value"]}
        end = run(model, input_ids=ids[:, 8:], **past, use_cache_branch=np.array([True]))
        return np.concatenate([start["logits"], end["logits"]], 1)

    expected = stepped(folder / "model.onnx")
    assert sqnr_db(expected, stepped(output)) > 18
    package = open_packages(folder)[0]
    decoder = Decoder(create_session(output), Signature.of(package), batch=2, capacity=12)
    decoder.step(ids[:, :8])
    last = decoder.step(ids[:, 8:])  # by the branch that reads the cache
    assert sqnr_db(expected[:, -1], last) > 18


@pytest.mark.parametrize(
    ("there", "taken"),
    [
        (["model", "model_quantized", "encoder"], ["model"]),
        (["only"], ["only"]),
        (["only_int8"], ["only_int8"]),
        (["encoder", "encoder_int8", "decoder", "decoder.w4a8"], ["decoder", "encoder"]),
        (["encoder_fp16", "decoder_fp16"], ["decoder_fp16", "encoder_fp16"]),
        (
            [
                "decoder_model",
                "decoder_with_past_model",
                "decoder_model_merged",
                "decoder_model_q4f16",
            ],
            ["decoder_model", "decoder_model_merged", "decoder_with_past_model"],
        ),
    ],
)
def test_what_belongs_together(tmp_path: Path, there: list[str], taken: list[str]) -> None:
    folders.save(tmp_path, **dict.fromkeys(there, folders.table()))
    found = [package.onnx_path.stem for package in open_packages(tmp_path)]
    assert found == taken


@pytest.mark.parametrize("as_list", [True, False])
def test_the_parts_of_a_pipeline_compile_as_one(tmp_path: Path, as_list: bool) -> None:
    folder = folders.pipeline(tmp_path / "m")
    config = json.loads((folder / "genai_config.json").read_text())
    if not as_list:  # each part in an object of its own
        (parts,) = config["model"]["decoder"]["pipeline"]
        config["model"]["decoder"]["pipeline"] = [{name: parts[name]} for name in parts]
        (folder / "genai_config.json").write_text(json.dumps(config))
    result = qc("compile", folder, *FAST, "--json")
    assert result.exit_code == 0, result.stderr
    models = {Path(each["source"]).name: each for each in json.loads(result.stdout)["models"]}
    assert [*models] == ["embed.onnx", "prompt.onnx", "iterator.onnx", "lm_head.onnx"]
    for name in ("prompt.onnx", "iterator.onnx"):
        assert "inputs_embeds from embed.onnx" in models[name]["calibration"]
    assert "hidden_in from prompt.onnx" in models["lm_head.onnx"]["calibration"]
    output = folder.with_name("m.w4a8-fast")
    written = json.loads((output / "genai_config.json").read_text())["model"]["decoder"]
    assert "filename" not in written
    library = written["session_options"]["custom_ops_library"]
    assert (output / library).is_file()
    found = {name: part for step in written["pipeline"] for name, part in step.items()}
    assert found["prompt-processor"]["session_options"]["custom_ops_library"] == library
    assert "session_options" not in found["token-generator"], "it has the decoder's"


def test_files_that_a_pipeline_names_must_be_there(tmp_path: Path) -> None:
    folder = folders.pipeline(tmp_path / "m")
    (folder / "iterator.onnx").unlink()
    said = refusal("compile", folder)
    assert "iterator.onnx, which genai_config.json names for its pipeline's token-gen" in said


def test_one_part_of_a_pipeline_keeps_its_config(tmp_path: Path) -> None:
    folder = folders.pipeline(tmp_path / "m")
    file = folder / "genai_config.json"
    config = json.loads(file.read_text())
    head = config["model"]["decoder"]["pipeline"][0]["transformer-head"]
    config["model"]["decoder"]["pipeline"] = [{"transformer-head": head}]
    file.write_text(json.dumps(config))
    assert qc("compile", folder, *FAST).exit_code == 0
    made = json.loads((folder.with_name("m.w4a8-fast") / file.name).read_text())
    assert made["model"]["decoder"]["pipeline"] == [{"transformer-head": head}]
    assert "filename" not in made["model"]["decoder"]


# Nothing by halves


def test_a_failure_in_the_second_leaves_nothing(pair: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    assert qc("compile", pair, *FAST, "-o", output).exit_code == 0
    (output / "notes.txt").write_text("mine")
    before = {path.name: path.read_bytes() for path in output.iterdir()}
    broken = onnx.load(pair / "decoder.onnx")
    broken.graph.node[-1].output[0] = "raw"
    broken.graph.node.append(onnx.helper.make_node("Sqrt", ["minus"], ["nan"]))
    broken.graph.node.append(onnx.helper.make_node("Add", ["raw", "nan"], ["logits"]))
    minus = onnx.numpy_helper.from_array(np.array(-1, np.float32), "minus")
    broken.graph.initializer.append(minus)
    onnx.save(broken, pair / "decoder.onnx")
    said = refusal("compile", pair, *FAST, "-o", output)
    assert "decoder.onnx itself gives nothing but NaN" in said
    assert {path.name: path.read_bytes() for path in output.iterdir()} == before
    assert "nothing but NaN" in refusal("compile", pair, *FAST, "-o", tmp_path / "new")
    assert {path.name for path in tmp_path.iterdir() if path.name[0] != "."} == {"pair", "out"}


def test_a_missing_library_is_said_before_anything_runs(
    pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It belongs beside the models of a folder, and was missed once all else was done."""
    monkeypatch.setenv("QCOMPILER_LIBRARY", "/nowhere")
    told: list[str] = []
    with pytest.raises(RuntimeLibraryError, match="/nowhere"):
        qcompiler.compile(
            pair, output=tmp_path / "out", progress=lambda what, *_: told.append(what)
        )
    assert told == []
    assert not (tmp_path / "out").exists()


def test_the_next_compile_replaces_all_models_and_keeps_the_rest(
    pair: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    found: list[set[str]] = []
    for bits in ("8", "4"):
        change = f"plan-weights.bits={bits}"
        result = qc("compile", pair, "-r", "rtn", "--set", change, "-o", output)
        assert result.exit_code == 0, result.stderr
        found.append({path.name for path in output.iterdir() if path.suffix == ".data"})
        (output / "notes.txt").write_text("mine")
    assert (output / "notes.txt").exists()
    named = {file.name for package in open_packages(output) for file in package.data_files}
    assert found[0] != found[1] == named, "the data of the models before is gone"


def test_patterns_are_for_all_models_together(pair: Path) -> None:
    result = qc("compile", pair, *FAST, "--nodes-to-exclude", "cross", "--json")
    assert result.exit_code == 0, result.stderr
    layers = {layer["name"]: layer for layer in json.loads(result.stdout)["models"][1]["layers"]}
    assert layers["cross"]["reason"] == "excluded by pattern 'cross'"
    said = refusal("compile", pair, *FAST, "--nodes-to-exclude", "nowhere")
    assert "no layer has a name that matches 'nowhere'" in said
    assert "no regular expression" in refusal("compile", pair, "--nodes-to-exclude", "(")


# What can't be


def test_variants_without_a_plain_one_are_refused(tmp_path: Path) -> None:
    model = folders.table()
    folders.save(tmp_path, decoder=model, encoder_int8=model, encoder_fp16=model)
    said = refusal("compile", tmp_path)
    assert "encoder_fp16.onnx and encoder_int8.onnx look like variants of one model" in said
    assert "there is no encoder.onnx; name the ONNX file itself" in said


def test_files_that_genai_config_names_must_be_there(tmp_path: Path) -> None:
    folder = genai(tmp_path / "g")
    (folder / "first.onnx").unlink()
    said = refusal("compile", folder)
    assert "holds no first.onnx, which genai_config.json names for its encoder" in said
    config = json.loads((folder / "genai_config.json").read_text())
    config["model"]["encoder"]["filename"] = "../first.onnx"
    (folder / "genai_config.json").write_text(json.dumps(config))
    assert "the encoder's filename must be a plain name" in refusal("compile", folder)


def test_a_folder_with_nothing_to_quantize(tmp_path: Path) -> None:
    folders.save(tmp_path / "m", a=folders.table(), b=folders.table())
    assert "holds nothing this recipe can quantize" in refusal("compile", tmp_path / "m", *FAST)
    assert [path.name for path in tmp_path.iterdir() if path.name[0] != "."] == ["m"]


def test_an_output_in_the_place_of_its_source(pair: Path) -> None:
    assert "would overwrite its source" in refusal("compile", pair, "-o", pair)


def test_inspect_shows_all_models(pair: Path) -> None:
    lines = qc("inspect", pair).stdout.splitlines()
    assert sum("IR version" in line for line in lines) == 2
    found = json.loads(qc("inspect", pair, "--json").stdout)["models"]
    assert [Path(each["path"]).name for each in found] == ["decoder.onnx", "encoder.onnx"]


@pytest.mark.parametrize("command", [["eval"], ["bench"], ["generate", "a"], ["sensitivity"]])
def test_other_commands_ask_for_one_file(pair: Path, command: list[str]) -> None:
    name, *more = command
    said = refusal(name, pair, *more)
    assert "holds 2 models (decoder.onnx, encoder.onnx): name the file of one" in said
    with pytest.raises(ModelError, match="name the file of one"):
        create_session(pair)
