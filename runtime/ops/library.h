// The ops of this library. There are several libraries of one domain (ONNX Runtime takes only one a
// session), and each has a definition of its own.
#ifndef QC_OPS_LIBRARY_H_
#define QC_OPS_LIBRARY_H_

#include <deque>

#include "kernels/dispatch/dispatch.h"
#include "ops/op.h"

namespace qc::ops {

void add_ops(std::deque<Op>& ops, const kernels::KernelTable& kernels);

}  // namespace qc::ops

#endif  // QC_OPS_LIBRARY_H_
