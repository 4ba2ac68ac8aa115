#pragma once
#include "export.h"

extern "C" {

// How many processors the calling thread and the threads it starts may use, at least 1: those of its affinity mask, but
// no more than the CPU quota of its control group (cgroup v2) pays for. The mask is read at every call, which takes a
// fraction of a microsecond, the quota once.
SPLAT_EXPORT int splat_ssim_processors(void);

// The smallest quota of the control group `group` and of those around it, in processors, rounded up; INT_MAX where there
// is none. `root` is where control groups are mounted.
int splat_ssim_cpu_quota(const char* root, const char* group);
}
