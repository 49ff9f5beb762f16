// Calls kernels for a test that runs elsewhere, such as outside of an emulator. It reads commands
// from standard input and answers on standard output; numbers are 64 bits, in this machine's order:
//
//   a size bytes            -> address of a copy that ends where an unreadable page begins
//   r address size          -> bytes
//   s address               -> size bytes, of a string
//   c size name words[6]   -> what the function returns
//   f                       (frees all copies)
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "kernels/testing/test_interface.h"

namespace {

using Word = std::uint64_t;

constexpr int kWords = 6;

struct Mapping {
  void* base;
  std::size_t bytes;
};

std::vector<Mapping> mappings;

[[noreturn]] void fail(const char* why) {
  std::fprintf(stderr, "%s\n", why);
  std::exit(1);
}

void read(void* to, std::size_t bytes) {
  if (std::fread(to, 1, bytes, stdin) != bytes) fail("the input ends inside a command");
}

Word read_word() {
  Word word;
  read(&word, sizeof word);
  return word;
}

void write(const void* from, std::size_t bytes) { std::fwrite(from, 1, bytes, stdout); }

void write_word(Word word) { write(&word, sizeof word); }

template <typename T>
T* pointer(Word address) {
  return reinterpret_cast<T*>(static_cast<std::uintptr_t>(address));
}

Word address(const void* at) { return reinterpret_cast<std::uintptr_t>(at); }

// Unreadable pages lie on both sides.
void copy_in() {
  const std::size_t bytes = read_word();
  const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  const std::size_t room = bytes == 0 ? page : (bytes + page - 1) / page * page;
  void* base = mmap(nullptr, room + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (base == MAP_FAILED) fail("no memory");
  mappings.push_back({base, room + 2 * page});
  char* start = static_cast<char*>(base) + page;
  if (mprotect(start, room, PROT_READ | PROT_WRITE) != 0) fail("no access to memory");
  char* copy = start + room - bytes;
  read(copy, bytes);
  write_word(address(copy));
}

Word call(const std::string& name, const Word* w) {
  const auto number = [w](int i) { return static_cast<std::int64_t>(w[i]); };
  const auto small = [w](int i) { return static_cast<std::int32_t>(w[i]); };
  const char* isa = pointer<const char>(w[0]);
  if (name == "qc_cpu_flags") return qc_cpu_flags();
  if (name == "qc_choose") {
    return address(qc_choose(static_cast<std::uint32_t>(w[0]), pointer<const char>(w[1])));
  }
  if (name == "qc_table") {
    return qc_table(small(0), pointer<const char*>(w[1]), pointer<std::uint32_t>(w[2]));
  }
  if (name == "qc_quantize") {
    return qc_quantize(isa, pointer<const qc::kernels::QuantizeRow>(w[1]));
  }
  if (name == "qc_linear") {
    return qc_linear(isa, small(1), pointer<const qc::kernels::QuantizedRows>(w[2]),
                     pointer<const qc::kernels::PlaneWeights>(w[3]),
                     pointer<const qc::kernels::Tile>(w[4]));
  }
  if (name == "qc_convert") {
    return qc_convert(isa, small(1), small(2), pointer<const void>(w[3]), pointer<void>(w[4]),
                      number(5));
  }
  if (name == "qc_attend") return qc_attend(isa, pointer<const qc::kernels::AttentionRows>(w[1]));
  if (name == "qc_add_norm") return qc_add_norm(isa, pointer<const qc::kernels::NormRow>(w[1]));
  if (name == "qc_swiglu") {
    return qc_swiglu(isa, pointer<const float>(w[1]), pointer<const float>(w[2]), number(3),
                     pointer<float>(w[4]));
  }
  if (name == "qc_gelu") {
    return qc_gelu(isa, pointer<const float>(w[1]), number(2), static_cast<int>(number(3)),
                   pointer<float>(w[4]));
  }
  if (name == "qc_pack_keys") {
    qc_pack_keys(pointer<const float>(w[0]), number(1), number(2), number(3), pointer<float>(w[4]));
    return 0;
  }
  if (name == "qc_embedding") {
    qc_embedding(small(0), pointer<const qc::kernels::PlaneWeights>(w[1]), number(2),
                 pointer<float>(w[3]));
    return 0;
  }
  fail("no such function");
}

void call() {
  std::string name(read_word(), '\0');
  read(name.data(), name.size());
  Word words[kWords];
  for (Word& word : words) word = read_word();
  write_word(call(name, words));
}

void run(int command) {
  if (command == 'a') {
    copy_in();
  } else if (command == 'r') {
    const auto* from = pointer<const char>(read_word());
    write(from, read_word());
  } else if (command == 's') {
    const auto* from = pointer<const char>(read_word());
    write_word(std::strlen(from));
    write(from, std::strlen(from));
  } else if (command == 'c') {
    call();
  } else if (command == 'f') {
    for (const Mapping& mapping : mappings) munmap(mapping.base, mapping.bytes);
    mappings.clear();
  } else {
    fail("no such command");
  }
}

}  // namespace

int main() {
  for (int command = std::getchar(); command != EOF; command = std::getchar()) {
    run(command);
    std::fflush(stdout);
  }
  return 0;
}
