// A recorded launch, shared by host and Python (splat_ssim/ops/_cuda_recording.py mirrors it).
#pragma once

#include "problem.h"

// The launchers of launch.cpp, in the order of LAUNCHERS in Python.
enum RecordedLauncher {
  kRecordedSsim = 0,
  kRecordedPad = 1,
  kRecordedFold = 2,
  kRecordedL1 = 3,
  kRecordedReduce = 4,
  kRecordedScale = 5,
};

// A pointer in an argument. It is stored `place` bytes into the argument and points `offset` bytes into the tensor of
// slot `slot`.
struct RecordedPointer {
  int place, slot;
  Int64 offset;
};
static_assert(sizeof(RecordedPointer) == 16, "as in splat_ssim/ops/_cuda_recording.py");

struct RecordedLaunch {
  int launcher, bytes;
  const void* argument;  // its pointers are stale; a replay replaces them
  const RecordedPointer* pointer;
  Int64 pointers;
};
static_assert(sizeof(RecordedLaunch) == 32, "as in splat_ssim/ops/_cuda_recording.py");

constexpr int kMaxArgument = 896;
static_assert(sizeof(SsimProblem) <= kMaxArgument && sizeof(SsimPadding) <= kMaxArgument, "the largest arguments");
