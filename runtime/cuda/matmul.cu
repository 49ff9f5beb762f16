// Chooses the kernels of a product and cuts scratch memory into their arrays.
#include <algorithm>

#include "cuda/activations.h"
#include "cuda/matmul.h"
#include "cuda/multiply.h"

namespace qc::cuda {
namespace {

constexpr std::int64_t kSmallRows = 32;          // up to here reading the weights takes longest
constexpr std::int64_t kChunkBytes = 128 << 20;  // of activation codes at a time
constexpr std::int64_t kMaxTiles = 65535;        // of a grid's second dimension
constexpr std::int64_t kGroupsPerSplit = 4;      // below this a split is not worth its sums
constexpr std::int64_t kMaxSplits = 16;
constexpr double kSplitCost = 0.05;  // of the time of an unsplit product, for adding up its sums

struct Device {
  int processors;
  bool overlaps;  // kernels may begin before the one in front of them has ended
};

Device device() {
#ifdef QC_CUDA_EMULATED
  return {4, true};
#else
  int index = 0, count = 0, major = 0;
  cudaGetDevice(&index);
  cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, index);
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, index);
  return {count, major >= 9};
#endif
}

// Into how many parts to cut k, so that `tiles` blocks for each part keep all processors busy.
std::int64_t choose_splits(std::int64_t tiles, std::int64_t groups, std::int64_t processors) {
  const std::int64_t most = std::min(kMaxSplits, groups / kGroupsPerSplit);
  std::int64_t best = 1;
  double best_time = static_cast<double>(ceil_div(tiles, processors));
  for (std::int64_t splits = 2; splits <= most && tiles < 2 * processors; ++splits) {
    const auto waves = static_cast<double>(ceil_div(tiles * splits, processors));
    const double count = static_cast<double>(splits);
    const double time = waves / count + kSplitCost * count;
    if (time >= best_time) continue;
    best = splits;
    best_time = time;
  }
  return best;
}

// How a product runs: in chunks of rows, each quantized, then multiplied.
struct Plan {
  bool small, wgmma;
  std::int64_t rows;    // in a chunk, at most
  std::int64_t tile;    // tokens a block takes
  std::int64_t padded;  // rows up to whole tiles
  std::int64_t steps, groups, scale_count, splits, width;
  std::size_t codes, scales, starts, partials, bytes;  // offsets into scratch memory
};

Plan plan(const Product& p, const Tuning& tuning) {
  Plan plan{};
  plan.steps = ceil_div(p.k, kStep);
  plan.groups = ceil_div(p.k, p.group_size);
  const bool grouped = p.static_scale == 0.0f && p.activation_block < p.k;
  plan.scale_count = grouped ? plan.groups : 1;
  plan.small = p.rows <= kSmallRows && tuning.kernel < 2;
  plan.wgmma = tuning.kernel == 3;
  if (plan.small) {
    plan.rows = p.rows;
    plan.tile = p.rows <= 8 ? 8 : p.rows <= 16 ? 16 : 32;
    plan.splits = 1;
  } else {
    plan.tile = plan.wgmma ? kWgmmaTokens : p.rows <= 64 ? 64 : 128;
    const std::int64_t wanted_rows =
        tuning.rows > 0 ? tuning.rows : kChunkBytes / (plan.steps * kStep);
    const std::int64_t fit = wanted_rows / plan.tile;
    plan.rows = std::min(p.rows, plan.tile * std::clamp<std::int64_t>(fit, 1, kMaxTiles));
    const std::int64_t tiles = ceil_div(p.n, kLargeColumns) * ceil_div(plan.rows, plan.tile);
    plan.splits = choose_splits(tiles, plan.groups, device().processors);
    if (tuning.splits > 0 && plan.rows <= kMaxTiles) {
      plan.splits = std::min<std::int64_t>(tuning.splits, plan.groups);
    }
  }
  plan.padded = ceil_div(plan.rows, plan.tile) * plan.tile;
  plan.width = ceil_div(p.n, kLargeColumns) * kLargeColumns;
  const auto add = [&plan](std::int64_t count, std::size_t size) {
    constexpr std::size_t kLine = 256;
    const std::size_t at = plan.bytes;
    plan.bytes += (static_cast<std::size_t>(count) * size + kLine - 1) / kLine * kLine;
    return at;
  };
  plan.codes = add(plan.steps * plan.padded * kStep, 1);
  plan.scales = add(plan.scale_count * plan.padded, sizeof(float));
  plan.starts = add(plan.groups * plan.padded, sizeof(std::int32_t));
  plan.partials = add(plan.splits > 1 ? plan.splits * plan.padded * plan.width : 0, sizeof(float));
  return plan;
}

}  // namespace

