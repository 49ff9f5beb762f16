#include "cuda/testing/emulator.h"

#include <ucontext.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <memory>
#include <vector>

namespace qc::cuda::emulator {

dim3 g_thread, g_block, g_grid;

namespace {

constexpr std::size_t kStackBytes = 256 << 10;
constexpr std::size_t kCopyBytes = 16;
constexpr int kRubbish = 0xa5;

enum class State { kReady, kInWarp, kInBlock, kDone };

struct Copy {
  void* to;
  unsigned char bytes[kCopyBytes];
  int group;
};

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  State state;
  dim3 index;
  WarpCall call;
  WarpInstruction instruction;
  std::vector<Copy> copies;
  int groups;          // committed so far
  bool copies_hidden;  // have arrived, but not been shown to wgmma
  bool in_order;       // begin_wgmma was called since the last wait
  bool uncommitted;    // there are products that were not committed
};

// A product of a warpgroup that nobody has waited for.
struct Product {
  std::size_t first;  // thread
  WgmmaOperands operands[kGroupLanes];
  void* results[kGroupLanes];
  std::int32_t sums[kGroupLanes][kWgmmaSums];  // before the product
  bool continues;  // an earlier one with the same results, and adds to what that will give
};

struct Kernel {
  dim3 grid;
  int threads;
  bool overlap;
  std::function<void()> thread;
};

// A block that runs; there are two while a kernel waits for the one before it.
struct Block {
  ucontext_t scheduler;
  std::vector<std::unique_ptr<Fiber>> fibers;  // kept, with their stacks
  std::size_t threads = 0;
  Fiber* running = nullptr;
  const std::function<void()>* thread = nullptr;
  std::vector<std::unique_ptr<Product>> products;
};

Block g_blocks[2];
Block* g_now = g_blocks;
std::deque<Kernel> g_queue;
bool g_reverse = false;

void enter() {
  (*g_now->thread)();
  g_now->running->state = State::kDone;
  swapcontext(&g_now->running->context, &g_now->scheduler);
}

void yield(State state) {
  Fiber& self = *g_now->running;
  self.state = state;
  swapcontext(&self.context, &g_now->scheduler);
}

std::size_t index_of(const Fiber& fiber) { return fiber.index.x; }

void prepare(std::size_t threads, const std::function<void()>& thread) {
  while (g_now->fibers.size() < threads) {
    auto fiber = std::make_unique<Fiber>();
    fiber->stack = std::make_unique<char[]>(kStackBytes);
    g_now->fibers.push_back(std::move(fiber));
  }
  g_now->threads = threads;
  g_now->thread = &thread;
  g_now->products.clear();
  for (std::size_t i = 0; i < threads; ++i) {
    Fiber& fiber = *g_now->fibers[i];
    fiber.state = State::kReady;
    fiber.index = dim3(static_cast<unsigned>(i), 0, 0);
    fiber.copies.clear();
    fiber.groups = 0;
    fiber.copies_hidden = fiber.in_order = fiber.uncommitted = false;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStackBytes;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, enter, 0);
  }
}

// Lets the threads on that all threads of the block have been waiting for.
void release_block() {
  for (std::size_t i = 0; i < g_now->threads; ++i) {
    if (g_now->fibers[i]->state != State::kInBlock) return;
  }
  for (std::size_t i = 0; i < g_now->threads; ++i) g_now->fibers[i]->state = State::kReady;
}

void run_block() {
  for (std::size_t done = 0; done < g_now->threads;) {
    bool moved = false;
    for (std::size_t i = 0; i < g_now->threads; ++i) {
      Fiber& fiber = *g_now->fibers[g_reverse ? g_now->threads - 1 - i : i];
      if (fiber.state != State::kReady) continue;
      moved = true;
      g_now->running = &fiber;
      g_thread = fiber.index;
      swapcontext(&g_now->scheduler, &fiber.context);
      if (fiber.state == State::kDone) ++done;
    }
    if (!moved) fail("threads wait for others that never come");
    release_block();
  }
}

}  // namespace

void fail(const char* what) {
  std::fprintf(stderr, "emulated GPU: %s (block %u %u %u, thread %u)\n", what, g_block.x, g_block.y,
               g_block.z, g_thread.x);
  std::abort();
}

void set_reverse(bool reverse) { g_reverse = reverse; }

namespace {

void run(const Kernel& kernel) {
  const dim3 grid = kernel.grid;
  const std::uint64_t blocks = std::uint64_t{grid.x} * grid.y * grid.z;
  for (std::uint64_t i = 0; i < blocks; ++i) {
    const std::uint64_t at = g_reverse ? blocks - 1 - i : i;
    g_grid = grid;
    g_block = dim3(static_cast<unsigned>(at % grid.x), static_cast<unsigned>(at / grid.x % grid.y),
                   static_cast<unsigned>(at / grid.x / grid.y));
    prepare(static_cast<std::size_t>(kernel.threads), kernel.thread);
    run_block();
  }
}

Kernel take(std::size_t index) {
  const auto at = g_queue.begin() + static_cast<std::ptrdiff_t>(index);
  Kernel kernel = std::move(*at);
  g_queue.erase(at);
  return kernel;
}

}  // namespace

