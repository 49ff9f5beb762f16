"""Files and options as nobody means them: valid ones mutated, and what reads them.

`BOUNDARIES` has every kind of text or file that people bring. Whatever it holds, reading gives a
value or raises a QcError of one line; anything else is a finding. Tests draw mutations through
hypothesis, `tests/torture/files.py` from a random generator: both hand `pick`, which chooses one of
a sequence.
"""

from __future__ import annotations

import copy
import io
import json
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import tiny_models as tiny

from qcompiler import recipe
from qcompiler.calibration.sources import load_source
from qcompiler.chat import render
from qcompiler.errors import CalibrationError, QcError
from qcompiler.evaluation.texts import read_text
from qcompiler.export.sources import check_weights, find_source, is_decoder
from qcompiler.feeds import Signature, vocabulary
from qcompiler.files import json_text
from qcompiler.generation import prompt_ids
from qcompiler.models import open_package
from qcompiler.patterns import matches, require_pattern

Pick = Callable[[Sequence[Any]], Any]
CORPUS = Path(__file__).resolve().parents[1] / "corpus"
SECONDS = 20.0
"""Of computing, for one input: more counts as a hang."""

EVIL_VALUES: list[Any] = [
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 10**30, -(2**63), 0.5, -0.0, 1e308, float("nan")),
    *(
        float("inf"),
        "",
        "a",
        "\ud800",
        "\x1b[31m",
        "\u202e",
        "٣",
        "1_0",
        "../x",
        "a\0b",
        "x" * 5000,
    ),
    *([], {}, [[]], [None], [1, "a", None], {"": None}, {"a": {"b": []}}, [[1]] * 50),
]
EVIL_TEXT = [
    *("[" * 2000, "]" * 50, "{" * 2000, '{"a":' * 1000, '"\\ud800"', "\x00", "\x1b", "\ufeff"),
    *("9" * 5000, "0x" + "f" * 5000, "1e999", "NaN", "-Infinity", "\\", '"', "'", "}", "]", "\n"),
    *("null", "true", "=", ",", ".", "a." * 500, "\ud800", "#", "'''", '"""', "inf", "nan", "[["),
]


@dataclass(frozen=True)
class Boundary:
    """One kind of input."""

    mutate: Callable[[Pick], bytes]
    """A hostile input."""
    read: Callable[[Path, bytes], object]
    """Read it, in a folder for this boundary alone; QcError where it is refused."""


def check(kind: str, folder: Path, content: bytes) -> str | None:
    """What is wrong with how an input is read; None for a value or a proper refusal."""
    start = time.process_time()
    try:
        BOUNDARIES[kind].read(folder, content)
    except QcError as error:
        if not str(error).strip():
            return "an error without a message"
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        return f"{type(error).__name__}: {str(error)[:300]}"
    spent = time.process_time() - start
    return f"{spent:.0f} s" if spent > SECONDS else None


def mutated_bytes(content: bytes, pick: Pick) -> bytes:
    """Bytes with a few of them changed, cut, doubled or replaced by hostile text."""
    made = bytearray(content)
    for _ in range(pick([0, 1, 1, 2, 4])):
        at = pick(range(len(made) + 1))
        end = min(len(made), at + pick([0, 1, 2, 8, 64, 1024]))
        match pick(["flip", "cut", "drop", "twice", "text"]):
            case "flip":
                made[at:end] = bytes(255 - byte for byte in made[at:end])
            case "cut":
                del made[at:]
            case "drop":
                del made[at:end]
            case "twice":
                made[at:at] = made[at:end]
            case _:
                made[at:end] = pick(EVIL_TEXT).encode("utf-8", "surrogatepass")
    return bytes(made)


def mutated_value(value: Any, pick: Pick) -> Any:
    """JSON data with a hostile value somewhere."""
    made = copy.deepcopy(value)
    for _ in range(pick([1, 1, 2, 3])):
        holder, keys = made, list(_keys(made))
        while keys:
            key = pick(keys)
            inner = list(_keys(holder[key]))
            if not inner or pick([True, False, False]):
                if pick([0, 0, 0, 1]) and isinstance(holder, dict):
                    del holder[key]
                else:
                    holder[key] = copy.deepcopy(pick(EVIL_VALUES))
                break
            holder, keys = holder[key], inner
    return made


def _keys(value: Any) -> Sequence[Any]:
    if isinstance(value, dict):
        return list(value)
    return range(len(value)) if isinstance(value, list) else ()


