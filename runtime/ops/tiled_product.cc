#include "ops/tiled_product.h"

#include <algorithm>
#include <thread>

#include "ops/scratch.h"

namespace qc::ops {
namespace {

using kernels::ceil_div;
using kernels::kPanel;

// Rows quantized at a time: few enough that they stay in L2 while panel after panel passes.
constexpr std::int64_t kChunkBytes = 1 << 20;
// Kernels take 6 rows at a time, or 16 where there are many.
constexpr std::int64_t kFewRows = 6;
constexpr std::int64_t kManyRows = 48;
// Multiply-adds below which a task is not worth its dispatch (about 3 us of work).
constexpr std::int64_t kWorkPerTask = 1 << 18;
constexpr std::int64_t kValuesPerQuantizeTask = 1 << 15;
// A task's private tile, on the stack of the thread that runs it.
constexpr std::int64_t kTileRows = 48;
constexpr std::int64_t kTilePanels = 8;

// What rows are cut into multiples of.
std::int64_t row_step(std::int64_t rows) { return rows < 2 * kManyRows ? kFewRows : kManyRows; }

// Into how many tasks to cut `work` multiply-adds. The session's number of threads can't be asked
// for; the machine's stands for it. Beyond one a thread, tasks come in whole rounds, up to four, so
// that no thread waits long for another.
std::int64_t task_count(std::int64_t work) {
  static const std::int64_t threads =
      std::max<std::int64_t>(1, std::thread::hardware_concurrency());
  const std::int64_t worth = std::max<std::int64_t>(1, work / kWorkPerTask);
  return worth <= threads ? worth : std::min<std::int64_t>(4, worth / threads) * threads;
}

// Cuts one block of memory into arrays.
class Layout {
 public:
  template <typename T>
  std::size_t add(std::int64_t count) {
    const std::size_t at = bytes_;
    bytes_ += ceil_div(static_cast<std::size_t>(count) * sizeof(T), kCacheLine) * kCacheLine;
    return at;
  }
  std::size_t bytes() const { return bytes_; }

 private:
  std::size_t bytes_ = 0;
};

std::size_t element_size(int type) { return type == abi::kFloat ? 4 : 2; }

class Runner {
 public:
  Runner(const OrtApi* api, OrtKernelContext* context, const TiledProduct& job)
      : api_(api),
        context_(context),
        job_(job),
        k_(job.weights.k),
        groups_(job.weights.group_count()),
        panels_(job.weights.panels()) {
    chunk_.stride = kernels::row_stride(k_);
    direct_ = job.element_type == abi::kFloat;
    for (const OutputRange& out : job.outputs) {
      if (out.column_begin < out.column_end && out.column_begin % kPanel != 0) direct_ = false;
    }
  }

  void run() {
    const std::int64_t row_bytes = chunk_.stride + (narrow() ? 4 * k_ : 0);
    const std::int64_t fit = kChunkBytes / row_bytes;
    const std::int64_t chunk = std::max(kFewRows, fit / row_step(fit) * row_step(fit));
    for (std::int64_t row = 0; row < job_.rows; row += chunk) {
      const std::int64_t rows = std::min(chunk, job_.rows - row);
      quantize(row, rows);
      multiply(row, rows);
    }
  }

 private:
  bool narrow() const { return job_.element_type != abi::kFloat; }

  void quantize(std::int64_t first_row, std::int64_t rows) {
    Layout layout;
    const std::size_t codes = layout.add<std::int8_t>(rows * chunk_.stride);
    const std::size_t scales = layout.add<float>(rows);
    const std::size_t sums = layout.add<std::int32_t>(rows * groups_);
    const std::size_t wide = layout.add<float>(narrow() ? rows * k_ : 0);
    thread_local Scratch scratch;
    char* memory = scratch.get(layout.bytes());
    auto* row_codes = reinterpret_cast<std::int8_t*>(memory + codes);
    auto* row_scales = reinterpret_cast<float*>(memory + scales);
    auto* row_sums = reinterpret_cast<std::int32_t*>(memory + sums);
    chunk_.codes = row_codes;
    chunk_.scales = row_scales;
    chunk_.sums = row_sums;
    auto* wide_x = reinterpret_cast<float*>(memory + wide);

    const std::int64_t per_task = std::max<std::int64_t>(1, kValuesPerQuantizeTask / k_);
    auto task = [&](std::size_t index) {
      const std::int64_t begin = static_cast<std::int64_t>(index) * per_task;
      const std::int64_t end = std::min(rows, begin + per_task);
      for (std::int64_t r = begin; r < end; ++r) {
        const float* x = row_of_x(first_row + r, wide_x + r * k_);
        job_.kernels.quantize({x, k_, job_.weights.group_size, job_.static_scale,
                               row_codes + r * chunk_.stride, chunk_.stride, row_scales + r,
                               row_sums + r * groups_});
      }
    };
    parallel_for(api_, context_, static_cast<std::size_t>(ceil_div(rows, per_task)), task);
  }

