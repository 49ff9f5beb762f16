#include "bench/problem.h"

#include <algorithm>
#include <random>
#include <vector>

namespace qc::bench {
namespace {

using kernels::ceil_div;
using kernels::kPanel;

constexpr std::uint16_t kHalfScale = 0x1c00;  // 2^-8 in float16
constexpr float kScale = 0.00390625f;         // 2^-8

std::size_t code_bytes(const Shape& s) {
  const std::int64_t panel =
      s.form == Form::kLinear
          ? kernels::with_planes(
                s.bits, [&](auto planes) { return planes.strips(s.k) * planes.kStripBytes; })
          : kernels::with_width(
                s.bits, [&](auto codes) { return codes.blocks(s.k) * kernels::kBlockBytes; });
  return static_cast<std::size_t>(ceil_div(s.n, kPanel) * panel);
}

// Of groups and columns: scales of layout 1, bytes of layout 2.
std::size_t group_values(const Shape& s) {
  return static_cast<std::size_t>(ceil_div(s.n, kPanel) * ceil_div(s.k, s.group_size) * kPanel);
}

bool has_groups(const Shape& s) {
  return kernels::with_planes(s.bits, [](auto planes) { return planes.kGrouped; });
}

int middle_code(int bits) {
  return kernels::with_width(bits, [](auto codes) { return codes.kMiddle; });
}

// Random bytes; what lies beyond the first megabyte repeats it, because that is quicker.
std::vector<std::uint8_t> random_bytes(std::size_t count) {
  constexpr std::size_t kRandom = 1 << 20;
  std::vector<std::uint8_t> bytes(count);
  std::mt19937 random(0);
  const std::size_t first = std::min(count, kRandom);
  for (std::size_t i = 0; i < first; ++i) bytes[i] = static_cast<std::uint8_t>(random());
  for (std::size_t i = first; i < count; i += first) {
    std::copy_n(bytes.begin(), std::min(first, count - i), &bytes[i]);
  }
  return bytes;
}

std::size_t copies_of(const Shape& shape, std::size_t footprint) {
  const std::size_t bytes = weight_bytes(shape);
  return std::max<std::size_t>(1, (footprint + bytes - 1) / bytes);
}

// Random rows, quantized as the op does it.
struct Rows {
  Rows(const kernels::KernelTable& table, const Shape& s, std::int32_t start_factor)
      : stride(kernels::row_stride(s.k)),
        per_row(s.scale_per_group ? ceil_div(s.k, s.group_size) : 1) {
    const std::int64_t groups = ceil_div(s.k, s.group_size);
    lines.resize(static_cast<std::size_t>(s.rows * stride) / sizeof(Line));
    scales.resize(static_cast<std::size_t>(s.rows * per_row));
    starts.resize(static_cast<std::size_t>(s.rows * groups));
    std::vector<float> x(static_cast<std::size_t>(s.k));
    std::mt19937 random(0);
    std::normal_distribution<float> normal;
    const std::int64_t block = s.scale_per_group ? s.group_size : s.k;
    for (std::int64_t r = 0; r < s.rows; ++r) {
      for (float& value : x) value = normal(random);
      table.quantize({x.data(), s.k, block, s.group_size, 0.0f, start_factor,
                      lines[0].codes + r * stride, stride,
                      &scales[static_cast<std::size_t>(r * per_row)],
                      &starts[static_cast<std::size_t>(r * groups)]});
    }
  }

  const std::int8_t* codes() const { return lines[0].codes; }

  struct alignas(64) Line {  // where the op lays rows out, too
    std::int8_t codes[64];
  };
  std::int64_t stride, per_row;
  std::vector<Line> lines;
  std::vector<float> scales;
  std::vector<std::int32_t> starts;
};

// The codes of all copies, and the result.
struct Memory {
  Memory(const Shape& s, std::size_t footprint)
      : copies(copies_of(s, footprint)),
        codes(random_bytes(copies * code_bytes(s))),
        out(static_cast<std::size_t>(s.rows * s.n)) {}

  std::size_t copies;
  std::vector<std::uint8_t> codes;
  std::vector<float> out;
};

class LinearProblem : public Problem {
 public:
  LinearProblem(const kernels::KernelTable& table, const Shape& shape, std::size_t footprint)
      : shape_(shape),
        linear_(table.linear[shape.bits]),
        memory_(shape, footprint),
        rows_(table, shape, 1),
        groups_(has_groups(shape) ? memory_.copies * group_values(shape) : 0, kGroup),
        scales_(memory_.copies * static_cast<std::size_t>(shape.n), kScale) {}

  void run(std::size_t index) override {
    const Shape& s = shape_;
    const std::size_t copy = index % memory_.copies;
    const kernels::PlaneWeights w{&memory_.codes[copy * code_bytes(s)],
                                  groups_.empty() ? nullptr : &groups_[copy * group_values(s)],
                                  &scales_[copy * static_cast<std::size_t>(s.n)],
                                  nullptr,
                                  s.k,
                                  s.n,
                                  s.group_size};
    linear_({rows_.codes(), rows_.stride, rows_.scales.data(), rows_.starts.data()}, w,
            {0, s.rows, 0, w.panels(), s.n, memory_.out.data(), s.n});
  }

 private:
  static constexpr std::uint8_t kGroup = 1;  // zero point 1, multiple 1: any code is an int8

  Shape shape_;
  kernels::Linear linear_;
  Memory memory_;
  Rows rows_;
  std::vector<std::uint8_t> groups_;  // of all copies
  std::vector<float> scales_;         // likewise
};

class MatMulProblem : public Problem {
 public:
  MatMulProblem(const kernels::KernelTable& table, const Shape& shape, std::size_t footprint)
      : shape_(shape),
        matmul_(table.matmul[shape.bits]),
        memory_(shape, footprint),
        rows_(table, shape, -middle_code(shape.bits)),
        scales_(memory_.copies * group_values(shape), kHalfScale) {}

  void run(std::size_t index) override {
    const Shape& s = shape_;
    const std::size_t copy = index % memory_.copies;
    const kernels::Weights w{&memory_.codes[copy * code_bytes(s)],
                             &scales_[copy * group_values(s)],
                             nullptr,
                             static_cast<std::uint8_t>(middle_code(s.bits)),
                             nullptr,
                             s.k,
                             s.n,
                             s.group_size};
    matmul_({rows_.codes(), rows_.stride, rows_.scales.data(), rows_.per_row, rows_.starts.data()},
            w, {0, s.rows, 0, w.panels(), s.n, memory_.out.data(), s.n});
  }

 private:
  Shape shape_;
  kernels::MatMul matmul_;
  Memory memory_;
  Rows rows_;
  std::vector<std::uint16_t> scales_;  // of all copies
};

}  // namespace

std::size_t weight_bytes(const Shape& s) {
  if (s.form == Form::kMatMul) return code_bytes(s) + group_values(s) * sizeof(std::uint16_t);
  const std::size_t scales = static_cast<std::size_t>(s.n) * sizeof(float);
  return code_bytes(s) + scales + (has_groups(s) ? group_values(s) : 0);
}

std::unique_ptr<Problem> make_problem(const kernels::KernelTable& table, const Shape& shape,
                                      std::size_t footprint) {
  if (shape.form == Form::kLinear) return std::make_unique<LinearProblem>(table, shape, footprint);
  return std::make_unique<MatMulProblem>(table, shape, footprint);
}

}  // namespace qc::bench
