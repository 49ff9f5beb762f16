// What the kernels of the Gather ops share, whatever device they run on.
#ifndef QC_OPS_GATHER_NODE_H_
#define QC_OPS_GATHER_NODE_H_

#include <cstdint>
#include <deque>
#include <string>

#include "ops/lookup.h"
#include "ops/op.h"
#include "ops/packed_inputs.h"
#include "ops/shape_inference.h"

namespace qc::ops {

struct GatherForm {
  const char* name;
  int bits;
};
inline constexpr GatherForm kGatherForms[] = {{"GatherW4", 4}, {"GatherW8", 8}};

// One run.
struct GatherCall : LookUpCall {
  PackedInputs::Pointers packed;
};

class GatherNode {
 public:
  GatherNode(const OrtApi* api, const OrtKernelInfo* info, const Op& op)
      : GatherNode(api, Node(api, info, op.name), form_of(kGatherForms, op).bits) {}

  const OrtApi* api() const { return api_; }
  const std::string& label() const { return label_; }
  int bits() const { return bits_; }
  const MatrixAttributes& matrix() const { return matrix_; }

  GatherCall read(OrtKernelContext* context) const {
    const PackedInputs::Pointers packed = packed_.read(context);
    return {read_look_up(api_, context, matrix_.k), packed};
  }

 private:
  GatherNode(const OrtApi* api, const Node& node, int bits)
      : api_(api),
        label_(node.label()),
        bits_(bits),
        matrix_(read_layout_1(node)),
        packed_(api, node, matrix_, bits, 1) {}

  const OrtApi* api_;
  std::string label_;
  int bits_;
  MatrixAttributes matrix_;
  PackedInputs packed_;
};

// Adds the Gather ops for each type of ids, with `Kernel` as their class. `adapt(op)` may change
// each of them.
template <typename Kernel, typename Adapt>
void add_gather_family(std::deque<Op>& ops, Adapt&& adapt) {
  for (const GatherForm& form : kGatherForms) {
    for (const int type : {abi::kInt64, abi::kInt32}) {
      Op& op = ops.emplace_back(
          make_op(form.name, {type, abi::kUint8, abi::kFloat16, abi::kUint8}, {abi::kFloat}, 1));
      op.InferOutputShapeFn = infer_gather;
      set_kernel<Kernel>(op);
      adapt(op);
    }
  }
}

}  // namespace qc::ops

#endif  // QC_OPS_GATHER_NODE_H_
