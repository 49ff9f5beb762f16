"""The kernels of 64-bit Arm, cross-compiled and run in an emulator: every kernel test once more.

Debian and Ubuntu have what that takes as g++-aarch64-linux-gnu and qemu-user.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from emulated_kernels import EmulatedKernels
from isas import FLAGS, names
from test_kernel_activation import test_gelu, test_swiglu  # noqa: F401
from test_kernel_attention import (  # noqa: F401
    test_a_row_without_keys,
    test_a_window_ends_what_rows_see,
    test_attends_to_all,
    test_attends_to_what_came_before,
    test_keys_are_packed_side_by_side,
    test_scores_of_any_size,
    test_softcap_and_sinks,
)
from test_kernel_embedding import test_embedding_is_exact  # noqa: F401
from test_kernel_linear import (  # noqa: F401
    test_any_byte_is_read_without_a_trap,
    test_bits_do_not_depend_on_the_tile,
    test_nothing_saturates,
    test_same_bits_as_the_reference,
)
from test_kernel_norm import test_add_norm  # noqa: F401
from test_kernel_quantize import (  # noqa: F401
    test_narrowing_rounds_to_nearest_even,
    test_quantize_is_exact,
    test_widening_is_exact_for_every_value,
)

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "aarch64"
DRIVER = "qcompiler_kernels_driver"
COMPILER = "aarch64-linux-gnu-g++"
EMULATORS = ("qemu-aarch64", "qemu-aarch64-static")


def tool(*names: str) -> str:
    """Where one of these programs is; Python packages bring theirs beside the interpreter."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for name in names:
        if at := shutil.which(name, path=path):
            return at
    pytest.skip(f"{names[0]} is not installed")


@pytest.fixture(scope="module")
def emulator() -> list[str]:
    """The command that starts the driver: program, option, CPU, driver."""
    emulator, cmake, _ = tool(*EMULATORS), tool("cmake"), tool(COMPILER)
    toolchain = ROOT / "runtime" / "cmake" / "aarch64-linux-gnu.cmake"
    configure = [cmake, "-S", ROOT / "runtime", "-B", BUILD, f"--toolchain={toolchain}"]
    build = [cmake, "--build", BUILD, "--target", DRIVER]
    for command in (configure, build):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    return [emulator, "-cpu", "max", str(BUILD / DRIVER)]


@pytest.fixture(scope="module")
def kernels(emulator):
    kernels = EmulatedKernels(emulator)
    yield kernels
    kernels.close()


@pytest.fixture(params=names("arm64"))
def isa(request) -> str:
    return request.param


def test_tables(kernels):
    assert list(kernels.tables()) == names("arm64")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ((), "reference"),
        (("i8mm",), "reference"),
        (("dotprod",), "neondotprod"),
        (("dotprod", "i8mm"), "neoni8mm"),
    ],
)
def test_best_table_whose_every_flag_is_there(kernels, flags, expected):
    assert kernels.choose(sum(FLAGS[flag] for flag in flags)) == expected


def test_forced(kernels):
    every = FLAGS["dotprod"] | FLAGS["i8mm"]
    assert kernels.choose(every, "neondotprod") == "neondotprod"
    assert kernels.choose(FLAGS["dotprod"], "neoni8mm") is None
    assert kernels.choose(every, "avx2") is None


@pytest.mark.parametrize(
    ("cpu", "expected"),
    [("cortex-a53", "reference"), ("neoverse-n1", "neondotprod"), ("max", "neoni8mm")],
)
def test_what_a_cpu_has(emulator, cpu, expected):
    program, option, _, driver = emulator
    kernels = EmulatedKernels([program, option, cpu, driver])
    assert kernels.choose(kernels.cpu_flags()) == expected
    kernels.close()