void enqueue(dim3 grid, int threads, bool overlap, std::function<void()> thread) {
  if (threads % kLanes != 0) fail("a warp is not whole");
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.y > 65535 || grid.z > 65535) {
    fail("a grid that CUDA refuses");
  }
  if (!overlap) finish();
  g_queue.push_back({grid, threads, overlap, std::move(thread)});
}

void finish() {
  while (!g_queue.empty()) {
    // One that may overlap the one before it begins first, and runs that when it has to.
    const bool overlaps = g_queue.size() > 1 && g_queue[1].overlap;
    run(take(overlaps ? 1 : 0));
  }
}

void wait_for_previous_kernel() {
  if (g_queue.empty()) return;
  wait_for_block();
  if (g_queue.empty()) return;  // another thread was here first
  const Kernel before = take(0);
  const dim3 thread = g_thread, block = g_block, grid = g_grid;
  g_now = g_blocks + 1;
  run(before);
  g_now = g_blocks;
  g_thread = thread;
  g_block = block;
  g_grid = grid;
}

void wait_for_block() { yield(State::kInBlock); }

void call_together(int lanes, WarpInstruction instruction, const void* immediate,
                   const void* operands, void* result) {
  Fiber& self = *g_now->running;
  self.call = {operands, result};
  self.instruction = instruction;
  const auto count = static_cast<std::size_t>(lanes);
  const std::size_t first = index_of(self) / count * count;
  for (std::size_t i = first; i < first + count; ++i) {
    const Fiber& other = *g_now->fibers[i];
    if (&other == &self) continue;
    if (other.state == State::kInWarp && other.instruction == instruction) continue;
    if (other.state == State::kInWarp && lanes == kLanes) {
      fail("the lanes of a warp meet different instructions");
    }
    yield(State::kInWarp);
    return;
  }
  WarpCall calls[kGroupLanes];
  for (std::size_t i = 0; i < count; ++i) {
    Fiber& lane = *g_now->fibers[first + i];
    calls[i] = lane.call;
    lane.state = State::kReady;
  }
  instruction(calls, immediate);
}

void copy_async(void* shared, const void* from, bool present) {
  if (reinterpret_cast<std::uintptr_t>(shared) % kCopyBytes != 0 ||
      reinterpret_cast<std::uintptr_t>(from) % kCopyBytes != 0) {
    fail("a copy is not aligned");
  }
  Copy copy{shared, {}, g_now->running->groups};
  if (present) std::memcpy(copy.bytes, from, kCopyBytes);
  std::memset(shared, kRubbish, kCopyBytes);
  g_now->running->copies.push_back(copy);
}

void commit_copies() { ++g_now->running->groups; }

void wait_for_copies(int pending) {
  Fiber& self = *g_now->running;
  const auto late = [&](const Copy& copy) { return copy.group >= self.groups - pending; };
  for (const Copy& copy : self.copies) {
    if (late(copy)) continue;
    std::memcpy(copy.to, copy.bytes, kCopyBytes);
    self.copies_hidden = true;
  }
  self.copies.erase(std::remove_if(self.copies.begin(), self.copies.end(),
                                   [&](const Copy& copy) { return !late(copy); }),
                    self.copies.end());
}

// The fragments of mma.m16n8k32 with 8-bit operands, as the PTX manual gives them. With g = lane /
// 4 and t = lane % 4, byte i of a lane's A lies in row g (i < 4 or 8 <= i < 12) or g + 8, and in k
// = 4 t + i % 4, plus 16 from i = 8 on; byte i of its B in k = 4 t + i % 4, plus 16 from i = 4 on,
// and in column g; value i of C and D in row g (i < 2) or g + 8, and in column 2 t + i % 2.
template <typename Byte>
void mma(const WarpCall* lanes) {
  std::int32_t a[16][32], b[32][8];
  for (int lane = 0; lane < kLanes; ++lane) {
    const auto& from = *static_cast<const MmaOperands*>(lanes[lane].operands);
    const int g = lane / 4, t = lane % 4;
    for (int i = 0; i < 16; ++i) {
      const int row = i < 4 || (i >= 8 && i < 12) ? g : g + 8;
      const int k = 4 * t + i % 4 + (i >= 8 ? 16 : 0);
      a[row][k] = static_cast<Byte>(from.a[i / 4] >> (i % 4 * 8));
    }
    for (int i = 0; i < 8; ++i) {
      const int k = 4 * t + i % 4 + (i >= 4 ? 16 : 0);
      b[k][g] = static_cast<std::int8_t>(from.b[i / 4] >> (i % 4 * 8));
    }
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    const auto& from = *static_cast<const MmaOperands*>(lanes[lane].operands);
    auto* d = static_cast<std::int32_t*>(lanes[lane].result);
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + (i < 2 ? 0 : 8), column = lane % 4 * 2 + i % 2;
      std::int32_t sum = from.c[i];
      for (int k = 0; k < 32; ++k) sum += a[row][k] * b[k][column];
      d[i] = sum;
    }
  }
}

