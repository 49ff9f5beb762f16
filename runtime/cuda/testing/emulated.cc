// The kernels, compiled for the emulated GPU.
#define QC_CUDA_EMULATED
#include "cuda/embedding.cu"
#include "cuda/linear.cu"
#include "cuda/linear_few_rows.cu"
#include "cuda/linear_many_rows.cu"
#include "cuda/quantize.cu"
#include "cuda/testing/test_interface.cu"
