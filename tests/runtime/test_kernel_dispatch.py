"""Which kernels are chosen for which CPU flags."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import X86
from kernel_library import FLAGS

ALL = sum(FLAGS.values())
AVX2 = FLAGS["avx2"] | FLAGS["fma"] | FLAGS["f16c"]

x86_only = pytest.mark.skipif(not X86, reason="the build for this machine has other tables")


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
    names = {"avx512vnni": "avx512_vnni", "avxvnni": "avx_vnni", "amxint8": "amx_int8"}
    expected = sum(bit for flag, bit in FLAGS.items() if names.get(flag, flag) in words)
    assert kernels.cpu_flags() == expected
