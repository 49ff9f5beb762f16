// One matrix product to time: random rows and one or more copies of a random packed matrix.
#ifndef QC_BENCH_PROBLEM_H_
#define QC_BENCH_PROBLEM_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/dispatch/dispatch.h"

namespace qc::bench {

struct Shape {
  int form;  // of the weights
  std::int64_t k, n;
  std::int64_t group_size;  // k for 8 bits
  std::int64_t rows;
};

// Whether groups of the weights have zero points and multiples.
bool has_groups(int form);

// Bytes of one copy of the weights: codes, groups and scales.
std::size_t weight_bytes(const Shape& shape);

class Problem {
 public:
  // As many copies of the weights as fill `footprint` bytes, at least one.
  Problem(const kernels::KernelTable& table, const Shape& shape, std::size_t footprint);

  // The whole product, with copy `index` modulo their number.
  void run(std::size_t index);

 private:
  struct alignas(64) Line {  // where the op lays rows out, too
    std::int8_t codes[64];
  };

  // Random rows, quantized as the op does it.
  void quantize_rows(const kernels::KernelTable& table);

  Shape shape_;
  kernels::Linear linear_;
  // Of all copies.
  std::size_t copies_;
  std::vector<std::uint8_t> codes_, groups_;
  std::vector<float> scales_;
  // Of the rows.
  std::int64_t stride_;
  std::vector<Line> row_codes_;
  std::vector<float> row_scales_;
  std::vector<std::int32_t> row_sums_;

  std::vector<float> out_;
};

}  // namespace qc::bench

#endif  // QC_BENCH_PROBLEM_H_
