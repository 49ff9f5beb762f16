#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>

#include "kernels/dispatch/dispatch.h"
#include "ops/library.h"
#include "ops/scratch.h"
#include "ops/shape_inference.h"

namespace qc::ops {
namespace {

enum Input : std::size_t {
  kX,
  kPastKey,
  kPastValue,
  kLastPosition,
  kTotal,
  kCosines,
  kSines,
  kSink,
  kInputs
};
enum Output : std::size_t { kY, kPresentKey, kPresentValue };

// Multiply-adds below which a step is not worth its dispatch to other threads.
constexpr std::int64_t kSerialWork = 1 << 16;
constexpr std::int64_t kRowsPerTask = 8 * kernels::kQueryRows;

// What one run works on. B sequences, S new rows each; H query heads and KV key heads of d
// channels.
struct Job {
  std::int64_t batch, rows, heads, kv_heads, d;
  std::int64_t past_length, present_length;  // positions that the caches have room for
  const float *x, *past_key, *past_value, *cosines, *sines;
  std::int64_t half;
  float scale, softcap;
  std::int64_t window;
  const float* sinks;  // null where the op has none
  float *y, *present_key, *present_value;
  std::vector<std::int64_t> past;  // positions in use before this run, by sequence

  std::int64_t row_width() const { return (heads + 2 * kv_heads) * d; }
  // Where the first panel begins in which a row of sequence b sees a key.
  std::int64_t first_key(std::int64_t b, std::int64_t row) const {
    const std::int64_t seen = past[static_cast<std::size_t>(b)] + row + 1;
    return seen > window ? (seen - window) / kernels::kKeyPanel * kernels::kKeyPanel : 0;
  }
  // From there to the last key, at most, for all rows of any sequence.
  std::int64_t keys() const {
    std::int64_t most = 0;
    for (std::int64_t b = 0; b < batch; ++b) {
      most = std::max(most, past[static_cast<std::size_t>(b)] + rows - first_key(b, 0));
    }
    return most;
  }
};

class Runner {
 public:
  Runner(const OrtApi* api, const kernels::KernelTable& kernels, OrtKernelContext* context,
         const Job& job)
      : api_(api), kernels_(kernels), context_(context), job_(job) {}

  void run() {
    const std::int64_t values = job_.batch * job_.heads * job_.rows * job_.d;
    const bool packs = job_.rows > kernels::kUnpackedRows;
    packed_size_ = packs ? kernels::packed_keys_size(job_.keys(), job_.d) : 0;
    const std::int64_t floats = values + job_.batch * job_.kv_heads * packed_size_;
    thread_local Scratch scratch;
    q_ = reinterpret_cast<float*>(scratch.get(static_cast<std::size_t>(floats) * sizeof(float)));
    packed_ = q_ + values;

    // Every key must be in place before the first row reads it.
    each(job_.batch * job_.kv_heads, values, [&](std::int64_t i) { append(i, packs); });
    const std::int64_t parts = kernels::ceil_div(job_.rows, kRowsPerTask);
    const std::int64_t heads = job_.batch * job_.heads;
    // Long parts first: the last ones to finish are short.
    each(heads * parts, values * std::min(job_.keys(), job_.window) * 2,
         [&](std::int64_t i) { attend(i % heads, parts - 1 - i / heads); });
  }

 private:
  template <typename Body>
  void each(std::int64_t count, std::int64_t work, Body&& body) const {
    auto task = [&](std::size_t index) { body(static_cast<std::int64_t>(index)); };
    if (work < kSerialWork) {
      for (std::int64_t i = 0; i < count; ++i) body(i);
    } else {
      parallel_for(api_, context_, static_cast<std::size_t>(count), task);
    }
  }

