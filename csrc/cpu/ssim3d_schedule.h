// The order in which the blocks of a volume's tile are computed, and which of them wait for others.
//
// A step is a forward block or a gradient block of kRows slices. A gradient block needs the forward blocks around it. A
// forward block overwrites slices of the ring that earlier gradient blocks needed. Steps are handed out in the order of
// the schedule, so that no step waits for one that nobody has begun. Within a step, a thread prefers the rows that it
// had in the previous step, because they are in its cache. That makes up for the waiting, and works best with the
// smallest ring.
#pragma once
#include "parallel.h"
#include "ssim_tile.h"

namespace {

struct Step {
  bool gradient;
  int64_t block;
};

struct Schedule {
  Span forward, gradient;  // slices
  int64_t forward_blocks, gradient_blocks, radius;
  int64_t ring_slices;  // slices that the ring of partials holds

  int64_t steps() const { return forward_blocks + gradient_blocks; }
  int64_t most_blocks() const { return most(forward_blocks, gradient_blocks); }

  // The number of forward blocks that gradient block k needs. It is handed out after them.
  int64_t forward_before(int64_t k) const {
    const int64_t own_end = least(gradient.begin + (k + 1) * kRows, gradient.end);
    return most(0, (least(own_end + radius, forward.end) - forward.begin + kRows - 1) / kRows);
  }

  // The number of gradient blocks that must be done before forward block i overwrites slices that they need.
  int64_t gradient_before(int64_t i) const {
    const int64_t overwritten = least(forward.begin + (i + 1) * kRows, forward.end) - 1 - ring_slices;
    const int64_t last = overwritten + radius - gradient.begin;
    return overwritten < forward.begin || last < 0 ? 0 : least(gradient_blocks, last / kRows + 1);
  }

  // Whether no forward block waits for a gradient block that is handed out after it.
  bool ring_suffices() const {
    for (int64_t i = 0, handed_out = 0; i < forward_blocks; ++i) {
      while (handed_out < gradient_blocks && forward_before(handed_out) <= i) ++handed_out;
      if (gradient_before(i) > handed_out) return false;
    }
    return true;
  }

  Step step(int64_t index) const {
    // Gradient block k is step k + forward_before(k). Bisection finds the number of gradient blocks before `index`.
    int64_t low = 0, high = gradient_blocks;  // gradient steps before `index`
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (middle + forward_before(middle) < index) low = middle + 1;
      else high = middle;
    }
    const bool is_gradient = low < gradient_blocks && low + forward_before(low) == index;
    return {is_gradient, is_gradient ? low : index - low};
  }
};

Schedule make_schedule(const Problem& problem, bool gradient) {
  Schedule schedule = {};
  const Span all = {0, problem.args->depth};
  schedule.radius = problem.axes[kSlices].radius;
  schedule.forward = problem.slices;
  schedule.forward_blocks = (schedule.forward.count() + kRows - 1) / kRows;
  if (!gradient) return schedule;
  schedule.gradient = problem.folds ? all.widened(schedule.radius) : all;
  schedule.gradient_blocks = (schedule.gradient.count() + kRows - 1) / kRows;
  schedule.ring_slices = least(schedule.forward.count(), kRows);
  while (!schedule.ring_suffices()) ++schedule.ring_slices;
  return schedule;
}

// Which work on a group of tiles has been taken, and which is done. A unit is a piece of a tile.
struct Progress {
  const Schedule& schedule;
  int64_t tiles, pieces;
  int32_t* counters;  // [steps, units]: whether it is taken; [tiles, steps]: how many pieces are done

  int64_t units() const { return tiles * pieces; }
  int64_t size() const { return schedule.steps() * (units() + tiles); }
  void clear() { std::memset(counters, 0, size_t(size()) * sizeof(int32_t)); }

  int64_t index(Step step) const { return step.block + (step.gradient ? schedule.forward_blocks : 0); }
  int32_t* done(int64_t tile) const { return counters + schedule.steps() * units() + tile * schedule.steps(); }

  // Takes a unit of a step that no other thread has taken.
  int64_t take(Step step, int64_t thread, int64_t threads) {
    int32_t* taken = counters + index(step) * units();
    int64_t unit = least(thread * units() / threads, units() - 1);
    while (__atomic_exchange_n(taken + unit, 1, __ATOMIC_RELAXED)) unit = (unit + 1) % units();
    return unit;
  }

  // Waits until all that the step needs is done.
  void wait(Step step, int64_t tile) const {
    const int32_t* forward = done(tile);
    const int32_t* gradient = forward + schedule.forward_blocks;
    const int32_t* needed = step.gradient ? forward : gradient;
    const int64_t before = step.gradient ? schedule.forward_before(step.block) : schedule.gradient_before(step.block);
    for (int64_t block = 0; block < before; ++block) splat_ssim_wait(needed + block, int32_t(pieces));
    // A block that folds back its padding adds to slices of the previous block.
    const bool folds = step.gradient && schedule.gradient.begin < 0 && step.block > 0;
    if (folds) splat_ssim_wait(gradient + step.block - 1, int32_t(pieces));
  }

  void finish(Step step, int64_t tile) { __atomic_fetch_add(done(tile) + index(step), 1, __ATOMIC_RELEASE); }
};

}  // namespace
