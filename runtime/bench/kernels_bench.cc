// Times the kernels of Linear of every ISA that this CPU runs, on one thread, against what a probe
// says the machine could do. The rows are quantized beforehand.
//
//   qcompiler_kernels_bench [--quick] [options of google-benchmark]
//
// A name reads W4/avx512vnni/4096x4096/g32/M1/hot: form of the weights (T4: with levels), ISA, KxN,
// group size (or "none"), rows, and where weights lie: in the caches as far as they fit (hot), or
// in so many copies that every run reads from memory (memory; one row only).
#include <benchmark/benchmark.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "bench/probe.h"
#include "bench/problem.h"

namespace {

using qc::bench::Problem;
using qc::bench::Shape;
using qc::kernels::KernelTable;
using qc::kernels::kFormT;

struct Effort {
  std::size_t footprint;  // bytes, more than any cache holds
  double seconds;         // of a repetition, at least
  int repetitions;        // whose median counts
  std::int64_t max_work;  // multiply-adds of a run
};

constexpr Effort kFull = {std::size_t{256} << 20, 0.1, 3, std::int64_t{1} << 40};
constexpr Effort kQuick = {std::size_t{32} << 20, 0.001, 1, std::int64_t{1} << 24};
// The plain kernels are there to be right: more would take minutes and tell nothing.
constexpr std::int64_t kReferenceMaxWork = std::int64_t{1} << 24;

// What to time, for widths of `least_bits` to `most_bits`.
struct Plan {
  std::int64_t k, n;
  int least_bits, most_bits;
  std::vector<std::int64_t> groups, rows;
};
const Plan kPlans[] = {
    {4096, 4096, 2, 8, {16, 32, 128}, {1, 2, 4, 8, 16, 32, 128}},
    // Layers of a small decoder.
    {576, 960, 4, 4, {16, 32}, {1, 16, 128}},
    {1536, 576, 4, 4, {16, 32}, {1, 16, 128}},
};

struct Case {
  const KernelTable* table;
  Shape shape;
  bool from_memory;
  double peak;       // operations a second, or 0
  double bandwidth;  // bytes a second
};

std::string name(const Case& c) {
  const Shape& s = c.shape;
  const bool grouped = qc::bench::has_groups(s.form);
  const char* letter = s.form < kFormT ? "W" : "T";
  return letter + std::to_string(s.form % kFormT) + "/" + c.table->isa + "/" + std::to_string(s.k) +
         "x" + std::to_string(s.n) + "/" + (grouped ? "g" + std::to_string(s.group_size) : "none") +
         "/M" + std::to_string(s.rows) + (c.from_memory ? "/memory" : "/hot");
}

// The problem of a case. Kept until another case comes: google-benchmark calls several times for
// each, and to fill the memory takes longer than to read it.
Problem& problem_of(const Case& c, std::size_t footprint) {
  static std::string kept_name;
  static std::unique_ptr<Problem> kept;
  if (kept == nullptr || kept_name != name(c)) {
    kept.reset();
    kept = std::make_unique<Problem>(*c.table, c.shape, c.from_memory ? footprint : 0);
    kept_name = name(c);
  }
  return *kept;
}

void measure(benchmark::State& state, const Case& c, std::size_t footprint) {
  Problem& problem = problem_of(c, footprint);
  problem.run(0);
  std::size_t index = 0;
  const auto begin = std::chrono::steady_clock::now();
  for (auto _ : state) {
    problem.run(++index);
    benchmark::ClobberMemory();
  }
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - begin;
  const double runs_per_second = static_cast<double>(state.iterations()) / elapsed.count();
  const Shape& s = c.shape;
  const double ops = 2.0 * static_cast<double>(s.rows * s.k * s.n) * runs_per_second;
  const double bytes = static_cast<double>(qc::bench::weight_bytes(s)) * runs_per_second;
  state.counters["GOPS"] = ops / 1e9;
  state.counters["GB/s"] = bytes / 1e9;
  if (c.peak > 0) state.counters["%peak"] = 100 * ops / c.peak;
  if (c.from_memory) state.counters["%bandwidth"] = 100 * bytes / c.bandwidth;
}

void add(const Case& c, const Effort& effort) {
  const std::size_t footprint = effort.footprint;
  auto* added = benchmark::RegisterBenchmark(
      name(c).c_str(), [c, footprint](benchmark::State& state) { measure(state, c, footprint); });
  added->UseRealTime()->Unit(benchmark::kMicrosecond)->MinTime(effort.seconds);
  added->Repetitions(effort.repetitions);
  if (effort.repetitions > 1) added->ReportAggregatesOnly();
}

// What the cases of an ISA have in common.
struct Machine {
  const KernelTable* table;
  const Effort* effort;
  double peak, bandwidth;
};

// Where the weights are hot and, for one row, in memory.
void add_places(const Machine& machine, const Shape& shape) {
  const std::int64_t work = shape.rows * shape.k * shape.n;
  const bool plain = std::strcmp(machine.table->isa, "reference") == 0;
  if (work > machine.effort->max_work || (plain && work > kReferenceMaxWork)) return;
  for (const bool from_memory : {false, true}) {
    if (from_memory && shape.rows > 1) continue;
    add({machine.table, shape, from_memory, machine.peak, machine.bandwidth}, *machine.effort);
  }
}

void add_plan(const Machine& machine, const Plan& plan) {
  for (int form = 0; form < qc::kernels::kForms; ++form) {
    const int bits = form % kFormT;
    if (machine.table->linear[form] == nullptr) continue;  // no such form
    if (bits < plan.least_bits || bits > plan.most_bits) continue;
    const bool grouped = qc::bench::has_groups(form);
    for (const std::int64_t size : grouped ? plan.groups : std::vector{plan.k}) {
      for (const std::int64_t rows : plan.rows) {
        add_places(machine, {form, plan.k, plan.n, size, rows});
      }
    }
  }
}

void add_all(const KernelTable& table, const Effort& effort, double bandwidth) {
  const double peak = qc::bench::peak_ops(table.isa);
  if (peak > 0) {
    benchmark::AddCustomContext(std::string("peak_gops_") + table.isa, std::to_string(peak / 1e9));
  }
  const Machine machine{&table, &effort, peak, bandwidth};
  for (const Plan& plan : kPlans) add_plan(machine, plan);
}

// Takes --quick off the arguments.
bool take_quick(int* argc, char** argv) {
  for (int i = 1; i < *argc; ++i) {
    if (std::strcmp(argv[i], "--quick") != 0) continue;
    for (int j = i; j + 1 < *argc; ++j) argv[j] = argv[j + 1];
    --*argc;
    return true;
  }
  return false;
}

}  // namespace

int main(int argc, char** argv) {
  const Effort& effort = take_quick(&argc, argv) ? kQuick : kFull;
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  const double bandwidth = qc::bench::read_bandwidth(effort.footprint);
  benchmark::AddCustomContext("read_gb_per_s", std::to_string(bandwidth / 1e9));
  const std::uint32_t flags = qc::kernels::cpu_flags();
  for (const KernelTable* const* table = qc::kernels::kernel_tables(); *table != nullptr; ++table) {
    if (((*table)->needs & ~flags) == 0) add_all(**table, effort, bandwidth);
  }
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}