  // Puts the new keys and values of one head into the caches, and rotates the queries that read it.
  void append(std::int64_t index, bool packs) const {
    const std::int64_t b = index / job_.kv_heads, head = index % job_.kv_heads, d = job_.d;
    const std::int64_t past = job_.past[static_cast<std::size_t>(b)];
    float* keys = job_.present_key + index * job_.present_length * d;
    float* values = job_.present_value + index * job_.present_length * d;
    carry_over(job_.past_key, job_.present_key, index, past);
    carry_over(job_.past_value, job_.present_value, index, past);
    const std::int64_t group = job_.heads / job_.kv_heads;
    for (std::int64_t r = 0; r < job_.rows; ++r) {
      const float* x = job_.x + (b * job_.rows + r) * job_.row_width();
      const float* cosines = job_.cosines + (past + r) * job_.half;
      const float* sines = job_.sines + (past + r) * job_.half;
      kernels::rotate(x + (job_.heads + head) * d, cosines, sines, job_.half, d, 1.0f,
                      keys + (past + r) * d);
      const float* value = x + (job_.heads + job_.kv_heads + head) * d;
      std::copy(value, value + d, values + (past + r) * d);
      for (std::int64_t h = head * group; h < (head + 1) * group; ++h) {
        kernels::rotate(x + h * d, cosines, sines, job_.half, d, job_.scale,
                        q_ + ((b * job_.heads + h) * job_.rows + r) * d);
      }
    }
    if (!packs) return;
    const std::int64_t first = job_.first_key(b, 0);
    kernels::pack_keys(keys + first * d, d, past + job_.rows - first, d,
                       packed_ + index * packed_size_);
  }

  // Positions in use, where past and present are not one buffer; zeros behind the new ones.
  void carry_over(const float* past, float* present, std::int64_t index, std::int64_t count) const {
    if (past == present) return;
    const std::int64_t d = job_.d;
    const float* from = past + index * job_.past_length * d;
    float* to = present + index * job_.present_length * d;
    std::copy(from, from + count * d, to);
    std::fill(to + (count + job_.rows) * d, to + job_.present_length * d, 0.0f);
  }

  void attend(std::int64_t index, std::int64_t part) const {
    const std::int64_t b = index / job_.heads, head = index % job_.heads, d = job_.d;
    const std::int64_t kv = b * job_.kv_heads + head / (job_.heads / job_.kv_heads);
    const std::int64_t row = part * kRowsPerTask;
    const std::int64_t rows = std::min(kRowsPerTask, job_.rows - row);
    const std::int64_t first = job_.first_key(b, row);
    const std::int64_t keys = job_.past[static_cast<std::size_t>(b)] + row + rows - first;
    const std::int64_t cached = (kv * job_.present_length + first) * d;
    const std::int64_t packed = kv * packed_size_ + (first - job_.first_key(b, 0)) * d;
    thread_local Scratch scratch;
    const std::int64_t scores = kernels::attention_scores_size(keys);
    kernels_.attend(
        {q_ + (index * job_.rows + row) * d, d, rows, keys, true, job_.present_key + cached,
         packed_ + packed, job_.present_value + cached, d,
         reinterpret_cast<float*>(scratch.get(static_cast<std::size_t>(scores) * sizeof(float))),
         job_.y + ((b * job_.rows + row) * job_.heads + head) * d, job_.heads * d, nullptr, 0,
         false, job_.window, job_.softcap,
         job_.sinks == nullptr ? kernels::kNoSink : job_.sinks[head]});
  }

  const OrtApi* api_;
  const kernels::KernelTable& kernels_;
  OrtKernelContext* context_;
  const Job& job_;
  std::int64_t packed_size_ = 0;
  float* q_ = nullptr;
  float* packed_ = nullptr;
};

class AttentionKernel {
 public:
  AttentionKernel(const OrtApi* api, const OrtKernelInfo* info, const Op& op)
      : AttentionKernel(api, Node(api, info, op.name), op) {}

  const OrtApi* api() const { return api_; }

