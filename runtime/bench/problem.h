// One matrix product to time: random rows and one or more copies of a random packed matrix.
#ifndef QC_BENCH_PROBLEM_H_
#define QC_BENCH_PROBLEM_H_

#include <cstddef>
#include <cstdint>
#include <memory>

#include "kernels/dispatch/dispatch.h"

namespace qc::bench {

enum class Form { kLinear, kMatMul };  // of layout 2 and of layout 1

struct Shape {
  Form form;
  int bits;
  std::int64_t k, n;
  std::int64_t group_size;  // k for kLinear of 8 bits
  std::int64_t rows;
  bool scale_per_group;  // of the activations; otherwise one a row. Not for kLinear
};

// Bytes of one copy of the weights: codes, scales and what a group has.
std::size_t weight_bytes(const Shape& shape);

class Problem {
 public:
  virtual ~Problem() = default;

  // The whole product, with copy `index` modulo their number.
  virtual void run(std::size_t index) = 0;
};

// As many copies of the weights as fill `footprint` bytes, at least one.
std::unique_ptr<Problem> make_problem(const kernels::KernelTable& table, const Shape& shape,
                                      std::size_t footprint);

}  // namespace qc::bench

#endif  // QC_BENCH_PROBLEM_H_
