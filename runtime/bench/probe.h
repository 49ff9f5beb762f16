// What this machine could do at most: multiply-adds a second of each ISA, and bytes read a second.
#ifndef QC_BENCH_PROBE_H_
#define QC_BENCH_PROBE_H_

#include <cstddef>
#include <cstdint>
#include <string>

namespace qc::bench {

// Repeats the multiply-add of an ISA on registers, and returns how many int8 multiply-adds were
// done. Nothing is loaded and no sum waits for another one.
using PeakLoop = double (*)(std::int64_t repeats);

// One each, in probe_<symbol>.cc.
#define QC_ISA(name, symbol, ...) double peak_loop_##symbol(std::int64_t repeats);
#include "kernels/dispatch/isas.inc"

// Operations a second of one thread (a multiply-add is two), the best of several short runs; 0
// where `isa` has no probe.
double peak_ops(const std::string& isa);

// Bytes a second that one thread reads from memory, in order and in a few streams: the best of
// several passes over `bytes`.
double read_bandwidth(std::size_t bytes);

}  // namespace qc::bench

#endif  // QC_BENCH_PROBE_H_
