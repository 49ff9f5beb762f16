// The product for many tokens on Hopper, whose full speed only wgmma reaches: one instruction for
// the four warps of a warpgroup, 64 columns by 64 tokens by 32 k.
//
// The weights come from registers, in the fragments of mma.m16n8k32 (warp w has rows 16 w ..), so
// the unpacked nibbles never pass through memory; a lane's columns take two instructions. The codes
// come from shared memory: eight tokens by 32 bytes are 256 bytes, of which the tokens 4 .. 7 have
// their halves swapped ("32-byte swizzle"). Memory has k in order, so here the activations are laid
// out with their fours apart.
#include "cuda/multiply_tiled.h"
#include "cuda/wgmma.h"

namespace qc::cuda {
namespace {

struct WgmmaUnit {
  __device__ static int place_of(int unit) { return unit ^ (unit >> 3 & 1); }
  __device__ static void publish_copies() { show_to_wgmma(); }

  template <int kTiles>
  __device__ static void multiply(Sums<kTiles>& sums, const std::uint32_t (&a)[2][4],
                                  const std::int8_t* codes, int) {
    static_assert(kTiles == kWgmmaTiles, "one width of the instruction");
    begin_wgmma();
    wgmma_u8_s8(sums.dots[0], a[0], codes);
    wgmma_u8_s8(sums.dots[1], a[1], codes);
    commit_wgmma();
  }

  template <int kTiles, int kSteps>
  __device__ static void finish(Sums<kTiles>& sums, std::uint32_t (&a)[kSteps][2][4]) {
    wait_for_wgmma(sums.dots, a);
  }
};

template <int kBits>
void start_wgmma(const MultiplyJob& job, void* stream) {
  const dim3 grid(static_cast<unsigned>(ceil_div(job.panels, kTilePanels)),
                  static_cast<unsigned>(job.x.padded / kWgmmaTokens),
                  static_cast<unsigned>(job.splits));
  launch(multiply_tiled<kBits, kWgmmaTokens, WgmmaUnit>, grid, kTileThreads, stream,
         job.overlap != 0, job);
}

}  // namespace

void multiply_wgmma(const MultiplyJob& job, int bits, void* stream) {
  kernels::with_width(bits, [&](auto codes) { start_wgmma<decltype(codes)::kBits>(job, stream); });
}

}  // namespace qc::cuda
