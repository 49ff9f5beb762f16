"""What models of one folder hand to each other: an input of one that another one computes.

| input | is fed |
| --- | --- |
| any | the output that genai_config.json gives the same role, or forwards; else NAME or NAME_out |
| `past_...`, where the model does not compute all of these itself | the output `present_...` |
| `encoder_hidden_states` | the output `last_hidden_state` |
| `encoder_attention_mask` | the `attention_mask` that the model with these vectors reads |

Element types and fixed sizes have to agree, and one model alone may have the output: otherwise the
input is fed as that of any other model.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from qcompiler import ir, settings
from qcompiler.calibration.budget import MOST_BYTES
from qcompiler.calibration.draws import with_names_of_import
from qcompiler.calibration.pieces import evaluate
from qcompiler.errors import CalibrationError
from qcompiler.feeds import (
    BRANCH,
    IDS,
    MASK,
    POSITIONS,
    SWITCHES,
    TYPES,
    Array,
    Signature,
    TensorSpec,
)
from qcompiler.files import told_bytes
from qcompiler.folders import pipeline, sections
from qcompiler.models import ModelPackage
from qcompiler.settings import Settings

VECTORS, STATES = "last_hidden_state", "encoder_hidden_states"
STATES_MASK = "encoder_attention_mask"
_OWN = frozenset({IDS, MASK, POSITIONS, TYPES, *SWITCHES})
"""Inputs that every model has of its own."""


@dataclass(frozen=True)
class Link:
    """Where an input comes from."""

    giver: ModelPackage
    name: str
    """Of an output of the giver, or of an input that both are to read alike."""


Links = Mapping[str, Link]
"""By input."""


def linked(packages: Sequence[ModelPackage]) -> list[tuple[ModelPackage, Links]]:
    """The models of a folder, givers before takers, with what they are handed."""
    ends = [_End.of(package) for package in packages]
    links = {end.name: _links(end, [each for each in ends if each is not end]) for end in ends}
    ordered: list[tuple[ModelPackage, Links]] = []
    waiting = list(ends)
    while waiting:
        left = {end.name for end in waiting}
        free = [
            end
            for end in waiting
            if left.isdisjoint(link.giver.onnx_path.name for link in links[end.name].values())
        ]
        end = (free or waiting)[0]  # in a circle the first goes without what it would be handed
        waiting.remove(end)
        kept = {k: v for k, v in links[end.name].items() if v.giver.onnx_path.name not in left}
        ordered.append((end.package, kept))
    return ordered


def shares_caches(package: ModelPackage, packages: Sequence[ModelPackage]) -> bool:
    """Whether values that a model caches are read by another, or by another branch of itself.

    Nothing that changes them may be done in one place alone.
    """
    signature = Signature.of(package)
    presents = _presents(signature)
    own = {cache.present for cache in signature.caches}
    others = [each for each in packages if each.onnx_path != package.onnx_path]
    return (
        not presents <= own
        or any(not presents.isdisjoint(_presents(Signature.of(each))) for each in others)
        or signature.input(BRANCH) is not None
    )


def _presents(signature: Signature) -> set[str]:
    return {spec.name for spec in signature.outputs if spec.name.startswith("present")}


@dataclass(frozen=True)
class _End:
    """A model with what it reads and gives, and the roles that genai_config.json gives to both."""

    package: ModelPackage
    signature: Signature
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    """By role, names, or templates of numbered ones with a %d."""
    forwarded: Mapping[str, str]
    """Outputs by the inputs that a pipeline forwards them to."""
    reads_prompts: bool = True
    """Whether it runs on whole texts: in a pipeline some parts read one token at a time only."""

    @classmethod
    def of(cls, package: ModelPackage) -> _End:
        config = package.config or {}
        section = sections(package.onnx_path.parent, config).get(package.onnx_path.name, "")
        roles = [
            {k: v for k, v in settings.table(config, "model", section, key).items() if v}
            for key in ("inputs", "outputs")
        ]
        texts = [{k: v for k, v in each.items() if isinstance(v, str)} for each in roles]
        part = _part(config, package.onnx_path.name)
        renamed = settings.table(part, "output_names_forwarder").items()
        forwarded = {after: before for before, after in renamed if isinstance(after, str)}
        prompts = part.get("run_on_prompt") is not False
        inputs, outputs = texts
        return cls(package, Signature.of(package), inputs, outputs, forwarded, prompts)

    @property
    def name(self) -> str:
        return self.package.onnx_path.name


def _part(config: Settings, file: str) -> Settings:
    """The part of a pipeline that a file is; an empty one for other files."""
    parts = pipeline(config).values()
    return next((part for part in parts if part.get("filename") == file), {})


def _links(taker: _End, others: Sequence[_End]) -> dict[str, Link]:
    own = {cache.past for cache in taker.signature.caches}
    inputs = [spec for spec in taker.signature.inputs if spec.name not in _OWN]
    # Caches that a model fills itself begin empty; one that goes on where another stopped does not.
    outside = any(spec.name.startswith("past") and spec.name not in own for spec in inputs)
    found: dict[str, Link] = {}
    for spec in inputs:
        if spec.name == STATES_MASK or (spec.name in own and not outside):
            continue
        if (link := _link(spec, taker, others)) is not None:
            found[spec.name] = link
    mask = taker.signature.input(STATES_MASK)
    if mask is not None and found:
        givers = {link.giver.onnx_path.name for link in found.values()}
        for other in others:
            if other.name in givers and (name := _mask_of(other, mask)):
                found[STATES_MASK] = Link(other.package, name)
    return found


def _link(spec: TensorSpec, taker: _End, others: Sequence[_End]) -> Link | None:
    """The one output that is meant for an input; None where there is none, or more than one."""
    found: list[Link] = []
    for other in others:
        if other.signature.input(spec.name) is not None:
            continue  # it takes that from elsewhere, too
        if not other.reads_prompts:
            continue  # there is another that gives the same for a text
        names = (name for name in _names(spec.name, taker, other) if _gives(other, name, spec))
        found += [Link(other.package, name) for name in itertools.islice(names, 1)]
    return found[0] if len(found) == 1 else None


def _gives(giver: _End, name: str, wanted: TensorSpec) -> bool:
    outputs = giver.signature.outputs
    return any(spec.name == name and _fits(spec, wanted) for spec in outputs)


def _names(name: str, taker: _End, giver: _End) -> Iterator[str]:
    """What an output is called that is meant for an input."""
    if name in giver.forwarded:
        yield giver.forwarded[name]
    for role, template in taker.inputs.items():
        number = re.fullmatch(re.escape(template).replace("%d", r"(\d+)"), name)
        given = giver.outputs.get(role) or giver.outputs.get(role.replace("past", "present"))
        if number is not None and given is not None:
            yield given.replace("%d", number[1]) if number.groups() else given
    yield name
    yield f"{name}_out"  # PyTorch's exporters allow no output the name of an input
    if name.startswith("past"):
        rest = name.removeprefix("past").removeprefix("_key_values")
        yield from ("present" + rest, "present_key_values" + rest)
        yield name.replace("past", "present", 1)
    if name == STATES:
        yield VECTORS


def _mask_of(giver: _End, mask: TensorSpec) -> str | None:
    """The input of a giver that says which of its vectors count."""
    for name in (STATES_MASK, MASK):
        given = giver.signature.input(name)
        if given is not None and _fits(given, mask):
            return name
    return None


def _fits(given: TensorSpec, wanted: TensorSpec) -> bool:
    if given.dtype is None or wanted.dtype is None or given.dtype.kind != wanted.dtype.kind:
        return False
    if given.shape is None or wanted.shape is None:
        return True
    return len(given.shape) == len(wanted.shape) and all(
        one == other or not (isinstance(one, int) and isinstance(other, int))
        for one, other in zip(given.shape, wanted.shape, strict=True)
    )


class Giver(Protocol):
    """What a `Supply` tells of its data."""

    @property
    def feeds(self) -> Sequence[Mapping[str, Array]]:
        """All of its feeds."""
        ...

    @property
    def told(self) -> str:
        """What they are."""
        ...


@dataclass(frozen=True)
class Handed:
    """What a model is handed, from the data of the models that hand it over."""

    links: Links
    givers: Mapping[str, Giver]
    """By the name of the model's file."""

    @property
    def description(self) -> str:
        """Which inputs these are, and of what they come."""
        told: list[str] = []
        for giver, names in self._by_giver():
            data = self.givers[giver.onnx_path.name].told
            told.append(f"{', '.join(names)} from {giver.onnx_path.name} on {data}")
        return "; ".join(told)

    def feeds(self) -> list[dict[str, Array]]:
        """The values of the inputs, sample by sample: the float models run over their own data.

        CalibrationError if that is more than can be held in memory.
        """
        columns: dict[str, list[Array]] = {}
        room = MOST_BYTES
        for giver, names in self._by_giver():
            for name, values in self._given(giver, names).items():
                columns[name] = []
                for value in values:
                    room -= value.nbytes
                    if room < 0:
                        raise CalibrationError(
                            f"what {giver.onnx_path.name} gives takes more than the "
                            f"{told_bytes(MOST_BYTES)} that may be held in memory; give fewer "
                            "samples (--calib-samples)"
                        )
                    columns[name].append(np.array(value))
        count = max(map(len, columns.values()))
        return [
            {name: values[index % len(values)] for name, values in columns.items()}
            for index in range(count)
        ]

    def _given(self, giver: ModelPackage, names: Sequence[str]) -> dict[str, Sequence[Array]]:
        feeds = self.givers[giver.onnx_path.name].feeds
        wanted = {name: self.links[name].name for name in names}
        read = {spec.name for spec in Signature.of(giver).inputs}
        computed = list(dict.fromkeys(name for name in wanted.values() if name not in read))
        values: dict[str, Any] = {}
        if computed:
            graph = with_names_of_import(ir.read_model(giver.onnx_path, giver.data_files))
            values |= evaluate(graph, computed, feeds)
        values |= {name: [feed[name] for feed in feeds] for name in wanted.values() if name in read}
        return {name: values[source] for name, source in wanted.items()}

    def _by_giver(self) -> list[tuple[ModelPackage, list[str]]]:
        found: dict[str, tuple[ModelPackage, list[str]]] = {}
        for name, link in self.links.items():
            found.setdefault(link.giver.onnx_path.name, (link.giver, []))[1].append(name)
        return list(found.values())


def joined(
    feeds: Sequence[Mapping[str, Array]], handed: Sequence[Mapping[str, Array]], whole: Signature
) -> list[dict[str, Array]]:
    """Feeds with what is handed beside: sample by sample, and of a batch as many as a feed has."""
    made: list[dict[str, Array]] = []
    for index, feed in enumerate(feeds):
        turn, place = divmod(index, len(handed))
        batch = {len(feed[name]) for name in feed if _batched(whole, name)}
        beside = {name: values for name, values in handed[place].items() if name not in feed}
        for name, values in beside.items():
            if len(batch) == 1 and _batched(whole, name):
                beside[name] = values[(turn + np.arange(min(batch))) % len(values)]
        made.append({**feed, **beside})
    return made


def _batched(signature: Signature, name: str) -> bool:
    """Whether the first axis of an input is that of texts."""
    spec, ids = signature.input(name), signature.input(IDS)
    if spec is None or not spec.shape:
        return False
    first = spec.shape[0]
    return name == IDS or "batch" in str(first) or bool(ids and ids.shape and ids.shape[0] == first)