const char* refusal(const Product& p) {
  const std::size_t element = p.element == Element::kFloat32 ? 4 : 2;
  if (!aligned(p.x, element)) return "X is not aligned to its elements";
  if (!aligned(p.codes, 16)) return "W is not aligned to 16 bytes on the device";
  if (!aligned(p.scales, 8)) return "scales is not aligned to 8 bytes on the device";
  if (p.one_zero_point == 0 && !aligned(p.zero_points, 4)) {
    return "zero_points is not aligned to 4 bytes on the device";
  }
  if (!aligned(p.bias, 4)) return "bias is not aligned to 4 bytes on the device";
  for (const Output& out : p.outputs) {
    if (!aligned(out.data, element)) return "an output is not aligned to its elements";
  }
  return nullptr;
}

std::size_t scratch_bytes(const Product& product, const Tuning& tuning) {
  return product.rows == 0 ? 0 : plan(product, tuning).bytes;
}

const char* run(const Product& p, void* scratch, void* stream, const Tuning& tuning) {
  if (p.rows == 0) return nullptr;
  const Plan plan = cuda::plan(p, tuning);
  char* memory = static_cast<char*>(scratch);
  MultiplyJob job{};
  job.x = {reinterpret_cast<std::int8_t*>(memory + plan.codes),
           reinterpret_cast<float*>(memory + plan.scales),
           reinterpret_cast<std::int32_t*>(memory + plan.starts), plan.padded, plan.wgmma};
  job.partials = reinterpret_cast<float*>(memory + plan.partials);
  job.panels = ceil_div(p.n, kPanel);
  job.blocks = kernels::with_width(p.bits, [&](auto codes) { return codes.blocks(p.k); });
  job.n = p.n;
  job.steps = static_cast<std::int32_t>(plan.steps);
  job.groups = static_cast<std::int32_t>(plan.groups);
  job.steps_per_group = static_cast<std::int32_t>(p.group_size / kStep);
  job.splits = static_cast<std::int32_t>(plan.splits);
  job.codes = p.codes;
  job.scales = p.scales;
  job.zero_points = p.one_zero_point != 0 ? nullptr : p.zero_points;
  job.bias = p.bias;
  job.one_bias = p.one_bias;
  job.grouped = plan.scale_count > 1;
  job.overlap = tuning.serial == 0 && device().overlaps;
  job.element = p.element;
  std::copy(p.outputs, p.outputs + 3, job.outputs);
  for (job.first = 0; job.first < p.rows; job.first += plan.rows) {
    job.rows = std::min(plan.rows, p.rows - job.first);
    quantize({p.x, job.first, job.rows, p.k, p.group_size, p.activation_block, p.element,
              p.static_scale, p.one_zero_point != 0 ? p.zero_points : nullptr, job.x},
             stream);
    if (plan.small) {
      multiply_small(job, p.bits, static_cast<int>(plan.tile / 8), stream);
    } else if (plan.wgmma) {
      multiply_wgmma(job, p.bits, stream);
    } else {
      multiply_large(job, p.bits, static_cast<int>(plan.tile), stream);
    }
    if (plan.splits > 1) add_split_sums(job, stream);
  }
  return last_error();
}

}  // namespace qc::cuda
