// Marks the symbols that the shared library exports. All others are hidden (by -fvisibility=hidden, and on Windows by
// default).
#pragma once

#if defined(_WIN32)
#define SPLAT_EXPORT __declspec(dllexport)
#else
#define SPLAT_EXPORT __attribute__((visibility("default")))
#endif
