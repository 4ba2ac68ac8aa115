// Calls every CPU kernel with 1, 2, 3 and 8 threads, from two threads at once and after a fork, and
// checks that the outputs are the same bits. With --mistake it does what must be reported. scripts/sanitize.py builds it with one instruction set
// and all of csrc/cpu, under ThreadSanitizer and under AddressSanitizer and UndefinedBehaviorSanitizer.
//
// On its own it uses the pool of parallel.cpp. Linked with openmp.cpp it uses the OpenMP interface.
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <climits>
#include <cstring>
#include <functional>
#include <thread>

#include "../../csrc/cpu/parallel.h"
#include "../../csrc/cpu/processors.h"
#include "calls.h"

namespace {

// --- what is checked ---------------------------------------------------------------------------------------------

struct Case {
  std::string name;
  std::function<Values(int threads)> run;
};

std::vector<Case> all_cases() {
  std::vector<Case> cases;
  const auto ssim = [&](const std::string& name, const Images& images) {
    cases.push_back({name, [=](int threads) { return run_ssim(images, threads); }});
  };
  for (Padding padding : {kSame, kValid, kReflect, kReplicate}) {
    const std::string text = ", padding " + std::to_string(padding);
    ssim("images" + text, {1, 2, 1, 40, 45, padding});
    ssim("wide images" + text, {1, 1, 1, 270, 70, padding, 1, false, true});
    ssim("volumes" + text, {2, 1, 33, 40, 30, padding});
    ssim("a tall volume" + text, {1, 1, 25, 90, 21, padding, 1, false, true});
    ssim("interleaved volumes" + text, {1, 3, 18, 20, 24, padding, 2, true});
  }
  ssim("volumes without a gradient", {1, 2, 33, 60, 30, kSame, 0});
  ssim("channel means", {1, 2, 1, 40, 45, kValid, 0, false, false, true});
  ssim("channel means of volumes", {1, 1, 20, 24, 20, kValid, 3, false, false, true});
  ssim("other windows", {1, 1, 21, 40, 19, kSame, 3, false, false, false, 5, 1e-4});
  cases.push_back({"MS-SSIM", [](int threads) { return run_ms_ssim({2, 2, 1, 190, 200}, threads); }});
  cases.push_back({"MS-SSIM of volumes", [](int threads) { return run_ms_ssim({1, 2, 21, 60, 55}, threads); }});
  for (int64_t tile : {16, 32}) {
    const std::string text = " in tiles of " + std::to_string(tile);
    cases.push_back({"rasterizer" + text, [=](int t) { return run_rasterizer({700, 2, 70, 50, tile}, t); }});
    const Scene raw{300, 1, 33, 31, tile, true, true};
    cases.push_back({"raw rasterizer" + text, [=](int t) { return run_rasterizer(raw, t); }});
  }
  cases.push_back({"voxelizer", [](int threads) { return run_voxelizer(150, 1, threads); }});
  cases.push_back({"voxelizer with channels", [](int threads) { return run_voxelizer(150, 6, threads); }});
  for (bool cone : {true, false}) {
    const std::string text = cone ? " of a cone beam" : " of a parallel beam";
    cases.push_back({"projector" + text, [=](int threads) { return run_projector(60, 5, 23, 31, cone, threads); }});
  }
  cases.push_back({"adam", run_adam});
  return cases;
}

bool same_bits(const Values& a, const Values& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

void check(const std::vector<Case>& cases, const std::vector<Values>& expected, const std::vector<int>& numbers,
           const std::string& where) {
  for (size_t i = 0; i < cases.size(); ++i) {
    for (int threads : numbers)
      require(same_bits(cases[i].run(threads), expected[i]),
              cases[i].name + " with " + std::to_string(threads) + " threads" + where);
  }
}

void check_two_callers(const std::vector<Case>& cases, const std::vector<Values>& expected) {
  std::thread other([&] { check(cases, expected, {3}, ", from a second caller"); });
  check(cases, expected, {3}, ", beside a second caller");
  other.join();
}

// A child has none of its parent's threads.
void check_fork(const std::vector<Case>& cases, const std::vector<Values>& expected) {
  const pid_t child = fork();
  if (child == 0) {
    alarm(120);
    check(cases, expected, {3}, ", after a fork");
    std::_Exit(0);
  }
  int status = 0;
  require(waitpid(child, &status, 0) == child && status == 0, "the calls after a fork");
}

void write(const std::string& path, const char* text) {
  std::FILE* file = std::fopen(path.c_str(), "w");
  require(file && std::fputs(text, file) >= 0 && std::fclose(file) == 0, "writing " + path);
}

// The bounds of the number of threads.
void check_processors() {
  require(splat_ssim_processors() >= 1, "there is a processor");
  require(splat_ssim_usable_threads(1000000) == splat_ssim_processors(), "threads are bounded by the processors");
  require(splat_ssim_usable_threads(0) == 1, "there is a thread");
  char root[] = "/tmp/splat_ssim_XXXXXX";
  require(mkdtemp(root), "a temporary folder");
  const std::string outer = std::string(root) + "/outer", inner = outer + "/inner";
  require(mkdir(outer.c_str(), 0700) == 0 && mkdir(inner.c_str(), 0700) == 0, "folders of control groups");
  require(splat_ssim_cpu_quota(root, "/outer/inner") == INT_MAX, "no quota");
  write(inner + "/cpu.max", "max 100000\n");
  require(splat_ssim_cpu_quota(root, "/outer/inner") == INT_MAX, "a quota of max");
  write(outer + "/cpu.max", "250000 100000\n");
  require(splat_ssim_cpu_quota(root, "/outer/inner") == 3, "the quota of an outer group");
  require(splat_ssim_cpu_quota(root, "/") == INT_MAX, "no quota of the root");
  for (const std::string& path : {inner + "/cpu.max", outer + "/cpu.max"}) unlink(path.c_str());
  for (const std::string& path : {inner, outer, std::string(root)}) rmdir(path.c_str());
}

// A data race, and a read past the end of memory: each must be reported by the sanitizer for it.
void make_mistakes() {
  int count = 0, arrived = 0;
  parallel_for(2, 2, [&](int64_t, int) {
    // Both threads are here before either goes on; relaxed accesses put their increments in no order.
    __atomic_fetch_add(&arrived, 1, __ATOMIC_RELAXED);
    while (__atomic_load_n(&arrived, __ATOMIC_RELAXED) < 2) std::this_thread::yield();
    ++count;
  });
  const Values from(17);
  Values to(18);
  kernels.peak_copy(from.data(), to.data(), 18, 1);
}

}  // namespace

int main(int count, char** arguments) {
#define SPLAT_LINKED(name) kernels.name = SPLAT_KERNEL(name);
  FOR_EACH_KERNEL(SPLAT_LINKED)
#undef SPLAT_LINKED
  check_processors();
  require(splat_ssim_oversubscribe(1) == 0, "more threads than processors are not started at first");
  if (count > 1 && !std::strcmp(arguments[1], "--mistake")) make_mistakes();
  const std::vector<Case> cases = all_cases();
  std::vector<Values> expected;
  for (const Case& one : cases) expected.push_back(one.run(1));
  check(cases, expected, {2, 3, 8}, "");
  check_two_callers(cases, expected);
  check_fork(cases, expected);
  std::printf("%zu calls, the same bits for every number of threads\n", cases.size());
  return 0;
}
