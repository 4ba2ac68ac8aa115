// The entry of GNU's OpenMP that csrc/cpu/parallel.cpp calls, with threads that ThreadSanitizer sees.
#include <thread>
#include <vector>

extern "C" __attribute__((visibility("default"))) void GOMP_parallel(void (*body)(void*), void* data, unsigned threads,
                                                                     unsigned) {
  std::vector<std::thread> team;
  for (unsigned thread = 1; thread < threads; ++thread) team.emplace_back(body, data);
  body(data);
  for (std::thread& member : team) member.join();
}
