"""Linear on an NVIDIA GPU, against cuBLAS in fp16, cuBLASLt in int8 and ONNX Runtime.

    python runtime/bench/cuda.py --library libqcompiler_cuda_test.so [--bits 4] [--group-size 32]
                                 [--quick] [--out FILE]

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
from dataclasses import asdict, dataclass, field
from pathlib import Path

import command
import torch
from cuda_timing import graph_microseconds

# The tests of the kernels use the same structures.
sys.path.append(str(Path(__file__).resolve().parents[1] / "cuda" / "testing"))
from cuda_structures import LinearProduct, LinearTuning, Output

ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 1024, 4096)
SHAPES = ((4096, 4096), (4096, 11008), (8192, 28672))
BITS = (2, 3, 4, 5, 6, 8)
GROUP_SIZES = (16, 32, 64, 128, 256)
OURS = "Linear"
KERNELS = ("auto", "few-rows", "many-rows")
FLOAT16 = 1  # an `Element`


class Library:
    """The C interface of the kernels, on a GPU or, where `device` is "cpu", on the emulated one."""

    def __init__(self, path: Path, tuning: LinearTuning, device: str = "cuda") -> None:
        self.device = device
        self._c = ctypes.CDLL(str(path.resolve()))
        self._c.qc_cuda_linear.restype = ctypes.c_char_p
        self._c.qc_cuda_linear.argtypes = (c_void_p, c_void_p, c_void_p, c_void_p)
        self._c.qc_cuda_linear_scratch_bytes.restype = ctypes.c_size_t
        self._c.qc_cuda_linear_scratch_bytes.argtypes = (c_void_p, c_void_p)
        self._c.qc_cuda_synchronize.restype = ctypes.c_char_p
        self._tuning = tuning

    def scratch(self, product: LinearProduct) -> torch.Tensor:
        """Scratch memory for a product."""
        size = self._c.qc_cuda_linear_scratch_bytes(
            ctypes.byref(product), ctypes.byref(self._tuning)
        )
        return torch.empty(size, dtype=torch.uint8, device=self.device)

    def run(self, product: LinearProduct, scratch: torch.Tensor) -> None:
        """Enqueue a product on torch's stream."""
        stream = torch.cuda.current_stream().cuda_stream if self.device == "cuda" else None
        self._check(
            self._c.qc_cuda_linear(
                ctypes.byref(product), ctypes.byref(self._tuning), scratch.data_ptr(), stream
            )
        )

    def synchronize(self) -> None:
        """Wait for all that was enqueued."""
        self._check(self._c.qc_cuda_synchronize())

    @staticmethod
    def _check(error: bytes | None) -> None:
        if error is not None:
            sys.exit(f"error: {error.decode()}")


