// Functions that POSIX systems and Windows name differently: the process's number, yielding a thread's turn, aligned
// memory, and symbols of loaded libraries.
#pragma once
#include <cstddef>
#include <cstdlib>

#if defined(_WIN32)
#if !defined(WIN32_LEAN_AND_MEAN)
#define WIN32_LEAN_AND_MEAN
#endif
#if !defined(NOMINMAX)
#define NOMINMAX
#endif
#include <malloc.h>
#include <windows.h>
#else
#include <dlfcn.h>
#include <sched.h>
#include <unistd.h>
#endif

namespace {

#if defined(_WIN32)

// Windows has no fork, so the number of the process never changes.
using Process = DWORD;
inline Process this_process() { return GetCurrentProcessId(); }
inline void yield_turn() { SwitchToThread(); }
inline void* allocate_aligned(size_t bytes) { return _aligned_malloc(bytes, 64); }
inline void free_aligned(void* memory) { _aligned_free(memory); }
// Searches no library, because torch's OpenMP for Windows lacks GNU's interface.
inline void* symbol_of_process(const char*) { return nullptr; }

#else

using Process = pid_t;
inline Process this_process() { return getpid(); }
inline void yield_turn() { sched_yield(); }
// `bytes` is a multiple of 64.
inline void* allocate_aligned(size_t bytes) { return std::aligned_alloc(64, bytes); }
inline void free_aligned(void* memory) { std::free(memory); }
inline void* symbol_of_process(const char* name) { return dlsym(RTLD_DEFAULT, name); }

#endif

}  // namespace
