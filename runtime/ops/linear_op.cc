#include <cstdint>
#include <deque>
#include <vector>

#include "kernels/dispatch/dispatch.h"
#include "ops/layer_tensors.h"
#include "ops/library.h"
#include "ops/matrix_attributes.h"
#include "ops/plane_inputs.h"
#include "ops/shape_inference.h"
#include "ops/tiled_product.h"

namespace qc::ops {
namespace {

struct LinearForm {
  const char* name;
  int bits;
  bool is_static;
};
#define QC_LINEAR_FORMS(bits, ...) \
  {"LinearW" #bits "A8", bits, false}, {"LinearW" #bits "A8Static", bits, true},
constexpr LinearForm kForms[] = {QC_EACH_LINEAR_WIDTH(QC_LINEAR_FORMS)};
#undef QC_LINEAR_FORMS

constexpr std::size_t kX = 0, kWeights = 1;

std::size_t bias_index(int bits) { return kWeights + PlaneInputs::types(bits).size(); }

class LinearKernel {
 public:
  LinearKernel(const OrtApi* api, const OrtKernelInfo* info, const Op& op)
      : LinearKernel(api, Node(api, info, op.name), form_of(kForms, op), op) {}

  const OrtApi* api() const { return api_; }

  void compute(OrtKernelContext* context) const {
    kernels::PlaneWeights weights = weights_.read(context);
    const LayerCall call = layer_.read(context);
    if (call.rows == 0) return;
    const BiasValues bias(call, matrix_.n);
    weights.bias = bias.get();

    TiledProduct product{};
    product.kernels = &kernels_;
    product.element_type = element_type_;
    product.x = call.x;
    product.rows = call.rows;
    product.k = matrix_.k;
    product.n = matrix_.n;
    product.group_size = matrix_.group_size;
    product.activation_block = matrix_.k;
    product.static_scale = call.static_scale;
    product.start_factor = 1;
    product.outputs = call.outputs;
    product.multiply = [&](const QuantizedChunk& q, const kernels::Tile& tile) {
      kernels_.linear[bits_]({q.codes, q.stride, q.scales, q.starts}, weights, tile);
    };
    run(api_, context, product);
  }

 private:
  LinearKernel(const OrtApi* api, const Node& node, const LinearForm& form, const Op& op)
      : api_(api),
        kernels_(*op.kernels),
        bits_(form.bits),
        element_type_(op.input_types[kX]),
        matrix_(read_layout_2(node, form.bits)),
        weights_(api, node, matrix_, form.bits, kWeights),
        layer_(api, node, matrix_.k, matrix_.n, bias_index(form.bits), form.is_static) {}

  const OrtApi* api_;
  const kernels::KernelTable& kernels_;
  int bits_;
  int element_type_;  // of X and the outputs
  MatrixAttributes matrix_;
  PlaneInputs weights_;
  LayerTensors layer_;
};

}  // namespace

void add_linear_ops(std::deque<Op>& ops) {
  for (const LinearForm& form : kForms) {
    for (const int type : {abi::kFloat, abi::kFloat16, abi::kBfloat16}) {
      std::vector<int> inputs{type};
      for (const int each : PlaneInputs::types(form.bits)) inputs.push_back(each);
      inputs.push_back(abi::kFloat);
      if (form.is_static) inputs.push_back(abi::kFloat);
      Op& op = ops.emplace_back(make_op(form.name, std::move(inputs), {type, type, type}, 1));
      op.InferOutputShapeFn = infer_matmul;
      set_kernel<LinearKernel>(op);
    }
  }
}

}  // namespace qc::ops
