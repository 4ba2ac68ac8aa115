// Marks what the shared library shows; everything else is hidden (-fvisibility=hidden).
#pragma once

#define SPLAT_EXPORT __attribute__((visibility("default")))