  void compute(OrtKernelContext* context) const {
    Job job{};
    const OrtValue* x = input_of(api_, context, kX);
    const Shape shape = info_of(api_, x).shape;
    const std::int64_t parts = heads_ + 2 * kv_heads_;
    if (shape.size() != 3 || shape[2] % parts != 0) {
      refuse("X has shape " + to_string(shape) +
             ", expected [B, S, (num_heads + 2 * kv_num_heads)" + " * d]");
    }
    job.batch = shape[0];
    job.rows = shape[1];
    job.heads = heads_;
    job.kv_heads = kv_heads_;
    job.d = shape[2] / parts;
    if (job.d < 1 || job.d % kernels::kHeadStep != 0) {
      refuse("heads have " + std::to_string(job.d) + " channels, expected a multiple of 16");
    }
    // ONNX Runtime's operator, which defines this one, takes 0 for "not given".
    job.scale = scale_ != 0.0f ? scale_ : 1.0f / std::sqrt(static_cast<float>(job.d));
    const OrtValue* past_key = input_of(api_, context, kPastKey);
    const OrtValue* past_value = input_of(api_, context, kPastValue);
    const Shape past = info_of(api_, past_key).shape;
    if (past.size() != 4 || past[0] != job.batch || past[1] != kv_heads_ || past[3] != job.d ||
        info_of(api_, past_value).shape != past) {
      refuse("past_key has shape " + to_string(past) + " and past_value " +
             to_string(info_of(api_, past_value).shape) + ", expected [" +
             std::to_string(job.batch) + ", " + std::to_string(kv_heads_) + ", P, " +
             std::to_string(job.d) + "] of both");
    }
    job.past_length = past[2];
    const std::int64_t total = read_total(context);
    read_cosines(context, total, job);
    read_positions(context, total, job);
    job.present_length = std::max(job.past_length, total);
    job.window = window_;
    job.softcap = softcap_;
    job.sinks = has_sink_ ? read_sinks(context) : nullptr;

    job.x = floats(x);
    job.past_key = floats(past_key);
    job.past_value = floats(past_value);
    job.y = output(context, kY, {job.batch, job.rows, heads_ * job.d});
    const Shape present{job.batch, kv_heads_, job.present_length, job.d};
    job.present_key = output(context, kPresentKey, present);
    job.present_value = output(context, kPresentValue, present);
    if (job.batch != 0) Runner(api_, kernels_, context, job).run();  // no rows: the caches are kept
  }

 private:
  AttentionKernel(const OrtApi* api, const Node& node, const Op& op)
      : api_(api),
        kernels_(*op.kernels),
        label_(node.label()),
        heads_(node.integer("num_heads")),
        kv_heads_(node.integer("kv_num_heads")),
        scale_(node.real("scale")),
        window_(node.integer("window")),
        softcap_(node.real("softcap")),
        has_sink_(op.input_types.size() == kInputs) {
    constexpr std::int64_t kMost = 1 << 20;
    if (heads_ < 1 || kv_heads_ < 1 || heads_ > kMost || heads_ % kv_heads_ != 0) {
      node.refuse("num_heads=" + std::to_string(heads_) +
                  " is not a multiple of kv_num_heads=" + std::to_string(kv_heads_));
    }
    if (window_ != -1 && (window_ < 1 || window_ > INT32_MAX)) {
      node.refuse("window=" + std::to_string(window_) + " is neither -1 nor in 1 .. 2^31 - 1");
    }
    if (window_ == -1) window_ = kernels::kNoWindow;
    if (!std::isfinite(softcap_) || softcap_ < 0.0f) {
      node.refuse("softcap=" + std::to_string(softcap_) + " is not a finite number of 0 or more");
    }
  }

  const float* read_sinks(OrtKernelContext* context) const {
    const OrtValue* sinks = input_of(api_, context, kSink);
    const Shape shape = info_of(api_, sinks).shape;
    if (shape != Shape{heads_}) {
      refuse("head_sink has shape " + to_string(shape) + ", expected " + to_string({heads_}));
    }
    return floats(sinks);
  }

