#include "cuda/testing/emulator.h"

#include <ucontext.h>

#include <cstdio>
#include <cstdlib>
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
  bool committed;
};

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  State state;
  dim3 index;
  WarpCall call;
  WarpInstruction instruction;
  std::vector<Copy> copies;
};

// The block that runs.
struct Block {
  ucontext_t scheduler;
  std::vector<std::unique_ptr<Fiber>> fibers;  // kept, with their stacks
  std::size_t threads = 0;
  Fiber* running = nullptr;
  const std::function<void()>* thread = nullptr;
};

Block g_now;
bool g_reverse = false;

void enter() {
  (*g_now.thread)();
  g_now.running->state = State::kDone;
  swapcontext(&g_now.running->context, &g_now.scheduler);
}

void yield(State state) {
  Fiber& self = *g_now.running;
  self.state = state;
  swapcontext(&self.context, &g_now.scheduler);
}

void prepare(std::size_t threads, const std::function<void()>& thread) {
  while (g_now.fibers.size() < threads) {
    auto fiber = std::make_unique<Fiber>();
    fiber->stack = std::make_unique<char[]>(kStackBytes);
    g_now.fibers.push_back(std::move(fiber));
  }
  g_now.threads = threads;
  g_now.thread = &thread;
  for (std::size_t i = 0; i < threads; ++i) {
    Fiber& fiber = *g_now.fibers[i];
    fiber.state = State::kReady;
    fiber.index = dim3(static_cast<unsigned>(i), 0, 0);
    fiber.copies.clear();
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStackBytes;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, enter, 0);
  }
}

// Lets the threads on that all threads of the block have been waiting for.
void release_block() {
  for (std::size_t i = 0; i < g_now.threads; ++i) {
    if (g_now.fibers[i]->state != State::kInBlock) return;
  }
  for (std::size_t i = 0; i < g_now.threads; ++i) g_now.fibers[i]->state = State::kReady;
}

void run_block() {
  for (std::size_t done = 0; done < g_now.threads;) {
    bool moved = false;
    for (std::size_t i = 0; i < g_now.threads; ++i) {
      Fiber& fiber = *g_now.fibers[g_reverse ? g_now.threads - 1 - i : i];
      if (fiber.state != State::kReady) continue;
      moved = true;
      g_now.running = &fiber;
      g_thread = fiber.index;
      swapcontext(&g_now.scheduler, &fiber.context);
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

void run(dim3 grid, int threads, const std::function<void()>& thread) {
  if (threads % kLanes != 0) fail("a warp is not whole");
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.y > 65535 || grid.z > 65535) {
    fail("a grid that CUDA refuses");
  }
  const std::uint64_t blocks = std::uint64_t{grid.x} * grid.y * grid.z;
  for (std::uint64_t i = 0; i < blocks; ++i) {
    const std::uint64_t at = g_reverse ? blocks - 1 - i : i;
    g_grid = grid;
    g_block = dim3(static_cast<unsigned>(at % grid.x), static_cast<unsigned>(at / grid.x % grid.y),
                   static_cast<unsigned>(at / grid.x / grid.y));
    prepare(static_cast<std::size_t>(threads), thread);
    run_block();
  }
}

void wait_for_block() { yield(State::kInBlock); }

void call_together(WarpInstruction instruction, const void* immediate, const void* operands,
                   void* result) {
  Fiber& self = *g_now.running;
  self.call = {operands, result};
  self.instruction = instruction;
  const std::size_t first = self.index.x / kLanes * kLanes;
  for (std::size_t i = first; i < first + kLanes; ++i) {
    const Fiber& other = *g_now.fibers[i];
    if (&other == &self) continue;
    if (other.state == State::kInWarp && other.instruction == instruction) continue;
    if (other.state == State::kInWarp) fail("the lanes of a warp meet different instructions");
    yield(State::kInWarp);
    return;
  }
  WarpCall calls[kLanes];
  for (std::size_t i = 0; i < kLanes; ++i) {
    Fiber& lane = *g_now.fibers[first + i];
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
  Copy copy{shared, {}, false};
  if (present) std::memcpy(copy.bytes, from, kCopyBytes);
  std::memset(shared, kRubbish, kCopyBytes);
  g_now.running->copies.push_back(copy);
}

void commit_copies() {
  for (Copy& copy : g_now.running->copies) copy.committed = true;
}

void wait_for_copies() {
  std::vector<Copy> late;
  for (const Copy& copy : g_now.running->copies) {
    if (copy.committed) {
      std::memcpy(copy.to, copy.bytes, kCopyBytes);
    } else {
      late.push_back(copy);
    }
  }
  g_now.running->copies = late;
}

// The fragments of mma.m16n8k32 with 8-bit operands, as the PTX manual gives them. With g = lane /
// 4 and t = lane % 4, byte i of a lane's A lies in row g (i < 4 or 8 <= i < 12) or g + 8, and in k
// = 4 t + i % 4, plus 16 from i = 8 on; byte i of its B in k = 4 t + i % 4, plus 16 from i = 4 on,
// and in column g; value i of C and D in row g (i < 2) or g + 8, and in column 2 t + i % 2.
void mma_s8_s8(const WarpCall* lanes, const void*) {
  std::int32_t a[16][32], b[32][8];
  for (int lane = 0; lane < kLanes; ++lane) {
    const auto& from = *static_cast<const MmaOperands*>(lanes[lane].operands);
    const int g = lane / 4, t = lane % 4;
    for (int i = 0; i < 16; ++i) {
      const int row = i < 4 || (i >= 8 && i < 12) ? g : g + 8;
      const int k = 4 * t + i % 4 + (i >= 8 ? 16 : 0);
      a[row][k] = static_cast<std::int8_t>(from.a[i / 4] >> (i % 4 * 8));
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

void shuffle_xor(const WarpCall* lanes, const void* mask) {
  const int bits = *static_cast<const int*>(mask);
  for (int lane = 0; lane < kLanes; ++lane) {
    std::memcpy(lanes[lane].result, lanes[lane ^ bits].operands, 4);
  }
}

}  // namespace qc::cuda::emulator
