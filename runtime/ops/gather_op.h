#ifndef QC_OPS_GATHER_OP_H_
#define QC_OPS_GATHER_OP_H_

#include <deque>

#include "ops/op.h"

namespace qc::ops {

// Adds GatherW4 and GatherW8 for each type of ids.
void add_gather_ops(std::deque<Op>& ops);

}  // namespace qc::ops

#endif  // QC_OPS_GATHER_OP_H_
