// A C interface over the kernels and the little of CUDA that the Python tests need, on a real GPU
// or on the emulated one. The op library does not contain it.
#include <cstring>

#include "cuda/activations.h"
#include "cuda/device.h"
#include "cuda/embedding.h"
#include "cuda/linear.h"

#define QC_TEST_EXPORT extern "C" __attribute__((visibility("default")))

namespace qc::cuda {
namespace {

// One mma of a warp: each lane's fragments lie in a [32, 4], b [32, 2] and d [32, 4].
__global__ void one_mma(const std::uint32_t* a, const std::uint32_t* b, std::int32_t* d) {
  const unsigned lane = threadIdx.x;
  const std::uint32_t lane_a[4] = {a[4 * lane], a[4 * lane + 1], a[4 * lane + 2], a[4 * lane + 3]};
  std::int32_t lane_d[4] = {d[4 * lane], d[4 * lane + 1], d[4 * lane + 2], d[4 * lane + 3]};
  mma_s8_s8(lane_d, lane_a, make_uint2(b[2 * lane], b[2 * lane + 1]));
  for (int i = 0; i < 4; ++i) d[4 * lane + i] = lane_d[i];
}

// Without `wait`, what the threads read has not been promised yet.
__global__ void copy_through_shared(const uint4* from, uint4* to, int wait) {
  alignas(16) __shared__ uint4 shared[kWarp];
  copy_async(shared + threadIdx.x, from + threadIdx.x, true);
  commit_copies();
  if (wait != 0) wait_for_copies();
  __syncthreads();
  const unsigned neighbour = (threadIdx.x + 1) % kWarp;
  to[neighbour] = shared[neighbour];
}

#ifndef QC_CUDA_EMULATED
const char* error_of(cudaError_t error) {
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}
#endif

}  // namespace
}  // namespace qc::cuda

using namespace qc::cuda;

#ifdef QC_CUDA_EMULATED

QC_TEST_EXPORT int qc_cuda_devices() { return 1; }
QC_TEST_EXPORT void qc_cuda_reverse(int reverse) { emulator::set_reverse(reverse != 0); }
QC_TEST_EXPORT const char* qc_cuda_synchronize() { return nullptr; }

#else

QC_TEST_EXPORT int qc_cuda_devices() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;
}
QC_TEST_EXPORT const char* qc_cuda_allocate(std::size_t bytes, void** pointer) {
  return error_of(cudaMalloc(pointer, bytes));
}
QC_TEST_EXPORT const char* qc_cuda_free(void* pointer) { return error_of(cudaFree(pointer)); }
QC_TEST_EXPORT const char* qc_cuda_copy(void* to, const void* from, std::size_t bytes) {
  return error_of(cudaMemcpy(to, from, bytes, cudaMemcpyDefault));
}
QC_TEST_EXPORT const char* qc_cuda_synchronize() { return error_of(cudaDeviceSynchronize()); }

#endif

QC_TEST_EXPORT void qc_cuda_quantize(const QuantizeJob* job, void* stream) {
  quantize(*job, stream);
}

QC_TEST_EXPORT const char* qc_cuda_linear_refusal(const LinearProduct* product) {
  return refusal(*product);
}

QC_TEST_EXPORT std::size_t qc_cuda_linear_scratch_bytes(const LinearProduct* product,
                                                        const LinearTuning* tuning) {
  return scratch_bytes(*product, *tuning);
}

QC_TEST_EXPORT const char* qc_cuda_linear(const LinearProduct* product, const LinearTuning* tuning,
                                          void* scratch, void* stream) {
  return run(*product, scratch, stream, *tuning);
}

QC_TEST_EXPORT const char* qc_cuda_embedding(const EmbeddingLookUp* look_up, void* stream) {
  return embedding(*look_up, stream);
}

QC_TEST_EXPORT void qc_cuda_mma(const std::uint32_t* a, const std::uint32_t* b, std::int32_t* d) {
  launch(one_mma, dim3(1), kWarp, nullptr, a, b, d);
}

QC_TEST_EXPORT void qc_cuda_copy_through_shared(const void* from, void* to, int wait) {
  launch(copy_through_shared, dim3(1), kWarp, nullptr, static_cast<const uint4*>(from),
         static_cast<uint4*>(to), wait);
}