def _json(valid: Any) -> Callable[[Pick], bytes]:
    def mutate(pick: Pick) -> bytes:
        value = mutated_value(valid, pick) if pick([0, 1, 1]) else valid
        text = json.dumps(value, ensure_ascii=pick([True, False])).encode("utf-8", "surrogatepass")
        return mutated_bytes(text, pick) if pick([0, 0, 1]) else text

    return mutate


def _text(valid: Sequence[str]) -> Callable[[Pick], bytes]:
    return lambda pick: mutated_bytes(pick(valid).encode(), pick)


# What a folder must have beside the hostile file is made once.


def _decoder_folder(folder: Path) -> Path:
    if not (folder / "model.onnx").is_file():
        made = tiny.decoder(tiny.embedding(), head_dim=tiny.HIDDEN)
        tiny.save(made, folder, config=tiny.CONFIG)
    return folder


def _read_side(name: str) -> Callable[[Path, bytes], object]:
    def read(folder: Path, content: bytes) -> object:
        (_decoder_folder(folder) / name).write_bytes(content)
        package = open_package(folder)
        signature = Signature.of(package)
        facts = (package.bos_id(), package.eos_ids(), package.context_length(), package.name)
        ids = [] if package.chat_template() is None else [0]
        tokens = (package.frame(), package.special_ids(), vocabulary(package, signature))
        words = package.tokenizer()
        return facts, tokens, ids, prompt_ids(package, words, "w1 w2"), words.decode([1, 2])

    return read


def _read_lines(folder: Path, content: bytes) -> object:
    (_decoder_folder(folder) / "t.jsonl").write_bytes(content)
    text = read_text(str(folder / "t.jsonl"), CalibrationError)
    text.encode()
    data = load_source(folder / "t.jsonl", open_package(folder), samples=2, length=16)
    return data.sha256


def _read_npz(folder: Path, content: bytes) -> object:
    if not (folder / "m.onnx").is_file():
        onnx.save(tiny.linear(), folder / "m.onnx")
    (folder / "f.npz").write_bytes(content)
    return load_source(folder / "f.npz", open_package(folder / "m.onnx"), samples=4).sha256


def _read_recipe(folder: Path, content: bytes) -> object:
    (folder / "r.toml").write_bytes(content)
    return json_text(recipe.load(folder / "r.toml").to_dict())


def _read_options(_folder: Path, content: bytes) -> object:
    text = content.decode("utf-8", "surrogateescape")
    first, _, rest = text.partition("\n")
    for reading in (
        lambda: recipe.parse_pipeline(first),
        lambda: recipe.load("w4a8", [*rest.split("\n")] if rest else []),
    ):
        try:
            reading()
        except QcError:
            continue
    return None


def _read_pattern(_folder: Path, content: bytes) -> object:
    text = content.decode("utf-8", "surrogateescape")
    require_pattern(text)
    return [matches(text, name) for name in ("a" * 40 + "!", "model.layers.0/MatMul", text[:200])]


def _read_template(_folder: Path, content: bytes) -> object:
    text = content.decode("utf-8", "replace")
    return render(text, [{"role": "user", "content": "hello"}])