  // In float32: where it lies, or widened into `wide`.
  const float* row_of_x(std::int64_t row, float* wide) const {
    if (!narrow()) return static_cast<const float*>(job_.x) + row * k_;
    const auto* source = static_cast<const std::uint16_t*>(job_.x) + row * k_;
    const bool half = job_.element_type == abi::kFloat16;
    (half ? job_.kernels.widen_f16 : kernels::widen_bf16)(source, wide, k_);
    return wide;
  }

  // Cuts the result into tasks: panels first, in fours as the kernels take them, then rows.
  void multiply(std::int64_t first_row, std::int64_t rows) const {
    const std::int64_t wanted = task_count(rows * k_ * job_.weights.n);
    const std::int64_t quads = ceil_div(panels_, 4);
    const std::int64_t across = std::min(wanted, quads);
    const std::int64_t step = row_step(rows);
    const std::int64_t down = std::min(ceil_div(wanted, across), ceil_div(rows, step));
    const std::int64_t rows_per_task = ceil_div(ceil_div(rows, step), down) * step;
    auto task = [&](std::size_t index) {
      const std::int64_t i = static_cast<std::int64_t>(index);
      const std::int64_t column = i / down;
      const std::int64_t row = i % down * rows_per_task;
      const std::int64_t panel = quads * column / across * 4;
      const std::int64_t panel_end = std::min(panels_, quads * (column + 1) / across * 4);
      const std::int64_t row_end = std::min(rows, row + rows_per_task);
      if (direct_) {
        write_direct(first_row, row, row_end, panel, panel_end);
      } else {
        write_converted(first_row, row, row_end, panel, panel_end);
      }
    };
    parallel_for(api_, context_, static_cast<std::size_t>(across * down), task);
  }

  // Rows are counted from the chunk's first.
  void multiply_tile(const kernels::Tile& tile) const {
    job_.kernels.linear[job_.form](chunk_, job_.weights, tile);
  }

  // Every output starts on a panel and is float: kernels write in place.
  void write_direct(std::int64_t first_row, std::int64_t row, std::int64_t row_end,
                    std::int64_t panel, std::int64_t panel_end) const {
    for (const OutputRange& out : job_.outputs) {
      const std::int64_t begin = std::max(panel, out.column_begin / kPanel);
      const std::int64_t end = std::min(panel_end, ceil_div(out.column_end, kPanel));
      if (begin >= end || out.data == nullptr) continue;
      const std::int64_t width = out.column_end - out.column_begin;
      float* to = static_cast<float*>(out.data) + (first_row + row) * width +
                  (begin * kPanel - out.column_begin);
      multiply_tile({row, row_end, begin, end, out.column_end, to, width});
    }
  }

  void write_converted(std::int64_t first_row, std::int64_t row_begin, std::int64_t row_end,
                       std::int64_t panel_begin, std::int64_t panel_end) const {
    constexpr std::int64_t kWidth = kTilePanels * kPanel;
    alignas(kCacheLine) float tile[kTileRows * kWidth];
    for (std::int64_t panel = panel_begin; panel < panel_end; panel += kTilePanels) {
      const std::int64_t last_panel = std::min(panel_end, panel + kTilePanels);
      for (std::int64_t row = row_begin; row < row_end; row += kTileRows) {
        const std::int64_t last_row = std::min(row_end, row + kTileRows);
        multiply_tile({row, last_row, panel, last_panel, job_.weights.n, tile, kWidth});
        for (std::int64_t r = row; r < last_row; ++r) {
          scatter(tile + (r - row) * kWidth, first_row + r, panel * kPanel,
                  std::min(job_.weights.n, last_panel * kPanel));
        }
      }
    }
  }

  // Columns [begin, end) of one row, to the outputs they belong to, in their type.
  void scatter(const float* from, std::int64_t row, std::int64_t begin, std::int64_t end) const {
    for (const OutputRange& out : job_.outputs) {
      const std::int64_t first = std::max(begin, out.column_begin);
      const std::int64_t count = std::min(end, out.column_end) - first;
      if (count <= 0 || out.data == nullptr) continue;
      const std::int64_t at =
          row * (out.column_end - out.column_begin) + (first - out.column_begin);
      char* to = static_cast<char*>(out.data) +
                 static_cast<std::size_t>(at) * element_size(job_.element_type);
      const float* source = from + (first - begin);
      if (job_.element_type == abi::kFloat) {
        std::copy(source, source + count, reinterpret_cast<float*>(to));
      } else {
        const bool half = job_.element_type == abi::kFloat16;
        (half ? job_.kernels.narrow_f16 : kernels::narrow_bf16)(
            source, reinterpret_cast<std::uint16_t*>(to), count);
      }
    }
  }

  const OrtApi* api_;
  OrtKernelContext* context_;
  const TiledProduct& job_;
  const std::int64_t k_, groups_, panels_;
  bool direct_;
  kernels::QuantizedRows chunk_{};
};

}  // namespace

void run(const OrtApi* api, OrtKernelContext* context, const TiledProduct& product) {
  Runner(api, context, product).run();
}

}  // namespace qc::ops
