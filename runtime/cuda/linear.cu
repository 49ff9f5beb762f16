// Chooses the kernel of a product and cuts scratch memory into its arrays.
#include <algorithm>

#include "cuda/linear.h"
#include "cuda/linear_job.h"

namespace qc::cuda {
namespace {

constexpr std::int64_t kChunkBytes = 128 << 20;  // of activation codes at a time
constexpr std::int64_t kMaxTiles = 65535;        // of a grid's second dimension
constexpr std::size_t kLine = 256;               // scratch memory is cut in multiples of it

// How a product runs: in chunks of rows, each quantized, then multiplied.
struct Plan {
  bool few;
  std::int64_t tile;    // rows that a block takes
  std::int64_t rows;    // in a chunk, at most
  std::int64_t padded;  // rows up to whole tiles
  std::int64_t strips;
  std::size_t codes_bytes, bytes;  // of codes, then scales
};

Plan plan(const LinearProduct& p, const LinearTuning& tuning) {
  Plan plan{};
  plan.strips = ceil_div(p.k, kStrip);
  plan.few = p.rows <= kFewRows && tuning.kernel < 2;
  if (plan.few) {
    plan.tile = 1;
    while (plan.tile < p.rows) plan.tile *= 2;
    plan.rows = p.rows;
  } else {
    plan.tile = p.rows <= 64 ? 64 : 128;
    const std::int64_t wanted =
        tuning.rows > 0 ? tuning.rows : kChunkBytes / (plan.strips * kStrip);
    const std::int64_t tiles = std::clamp<std::int64_t>(wanted / plan.tile, 1, kMaxTiles);
    plan.rows = std::min(p.rows, plan.tile * tiles);
  }
  plan.padded = ceil_div(plan.rows, plan.tile) * plan.tile;
  const auto padded = static_cast<std::size_t>(plan.padded);
  plan.codes_bytes =
      ceil_div(static_cast<std::size_t>(plan.strips) * kStrip * padded, kLine) * kLine;
  plan.bytes = plan.codes_bytes + ceil_div(padded * sizeof(float), kLine) * kLine;
  return plan;
}

LinearJob job_of(const LinearProduct& p, const Plan& plan, void* scratch) {
  LinearJob job{};
  job.x.codes = static_cast<std::int8_t*>(scratch);
  job.x.scales = reinterpret_cast<float*>(job.x.codes + plan.codes_bytes);
  job.x.padded = plan.padded;
  job.codes = p.codes;
  job.groups = p.groups;
  job.scales = p.scales;
  job.bias = p.bias;
  job.n = p.n;
  job.panels = ceil_div(p.n, kPanel);
  job.strips = plan.strips;
  job.group_count = ceil_div(p.k, p.group_size);
  while (p.groups != nullptr && p.group_size >> job.group_shift > 1) ++job.group_shift;
  job.one_bias = p.one_bias;
  job.levels = p.levels;
  job.element = p.element;
  std::copy(p.outputs, p.outputs + kOutputs, job.outputs);
  return job;
}

}  // namespace

const char* refusal(const LinearProduct& p) {
  const std::size_t element = p.element == Element::kFloat32 ? 4 : 2;
  if (!aligned(p.x, element)) return "X is not aligned to its elements";
  if (!aligned(p.codes, 16)) return "W is not aligned to 16 bytes on the device";
  if (!aligned(p.groups, 4)) return "groups is not aligned to 4 bytes on the device";
  if (!aligned(p.scales, 4)) return "scales is not aligned to 4 bytes on the device";
  if (!aligned(p.bias, 4)) return "bias is not aligned to 4 bytes on the device";
  for (const Output& output : p.outputs) {
    if (!aligned(output.data, element)) return "an output is not aligned to its elements";
  }
  return nullptr;
}

std::size_t scratch_bytes(const LinearProduct& product, const LinearTuning& tuning) {
  return plan(product, tuning).bytes;
}

const char* run(const LinearProduct& p, void* scratch, void* stream, const LinearTuning& tuning) {
  if (p.rows == 0) return nullptr;
  const Plan plan = cuda::plan(p, tuning);
  LinearJob job = job_of(p, plan, scratch);
  for (job.first = 0; job.first < p.rows; job.first += plan.rows) {
    job.rows = std::min(plan.rows, p.rows - job.first);
    quantize({p.x, job.first, job.rows, p.k, p.element, p.static_scale, job.x}, stream);
    if (plan.few) {
      multiply_few_rows(job, p.form, stream);
    } else {
      multiply_many_rows(job, p.form, static_cast<int>(plan.tile), stream);
    }
  }
  return last_error();
}

}  // namespace qc::cuda