@dataclass
class Weights:
    """A K x N matrix in the packed layout; docs/ops.md says what the tensors hold."""

    K: int
    N: int
    bits: int
    group_size: int  # K for 8 bits
    codes: torch.Tensor
    groups: torch.Tensor | None
    scales: torch.Tensor
    bias: torch.Tensor = field(init=False)

    def __post_init__(self) -> None:
        """There is no bias."""
        self.bias = torch.zeros(1, dtype=torch.float32, device=self.codes.device)

    @classmethod
    def random(cls, K: int, N: int, bits: int, group_size: int, device: str) -> Weights:
        """Random ones, all of them in -127 .. 127; 8 bits have no groups."""

        def some(end: int, *shape: int) -> torch.Tensor:
            return torch.randint(0, end, shape, dtype=torch.uint8, device=device)

        scales = (torch.rand(N, dtype=torch.float32, device=device) + 0.5) / 1024
        panels = -(-N // 16)
        shape = (panels, -(-K // 32), 64 * bits)
        if bits == 8:
            codes = torch.randint(-127, 128, shape, dtype=torch.int8, device=device)
            return cls(K, N, bits, K, codes.view(torch.uint8), None, scales)
        groups = (panels, -(-K // group_size), 16)
        top = (1 << bits) - 1
        less_one = some(min(1 << (8 - bits), 127 // top), *groups)  # of multiples
        zero_points = some(top + 1, *groups)
        codes = some(256, *shape)
        return cls(K, N, bits, group_size, codes, zero_points | less_one << bits, scales)

    def cpu(self) -> Weights:
        """The same in the host's memory."""
        groups = None if self.groups is None else self.groups.cpu()
        form = (self.K, self.N, self.bits, self.group_size)
        return Weights(*form, self.codes.cpu(), groups, self.scales.cpu())

    def bytes(self) -> int:
        """What a product reads of them."""
        groups = 0 if self.groups is None else self.groups.nbytes
        return self.codes.nbytes + groups + self.scales.nbytes

    def product(self, X: torch.Tensor, Y: torch.Tensor) -> LinearProduct:
        """Y = X times these, in fp16."""
        outputs = (Output * 3)(Output(Y.data_ptr(), 0, self.N), *[Output(None, self.N, self.N)] * 2)
        groups = None if self.groups is None else self.groups.data_ptr()
        return LinearProduct(
            *(X.data_ptr(), len(X), self.K, self.N, self.group_size),
            *(self.codes.data_ptr(), groups, self.scales.data_ptr(), self.bias.data_ptr()),
            *(outputs, FLOAT16, 0.0, self.bits, 1),
        )

    def integers(self) -> torch.Tensor:
        """The int8 values as int32 [K, N]."""
        panels, strips, _ = self.codes.shape
        low = 8 if self.bits == 8 else 4 if self.bits >= 4 else 2
        codes = torch.zeros((panels, strips, 8, 16, 4), dtype=torch.int32, device=self.codes.device)
        for width, at in ((low, 0), (self.bits - low, low)):  # a plane has a block for each bit
            for quad in range(8 if width else 0):
                block = at + quad * width // 8
                plane = self.codes[:, :, 64 * block : 64 * block + 64].int() >> quad * width % 8
                fields = (plane & ((1 << width) - 1)) << at
                codes[:, :, quad] |= fields.view(panels, strips, 16, 4)
        w = codes.permute(1, 2, 4, 0, 3).reshape(strips * 32, panels * 16)[: self.K, : self.N]
        if self.groups is None:
            return (w + 128) % 256 - 128
        byte = self.groups.permute(1, 0, 2).reshape(self.groups.shape[1], -1)[:, : self.N].int()
        byte = byte.repeat_interleave(self.group_size, 0)[: self.K]
        return (w - (byte & ((1 << self.bits) - 1))) * ((byte >> self.bits) + 1)

    def expected(self, X: torch.Tensor) -> torch.Tensor:
        """What the product gives, bit for bit, if all is on the CPU.

        On a GPU PyTorch multiplies by the inverse of a number instead of dividing by it.
        """
        x = X.float()
        scales = x.abs().amax(dim=1, keepdim=True) / 127
        codes = (x / scales).round().clamp(-127, 127)
        sums = codes.double() @ self.integers().double()  # exact
        return (sums.float() * self.scales * scales).half()


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
    Y = X.new_empty((len(X), weights[0].N))
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


def check(library: Library, bits: int, group_size: int) -> None:
    """Our product has the bits that it should have, or the program ends."""
    K, N = 520, 330
    weights = Weights.random(K, N, bits, group_size, library.device)
    for M in (1, 12, 40, 300):
        X = torch.randn((M, K), device=library.device).half()
        Y = torch.full((M, N), torch.nan, dtype=torch.float16, device=library.device)
        product = weights.product(X, Y)
        scratch = library.scratch(product)
        library.run(product, scratch)
        library.synchronize()
        wrong = int((Y.cpu() != weights.cpu().expected(X.cpu())).sum())
        if wrong:
            sys.exit(f"error: {wrong} of {M} x {N} results are wrong")


def measure(
    library: Library, K: int, N: int, rows: tuple[int, ...], bits: int, group_size: int
) -> list[Row]:
    """Time one layer for all numbers of rows."""
    peak = memory_gb_per_s()
    form = (K, N, bits, group_size, library.device)
    first = Weights.random(*form)
    weights = [first, *(Weights.random(*form) for _ in range(copies(first.bytes()) - 1))]
    nbits = matmul_nbits(first, group_size)
    results = []
    for M in rows:
        X = torch.randn((M, K), dtype=torch.float16, device=library.device)
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


def matmul_nbits(weights: Weights, group_size: int) -> Callable[[torch.Tensor], float] | None:
    """ONNX Runtime's op on the same GPU, or None: microseconds for some X."""
    try:
        import cuda_nbits  # noqa: PLC0415  (needs packages that a GPU machine may lack)
    except ImportError as error:
        print(f"MatMulNBits: left out, {error}", flush=True)
        return None
    if weights.bits not in cuda_nbits.BITS:
        print(f"MatMulNBits: left out, it has no CUDA kernels of {weights.bits} bits", flush=True)
        return None
    form = (weights.K, weights.N, weights.bits, group_size)
    return cuda_nbits.contender(*form, copies(weights.bytes()))


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
    parser.add_argument("--bits", type=int, default=4, choices=BITS, help="of the weights")
    parser.add_argument(
        "--group-size",
        type=int,
        default=32,
        choices=GROUP_SIZES,
        help="with 8 bits, of MatMulNBits alone",
    )
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS, help="numbers of rows M")
    parser.add_argument("--kernel", choices=KERNELS, default="auto")
    command.add_out(parser)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("error: no CUDA device, or a PyTorch without CUDA")
    library = Library(arguments.library, LinearTuning(KERNELS.index(arguments.kernel), 0))
    form = (arguments.bits, arguments.group_size)
    check(library, *form)
    shapes, rows = (SHAPES[:1], (1, 64)) if arguments.quick else (SHAPES, tuple(arguments.rows))
    results: list[Row] = []
    for K, N in shapes:
        results += measure(library, K, N, rows, *form)
    if arguments.out:
        machine = {"gpu": torch.cuda.get_device_name(0), "torch": torch.__version__}
        machine["cuda"] = str(torch.version.cuda)
        found = {
            "machine": machine,
            "bits": arguments.bits,
            "group_size": arguments.group_size,
            "rows": [asdict(row) for row in results],
        }
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        command.write_json(arguments.out, found)


if __name__ == "__main__":
    main()
