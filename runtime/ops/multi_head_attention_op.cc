#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>

#include "kernels/dispatch/dispatch.h"
#include "ops/library.h"
#include "ops/scratch.h"
#include "ops/shape_inference.h"

namespace qc::ops {
namespace {

constexpr const char* kName = "MultiHeadAttention";
enum Input : std::size_t { kQ, kK, kV, kMask };

// Each task packs the keys of its head anew, so rows enough to be worth it.
constexpr std::int64_t kRowsPerTask = 32 * kernels::kQueryRows;

// An additive mask [1 or B, 1 or H, 1 or S, T], by its strides: 0 along what it is one of.
struct Mask {
  const float* values = nullptr;  // null where it adds nothing
  std::int64_t batch = 0, head = 0, row = 0;
};

// What one run works on: S rows and T keys of H heads with d channels.
struct Job {
  std::int64_t batch, rows, keys, heads, d;
  const float *q, *k, *v;
  Mask mask;
  float scale;
  bool nan_is_zero;
  float* y;
};

// Copies of `count` pieces of d floats, `stride` apart, times `factor`.
void gather(const float* from, std::int64_t stride, std::int64_t count, std::int64_t d,
            float factor, float* to) {
  for (std::int64_t i = 0; i < count; ++i, from += stride, to += d) {
    for (std::int64_t c = 0; c < d; ++c) to[c] = from[c] * factor;
  }
}

void attend(const kernels::KernelTable& kernels, const Job& job, std::int64_t b, std::int64_t head,
            std::int64_t row) {
  const std::int64_t rows = std::min(kRowsPerTask, job.rows - row), d = job.d;
  const std::int64_t stride = job.heads * d, packed = kernels::packed_keys_size(job.keys, d);
  const std::int64_t floats =
      (rows + job.keys) * d + packed + kernels::attention_scores_size(job.keys);
  thread_local Scratch scratch;
  auto* q = reinterpret_cast<float*>(scratch.get(static_cast<std::size_t>(floats) * sizeof(float)));
  float *v = q + rows * d, *k = v + job.keys * d, *scores = k + packed;
  const std::int64_t at = (b * job.rows + row) * stride + head * d;
  gather(job.q + at, stride, rows, d, job.scale, q);
  const float* keys = job.k + b * job.keys * stride + head * d;
  // So few rows read the keys as they lie, which must be one after the other: `k` has the room.
  const bool as_is = rows <= kernels::kUnpackedRows;
  if (as_is) {
    gather(keys, stride, job.keys, d, 1.0f, k);
  } else {
    kernels::pack_keys(keys, stride, job.keys, d, k);
  }
  gather(job.v + b * job.keys * stride + head * d, stride, job.keys, d, 1.0f, v);
  const Mask& mask = job.mask;
  const float* added = mask.values == nullptr
                           ? nullptr
                           : mask.values + b * mask.batch + head * mask.head + row * mask.row;
  kernels.attend({q, d, rows, job.keys, false, k, k, v, d, scores, job.y + at, stride, added,
                  mask.row, job.nan_is_zero});
}

class MultiHeadAttentionKernel {
 public:
  MultiHeadAttentionKernel(const OrtApi* api, const OrtKernelInfo* info, const Op& op)
      : MultiHeadAttentionKernel(api, Node(api, info, kName), op) {}

  const OrtApi* api() const { return api_; }

