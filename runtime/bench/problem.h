// One matrix product to time: random rows and one or more copies of a random packed matrix.
#ifndef QC_BENCH_PROBLEM_H_
#define QC_BENCH_PROBLEM_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/dispatch/dispatch.h"

namespace qc::bench {

struct Shape {
  int bits;
  std::int64_t k, n, group_size;
  std::int64_t rows;
  bool scale_per_group;  // of the activations; otherwise one a row
};

// Bytes of one copy of the weights: codes and scales.
std::size_t weight_bytes(const Shape& shape);

class Problem {
 public:
  // As many copies of the weights as fill `footprint` bytes, at least one.
  Problem(const kernels::KernelTable& table, const Shape& shape, std::size_t footprint);

  // The whole product, with copy `index` modulo their number.
  void run(std::size_t index);

 private:
  void quantize(const kernels::KernelTable& table);

  Shape shape_;
  kernels::MatMul matmul_;
  std::int64_t groups_, stride_;
  std::vector<std::uint8_t> codes_;    // of all copies
  std::vector<std::uint16_t> scales_;  // of all copies
  std::size_t copies_;
  struct alignas(64) Line {  // where the op lays rows out, too
    std::int8_t codes[64];
  };
  std::vector<Line> rows_;
  std::vector<float> row_scales_;
  std::vector<std::int32_t> starts_;
  std::vector<float> out_;
};

}  // namespace qc::bench

#endif  // QC_BENCH_PROBLEM_H_
