"""Which kernels there are, and which are chosen for which CPU flags."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from isas import ARCHITECTURE, FLAGS, ISAS, RUNTIME, names

ALL = sum(FLAGS.values())
AVX2 = FLAGS["avx2"] | FLAGS["fma"] | FLAGS["f16c"]

x86_only = pytest.mark.skipif(
    ARCHITECTURE != "x86", reason="the build for this machine has other tables"
)


def test_tables_are_those_of_the_list(kernels):
    """In its order, each with its flags; those that the compiler does not know are left out."""
    tables = kernels.tables()
    assert list(tables) == [name for name in names(ARCHITECTURE) if name in tables]
    for isa in ISAS:
        if isa.name in tables:
            assert tables[isa.name] == sum(FLAGS[flag] for flag in isa.flags)
        forced = kernels.choose(ALL, isa.name)
        assert forced == (isa.name if isa.name in tables else None)
        if isa.only_forced:
            assert kernels.choose(sum(FLAGS[flag] for flag in isa.flags)) != isa.name


def test_docs_describe_every_isa():
    page = RUNTIME.parent / "docs" / "ops.md"
    table = page.read_text("utf-8").partition("| name | needs |\n")[2].partition("\n\n")[0]
    described = dict(re.findall(r"^\| `([^`]+)` \| (.+) \|$", table, re.M))
    assert list(described) == [isa.name for isa in ISAS]
    words = {"avxvnni": "AVX-VNNI", "amxtile": "AMX", "amxint8": "int8", "dotprod": "dot product"}
    words |= {"i8mm": "int8 matrix", "avx512vnni": "AVX-512"}
    for isa in ISAS:
        text = re.sub(r"`([^`]+)`", lambda match: described[match[1]], described[isa.name])
        for flag in isa.flags:
            word = words.get(flag, flag.removeprefix("avx512").upper())
            # AVX-512 has all that AVX2 has.
            assert word in text or (flag in ("avx2", "fma", "f16c") and "AVX-512" in text), flag


def test_tables_end_with_one_that_runs_anywhere(kernels):
    *_, (name, needs) = kernels.tables().items()
    assert (name, needs) == ("reference", 0)
    assert kernels.choose(0) == "reference"


@x86_only
@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (ALL, "amxint8"),
        (ALL & ~FLAGS["amxint8"], "avx512vnni"),
        (AVX2, "avx2"),
        (ALL & ~FLAGS["avx512vnni"], "avxvnni"),
        (ALL & ~FLAGS["avx512bw"], "avxvnni"),
        (ALL & ~FLAGS["avx512vl"], "avxvnni"),
        (AVX2 | FLAGS["avxvnni"], "avxvnni"),
        (ALL & ~FLAGS["amxint8"] & ~FLAGS["avxvnni"], "avx512vnni"),
        (ALL & ~FLAGS["avxvnni"] & ~FLAGS["avx512bw"], "avx2"),
        (FLAGS["avxvnni"], "reference"),
        (ALL & ~FLAGS["fma"], "reference"),
        (ALL & ~FLAGS["f16c"], "reference"),
        (FLAGS["avx2"], "reference"),
    ],
)
def test_best_table_whose_every_flag_is_there(kernels, flags, expected):
    if expected not in kernels.tables():
        pytest.skip(f"the compiler of this build has no {expected}")
    assert kernels.choose(flags) == expected


@x86_only
def test_forced(kernels):
    assert kernels.choose(ALL, "avx2") == "avx2"
    assert kernels.choose(ALL, "reference") == "reference"
    assert kernels.choose(ALL, "") == kernels.choose(ALL)
    assert kernels.choose(ALL, "avx512vnni") == "avx512vnni"
    assert kernels.choose(ALL, "avx512vnni-256") == "avx512vnni-256"
    assert kernels.choose(AVX2, "avx512vnni") is None
    assert kernels.choose(AVX2 | FLAGS["avxvnni"], "avx512vnni-256") is None
    assert kernels.choose(AVX2, "avxvnni") is None
    assert kernels.choose(ALL, "neon") is None


@x86_only
def test_flags_agree_with_the_kernel(kernels):
    """The system lists what it and the CPU support."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.is_file():
        pytest.skip("no /proc/cpuinfo here")
    words = cpuinfo.read_text().partition("\nflags")[2].partition("\n")[0].split()
    spelt = {"avx512vnni": "avx512_vnni", "avxvnni": "avx_vnni"}
    spelt |= {"amxint8": "amx_int8", "amxtile": "amx_tile"}
    expected = sum(bit for flag, bit in FLAGS.items() if spelt.get(flag, flag) in words)
    assert kernels.cpu_flags() == expected