  std::int64_t read_total(OrtKernelContext* context) const {
    const OrtValue* value = input_of(api_, context, kTotal);
    const Shape shape = info_of(api_, value).shape;
    if (!shape.empty() && shape != Shape{1}) {
      refuse("total_sequence_length has shape " + to_string(shape) + ", expected [] or [1]");
    }
    std::int32_t total;
    std::memcpy(&total, data_of(api_, value), sizeof total);
    return total;
  }

  void read_cosines(OrtKernelContext* context, std::int64_t total, Job& job) const {
    const OrtValue* cosines = input_of(api_, context, kCosines);
    const OrtValue* sines = input_of(api_, context, kSines);
    const Shape shape = info_of(api_, cosines).shape;
    if (shape.size() != 2 || 2 * shape[1] > job.d || info_of(api_, sines).shape != shape) {
      refuse("cos_cache has shape " + to_string(shape) + " and sin_cache " +
             to_string(info_of(api_, sines).shape) +
             ", expected [positions, at most d / 2] of both");
    }
    if (total < job.rows || total > shape[0]) {
      refuse("total_sequence_length=" + std::to_string(total) + " lies outside " +
             std::to_string(job.rows) + " (the rows of X) .. " + std::to_string(shape[0]) +
             " (the positions of cos_cache)");
    }
    job.half = shape[1];
    job.cosines = floats(cosines);
    job.sines = floats(sines);
  }

  // Where the rows of each sequence begin. A run over all positions starts anew: shorter sequences
  // are padded at their end.
  void read_positions(OrtKernelContext* context, std::int64_t total, Job& job) const {
    const OrtValue* last = input_of(api_, context, kLastPosition);
    const Shape shape = info_of(api_, last).shape;
    std::int64_t count = 1;
    for (const std::int64_t dim : shape) count *= dim;
    if (count != job.batch) {
      refuse("seqlens_k has shape " + to_string(shape) + ", expected [" +
             std::to_string(job.batch) + "]");
    }
    const auto* values = static_cast<const std::int32_t*>(data_of(api_, last));
    for (std::int64_t b = 0; b < job.batch; ++b) {
      std::int32_t position;
      std::memcpy(&position, values + b, sizeof position);
      const std::int64_t length = std::int64_t{position} + 1;
      const std::int64_t past = total == job.rows ? 0 : length - job.rows;
      if (length < 0 || length > total || past < 0 || past > job.past_length) {
        refuse("seqlens_k[" + std::to_string(b) + "]=" + std::to_string(position) +
               " does not fit total_sequence_length=" + std::to_string(total) + ", " +
               std::to_string(job.rows) + " rows and a cache of " +
               std::to_string(job.past_length));
      }
      job.past.push_back(past);
    }
  }

  [[noreturn]] void refuse(const std::string& cause) const { throw OpError(label_ + ": " + cause); }

  const float* floats(const OrtValue* value) const {
    return static_cast<const float*>(data_of(api_, value));
  }

  float* output(OrtKernelContext* context, std::size_t index, const Shape& shape) const {
    OrtValue* value = output_of(api_, context, index, shape);
    return static_cast<float*>(data_of(api_, value));
  }

  const OrtApi* api_;
  const kernels::KernelTable& kernels_;
  std::string label_;
  std::int64_t heads_, kv_heads_;
  float scale_;
  std::int64_t window_;
  float softcap_;
  bool has_sink_;
};

}  // namespace

void add_attention_ops(std::deque<Op>& ops) {
  const int f = abi::kFloat;
  std::vector<int> inputs{f, f, f, abi::kInt32, abi::kInt32, f, f};
  for (const char* name : {"GroupQueryAttention", "GroupQueryAttentionSink"}) {
    Op& op = ops.emplace_back(make_op(name, inputs, {f, f, f}, 3));
    op.InferOutputShapeFn = infer_attention;
    set_kernel<AttentionKernel>(op);
    inputs.push_back(f);
  }
}

}  // namespace qc::ops
