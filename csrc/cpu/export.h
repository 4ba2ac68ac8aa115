// Marks what the shared library shows; everything else is hidden (-fvisibility=hidden, and on Windows by itself).
#pragma once

#if defined(_WIN32)
#define SPLAT_EXPORT __declspec(dllexport)
#else
#define SPLAT_EXPORT __attribute__((visibility("default")))
#endif