void mma_u8_s8(const WarpCall* lanes, const void*) { mma<std::uint8_t>(lanes); }
void mma_s8_s8(const WarpCall* lanes, const void*) { mma<std::int8_t>(lanes); }

void shuffle_xor(const WarpCall* lanes, const void* mask) {
  const int bits = *static_cast<const int*>(mask);
  for (int lane = 0; lane < kLanes; ++lane) {
    std::memcpy(lanes[lane].result, lanes[lane ^ bits].operands, 4);
  }
}

void show_to_wgmma() { g_now->running->copies_hidden = false; }
void begin_wgmma() { g_now->running->in_order = true; }
void commit_wgmma() { g_now->running->uncommitted = false; }

void wgmma_u8_s8(const WarpCall* lanes, const void*) {
  auto product = std::make_unique<Product>();
  product->first = index_of(*g_now->running) / kGroupLanes * kGroupLanes;
  for (std::size_t i = 0; i < g_now->threads; ++i) {
    if (g_now->fibers[i]->copies_hidden) fail("wgmma reads copies that were not shown to it");
  }
  product->continues = false;
  for (const auto& earlier : g_now->products) {
    if (earlier->results[0] == lanes[0].result) product->continues = true;
  }
  for (std::size_t i = 0; i < kGroupLanes; ++i) {
    Fiber& lane = *g_now->fibers[product->first + i];
    if (!lane.in_order) fail("wgmma without the fence before it");
    lane.uncommitted = true;
    product->operands[i] = *static_cast<const WgmmaOperands*>(lanes[i].operands);
    product->results[i] = lanes[i].result;
    if (product->operands[i].shared != product->operands[0].shared) {
      fail("a warpgroup disagrees about the matrix in shared memory");
    }
    std::memcpy(product->sums[i], lanes[i].result, sizeof product->sums[i]);
    std::memset(lanes[i].result, kRubbish, sizeof product->sums[i]);
  }
  if (reinterpret_cast<std::uintptr_t>(product->operands[0].shared) % 256 != 0) {
    fail("a swizzled matrix is not aligned");
  }
  g_now->products.push_back(std::move(product));
}

// m64n64k32. A and D are those of mma.m16n8k32 for rows 16 w .. 16 w + 15 in warp w, D for each 8
// columns. B lies as [64 columns, 32 bytes]; 32-byte swizzle flips bit 4 of an address by bit 7.
void multiply(const Product& product) {
  for (int warp = 0; warp < kGroupLanes / kLanes; ++warp) {
    for (int tile = 0; tile < kWgmmaSums / 4; ++tile) {
      MmaOperands operands[kLanes];
      WarpCall lanes[kLanes];
      for (int i = 0; i < kLanes; ++i) {
        const int lane = warp * kLanes + i;
        MmaOperands& of_lane = operands[i];
        std::memcpy(of_lane.a, product.operands[lane].a, sizeof of_lane.a);
        for (int half = 0; half < 2; ++half) {
          const int at = (8 * tile + i / 4) * 32 + 16 * half + i % 4 * 4;
          std::memcpy(&of_lane.b[half], product.operands[0].shared + (at ^ (at >> 3 & 16)), 4);
        }
        std::int32_t* d = static_cast<std::int32_t*>(product.results[lane]) + 4 * tile;
        const std::int32_t* c = product.continues ? d : product.sums[lane] + 4 * tile;
        std::copy(c, c + 4, of_lane.c);
        lanes[i] = {&of_lane, d};
      }
      mma_u8_s8(lanes, nullptr);
    }
  }
}

void wait_for_wgmma() {
  Fiber& self = *g_now->running;
  if (self.uncommitted) fail("wgmma was waited for, but not committed");
  self.in_order = false;
  const std::size_t first = index_of(self) / kGroupLanes * kGroupLanes;
  for (auto at = g_now->products.begin(); at != g_now->products.end();) {
    if ((*at)->first == first) {
      multiply(**at);
      at = g_now->products.erase(at);
    } else {
      ++at;
    }
  }
}

}  // namespace qc::cuda::emulator
