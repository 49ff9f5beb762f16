// The kernels, compiled for the emulated GPU.
#define QC_CUDA_EMULATED
#include "cuda/gather.cu"
#include "cuda/matmul.cu"
#include "cuda/multiply_large.cu"
#include "cuda/multiply_small.cu"
#include "cuda/multiply_wgmma.cu"
#include "cuda/quantize.cu"
#include "cuda/testing/test_interface.cu"
