// X-ray pictures of 3D Gaussians, and the gradients: P_c(ray) = sum over i of values_ic times the integral of
// exp(-q_i/2) along the ray where q_i <= 9; see ../xray_math.h and docs/xray.md.
//
// Forward finds the shadows of all Gaussians in some views at a time. Then every thread owns a band of rows and adds
// the shadows that touch it in their order, so the result does not depend on the number of threads. Backward: every
// Gaussian gathers its own gradient over the views, in their order.
#include "xray.h"

#include "parallel.h"

namespace {

constexpr int kXrayGroup = 4;                        // channels rendered at once
constexpr int64_t kXrayBatch = 64;                   // Gaussians a task takes
constexpr int kMaxBands = 256;                       // bands of rows at most
constexpr int64_t kShadowBytes = 32 << 20;           // scratch for shadows, unless one view takes more
constexpr double kRowTime = 1.0, kShadowTime = 4.0;  // of a row of a shadow, and of visiting a shadow

struct XrayGaussians {
  const float* means;   // (N, 3) world x, y, z
  const float* quats;   // (N, 4) w, x, y, z, of any length
  const float* scales;  // (N, 3) standard deviations, positive
  const float* values;  // (N, C)
  int64_t count, channels;
  SPLAT_INLINE void body(int64_t i, XrayBody& body) const {
    make_body(means + i * 3, quats + i * 4, scales + i * 3, body);
  }
};

// frame: origin, column, row, last, as `XrayGeometry.frames` has them.
bool read_view(const double* frame, XrayView& view) {
  for (int k = 0; k < 3; ++k) {
    view.origin[k] = frame[k];
    view.column[k] = frame[3 + k];
    view.row[k] = frame[6 + k];
    view.last[k] = frame[9 + k];
  }
  return complete_view(view);
}

// numbers: views, rows, columns, stride, cone.
bool read_detector(const int64_t* numbers, int64_t& views, Detector& detector) {
  views = numbers[0];
  if (views < 0 || numbers[1] < 1 || numbers[1] > (1 << 15) || numbers[2] < 1 || numbers[2] > (1 << 15)) return false;
  detector.height = static_cast<int>(numbers[1]);
  detector.width = static_cast<int>(numbers[2]);
  detector.stride = numbers[3];
  detector.cone = numbers[4] != 0;
  return detector.stride >= numbers[2] + kXraySlack && kXraySlack >= kLanes - 1;
}

// Picks the walk for a shadow.
template <template <class, bool> class VisitorFor, class State>
SPLAT_INLINE void walk(const XrayShadow& f, const Detector& detector, int begin, int end, State& state) {
  const bool narrow = f.high[0] - f.low[0] < Narrow::kWidth;
  if (narrow && detector.cone) {
    VisitorFor<Narrow, true> visitor(state);
    walk_shadow<Narrow, true>(f, detector, begin, end, visitor);
  } else if (narrow) {
    VisitorFor<Narrow, false> visitor(state);
    walk_shadow<Narrow, false>(f, detector, begin, end, visitor);
  } else if (detector.cone) {
    VisitorFor<Wide, true> visitor(state);
    walk_shadow<Wide, true>(f, detector, begin, end, visitor);
  } else {
    VisitorFor<Wide, false> visitor(state);
    walk_shadow<Wide, false>(f, detector, begin, end, visitor);
  }
}

// ---- forward

struct Picture {
  float* first;     // of the group's first channel
  int64_t channel;  // floats of a channel
  float values[kXrayGroup];
};

template <int kChannels>
struct AddShadow {
  template <class V, bool kCone>
  struct Visitor {
    typedef typename V::F F;
    Picture& picture;
    SPLAT_INLINE explicit Visitor(Picture& p) : picture(p) {}
    SPLAT_INLINE void begin() {}
    SPLAT_INLINE void row(int64_t offset, float, F y, F ratio, F) {
      const F integral = root(kCone ? y * ratio : y) * through(y);
      for (int c = 0; c < kChannels; ++c) {
        float* at = picture.first + c * picture.channel + offset;
        store<V>(at, integral * picture.values[c] + load<V>(at));
      }
    }
    SPLAT_INLINE void end(F) {}
  };
};

template <int kChannels>
SPLAT_INLINE void add_shadows(const XrayGaussians& gaussians, const XrayShadow* shadows, const Detector& detector,
                              int begin, int end, int64_t channel, float* picture) {
  const int64_t size = detector.height * detector.stride;
  Picture target{picture + channel * size, size, {}};
  for (int64_t i = 0; i < gaussians.count; ++i) {
    const XrayShadow& f = shadows[i];
    if (f.low[1] >= end || f.high[1] < begin) continue;
    for (int c = 0; c < kChannels; ++c) {
      target.values[c] = f.factor * gaussians.values[i * gaussians.channels + channel + c];
    }
    walk<AddShadow<kChannels>::template Visitor>(f, detector, begin, end, target);
  }
}

void add_band(const XrayGaussians& gaussians, const XrayShadow* shadows, const Detector& detector, int begin, int end,
              float* picture) {
  const int64_t size = detector.height * detector.stride;
  for (int64_t c = 0; c < gaussians.channels; ++c) {
    __builtin_memset(picture + c * size + begin * detector.stride, 0,
                     static_cast<uint64_t>((end - begin) * detector.stride) * sizeof(float));
  }
  for (int64_t c = 0; c < gaussians.channels;) {
    if (gaussians.channels - c >= kXrayGroup) {
      add_shadows<kXrayGroup>(gaussians, shadows, detector, begin, end, c, picture);
      c += kXrayGroup;
    } else {
      add_shadows<1>(gaussians, shadows, detector, begin, end, c++, picture);
    }
  }
}

// Cuts the rows into `bands` runs of about equal time. `time` has room for height + 1 numbers.
void balance(const XrayShadow* shadows, int64_t count, int height, int bands, double* time, int* boundaries) {
  for (int row = 0; row <= height; ++row) time[row] = 0;
  for (int64_t i = 0; i < count; ++i) {
    const XrayShadow& f = shadows[i];
    if (f.high[1] < f.low[1]) continue;
    const double rows = f.high[1] - f.low[1] + 1, each = kRowTime + kShadowTime / rows;
    time[f.low[1]] += each;
    time[f.high[1] + 1] -= each;
  }
  double running = 0, total = 0;
  for (int row = 0; row < height; ++row) {
    running += time[row];
    time[row] = running + 1.0;
    total += time[row];
  }
  double sum = 0;
  int band = 1;
  boundaries[0] = 0;
  for (int row = 0; row < height && band < bands; ++row) {
    sum += time[row];
    while (band < bands && sum * bands >= total * band) boundaries[band++] = row + 1;
  }
  while (band <= bands) boundaries[band++] = height;
  boundaries[bands] = height;
}

// Finds the shadows of every Gaussian in some views, (views, N).
void find_shadows(const XrayGaussians& gaussians, const XrayView* views, int64_t count, const Detector& detector,
                  XrayShadow* shadows, int threads) {
  parallel_for((gaussians.count + kXrayBatch - 1) / kXrayBatch, threads, [&](int64_t batch, int) {
    const int64_t end = (batch + 1) * kXrayBatch < gaussians.count ? (batch + 1) * kXrayBatch : gaussians.count;
    XrayBody body;
    ShadowFrame frame;
    for (int64_t i = batch * kXrayBatch; i < end; ++i) {
      gaussians.body(i, body);
      for (int64_t v = 0; v < count; ++v) {
        XrayShadow& shadow = shadows[v * gaussians.count + i];
        if (!make_shadow(body, views[v], detector, frame, shadow)) {
          // This lies below every band, so the shadow is skipped. Nothing else of it is set.
          shadow.low[1] = INT32_MAX;
          shadow.high[1] = INT32_MIN;
        }
      }
    }
  });
}

// ---- backward

struct Gathered {
  const float* gradient;  // first channel of the group
  int64_t channel;        // floats of a channel
  float values[kXrayGroup];
  // Let G = sum over c of values_c dL/dP_c, I the integral, and N and B relative to B(0). by_N and by_B are the sums of
  // G dI/dN and of G dI/dB, each times 1, dx, dy, dx^2, dx dy and dy^2. by_value has the sums of I dL/dP_c.
  double by_N[6], by_B[6], by_value[kXrayGroup];
};

template <int kChannels>
struct GatherShadow {
  template <class V, bool kCone>
  struct Visitor {
    typedef typename V::F F;
    Gathered& sums;
    F n0, ny, nyy, b0, by, byy;  // sums over a chunk, for each column
    F by_value[kChannels];
    SPLAT_INLINE explicit Visitor(Gathered& s) : sums(s) {}
    SPLAT_INLINE void begin() {
      n0 = ny = nyy = b0 = by = byy = F{};
      for (int c = 0; c < kChannels; ++c) by_value[c] = F{};
    }
    // With y = (9 - N/B)/2 and Z = G sqrt(y D / B), G dI/dy = Z (M + 1/(2y)). Besides, I has a factor 1/sqrt(B) of its
    // own.
    SPLAT_INLINE void row(int64_t offset, float dy, F y, F ratio, F inverse) {
      const F size = root(kCone ? y * ratio : y), M = through(y), integral = size * M;
      F upstream{};
      for (int c = 0; c < kChannels; ++c) {
        const F part = load<V>(sums.gradient + c * sums.channel + offset);
        by_value[c] += integral * part;
        upstream = kChannels > 1 ? part * sums.values[c] + upstream : part;
      }
      const F bounded = y > broadcast<V>(kRim) ? y : broadcast<V>(kRim);
      const F slope = upstream * (size * (0.5f / bounded) + integral);  // G dI/dy
      const F half = kCone ? -0.5f * inverse : broadcast<V>(-0.5f);
      const F n = half * slope;
      // G dI/dB is q/(2B) times this slope, minus 1/(2B) times G I. Here q = 9 - 2y.
      const F b = half * (upstream * integral) - n * (9.0f - 2.0f * y);
      n0 += n;
      ny += n * dy;
      nyy = n * (dy * dy) + nyy;
      b0 += b;
      if (kCone) {
        by += b * dy;
        byy = b * (dy * dy) + byy;
      }
    }
    SPLAT_INLINE void end(F dx) {
      add(sums.by_N, dx, n0, ny, nyy);
      if (kCone) add(sums.by_B, dx, b0, by, byy);
      else sums.by_B[0] += sum_lanes(b0);
      for (int c = 0; c < kChannels; ++c) sums.by_value[c] += sum_lanes(by_value[c]);
    }
    SPLAT_INLINE static void add(double* to, F dx, F m0, F my, F myy) {
      const F mx = m0 * dx;
      to[0] += sum_lanes(m0);
      to[1] += sum_lanes(mx);
      to[2] += sum_lanes(my);
      to[3] += sum_lanes(mx * dx);
      to[4] += sum_lanes(my * dx);
      to[5] += sum_lanes(myy);
    }
  };
};

template <int kChannels>
SPLAT_INLINE void gather_group(const XrayShadow& f, const Detector& detector, const float* values,
                               const float* gradient, Gathered& total, double* by_value) {
  const int64_t size = detector.height * detector.stride;
  Gathered sums{gradient, size, {}, {}, {}, {}};
  for (int c = 0; c < kChannels; ++c) sums.values[c] = values[c];
  walk<GatherShadow<kChannels>::template Visitor>(f, detector, 0, detector.height, sums);
  const double factor = f.factor * (kChannels == 1 ? static_cast<double>(values[0]) : 1.0);
  for (int k = 0; k < 6; ++k) {
    total.by_N[k] += factor * sums.by_N[k];
    total.by_B[k] += factor * sums.by_B[k];
  }
  for (int c = 0; c < kChannels; ++c) by_value[c] += f.factor * sums.by_value[c];
}

struct XrayGradients {
  float *means, *quats, *scales, *values;
};

void write_gradients(const XrayBody& body, const double* by_W, const double* by_mean, int64_t i,
                     const XrayGradients& out) {
  double by_scale[3], by_quat[4];
  chain_body(body, by_W, by_scale, by_quat);
  for (int c = 0; c < 3; ++c) {
    out.scales[i * 3 + c] = static_cast<float>(by_scale[c]);
    out.means[i * 3 + c] = static_cast<float>(by_mean[c]);
  }
  for (int k = 0; k < 4; ++k) out.quats[i * 4 + k] = static_cast<float>(by_quat[k]);
}

void gather_one(const XrayGaussians& gaussians, const XrayView* views, int64_t count, const Detector& detector,
                const float* gradient, int64_t i, const XrayGradients& out, double* by_value) {
  const int64_t channels = gaussians.channels, size = detector.height * detector.stride;
  const float* values = gaussians.values + i * channels;
  double by_W[9] = {}, by_mean[3] = {};
  XrayBody body;
  ShadowFrame frame;
  XrayShadow f;
  gaussians.body(i, body);
  for (int64_t c = 0; c < channels; ++c) by_value[c] = 0;
  bool seen = false;
  for (int64_t v = 0; v < count; ++v) {
    if (!make_shadow(body, views[v], detector, frame, f)) continue;
    seen = true;
    Gathered sums{};
    const float* view_gradient = gradient + v * channels * size;
    for (int64_t c = 0; c < channels;) {
      if (channels - c >= kXrayGroup) {
        gather_group<kXrayGroup>(f, detector, values + c, view_gradient + c * size, sums, by_value + c);
        c += kXrayGroup;
      } else {
        gather_group<1>(f, detector, values + c, view_gradient + c * size, sums, by_value + c);
        ++c;
      }
    }
    chain_view(sums.by_N, sums.by_B, body, views[v], frame, detector.cone, by_W, by_mean);
  }
  for (int64_t c = 0; c < channels; ++c) out.values[i * channels + c] = static_cast<float>(by_value[c]);
  if (seen) {
    write_gradients(body, by_W, by_mean, i, out);
    return;
  }
  for (int k = 0; k < 3; ++k) out.means[i * 3 + k] = out.scales[i * 3 + k] = 0.0f;
  for (int k = 0; k < 4; ++k) out.quats[i * 4 + k] = 0.0f;
}

constexpr int64_t aligned(int64_t bytes) { return (bytes + 63) / 64 * 64; }

}  // namespace

