// What the kernels of the Gather ops share, whatever device they run on.
#ifndef QC_OPS_GATHER_NODE_H_
#define QC_OPS_GATHER_NODE_H_

#include <cstdint>
#include <deque>
#include <string>

#include "ops/op.h"
#include "ops/packed_inputs.h"
#include "ops/shape_inference.h"

namespace qc::ops {

template <int kBits>
constexpr const char* kGatherName = kBits == 4 ? "GatherW4" : "GatherW8";

// One run: ids [count] of either type, and where their rows [count, k] go.
struct GatherCall {
  PackedInputs::Pointers packed;
  const void* ids;
  bool wide_ids;  // int64 rather than int32
  std::int64_t count;
  float* out;
};

class GatherNode {
 public:
  GatherNode(const OrtApi* api, const OrtKernelInfo* info, const char* op, int bits)
      : GatherNode(api, Node(api, info, op), bits) {}

  const OrtApi* api() const { return api_; }
  const std::string& label() const { return label_; }
  const MatrixAttributes& matrix() const { return matrix_; }

  GatherCall read(OrtKernelContext* context) const {
    const OrtValue* ids = input_of(api_, context, 0);
    const TensorInfo info = info_of(api_, ids);
    GatherCall call{packed_.read(context), data_of(api_, ids), info.type == abi::kInt64, 1,
                    nullptr};
    for (const std::int64_t dim : info.shape) call.count *= dim;
    Shape out_shape = info.shape;
    out_shape.push_back(matrix_.k);
    call.out = static_cast<float*>(data_of(api_, output_of(api_, context, 0, out_shape)));
    return call;
  }

 private:
  GatherNode(const OrtApi* api, const Node& node, int bits)
      : api_(api),
        label_(node.label()),
        matrix_(MatrixAttributes::read(node)),
        packed_(api, node, matrix_, bits, 1) {}

  const OrtApi* api_;
  std::string label_;
  MatrixAttributes matrix_;
  PackedInputs packed_;
};

// Adds GatherW4 and GatherW8 for each type of ids, with `Kernel<bits>` as their class; `change`
// may alter each op.
template <template <int> class Kernel, typename Change>
void add_gather_family(std::deque<Op>& ops, Change change) {
  const auto add = [&](const char* name, int type) -> Op& {
    Op& op = ops.emplace_back(
        make_op(name, {type, abi::kUint8, abi::kFloat16, abi::kUint8}, {abi::kFloat}, 1));
    op.InferOutputShapeFn = infer_gather;
    change(op);
    return op;
  };
  for (const int type : {abi::kInt64, abi::kInt32}) {
    set_kernel<Kernel<4>>(add(kGatherName<4>, type));
    set_kernel<Kernel<8>>(add(kGatherName<8>, type));
  }
}

}  // namespace qc::ops

#endif  // QC_OPS_GATHER_NODE_H_