  void compute(OrtKernelContext* context) const {
    const OrtValue *q = input_of(api_, context, kQ), *k = input_of(api_, context, kK),
                   *v = input_of(api_, context, kV);
    const Shape shape = info_of(api_, q).shape, keys = info_of(api_, k).shape;
    if (shape.size() != 3 || shape[2] % heads_ != 0) {
      refuse("Q has shape " + to_string(shape) +
             ", expected [B, S, num_heads * d] with num_heads=" + std::to_string(heads_));
    }
    if (keys.size() != 3 || keys[0] != shape[0] || keys[2] != shape[2] ||
        info_of(api_, v).shape != keys) {
      refuse("K has shape " + to_string(keys) + " and V " + to_string(info_of(api_, v).shape) +
             ", expected [" + std::to_string(shape[0]) + ", T, " + std::to_string(shape[2]) +
             "] of both");
    }
    Job job{};
    job.batch = shape[0];
    job.rows = shape[1];
    job.keys = keys[1];
    job.heads = heads_;
    job.d = shape[2] / heads_;
    if (job.d < 1 || job.d % kernels::kHeadStep != 0) {
      refuse("heads have " + std::to_string(job.d) + " channels, expected a multiple of 16");
    }
    job.q = floats(q);
    job.k = floats(k);
    job.v = floats(v);
    job.scale = scale_;
    job.nan_is_zero = nan_is_zero_;
    job.mask = read_mask(context, job);
    job.y = static_cast<float*>(data_of(api_, output_of(api_, context, 0, shape)));
    if (job.keys == 0) {  // a sum of nothing
      std::fill_n(job.y, job.batch * job.rows * shape[2], 0.0f);
      return;
    }
    if (job.rows == 0) return;
    const std::int64_t parts = kernels::ceil_div(job.rows, kRowsPerTask);
    auto task = [&](std::size_t index) {
      const auto i = static_cast<std::int64_t>(index);
      attend(kernels_, job, i / parts / heads_, i / parts % heads_, i % parts * kRowsPerTask);
    };
    parallel_for(api_, context, static_cast<std::size_t>(job.batch * heads_ * parts), task);
  }

 private:
  MultiHeadAttentionKernel(const OrtApi* api, const Node& node, const Op& op)
      : api_(api),
        kernels_(*op.kernels),
        label_(node.label()),
        heads_(node.integer("num_heads")),
        scale_(node.real("scale")),
        nan_is_zero_(node.integer("nan_is_zero") != 0) {
    constexpr std::int64_t kMost = 1 << 20;
    if (heads_ < 1 || heads_ > kMost) {
      node.refuse("num_heads=" + std::to_string(heads_) + " is not in 1 .. 2^20");
    }
  }

  Mask read_mask(OrtKernelContext* context, const Job& job) const {
    const OrtValue* value = input_of(api_, context, kMask);
    const Shape shape = info_of(api_, value).shape;
    if (shape == Shape{1} && *floats(value) == 0.0f) return {};
    const Shape most{job.batch, job.heads, job.rows, job.keys};
    bool fits = shape.size() == 4 && shape[3] == job.keys;
    for (std::size_t i = 0; i < 3 && fits; ++i) fits = shape[i] == 1 || shape[i] == most[i];
    if (!fits) {
      refuse("mask has shape " + to_string(shape) + ", expected " + to_string(most) +
             ", any of the first three 1; or [1] holding 0");
    }
    Mask mask;
    mask.values = floats(value);
    mask.row = shape[2] == 1 ? 0 : job.keys;
    mask.head = shape[1] == 1 ? 0 : shape[2] * job.keys;
    mask.batch = shape[0] == 1 ? 0 : shape[1] * shape[2] * job.keys;
    return mask;
  }

  [[noreturn]] void refuse(const std::string& cause) const { throw OpError(label_ + ": " + cause); }

  const float* floats(const OrtValue* value) const {
    return static_cast<const float*>(data_of(api_, value));
  }

  const OrtApi* api_;
  const kernels::KernelTable& kernels_;
  std::string label_;
  std::int64_t heads_;
  float scale_;
  bool nan_is_zero_;
};

}  // namespace

void add_multi_head_attention_ops(std::deque<Op>& ops) {
  const int f = abi::kFloat;
  Op& op = ops.emplace_back(make_op(kName, {f, f, f, f}, {f}, 1));
  op.InferOutputShapeFn = infer_same;
  set_kernel<MultiHeadAttentionKernel>(op);
}

}  // namespace qc::ops
