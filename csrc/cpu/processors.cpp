#include "processors.h"

#include <algorithm>
#include <climits>
#include <cstdio>
#include <cstring>
#include <string>
#include <thread>

#include "system.h"

namespace {

int processors_of_mask() {
  // If OMP_PROC_BIND is set, the OpenMP runtime has bound this thread to one processor, but remembers its earlier mask.
  using Processors = int (*)();
  static const auto openmp_processors = reinterpret_cast<Processors>(symbol_of_process("omp_get_num_procs"));
  if (openmp_processors) return openmp_processors();
#if defined(__linux__)
  cpu_set_t sets[8];  // room for 8192 processors
  if (sched_getaffinity(0, sizeof sets, sets) == 0) return CPU_COUNT_S(sizeof sets, sets);
#elif defined(_WIN32)
  // Both masks are 0 in a process with threads in several groups of 64 processors.
  DWORD_PTR own = 0, all = 0;
  if (GetProcessAffinityMask(GetCurrentProcess(), &own, &all) && own) return __builtin_popcountll(own);
#endif
  return static_cast<int>(std::thread::hardware_concurrency());
}

#if defined(__linux__)
constexpr const char* kRead = "re";  // children do not inherit the file
#else
constexpr const char* kRead = "r";
#endif

// The first line of a file. Empty if there is no such file.
std::string first_line(const std::string& path) {
  char text[4096] = "";
  std::FILE* file = std::fopen(path.c_str(), kRead);
  if (file && !std::fgets(text, sizeof text, file)) text[0] = 0;
  if (file) std::fclose(file);
  text[std::strcspn(text, "\n")] = 0;
  return text;
}

int own_quota() {
  char line[4096];
  int quota = INT_MAX;
  std::FILE* file = std::fopen("/proc/self/cgroup", kRead);
  while (file && std::fgets(line, sizeof line, file)) {
    line[std::strcspn(line, "\n")] = 0;
    if (std::strncmp(line, "0::/", 4) == 0) quota = splat_ssim_cpu_quota("/sys/fs/cgroup", line + 3);
  }
  if (file) std::fclose(file);
  return quota;
}

}  // namespace

int splat_ssim_cpu_quota(const char* root, const char* group) {
  int smallest = INT_MAX;
  for (std::string path = group;; path.erase(path.rfind('/'))) {
    // "200000 100000" grants 200000 microseconds of CPU time in every 100000. Without a quota it is "max 100000".
    long quota = 0, period = 0;
    const std::string line = first_line(root + path + "/cpu.max");
    if (std::sscanf(line.c_str(), "%ld %ld", &quota, &period) == 2 && quota > 0 && period > 0)
      smallest = static_cast<int>(std::min<long>(smallest, (quota + period - 1) / period));
    if (path.find('/') == std::string::npos) return smallest;
  }
}

int splat_ssim_processors(void) {
  static const int quota = own_quota();
  return std::max(1, std::min(processors_of_mask(), quota));
}
