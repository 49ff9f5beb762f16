#ifndef QC_OPS_GATHER_OP_H_
#define QC_OPS_GATHER_OP_H_

#include <deque>

#include "ops/op.h"
#include "ops/shape_inference.h"

namespace qc::ops {

template <int kBits>
constexpr const char* kGatherName = kBits == 4 ? "GatherW4" : "GatherW8";

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

void add_gather_ops(std::deque<Op>& ops);

}  // namespace qc::ops

#endif  // QC_OPS_GATHER_OP_H_
