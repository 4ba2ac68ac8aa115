#pragma once
#include "export.h"

extern "C" {

// The number of processors that the calling thread and the threads it starts may use, at least 1. These are the
// processors in its affinity mask, but no more than the CPU quota of its control group (cgroup v2) allows. The mask is
// read at every call, which takes a fraction of a microsecond. The quota is read once.
SPLAT_EXPORT int splat_ssim_processors(void);

// The smallest quota of the control group `group` and its parents, in processors, rounded up. INT_MAX if there is none.
// `root` is where control groups are mounted.
int splat_ssim_cpu_quota(const char* root, const char* group);
}
