// Calls the kernels of a library, for every instruction set that the machine runs, and holds the results to float64
// values from a file: vectors LIBRARY FILE. Without torch and Python, so it runs wherever the library does.
//
// tests/vectors.py writes the file: numbers of 8 bytes, the lowest byte first, text aside.
//   "SPLATVEC", cases; of a case: kind, 12 parameters, checks; of a check: rule, bound (a double), first, stride, count,
//   then `count` float32 values (padded to 8 bytes). A check takes every `stride`-th result from `first` on.
#include <cstdint>
#include <cstring>
#include <functional>

#include "calls.h"

#if defined(_WIN32)
#include <windows.h>
#else
#include <dlfcn.h>
#endif

namespace {

#if defined(_WIN32)
void* open_library(const char* path) { return reinterpret_cast<void*>(LoadLibraryA(path)); }
void* find(void* library, const std::string& name) {
  return reinterpret_cast<void*>(GetProcAddress(reinterpret_cast<HMODULE>(library), name.c_str()));
}
#else
void* open_library(const char* path) { return dlopen(path, RTLD_NOW); }
void* find(void* library, const std::string& name) { return dlsym(library, name.c_str()); }
#endif

void take_kernels(void* library, const std::string& isa) {
  const auto kernel = [&](const std::string& name) {
    void* found = find(library, "splat_ssim_" + name + "_" + isa);
    require(found, "finding " + name + " for " + isa);
    return found;
  };
#define SPLAT_LOADED(name) kernels.name = reinterpret_cast<decltype(kernels.name)>(kernel(#name));
  FOR_EACH_KERNEL(SPLAT_LOADED)
#undef SPLAT_LOADED
}

class File {
 public:
  explicit File(const char* path) : file_(std::fopen(path, "rb")) {
    require(file_, std::string("opening ") + path);
    char magic[8];
    read(magic, sizeof magic);
    require(std::memcmp(magic, "SPLATVEC", sizeof magic) == 0, std::string(path) + " holds vectors");
  }
  int64_t integer() { return read_as<int64_t>(); }
  double real() { return read_as<double>(); }
  Values values(int64_t count) {
    Values found(static_cast<size_t>((count + 1) / 2 * 2));
    read(found.data(), found.size() * sizeof(float));
    found.resize(static_cast<size_t>(count));
    return found;
  }

 private:
  template <class T>
  T read_as() {
    T value;
    read(&value, sizeof value);
    return value;
  }
  void read(void* to, size_t bytes) { require(std::fread(to, 1, bytes, file_) == bytes, "the file is whole"); }
  std::FILE* file_;
};

enum Rule { kNorm, kOfLargest, kAbsolute };

struct Check {
  int64_t rule, first, stride;
  double bound;
  Values expected;

  // The error as a share of what is allowed.
  double error(const Values& result) const {
    double largest = 0, size = 0, squares = 0, all = 0;
    for (size_t i = 0; i < expected.size(); ++i) {
      const auto at = static_cast<size_t>(first + static_cast<int64_t>(i) * stride);
      require(at < result.size(), "a check lies within the results");
      const double truth = expected[i], difference = std::fabs(double(result[at]) - truth);
      if (std::isnan(difference)) return difference;
      largest = std::fmax(largest, difference), size = std::fmax(size, std::fabs(truth));
      squares += difference * difference, all += truth * truth;
    }
    if (rule == kNorm) return std::sqrt(squares / all) / bound;
    return largest / bound / (rule == kOfLargest ? size : 1);
  }
};

struct Case {
  std::string name;
  std::function<Values(int threads)> run;
  std::vector<Check> checks;
};

Case read_case(File& file) {
  const int64_t kind = file.integer();
  int64_t p[12];
  for (int64_t& number : p) number = file.integer();
  Case found;
  const Images images{p[0], p[1], p[2], p[3], p[4], static_cast<Padding>(p[5]), static_cast<int>(p[6]), p[7] != 0,
                      p[8] != 0, p[9] != 0, p[10], 0, p[11] != 0};
  if (kind == 0) found = {"ssim", [=](int threads) { return run_ssim(images, threads); }, {}};
  if (kind == 1) found = {"ms_ssim", [=](int threads) { return run_ms_ssim(images, threads); }, {}};
  const Scene scene{p[0], p[1], p[2], p[3], p[4], p[5] != 0, p[6] != 0};
  if (kind == 2) found = {"rasterizer", [=](int threads) { return run_rasterizer(scene, threads); }, {}};
  if (kind == 3) found = {"voxelizer", [=](int threads) { return run_voxelizer(p[0], p[1], threads); }, {}};
  if (kind == 4) found = {"adam", run_adam, {}};
  if (kind == 5) {
    found = {"projector", [=](int t) { return run_projector(p[0], p[1], p[2], p[3], p[4] != 0, t); }, {}};
  }
  require(found.run != nullptr, "the kind of a case is known");
  for (int64_t left = file.integer(); left > 0; --left) {
    Check check{};
    check.rule = file.integer(), check.bound = file.real(), check.first = file.integer(), check.stride = file.integer();
    check.expected = file.values(file.integer());
    found.checks.push_back(check);
  }
  return found;
}

}  // namespace

int main(int count, char** arguments) {
  require(count == 3, "two arguments, LIBRARY and FILE");
  void* library = open_library(arguments[1]);
  require(library, std::string("loading ") + arguments[1]);
  File file(arguments[2]);
  std::vector<Case> cases;
  for (int64_t left = file.integer(); left > 0; --left) cases.push_back(read_case(file));
  const auto list = reinterpret_cast<const char* (*)()>(find(library, "splat_ssim_cpu_isas"));
  require(list, "finding splat_ssim_cpu_isas");
  const std::string isas = list();
  int checks = 0, failed = 0;
  for (size_t begin = 0; begin < isas.size();) {
    const size_t end = std::min(isas.find(',', begin), isas.size());
    const std::string isa = isas.substr(begin, end - begin);
    begin = end + 1;
    take_kernels(library, isa);
    double worst = 0;
    for (size_t i = 0; i < cases.size(); ++i) {
      for (int threads : {1, 3}) {
        const Values result = cases[i].run(threads);
        for (size_t k = 0; k < cases[i].checks.size(); ++k, ++checks) {
          const double error = cases[i].checks[k].error(result);
          worst = std::fmax(worst, error);
          if (error <= 1) continue;
          ++failed;
          std::printf("%s, case %zu (%s), check %zu, %d threads: %.2f times the bound\n", isa.c_str(), i,
                      cases[i].name.c_str(), k, threads, error);
        }
      }
    }
    std::printf("%s: %zu cases, the largest error is %.2f of its bound\n", isa.c_str(), cases.size(), worst);
  }
  std::printf("%d checks, %d failed\n", checks, failed);
  return failed ? 1 : 0;
}