// frames: (V, 4, 3), see `XrayGeometry.frames`. numbers: views, rows, columns, floats from row to row, cone.
// pictures: (V, C, rows, row length), overwritten. Values past the columns are undefined.
extern "C" SPLAT_EXPORT Status SPLAT_KERNEL(xray_forward)(const float* means, const float* quats, const float* scales,
                                                          const float* values, int64_t count, int64_t channels,
                                                          const double* frames, const int64_t* numbers, float* pictures,
                                                          int threads) {
  const XrayGaussians gaussians{means, quats, scales, values, count, channels};
  Detector detector;
  int64_t views;
  if (!read_detector(numbers, views, detector) || count < 0 || channels < 1 || threads < 1) return kBadArgument;
  const int bands = [&] {
    const int most = splat_ssim_usable_threads(threads) < kMaxBands ? splat_ssim_usable_threads(threads) : kMaxBands;
    return most < detector.height ? most : detector.height;
  }();
  const int64_t each = aligned(count * static_cast<int64_t>(sizeof(XrayShadow)) + 64);
  int64_t together = kShadowBytes / each;
  together = together < 1 ? 1 : together > views ? views : together;
  const int64_t view_bytes = aligned(views * static_cast<int64_t>(sizeof(XrayView)));
  const int64_t time_bytes = aligned((detector.height + 1) * static_cast<int64_t>(sizeof(double)));
  char* scratch = static_cast<char*>(splat_ssim_shared_scratch(view_bytes + time_bytes + together * each));
  if (scratch == nullptr) return kOutOfMemory;
  XrayView* seen = reinterpret_cast<XrayView*>(scratch);
  double* time = reinterpret_cast<double*>(scratch + view_bytes);
  XrayShadow* shadows = reinterpret_cast<XrayShadow*>(scratch + view_bytes + time_bytes);
  for (int64_t v = 0; v < views; ++v) {
    if (!read_view(frames + v * kXrayFrame, seen[v])) return kBadArgument;
  }
  for (int64_t first = 0; first < views; first += together) {
    const int64_t some = views - first < together ? views - first : together;
    find_shadows(gaussians, seen + first, some, detector, shadows, threads);
    for (int64_t v = 0; v < some; ++v) {
      int boundaries[kMaxBands + 1];
      const XrayShadow* own = shadows + v * count;
      float* picture = pictures + (first + v) * channels * detector.height * detector.stride;
      balance(own, count, detector.height, bands, time, boundaries);
      parallel_for(bands, threads, [&](int64_t band, int) {
        if (boundaries[band] < boundaries[band + 1]) {
          add_band(gaussians, own, detector, boundaries[band], boundaries[band + 1], picture);
        }
      });
    }
  }
  return kOk;
}

