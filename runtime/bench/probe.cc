#include "bench/probe.h"

#include <algorithm>
#include <chrono>
#include <numeric>
#include <vector>

namespace qc::bench {
namespace {

constexpr int kRuns = 9;
constexpr double kSecondsPerRun = 0.01;
constexpr std::int64_t kRepeats = 1 << 14;

struct NamedLoop {
  const char* isa;
  PeakLoop loop;
};

// "reference" has none: what a compiler makes of plain C++ has no peak to speak of.
constexpr NamedLoop kLoops[] = {
#define QC_PROBE(name, symbol) {name, peak_loop_##symbol},
#include "bench/probes.inc"
    {"", nullptr},
};

double now() {
  const auto time = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration<double>(time).count();
}

double rate(PeakLoop loop) {
  double done = 0;
  const double begin = now();
  double seconds = 0;
  while (seconds < kSecondsPerRun) {
    done += loop(kRepeats);
    seconds = now() - begin;
  }
  return 2 * done / seconds;
}

// Reads `streams` equal parts side by side, as kernels read several panels, and prefetches as they
// do. The sum keeps the compiler from leaving the reads out.
std::uint64_t read_all(const std::uint64_t* words, std::size_t count, std::size_t streams) {
  constexpr std::size_t kLine = 8;
  constexpr std::size_t kAhead = 256;
  const std::size_t part = count / streams / kLine * kLine;
  std::uint64_t sums[kLine] = {};
  for (std::size_t i = 0; i < part; i += kLine) {
    for (std::size_t s = 0; s < streams; ++s) {
      const std::uint64_t* line = words + s * part + i;
      __builtin_prefetch(line + kAhead);
      for (std::size_t j = 0; j < kLine; ++j) sums[j] += line[j];
    }
  }
  return std::accumulate(sums, sums + kLine, std::uint64_t{0});
}

}  // namespace

double peak_ops(const std::string& isa) {
  for (const NamedLoop& named : kLoops) {
    if (named.loop == nullptr || isa != named.isa) continue;
    double best = 0;
    for (int run = 0; run < kRuns; ++run) best = std::max(best, rate(named.loop));
    return best;
  }
  return 0;
}

double read_bandwidth(std::size_t bytes) {
  constexpr int kPasses = 3;
  const std::vector<std::uint64_t> words(bytes / sizeof(std::uint64_t), 1);
  double best = 0;
  for (const std::size_t streams : {1, 2, 4, 8}) {
    for (int pass = 0; pass < kPasses; ++pass) {
      const double begin = now();
      volatile std::uint64_t sum = read_all(words.data(), words.size(), streams);
      (void)sum;
      best = std::max(best, static_cast<double>(bytes) / (now() - begin));
    }
  }
  return best;
}

}  // namespace qc::bench
