"""MatMulW4A8 on an NVIDIA GPU, against cuBLAS in fp16, cuBLASLt in int8 and ONNX Runtime.

    python runtime/bench/cuda.py --library libqcompiler_cuda_test.so [--quick] [--out FILE]

Needs a GPU and PyTorch with CUDA, nothing else; ONNX Runtime's column is left out where onnx or an
onnxruntime with CUDA is missing. `make bench-cuda` builds the library and runs this.

Times are medians of replayed CUDA graphs, measured by events. A graph holds a product for each of
several copies of the weights, together larger than twice the L2 cache, so that weights come from
memory as they do in a model. Ours includes the quantization of X; cuBLASLt's does not.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from ctypes import c_void_p
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import command
import torch
from cuda_timing import graph_microseconds

# The tests of the kernels use the same structures.
sys.path.append(str(Path(__file__).resolve().parents[1] / "cuda" / "testing"))
from cuda_structures import Output, Product, Tuning

ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 1024, 4096)
SHAPES = ((4096, 4096), (4096, 11008), (8192, 28672))
OURS = "MatMulW4A8"
KERNELS = ("auto", "small", "large", "wgmma")


class Library:
    """The C interface of the kernels."""

    def __init__(self, path: Path, tuning: Tuning) -> None:
        self._c = ctypes.CDLL(str(path.resolve()))
        self._c.qc_cuda_run.restype = ctypes.c_char_p
        self._c.qc_cuda_run.argtypes = (c_void_p, c_void_p, c_void_p, c_void_p)
        self._c.qc_cuda_scratch_bytes.restype = ctypes.c_size_t
        self._c.qc_cuda_scratch_bytes.argtypes = (c_void_p, c_void_p)
        self._tuning = tuning

    def scratch(self, product: Product) -> torch.Tensor:
        """Scratch memory for a product."""
        size = self._c.qc_cuda_scratch_bytes(ctypes.byref(product), ctypes.byref(self._tuning))
        return torch.empty(size, dtype=torch.uint8, device="cuda")

    def run(self, product: Product, scratch: torch.Tensor) -> None:
        """Enqueue a product on torch's stream."""
        stream = torch.cuda.current_stream().cuda_stream
        error = self._c.qc_cuda_run(
            ctypes.byref(product), ctypes.byref(self._tuning), scratch.data_ptr(), stream
        )
        if error is not None:
            sys.exit(f"error: {error.decode()}")