def _read_weights(folder: Path, content: bytes) -> object:
    (folder / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    (folder / "model.safetensors").write_bytes(content)
    check_weights(find_source(str(folder)))
    return is_decoder(folder)


def _read_gguf(folder: Path, content: bytes) -> object:
    (folder / "m.gguf").write_bytes(content)
    return check_weights(find_source(str(folder / "m.gguf")))


def _read_source_config(folder: Path, content: bytes) -> object:
    (folder / "config.json").write_bytes(content)
    (folder / "model.safetensors").write_bytes(_SAFE)
    return is_decoder(find_source(str(folder)).path)


def _npz(pick: Pick) -> bytes:
    """An archive whose arrays claim and hold other things than each other."""
    out = io.BytesIO()
    kind = pick([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
    with zipfile.ZipFile(out, "w", kind) as archive:
        for name in pick([["x"], ["x", "y"], ["x.npy"], ["x", "x"], [], ["z", "x"], ["../x\x1b"]]):
            archive.writestr(name + pick(["", ".npy", ".npy"]), _npy(pick))
    made = out.getvalue()
    return mutated_bytes(made, pick) if pick([0, 0, 1]) else made


def _npy(pick: Pick) -> bytes:
    values = np.ones(pick([(4, 3), (2, 4, 3), (3,), (0, 3), ()]), pick(["f4", "f8", "i8", "U3"]))
    plain = io.BytesIO()
    np.save(plain, values)
    content = plain.getvalue()
    length = int.from_bytes(content[8:10], "little")
    header, data = content[10 : 10 + length].decode(), content[10 + length :]
    shape = str(values.shape)
    header = header.replace(
        shape if pick([0, 1]) else "no",
        pick([shape, "(9**9,)", "(-1, 3)", "(10000000000, 3)", "3"]),
    )
    header = header.replace(
        values.dtype.str if pick([0, 1]) else "no",
        pick(["<f4", "|O", "<f16", "|V99999999", "<U2147483647", "nonsense", "<c8", "<M8[s]"]),
    )
    header = header.replace("False", pick(["False", "True", "(" * 200, "[" * 99, "None", "x"]))
    lead = pick(
        [b"\x93NUMPY\x01\x00", b"\x93NUMPY\x02\x00", b"\x93NUMPY\x03\x00", b"PK", b"\x80\x04"]
    )
    size = len(header).to_bytes(4 if lead[-2:] in (b"\x02\x00", b"\x03\x00") else 2, "little")
    return lead + size + header.encode() + data[: pick([len(data), 1, 0])]


_HEADER = {"w": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}


def _safetensors(header: bytes, claimed: int | None = None) -> bytes:
    size = len(header) if claimed is None else claimed
    return size.to_bytes(8, "little") + header + bytes(16)


def _safetensors_mutated(pick: Pick) -> bytes:
    header = _json(_HEADER)(pick)
    return _safetensors(header, pick([None, None, None, 0, 2**63, 2**64 - 1, len(header) + 17]))


_SAFE = _safetensors(json.dumps(_HEADER).encode())
_GGUF = (
    b"GGUF"
    + b"".join([(3).to_bytes(4, "little"), (0).to_bytes(8, "little"), (1).to_bytes(8, "little")])
    + (1).to_bytes(8, "little")
    + b"a"
    + (4).to_bytes(4, "little")
    + (7).to_bytes(4, "little")
)

_CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": [2],
    "max_position_embeddings": 128,
}
_TOKENIZER_CONFIG = {
    "bos_token": "[BOS]",
    "eos_token": {"content": "[EOS]", "special": True},
    "chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}",
}
_LINES = "\n".join(
    [json.dumps({"text": tiny.text(80, 1)}), json.dumps({"messages": [{"content": tiny.text(80)}]})]
)
_RECIPES = [
    'name = "r"\nmin_sqnr_db = 3.0\ncalibration_samples = 4\n[[pass]]\nname = "plan-weights"\n'
    'bits = 4\ngroup_size = 64\nsymmetric = true\n[[pass]]\nname = "equalize"\nalpha = 0.5\n'
    'edges = ["norm"]\n[[pass]]\nname = "quantize-weights"\nsweeps = 1\n',
    'base = "w4a8"\nwithout = ["rotate"]\n[[pass]]\nname = "plan-weights"\nbits = 8\n'
    '[[pass]]\nname = "equalize"\nafter = "canonicalize"\n',
]
_OPTIONS = [
    "import,canonicalize,plan-weights{bits=8,group_size=32},quantize-weights{alpha=0.5}\n"
    'plan-weights.bits=8\nequalize.edges=["norm", "up-down"]\nrotate.seed=3',
]
_TEMPLATES = [
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m.content | trim }}{% endfor %}",
    "{% set n = namespace(x=1) %}{% if messages[0].role == 'user' %}{{ n.x }}{% endif %}",
]

BOUNDARIES: dict[str, Boundary] = {
    "genai_config": Boundary(_json(tiny.CONFIG), _read_side("genai_config.json")),
    "config": Boundary(_json(_CONFIG), _read_side("config.json")),
    "generation_config": Boundary(_json(_CONFIG), _read_side("generation_config.json")),
    "tokenizer_config": Boundary(_json(_TOKENIZER_CONFIG), _read_side("tokenizer_config.json")),
    "tokenizer": Boundary(
        _json(json.loads(tiny.tokenizer(template="[BOS] $A").to_str())),
        _read_side("tokenizer.json"),
    ),
    "jsonl": Boundary(_text([_LINES]), _read_lines),
    "npz": Boundary(_npz, _read_npz),
    "recipe": Boundary(_text(_RECIPES), _read_recipe),
    "options": Boundary(_text(_OPTIONS), _read_options),
    "pattern": Boundary(
        _text(["(a+)+$", "^(fc1|fc2)$", r"layers\.\d+\.(q|k)_proj", "[a-z]{2,8}"]), _read_pattern
    ),
    "template": Boundary(_text(_TEMPLATES), _read_template),
    "safetensors": Boundary(_safetensors_mutated, _read_weights),
    "gguf": Boundary(lambda pick: mutated_bytes(_GGUF, pick), _read_gguf),
    "source_config": Boundary(_json(_CONFIG), _read_source_config),
}
