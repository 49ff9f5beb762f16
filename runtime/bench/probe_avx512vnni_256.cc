#include "bench/probe.h"
#include "bench/probe_vnni256.h"

namespace qc::bench {

double peak_loop_avx512vnni_256(std::int64_t repeats) { return peak_loop_vnni256(repeats); }

}  // namespace qc::bench