// gradient: dL/dP, (V, C, rows, row length), 0 past the columns. The outputs have the shapes of their inputs and are
// overwritten.
extern "C" SPLAT_EXPORT Status SPLAT_KERNEL(xray_backward)(const float* means, const float* quats, const float* scales,
                                                           const float* values, int64_t count, int64_t channels,
                                                           const double* frames, const int64_t* numbers,
                                                           const float* gradient, float* grad_means, float* grad_quats,
                                                           float* grad_scales, float* grad_values, int threads) {
  const XrayGaussians gaussians{means, quats, scales, values, count, channels};
  Detector detector;
  int64_t views;
  if (!read_detector(numbers, views, detector) || count < 0 || channels < 1 || threads < 1) return kBadArgument;
  const int64_t view_bytes = aligned(views * static_cast<int64_t>(sizeof(XrayView)));
  const int64_t value_bytes = aligned(channels * static_cast<int64_t>(sizeof(double)));
  const int most = splat_ssim_usable_threads(threads);
  char* scratch = static_cast<char*>(splat_ssim_shared_scratch(view_bytes + most * value_bytes));
  if (scratch == nullptr) return kOutOfMemory;
  XrayView* seen = reinterpret_cast<XrayView*>(scratch);
  for (int64_t v = 0; v < views; ++v) {
    if (!read_view(frames + v * kXrayFrame, seen[v])) return kBadArgument;
  }
  const XrayGradients out{grad_means, grad_quats, grad_scales, grad_values};
  parallel_for((count + kXrayBatch - 1) / kXrayBatch, threads, [&](int64_t batch, int thread) {
    double* by_value = reinterpret_cast<double*>(scratch + view_bytes + thread * value_bytes);
    const int64_t end = (batch + 1) * kXrayBatch < count ? (batch + 1) * kXrayBatch : count;
    for (int64_t i = batch * kXrayBatch; i < end; ++i) {
      gather_one(gaussians, seen, views, detector, gradient, i, out, by_value);
    }
  });
  return kOk;
}
