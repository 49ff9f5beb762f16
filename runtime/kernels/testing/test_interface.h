// A C interface over the kernels, for the Python tests; the op library does not contain it.
#ifndef QC_KERNELS_TESTING_TEST_INTERFACE_H_
#define QC_KERNELS_TESTING_TEST_INTERFACE_H_

#include <cstdint>

#include "kernels/attention/attention.h"
#include "kernels/embedding/embedding.h"
#include "kernels/linear/linear.h"
#include "kernels/norm/norm.h"
#include "kernels/quantize/quantize.h"

#define QC_TEST_EXPORT extern "C" __attribute__((visibility("default")))

QC_TEST_EXPORT std::uint32_t qc_cpu_flags();

// The name of the table chosen, or null where `forced` can't run.
QC_TEST_EXPORT const char* qc_choose(std::uint32_t flags, const char* forced);

// Name and needed flags of table `index`; 0 past the last one.
QC_TEST_EXPORT int qc_table(int index, const char** isa, std::uint32_t* needs);

// These return 0 where `isa` can't run here.
QC_TEST_EXPORT int qc_quantize(const char* isa, const qc::kernels::QuantizeRow* row);
QC_TEST_EXPORT int qc_linear(const char* isa, int form, const qc::kernels::QuantizedRows* q,
                             const qc::kernels::PlaneWeights* w, const qc::kernels::Tile* t);
// The calling thread's AMX tile configuration, 64 bytes; 0 where there is none.
QC_TEST_EXPORT int qc_load_tiles(const void* config);
QC_TEST_EXPORT int qc_store_tiles(void* config);
QC_TEST_EXPORT int qc_convert(const char* isa, int bfloat, int narrow, const void* from, void* to,
                              std::int64_t count);

QC_TEST_EXPORT int qc_attend(const char* isa, const qc::kernels::AttentionRows* rows);

QC_TEST_EXPORT int qc_add_norm(const char* isa, const qc::kernels::NormRow* row);

QC_TEST_EXPORT int qc_swiglu(const char* isa, const float* gate, const float* up,
                             std::int64_t count, float* y);

QC_TEST_EXPORT int qc_gelu(const char* isa, const float* x, std::int64_t count, int by_tanh,
                           float* y);
QC_TEST_EXPORT void qc_pack_keys(const float* k, std::int64_t stride, std::int64_t keys,
                                 std::int64_t d, float* packed);

QC_TEST_EXPORT void qc_embedding(int form, const qc::kernels::PlaneWeights* w, std::int64_t column,
                                 float* out);

#endif  // QC_KERNELS_TESTING_TEST_INTERFACE_H_
