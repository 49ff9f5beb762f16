// What a node of a linear layer has beside its packed weights: X, a bias, perhaps a static scale of
// X, and up to three outputs.
//
// The same on every device: data is read here only where it lies in the host's memory, which is the
// static scale of X.
#ifndef QC_OPS_LAYER_TENSORS_H_
#define QC_OPS_LAYER_TENSORS_H_

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "ops/op.h"

namespace qc::ops {

inline constexpr std::size_t kLayerOutputs = 3;

// Where the result goes: up to three column ranges side by side, each a tensor of its own.
struct OutputRange {
  std::int64_t column_begin, column_end;
  void* data;  // [rows, column_end - column_begin]; null: nothing to write
};

// The tensors of one run, checked.
struct LayerCall {
  const void* x;  // [rows, k]
  std::int64_t rows;
  const float* bias;
  bool one_bias;       // one value for all columns
  float static_scale;  // 0: dynamic
  std::array<OutputRange, kLayerOutputs> outputs;
};

class LayerTensors {
 public:
  // Reads the attribute `splits`. The inputs are X first, the bias at `bias`, and behind it x_scale
  // where the scale is static.
  LayerTensors(const OrtApi* api, const Node& node, std::int64_t k, std::int64_t n,
               std::size_t bias, bool is_static);

  // Checks the tensors of this run and makes the outputs.
  LayerCall read(OrtKernelContext* context) const;

 private:
  void read_splits(const Node& node);
  void check_bias(const Shape& shape) const;
  void check_x_scale(const OrtValue* value) const;
  std::array<OutputRange, kLayerOutputs> make_outputs(OrtKernelContext* context, Shape shape) const;

  const OrtApi* api_;
  std::string label_;
  std::int64_t k_, n_;
  std::size_t bias_;
  bool is_static_;
  std::vector<std::int64_t> splits_;
  bool bias_checked_ = false;  // constant, checked at creation
  bool one_bias_ = false;
  bool x_scale_checked_ = false;
};

// A run's bias as kernels for the CPU take it.
class BiasValues {
 public:
  BiasValues(const LayerCall& call, std::int64_t n);
  const float* get() const { return values_; }  // [n]; null: nothing but zeros

 private:
  std::vector<float> spread_;
  const float* values_;
};

}  // namespace qc::ops

#endif  // QC_OPS_LAYER_TENSORS_H_
