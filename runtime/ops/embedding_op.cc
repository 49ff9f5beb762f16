#include <cstdint>
#include <deque>
#include <string>
#include <vector>

#include "kernels/embedding/embedding.h"
#include "ops/library.h"
#include "ops/lookup.h"
#include "ops/matrix_attributes.h"
#include "ops/plane_inputs.h"
#include "ops/shape_inference.h"

namespace qc::ops {
namespace {

struct EmbeddingForm {
  const char* name;
  int bits;
};
#define QC_EMBEDDING_FORM(bits, ...) {"EmbeddingW" #bits, bits},
constexpr EmbeddingForm kForms[] = {QC_EACH_LINEAR_WIDTH(QC_EMBEDDING_FORM)};
#undef QC_EMBEDDING_FORM

class EmbeddingKernel {
 public:
  EmbeddingKernel(const OrtApi* api, const OrtKernelInfo* info, const Op& op)
      : EmbeddingKernel(api, Node(api, info, op.name), form_of(kForms, op).bits) {}

  const OrtApi* api() const { return api_; }

  void compute(OrtKernelContext* context) const {
    const kernels::PlaneWeights weights = weights_.read(context);
    const LookUpCall call = read_look_up(api_, context, matrix_.k);
    look_up(api_, context, columns_of(call, matrix_.n, label_), matrix_.k, call.out,
            [&](std::int64_t column, float* row) {
              kernels::embedding_f32(bits_, weights, column, row);
            });
  }

 private:
  EmbeddingKernel(const OrtApi* api, const Node& node, int bits)
      : api_(api),
        label_(node.label()),
        bits_(bits),
        matrix_(read_layout_2(node, bits)),
        weights_(api, node, matrix_, bits, 1) {}

  const OrtApi* api_;
  std::string label_;
  int bits_;
  MatrixAttributes matrix_;
  PlaneInputs weights_;
};

}  // namespace

void add_embedding_ops(std::deque<Op>& ops) {
  for (const EmbeddingForm& form : kForms) {
    for (const int type : {abi::kInt64, abi::kInt32}) {
      std::vector<int> inputs{type};
      for (const int each : PlaneInputs::types(form.bits)) inputs.push_back(each);
      Op& op = ops.emplace_back(make_op(form.name, std::move(inputs), {abi::kFloat}, 1));
      op.InferOutputShapeFn = infer_gather;
      set_kernel<EmbeddingKernel>(op);
    }
  }
}

}  // namespace qc::ops