class Weights:
    """Random symmetric 4-bit weights in layout 1."""

    def __init__(self, K: int, N: int, group_size: int) -> None:
        self.K, self.N, self.group_size = K, N, group_size
        panels, groups = -(-N // 16), -(-K // group_size)
        options: dict[str, Any] = {"device": "cuda"}
        shape = (panels, -(-K // 8), 64)
        self.codes = torch.randint(0, 256, shape, dtype=torch.uint8, **options)
        scales = torch.rand((panels, groups, 16), dtype=torch.float32, **options)
        self.scales = ((scales + 0.5) / 256).half()
        self.zero_point = torch.full((1,), 8, dtype=torch.uint8, **options)
        self.bias = torch.zeros(1, dtype=torch.float32, **options)

    def bytes(self) -> int:
        """What a product reads of them."""
        return self.codes.nbytes + self.scales.nbytes

    def product(self, X: torch.Tensor, Y: torch.Tensor) -> Product:
        """Y = X times these, in fp16."""
        outputs = (Output * 3)(Output(Y.data_ptr(), 0, self.N), *[Output(None, self.N, self.N)] * 2)
        return Product(
            *(X.data_ptr(), len(X), self.K, self.N, self.group_size, self.K),
            *(t.data_ptr() for t in (self.codes, self.scales, self.zero_point, self.bias)),
            *(outputs, 1, 0.0, 4, 1, 1),
        )

    def dense(self) -> torch.Tensor:
        """float32 [K, N]."""
        quads = self.codes.view(len(self.codes), -1, 16, 4)
        codes = (
            torch.stack((quads & 15, quads >> 4), dim=3).float() - 8
        )  # panel, block, column, 2, 4
        k = codes.permute(1, 3, 4, 0, 2).reshape(-1, len(codes) * 16)[: self.K, : self.N]
        scales = self.scales.float().permute(1, 0, 2).reshape(self.scales.shape[1], -1)
        return k * scales.repeat_interleave(self.group_size, 0)[: self.K, : self.N]


@dataclass(frozen=True)
class Row:
    """A result. `gb_per_s`: weights that our product reads, over its time."""

    K: int
    N: int
    M: int
    microseconds: dict[str, float]
    ratios: dict[str, float]
    gb_per_s: float
    bandwidth_percent: float


def copies(size: int) -> int:
    """How many arrays of a size to go through, so that none is still in the L2 cache."""
    cache = torch.cuda.get_device_properties(0).L2_cache_size
    return max(1, -(-2 * cache // size))


def repeated(actions: list[Callable[[], object]]) -> list[Callable[[], object]]:
    """At least eight, so that the launch of the graph does not count."""
    return actions * -(-8 // len(actions))


def ours(library: Library, weights: list[Weights], X: torch.Tensor) -> float:
    """Microseconds of our product."""
    Y = torch.empty((len(X), weights[0].N), dtype=torch.float16, device="cuda")
    products = [w.product(X, Y) for w in weights]
    scratch = library.scratch(products[0])
    return graph_microseconds(repeated([lambda p=p: library.run(p, scratch) for p in products]))


def cublas_fp16(X: torch.Tensor, N: int) -> float:
    """Microseconds of cuBLAS."""
    K = X.shape[1]
    count = copies(2 * K * N)
    dense = [torch.randn((N, K), dtype=torch.float16, device="cuda") for _ in range(count)]
    return graph_microseconds(repeated([lambda w=w: torch.mm(X, w.t()) for w in dense]))


def cublaslt_int8(X: torch.Tensor, N: int) -> float | None:
    """Microseconds of cuBLASLt's integer product alone; it takes more than 16 rows."""
    M, K = X.shape
    if M <= 16:
        return None
    codes = torch.randint(-127, 128, (M, K), dtype=torch.int8, device="cuda")
    dense = [
        torch.randint(-127, 128, (N, K), dtype=torch.int8, device="cuda")
        for _ in range(copies(K * N))
    ]
    return graph_microseconds(repeated([lambda w=w: torch._int_mm(codes, w.t()) for w in dense]))


def memory_gb_per_s() -> float:
    """What copying within the device's memory reaches, read and written."""
    size = 1 << 30
    source, target = (torch.empty(size, dtype=torch.uint8, device="cuda") for _ in range(2))
    return 2 * size / graph_microseconds([lambda: target.copy_(source)]) / 1e3


def check(library: Library) -> None:
    """Our product is a product: its distance to a float one is that of 8-bit activations."""
    for M in (1, 12, 40, 300):
        weights = Weights(520, 330, 128)
        X = torch.randn((M, 520), dtype=torch.float16, device="cuda")
        Y = torch.empty((M, 330), dtype=torch.float16, device="cuda")
        product = weights.product(X, Y)
        library.run(product, library.scratch(product))
        exact = X.double() @ weights.dense().double()
        noise = (Y.double() - exact).square().sum() / exact.square().sum()
        if not noise < 10**-3.5:
            sys.exit(f"error: wrong results at M={M}: noise {noise.item():.3g} of the signal")


def measure(library: Library, K: int, N: int, rows: tuple[int, ...], group_size: int) -> list[Row]:
    """Time one layer for all numbers of rows."""
    peak = memory_gb_per_s()
    first = Weights(K, N, group_size)
    weights = [first, *(Weights(K, N, group_size) for _ in range(copies(first.bytes()) - 1))]
    nbits = matmul_nbits(first)
    results = []
    for M in rows:
        X = torch.randn((M, K), dtype=torch.float16, device="cuda")
        times: dict[str, float | None] = {
            OURS: ours(library, weights, X),
            "cuBLAS fp16": cublas_fp16(X, N),
            "cuBLASLt int8": cublaslt_int8(X, N),
            "MatMulNBits": nbits(X) if nbits else None,
        }
        known = {name: value for name, value in times.items() if value is not None}
        ratios = {name: value / known[OURS] for name, value in known.items() if name != OURS}
        speed = first.bytes() / known[OURS] / 1e3
        results.append(Row(K, N, M, known, ratios, speed, 100 * speed / peak))
        show(results[-1])
    return results


def matmul_nbits(weights: Weights) -> Callable[[torch.Tensor], float] | None:
    """ONNX Runtime's op on the same GPU, or None: microseconds for some X."""
    try:
        import cuda_nbits  # noqa: PLC0415  (needs packages that a GPU machine may lack)
    except ImportError as error:
        print(f"MatMulNBits: left out, {error}", flush=True)
        return None
    return cuda_nbits.contender(weights.K, weights.N, weights.group_size, copies(weights.bytes()))


def show(row: Row) -> None:
    """Print a result."""
    beside = ", ".join(f"{ratio:.2f}x {name}" for name, ratio in row.ratios.items())
    print(
        f"{row.K} x {row.N}, M={row.M}: {row.microseconds[OURS]:.1f} us, {row.gb_per_s:.0f} GB/s "
        f"({row.bandwidth_percent:.0f}% of a copy): {beside}",
        flush=True,
    )


def main() -> None:
    """Entry point."""
    parser = command.parser(__doc__)
    parser.add_argument("--library", type=Path, required=True, help="libqcompiler_cuda_test.so")
    parser.add_argument("--group-size", type=int, default=128, choices=(32, 64, 128, 256))
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS, help="numbers of rows M")
    parser.add_argument("--kernel", choices=KERNELS, default="auto")
    parser.add_argument("--splits", type=int, default=0, help="of k, in the large kernel")
    parser.add_argument("--serial", action="store_true", help="kernels do not overlap")
    command.add_out(parser)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("error: no CUDA device, or a PyTorch without CUDA")
    kernel = KERNELS.index(arguments.kernel)
    library = Library(arguments.library, Tuning(kernel, arguments.splits, 0, arguments.serial))
    check(library)
    shapes, rows = (SHAPES[:1], (1, 64)) if arguments.quick else (SHAPES, tuple(arguments.rows))
    results: list[Row] = []
    for K, N in shapes:
        results += measure(library, K, N, rows, arguments.group_size)
    if arguments.out:
        machine = {"gpu": torch.cuda.get_device_name(0), "torch": torch.__version__}
        machine["cuda"] = str(torch.version.cuda)
        found = {
            "machine": machine,
            "group_size": arguments.group_size,
            "rows": [asdict(row) for row in results],
        }
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        command.write_json(arguments.out, found)


if __name__ == "__main__":
    main()
