// An allocator that places every CPU tensor of torch between two protected pages, touching one of
// them, so that a kernel that reads or writes past a tensor crashes at once. tests/guard.py compiles
// and loads it; it is not part of the package.
//
//   [protected page] [unused bytes] [tensor] [protected page]      kEnd
//   [protected page] [tensor] [unused bytes] [protected page]      kBegin
//
// Memory is filled with 0xff bytes, NaN as floats, or with 0x3f, 0.75 as floats: a result that depends on an unwritten
// or unused value differs between the two modes.
#include <c10/core/CPUAllocator.h>
#include <signal.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <map>
#include <mutex>
#include <new>

namespace {

enum Mode { kPlain, kEnd, kBegin };
Mode mode = kPlain;

// A tensor's memory and the mapping around it, protected pages included.
struct Block {
  char* mapping;
  std::size_t mapped;
  char* data;
  std::size_t bytes;
};

// By the address of the mapping. The fault handler reads it without the mutex: the process is about to end.
std::mutex mutex;
std::map<const char*, Block>& blocks() {
  static auto* found = new std::map<const char*, Block>;  // outlives the tensors that are freed at exit
  return *found;
}

std::size_t page_bytes() {
  static const auto found = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  return found;
}

void release(void* mapping) {
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = blocks().find(static_cast<const char*>(mapping));
  munmap(found->second.mapping, found->second.mapped);
  blocks().erase(found);
}

struct GuardAllocator final : c10::Allocator {
  c10::DataPtr allocate(std::size_t bytes) override {
    const c10::Device cpu(c10::DeviceType::CPU);
    if (mode == kPlain || bytes == 0) return c10::GetDefaultCPUAllocator()->allocate(bytes);
    const std::size_t page = page_bytes(), room = (bytes + page - 1) / page * page;
    void* mapping = mmap(nullptr, room + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapping == MAP_FAILED) throw std::bad_alloc();
    char* first = static_cast<char*>(mapping) + page;
    if (mprotect(first, room, PROT_READ | PROT_WRITE) != 0) throw std::bad_alloc();
    std::memset(first, mode == kEnd ? 0xff : 0x3f, room);
    char* data = mode == kEnd ? first + room - bytes : first;
    const std::lock_guard<std::mutex> lock(mutex);
    blocks()[static_cast<char*>(mapping)] = {static_cast<char*>(mapping), room + 2 * page, data, bytes};
    return {data, mapping, release, cpu};
  }
  void copy_data(void* to, const void* from, std::size_t bytes) const override { default_copy_data(to, from, bytes); }
};

struct sigaction previous;

// Prints which tensor was left and how, then restores the previous handler (Python's faulthandler).
void report(int, siginfo_t* info, void* context) {
  const char* address = static_cast<const char*>(info->si_addr);
  char text[200] = "guard: a fault outside all tensors\n";
  auto found = blocks().upper_bound(address);
  if (found != blocks().begin()) {
    const Block& block = (--found)->second;
    const char* end = block.data + block.bytes;
    if (address < block.mapping + block.mapped) {
      const char* access = "access";
#if defined(__x86_64__)
      constexpr long kWritten = 2;  // of the page fault's error code
      access = static_cast<ucontext_t*>(context)->uc_mcontext.gregs[REG_ERR] & kWritten ? "write" : "read";
#endif
      const bool behind = address >= end;
      std::snprintf(text, sizeof text, "guard: a %s %td bytes %s a tensor of %zu bytes\n", access,
                    behind ? address - end : block.data - address, behind ? "past the end of" : "before", block.bytes);
    }
  }
  (void)context;
  (void)!write(STDERR_FILENO, text, std::strlen(text));
  sigaction(SIGSEGV, &previous, nullptr);
}

}  // namespace

extern "C" {

// Makes this the allocator of CPU tensors. It guards nothing until guard_mode is called.
__attribute__((visibility("default"))) void guard_install() {
  static GuardAllocator allocator;
  c10::SetCPUAllocator(&allocator, 255);
  struct sigaction action = {};
  action.sa_sigaction = report;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  sigaction(SIGSEGV, &action, &previous);
}

// Guards the tensors made from now on: 0 not at all, 1 at their end, 2 at their beginning.
__attribute__((visibility("default"))) void guard_mode(int value) { mode = static_cast<Mode>(value); }
}
