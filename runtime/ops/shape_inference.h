// Output types and shapes at load time, so that ONNX Runtime can check and plan the rest of a
// graph. What is unknown of the first input stays open: a dimension gets a name that nothing else
// has, and where not even the rank is known, nothing is said.
#ifndef QC_OPS_SHAPE_INFERENCE_H_
#define QC_OPS_SHAPE_INFERENCE_H_

#include "abi/ort_abi.h"

namespace qc::ops {

// Y0..Y2: X's type and leading dimensions, then splits[i].
OrtStatus* infer_linear(const OrtCustomOp* op, OrtShapeInferContext* context);

// Y: X's, its last dimension without the keys and values. The caches stay unknown.
OrtStatus* infer_attention(const OrtCustomOp* op, OrtShapeInferContext* context);

// Both outputs: X's.
OrtStatus* infer_norm(const OrtCustomOp* op, OrtShapeInferContext* context);

// The first output: the first input's.
OrtStatus* infer_same(const OrtCustomOp* op, OrtShapeInferContext* context);

// Y: float, the dimensions of ids, then K.
OrtStatus* infer_embedding(const OrtCustomOp* op, OrtShapeInferContext* context);

}  // namespace qc::ops

#endif  // QC_OPS_SHAPE_INFERENCE_H_
