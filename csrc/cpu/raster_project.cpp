// Projects Gaussians to cameras: EWA projection and spherical harmonics, forward and backward, kLanes Gaussians at a
// time.
//
// Let p = R mean + t, (u, v) = (x / z, y / z) and M = R_q diag(s). The projected covariance is T Tᵀ + eps2d·1. The rows
// of T are T0 = fx/z (V0 - u' V2) and T1 = fy/z (V1 - v' V2), where V = R M, and u', v' are u, v clamped to a widened
// field of view. The determinant of the covariance is |T0 × T1|² + eps2d (|T0|² + |T1|²) + eps2d². All its terms are
// positive, so nothing cancels.
#include <cmath>

#include "../gaussian.h"
#include "layout.h"
#include "parallel.h"
#include "raster_vector.h"

namespace {

constexpr float kMinAlpha = 1.0f / 255.0f;
constexpr float kMaxExtent = 3.33f;
constexpr float kFovMargin = 0.3f;
constexpr int kMaxCoefficients = 16;

struct Options {
  int64_t gaussians, cameras;
  int coefficients0, coefficientsN;  // harmonics in sh0 and shN, 0 without colours
  int degree;
  float width, height, near_plane, far_plane, radius_clip, eps2d;
  bool antialiased, raw;
  const float *means, *quats, *scales, *opacities, *sh0, *shN, *viewmats, *Ks;
};

struct Camera {
  float R[9], t[3], position[3];
  float fx, fy, cx, cy;
  float min_u, max_u, min_v, max_v;
};

Camera read_camera(const Options& o, int64_t index) {
  const float* view = o.viewmats + index * 16;
  const float* K = o.Ks + index * 9;
  Camera c;
  for (int i = 0; i < 3; ++i) {
    for (int j = 0; j < 3; ++j) c.R[i * 3 + j] = view[i * 4 + j];
    c.t[i] = view[i * 4 + 3];
  }
  // The position is -R⁻¹ t, by Cramer's rule, since R may be scaled.
  const double r[9] = {c.R[0], c.R[1], c.R[2], c.R[3], c.R[4], c.R[5], c.R[6], c.R[7], c.R[8]};
  const double adjugate[9] = {r[4] * r[8] - r[5] * r[7], r[2] * r[7] - r[1] * r[8], r[1] * r[5] - r[2] * r[4],
                              r[5] * r[6] - r[3] * r[8], r[0] * r[8] - r[2] * r[6], r[2] * r[3] - r[0] * r[5],
                              r[3] * r[7] - r[4] * r[6], r[1] * r[6] - r[0] * r[7], r[0] * r[4] - r[1] * r[3]};
  const double determinant = r[0] * adjugate[0] + r[1] * adjugate[3] + r[2] * adjugate[6];
  for (int i = 0; i < 3; ++i) {
    const double* row = adjugate + i * 3;
    c.position[i] = static_cast<float>(-(row[0] * c.t[0] + row[1] * c.t[1] + row[2] * c.t[2]) / determinant);
  }
  c.fx = K[0], c.fy = K[4], c.cx = K[2], c.cy = K[5];
  const float margin_x = kFovMargin * 0.5f * o.width / c.fx, margin_y = kFovMargin * 0.5f * o.height / c.fy;
  c.min_u = -c.cx / c.fx - margin_x, c.max_u = (o.width - c.cx) / c.fx + margin_x;
  c.min_v = -c.cy / c.fy - margin_y, c.max_v = (o.height - c.cy) / c.fy + margin_y;
  return c;
}

// The part of kLanes Gaussians that does not depend on the camera.
struct Gaussians {
  Floats mean[3], quat[4], scale[3], opacity;  // activated; quat normalised
  Floats inverse_norm;
  Floats R[9], M[9];  // rotation, and rotation times scale
};

Gaussians read_gaussians(const Options& o, int64_t first, int valid) {
  Gaussians g;
  read_rows<3>(o.means + first * 3, valid, g.mean);
  read_rows<4>(o.quats + first * 4, valid, g.quat);
  read_rows<3>(o.scales + first * 3, valid, g.scale);
  read_rows<1>(o.opacities + first, valid, &g.opacity);
  for (int i = 0; i < 3 && o.raw; ++i) g.scale[i] = fast_exponential(g.scale[i]);
  Floats norm2{};
  for (int i = 0; i < 4; ++i) norm2 += g.quat[i] * g.quat[i];
  // Like torch.nn.functional.normalize: a quaternion of zeros stays zero, which means no rotation.
  g.inverse_norm = 1.0f / maximum(square_root(norm2), broadcast(1e-12f));
  for (int i = 0; i < 4; ++i) g.quat[i] *= g.inverse_norm;
  if (o.raw) g.opacity = 1.0f / (1.0f + fast_exponential(-g.opacity));
  rotation_of(g.quat, g.R);
  for (int i = 0; i < 9; ++i) g.M[i] = g.R[i] * g.scale[i % 3];
  return g;
}

// The same Gaussians as one camera sees them.
struct Projected {
  Floats z, inverse_z, u, v, clamped_u, clamped_v;
  Floats kx, ky;  // fx / z, fy / z
  Floats V[9], T0[3], T1[3];
  Floats xx, xy, yy;          // covariance, without eps2d
  Floats sharp, determinant;  // determinants of the covariance without and with eps2d
  Floats a, b, c;             // conic
  Ints in_front;
};

SPLAT_INLINE Floats dot3(const Floats* a, const Floats* b) { return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]; }

Projected look(const Options& o, const Camera& cam, const Gaussians& g) {
  Projected w;
  Floats p[3];
  for (int i = 0; i < 3; ++i) {
    p[i] = cam.R[i * 3] * g.mean[0] + cam.R[i * 3 + 1] * g.mean[1] + cam.R[i * 3 + 2] * g.mean[2] + cam.t[i];
  }
  w.in_front = (p[2] >= o.near_plane) & (p[2] <= o.far_plane);
  // A Gaussian outside the range of depths is computed at a harmless depth.
  w.z = w.in_front ? p[2] : broadcast(1.0f);
  w.inverse_z = 1.0f / w.z;
  w.u = p[0] * w.inverse_z, w.v = p[1] * w.inverse_z;
  w.clamped_u = minimum(maximum(w.u, broadcast(cam.min_u)), broadcast(cam.max_u));
  w.clamped_v = minimum(maximum(w.v, broadcast(cam.min_v)), broadcast(cam.max_v));
  w.kx = cam.fx * w.inverse_z, w.ky = cam.fy * w.inverse_z;
  for (int i = 0; i < 3; ++i) {
    for (int j = 0; j < 3; ++j) {
      w.V[i * 3 + j] = cam.R[i * 3] * g.M[j] + cam.R[i * 3 + 1] * g.M[3 + j] + cam.R[i * 3 + 2] * g.M[6 + j];
    }
  }
  for (int j = 0; j < 3; ++j) {
    w.T0[j] = w.kx * (w.V[j] - w.clamped_u * w.V[6 + j]);
    w.T1[j] = w.ky * (w.V[3 + j] - w.clamped_v * w.V[6 + j]);
  }
  w.xx = dot3(w.T0, w.T0), w.xy = dot3(w.T0, w.T1), w.yy = dot3(w.T1, w.T1);
  const Floats n[3] = {w.T0[1] * w.T1[2] - w.T0[2] * w.T1[1], w.T0[2] * w.T1[0] - w.T0[0] * w.T1[2],
                       w.T0[0] * w.T1[1] - w.T0[1] * w.T1[0]};
  w.sharp = dot3(n, n);
  w.determinant = w.sharp + o.eps2d * (w.xx + w.yy) + o.eps2d * o.eps2d;
  const Floats inverse = 1.0f / w.determinant;
  w.a = (w.yy + o.eps2d) * inverse, w.b = -w.xy * inverse, w.c = (w.xx + o.eps2d) * inverse;
  return w;
}

// The ratio of the ellipse's area without eps2d to its area with it.
SPLAT_INLINE Floats compensation(const Projected& w) {
  return square_root(keep(w.sharp > 0.0f, w.sharp / w.determinant));
}

// --- spherical harmonics -------------------------------------------------------------------------------------------

constexpr float kC0 = 0.28209479177387814f, kC1 = 0.4886025119029199f, kC2 = 1.0925484305920792f;
constexpr float kC20 = 0.31539156525252005f, kC22 = 0.5462742152960396f, kC3 = 0.5900435899266435f;
constexpr float kC31 = 2.890611442640554f, kC32 = 0.4570457994644658f, kC30 = 0.3731763325901154f;
constexpr float kC34 = 1.445305721320277f;

SPLAT_INLINE void harmonics(int degree, Floats x, Floats y, Floats z, Floats* basis) {
  basis[0] = broadcast(kC0);
  if (degree < 1) return;
  basis[1] = -kC1 * y, basis[2] = kC1 * z, basis[3] = -kC1 * x;
  if (degree < 2) return;
  const Floats xx = x * x, yy = y * y, zz = z * z;
  basis[4] = kC2 * x * y, basis[5] = -kC2 * y * z, basis[6] = kC20 * (2.0f * zz - xx - yy);
  basis[7] = -kC2 * x * z, basis[8] = kC22 * (xx - yy);
  if (degree < 3) return;
  basis[9] = -kC3 * y * (3.0f * xx - yy), basis[10] = kC31 * x * y * z, basis[11] = -kC32 * y * (4.0f * zz - xx - yy);
  basis[12] = kC30 * z * (2.0f * zz - 3.0f * xx - 3.0f * yy), basis[13] = -kC32 * x * (4.0f * zz - xx - yy);
  basis[14] = kC34 * z * (xx - yy), basis[15] = -kC3 * x * (xx - 3.0f * yy);
}

// Adds the gradient of Σ s[k] basis[k] by the direction to d.
SPLAT_INLINE void harmonics_gradient(int degree, Floats x, Floats y, Floats z, const Floats* s, Floats* d) {
  if (degree < 1) return;
  d[0] -= kC1 * s[3], d[1] -= kC1 * s[1], d[2] += kC1 * s[2];
  if (degree < 2) return;
  d[0] += kC2 * (s[4] * y - s[7] * z) + 2.0f * x * (kC22 * s[8] - kC20 * s[6]);
  d[1] += kC2 * (s[4] * x - s[5] * z) - 2.0f * y * (kC22 * s[8] + kC20 * s[6]);
  d[2] += kC20 * 4.0f * s[6] * z - kC2 * (s[5] * y + s[7] * x);
  if (degree < 3) return;
  const Floats xx = x * x, yy = y * y, zz = z * z, xy = x * y, yz = y * z, xz = x * z;
  d[0] += -6.0f * kC3 * s[9] * xy + kC31 * s[10] * yz + 2.0f * kC32 * s[11] * xy - 6.0f * kC30 * s[12] * xz -
          kC32 * s[13] * (4.0f * zz - 3.0f * xx - yy) + 2.0f * kC34 * s[14] * xz - 3.0f * kC3 * s[15] * (xx - yy);
  d[1] += -3.0f * kC3 * s[9] * (xx - yy) + kC31 * s[10] * xz - kC32 * s[11] * (4.0f * zz - xx - 3.0f * yy) -
          6.0f * kC30 * s[12] * yz + 2.0f * kC32 * s[13] * xy - 2.0f * kC34 * s[14] * yz + 6.0f * kC3 * s[15] * xy;
  d[2] += kC31 * s[10] * xy - 8.0f * kC32 * s[11] * yz + kC30 * s[12] * (6.0f * zz - 3.0f * xx - 3.0f * yy) -
          8.0f * kC32 * s[13] * xz + kC34 * s[14] * (xx - yy);
}

// Coefficients of kLanes Gaussians, soa[(3 k + channel)·kLanes + lane].
struct Harmonics {
  alignas(64) float soa[3 * kMaxCoefficients * kLanes];
};

SPLAT_INLINE int used(const Options& o) { return (o.degree + 1) * (o.degree + 1); }
SPLAT_INLINE int used0(const Options& o) { return o.coefficients0 < used(o) ? o.coefficients0 : used(o); }

SPLAT_INLINE void read_harmonics(const Options& o, int64_t first, int valid, Harmonics& h) {
  const int head = used0(o), tail = used(o) - head;
  load_rows(o.sh0 + first * o.coefficients0 * 3, o.coefficients0 * 3, head * 3, valid, h.soa);
  if (tail > 0) {
    load_rows(o.shN + first * o.coefficientsN * 3, o.coefficientsN * 3, tail * 3, valid, h.soa + head * 3 * kLanes);
  }
}

// Computes the unit direction d from the camera. Returns 1 / distance.
SPLAT_INLINE Floats direction(const Camera& cam, const Gaussians& g, Floats* d) {
  for (int i = 0; i < 3; ++i) d[i] = g.mean[i] - cam.position[i];
  const Floats inverse = 1.0f / maximum(square_root(dot3(d, d)), broadcast(1e-12f));
  for (int i = 0; i < 3; ++i) d[i] *= inverse;
  return inverse;
}

// --- forward -------------------------------------------------------------------------------------------------------

struct Outputs {
  int32_t* radii;                                         // [C, N, 2]
  float *means2d, *depths, *conics, *opacities, *colors;  // [C, N, 2], [C, N], [C, N, 3], [C, N], [C, N, 3] or null
};

// Computes the radii in pixels of the box around the ellipse where alpha reaches 1/255. Returns which Gaussians are
// seen.
SPLAT_INLINE Ints bounds(const Options& o, const Projected& w, Floats opacity, Floats x, Floats y, Floats* radii) {
  const Floats reach = square_root(2.0f * kLn2 * log2(maximum(opacity / kMinAlpha, broadcast(1.0f))));
  const Floats extent = minimum(reach, broadcast(kMaxExtent));
  const Floats variance[2] = {w.xx + o.eps2d, w.yy + o.eps2d};
  for (int i = 0; i < 2; ++i) {
    // Rounds up by truncation. The bound keeps the conversion defined.
    const Floats r = minimum(extent * square_root(variance[i]), broadcast(1e9f));
    const Floats whole = __builtin_convertvector(__builtin_convertvector(r, Ints), Floats);
    radii[i] = whole + keep(r > whole, broadcast(1.0f));
  }
  // Written so that NaN anywhere makes the result false.
  const Floats largest = broadcast(1e30f);
  return w.in_front & (w.determinant > 0.0f) & (opacity >= kMinAlpha) & (w.a < largest) & (w.c < largest) &
         (w.a + w.c > 2.0f * w.b) & ((radii[0] > o.radius_clip) | (radii[1] > o.radius_clip)) & (x + radii[0] > 0.0f) &
         (x - radii[0] < o.width) & (y + radii[1] > 0.0f) & (y - radii[1] < o.height);
}

void project_block(const Options& o, const Camera& cam, const Gaussians& g, const Harmonics& h, const Outputs& out,
                   int64_t first, int valid) {
  const Projected w = look(o, cam, g);
  const Floats opacity = o.antialiased ? g.opacity * compensation(w) : g.opacity;
  const Floats x = cam.fx * w.u + cam.cx, y = cam.fy * w.v + cam.cy;
  Floats radii[2];
  const Ints seen = bounds(o, w, opacity, x, y, radii);
  const Floats mean2d[2] = {keep(seen, x), keep(seen, y)}, depth = keep(seen, w.z);
  const Floats conic[3] = {keep(seen, w.a), keep(seen, w.b), keep(seen, w.c)};
  write_rows<2>(out.means2d + first * 2, valid, mean2d);
  write_rows<3>(out.conics + first * 3, valid, conic);
  write_rows<1>(out.depths + first, valid, &depth);
  write_rows<1>(out.opacities + first, valid, &opacity);
  for (int i = 0; i < 2; ++i) radii[i] = bits_as<Floats>(__builtin_convertvector(keep(seen, radii[i]), Ints));
  // The radii are integers here; their bits are only moved.
  write_rows<2>(reinterpret_cast<float*>(out.radii + first * 2), valid, radii);
  if (!out.colors) return;
  Floats d[3], basis[kMaxCoefficients];
  direction(cam, g, d);
  harmonics(o.degree, d[0], d[1], d[2], basis);
  Floats color[3] = {broadcast(0.5f), broadcast(0.5f), broadcast(0.5f)};
  for (int k = 0; k < used(o); ++k) {
    for (int i = 0; i < 3; ++i) color[i] += basis[k] * load(h.soa + (3 * k + i) * kLanes);
  }
  for (int i = 0; i < 3; ++i) color[i] = keep(seen, maximum(color[i], Floats{}));
  write_rows<3>(out.colors + first * 3, valid, color);
}

// --- backward ------------------------------------------------------------------------------------------------------

struct Gradients {
  const int32_t* radii;
  const float* colors;                                                    // of the forward pass
  const float *v_means2d, *v_depths, *v_conics, *v_opacities, *v_colors;  // null if there is none
  float *v_means, *v_quats, *v_scales, *v_opacity, *v_sh0, *v_shN;        // with the shapes of their inputs
  float* v_poses;                                                         // [tasks, C, kPoseSums] or null
};

// Sums over the cameras for kLanes Gaussians.
struct Sums {
  Floats mean[3]{}, M[9]{}, opacity{};
  alignas(64) float harmonics[3 * kMaxCoefficients * kLanes];
};

// Reads `columns` values of each lane. They are zero if `rows` is null or the Gaussian is not seen.
template <int columns>
SPLAT_INLINE void read_gradient(const float* rows, int64_t first, int valid, Ints seen, Floats* values) {
  if (rows) read_rows<columns>(rows + first * columns, valid, values);
  for (int i = 0; i < columns; ++i) values[i] = rows ? keep(seen, values[i]) : Floats{};
}

// Takes the gradient of the colours back to the coefficients and to the direction, and from there to the mean. Stores
// dL/dmean in `v`.
SPLAT_INLINE void color_gradient(const Options& o, const Gradients& io, const Camera& cam, const Gaussians& g,
                                 const Harmonics& h, int64_t first, int valid, Ints seen, Sums& sums, Floats* v) {
  Floats color[3], v_color[3], d[3], basis[kMaxCoefficients];
  read_gradient<3>(io.colors, first, valid, seen, color);
  read_gradient<3>(io.v_colors, first, valid, seen, v_color);
  for (int i = 0; i < 3; ++i) v_color[i] = keep(color[i] > 0.0f, v_color[i]);
  const Floats inverse = direction(cam, g, d);
  harmonics(o.degree, d[0], d[1], d[2], basis);
  Floats s[kMaxCoefficients];
  for (int k = 0; k < used(o); ++k) {
    s[k] = Floats{};
    for (int i = 0; i < 3; ++i) {
      float* sum = sums.harmonics + (3 * k + i) * kLanes;
      store(sum, load(sum) + basis[k] * v_color[i]);
      s[k] += load(h.soa + (3 * k + i) * kLanes) * v_color[i];
    }
  }
  Floats v_direction[3] = {};
  harmonics_gradient(o.degree, d[0], d[1], d[2], s, v_direction);
  const Floats along = dot3(d, v_direction);
  for (int i = 0; i < 3; ++i) v[i] = (v_direction[i] - d[i] * along) * inverse;
}

// Computes G, the gradient by the covariance (xx, half of xy, yy), and adds to `sums` the gradient by the opacity
// before compensation.
SPLAT_INLINE void covariance_gradient(const Options& o, const Projected& w, const Gaussians& g, const Floats* v_conic,
                                      Floats v_opacity, Floats* G, Sums& sums) {
  // dL/d(covariance) = -Q (dL/dQ) Q, with Q the conic.
  const Floats da = v_conic[0], db = 0.5f * v_conic[1], dc = v_conic[2];
  const Floats m00 = w.a * da + w.b * db, m01 = w.a * db + w.b * dc;
  const Floats m10 = w.b * da + w.c * db, m11 = w.b * db + w.c * dc;
  G[0] = -(m00 * w.a + m01 * w.b), G[1] = -(m00 * w.b + m01 * w.c), G[2] = -(m10 * w.b + m11 * w.c);
  if (!o.antialiased) {
    sums.opacity += v_opacity;
    return;
  }
  const Floats rho = compensation(w);
  sums.opacity += v_opacity * rho;
  // rho² = sharp / determinant.
  const Floats v_ratio = keep(rho > 0.0f, 0.5f * v_opacity * g.opacity / rho);
  const Floats v_sharp = v_ratio / w.determinant, v_determinant = -v_ratio * rho * rho / w.determinant;
  G[0] += v_sharp * w.yy + v_determinant * (w.yy + o.eps2d);
  G[1] -= (v_sharp + v_determinant) * w.xy;
  G[2] += v_sharp * w.xx + v_determinant * (w.xx + o.eps2d);
}

void backward_block(const Options& o, const Gradients& io, const Camera& cam, const Gaussians& g, const Harmonics& h,
                    int64_t first, int valid, Sums& sums, Floats* v_pose) {
  Floats radii[2];
  read_rows<2>(reinterpret_cast<const float*>(io.radii + first * 2), valid, radii);
  const Ints seen = (bits_as<Ints>(radii[0]) > 0) & (lane_numbers() < static_cast<float>(valid));
  const Projected w = look(o, cam, g);
  Floats v_mean2d[2], v_depth[1], v_conic[3], v_opacity[1], G[3];
  read_gradient<2>(io.v_means2d, first, valid, seen, v_mean2d);
  read_gradient<1>(io.v_depths, first, valid, seen, v_depth);
  read_gradient<3>(io.v_conics, first, valid, seen, v_conic);
  read_gradient<1>(io.v_opacities, first, valid, broadcast_int(-1), v_opacity);
  covariance_gradient(o, w, g, v_conic, v_opacity[0], G, sums);
  for (int i = 0; i < 3; ++i) G[i] = keep(seen, G[i]);

  Floats v_T0[3], v_T1[3];
  for (int j = 0; j < 3; ++j) {
    v_T0[j] = 2.0f * (G[0] * w.T0[j] + G[1] * w.T1[j]);
    v_T1[j] = 2.0f * (G[1] * w.T0[j] + G[2] * w.T1[j]);
  }
  const Ints free_u = (w.u >= cam.min_u) & (w.u <= cam.max_u), free_v = (w.v >= cam.min_v) & (w.v <= cam.max_v);
  const Floats v_u = cam.fx * v_mean2d[0] - keep(free_u, w.kx * dot3(v_T0, w.V + 6));
  const Floats v_v = cam.fy * v_mean2d[1] - keep(free_v, w.ky * dot3(v_T1, w.V + 6));
  Floats v_p[3] = {v_u * w.inverse_z, v_v * w.inverse_z, Floats{}};
  v_p[2] = v_depth[0] - (dot3(v_T0, w.T0) + dot3(v_T1, w.T1) + v_u * w.u + v_v * w.v) * w.inverse_z;
  Floats v_V[9];
  for (int j = 0; j < 3; ++j) {
    v_V[j] = w.kx * v_T0[j], v_V[3 + j] = w.ky * v_T1[j];
    v_V[6 + j] = -(w.clamped_u * v_V[j] + w.clamped_v * v_V[3 + j]);
  }
  Floats v_position[3] = {};
  if (io.v_colors) color_gradient(o, io, cam, g, h, first, valid, seen, sums, v_position);
  for (int i = 0; i < 3; ++i) {
    sums.mean[i] += cam.R[i] * v_p[0] + cam.R[3 + i] * v_p[1] + cam.R[6 + i] * v_p[2] + v_position[i];
    for (int j = 0; j < 3; ++j) {
      sums.M[i * 3 + j] += cam.R[i] * v_V[j] + cam.R[3 + i] * v_V[3 + j] + cam.R[6 + i] * v_V[6 + j];
    }
  }
  if (!io.v_poses) return;
  for (int i = 0; i < 3; ++i) {
    for (int j = 0; j < 3; ++j) v_pose[i * 3 + j] += v_p[i] * g.mean[j] + dot3(v_V + i * 3, g.M + j * 3);
    v_pose[9 + i] += v_p[i];
    v_pose[12 + i] -= v_position[i];
  }
}

// Computes the gradients of the parameters from the sums.
void write_gradients(const Options& o, const Gradients& io, const Gaussians& g, const Sums& sums, int64_t first,
                     int valid) {
  Floats v_scale[3], dR[9];
  for (int j = 0; j < 3; ++j) {
    v_scale[j] = sums.M[j] * g.R[j] + sums.M[3 + j] * g.R[3 + j] + sums.M[6 + j] * g.R[6 + j];
    if (o.raw) v_scale[j] *= g.scale[j];
    for (int i = 0; i < 3; ++i) dR[i * 3 + j] = sums.M[i * 3 + j] * g.scale[j];
  }
  Floats v_quat[4];
  rotation_gradient(g.quat, dR, v_quat);
  for (int i = 0; i < 4; ++i) v_quat[i] *= g.inverse_norm;
  const Floats v_opacity = o.raw ? sums.opacity * g.opacity * (1.0f - g.opacity) : sums.opacity;
  write_rows<3>(io.v_means + first * 3, valid, sums.mean);
  write_rows<4>(io.v_quats + first * 4, valid, v_quat);
  write_rows<3>(io.v_scales + first * 3, valid, v_scale);
  write_rows<1>(io.v_opacity + first, valid, &v_opacity);
  if (!io.v_sh0) return;
  const int head = used0(o), tail = used(o) - head;
  store_rows(io.v_sh0 + first * o.coefficients0 * 3, o.coefficients0 * 3, head * 3, valid, sums.harmonics);
  if (tail > 0) {
    store_rows(io.v_shN + first * o.coefficientsN * 3, o.coefficientsN * 3, tail * 3, valid,
               sums.harmonics + head * 3 * kLanes);
  }
}

void backward_task(const Options& o, const Gradients& io, int64_t task) {
  const int64_t begin = task * kProjectTask;
  const int64_t end = begin + kProjectTask < o.gaussians ? begin + kProjectTask : o.gaussians;
  Harmonics h;
  for (int64_t first = begin; first < end; first += kLanes) {
    const int valid = static_cast<int>(end - first < kLanes ? end - first : kLanes);
    const Gaussians g = read_gaussians(o, first, valid);
    if (io.v_sh0) read_harmonics(o, first, valid, h);
    Sums sums;
    if (io.v_sh0) std::memset(sums.harmonics, 0, sizeof(sums.harmonics));
    for (int64_t c = 0; c < o.cameras; ++c) {
      Floats v_pose[16] = {};
      backward_block(o, io, read_camera(o, c), g, h, c * o.gaussians + first, valid, sums, v_pose);
      if (!io.v_poses) continue;
      // Lanes beyond the last Gaussian repeat it, but their gradients are zero.
      alignas(64) float pose[16];
      sum_lanes_of_each(v_pose, pose);
      float* total = io.v_poses + (task * o.cameras + c) * kPoseSums;
      for (int i = 0; i < kPoseSums; ++i) total[i] += pose[i];
    }
    write_gradients(o, io, g, sums, first, valid);
  }
}

bool acceptable(const Options& o) {
  return o.gaussians >= 0 && o.cameras >= 1 && o.degree <= 3 &&
         (o.degree < 0 || (o.coefficients0 >= 1 && o.coefficients0 + o.coefficientsN >= used(o)));
}

}  // namespace

extern "C" {

// sizes: N, C, coefficients in sh0, in shN, degree (-1 without colours), width, height, antialiased, raw, threads.
// planes: near, far, radius_clip, eps2d. Every tensor is contiguous.
SPLAT_EXPORT Status SPLAT_KERNEL(raster_project)(const int64_t* sizes, const double* planes, const float* const* inputs,
                                                 float* means2d, float* depths, float* conics, float* opacities,
                                                 float* colors, int32_t* radii);
SPLAT_EXPORT Status SPLAT_KERNEL(raster_project_backward)(const int64_t* sizes, const double* planes,
                                                          const float* const* inputs, const int32_t* radii,
                                                          const float* colors, const float* const* v_outputs,
                                                          float* const* v_inputs, float* v_poses);
}

namespace {
Options read_options(const int64_t* sizes, const double* planes, const float* const* inputs) {
  Options o;
  o.gaussians = sizes[0], o.cameras = sizes[1];
  o.coefficients0 = static_cast<int>(sizes[2]), o.coefficientsN = static_cast<int>(sizes[3]);
  o.degree = static_cast<int>(sizes[4]);
  o.width = static_cast<float>(sizes[5]), o.height = static_cast<float>(sizes[6]);
  o.antialiased = sizes[7] != 0, o.raw = sizes[8] != 0;
  o.near_plane = static_cast<float>(planes[0]), o.far_plane = static_cast<float>(planes[1]);
  o.radius_clip = static_cast<float>(planes[2]), o.eps2d = static_cast<float>(planes[3]);
  o.means = inputs[0], o.quats = inputs[1], o.scales = inputs[2], o.opacities = inputs[3];
  o.sh0 = inputs[4], o.shN = inputs[5], o.viewmats = inputs[6], o.Ks = inputs[7];
  return o;
}
}  // namespace

Status SPLAT_KERNEL(raster_project)(const int64_t* sizes, const double* planes, const float* const* inputs,
                                    float* means2d, float* depths, float* conics, float* opacities, float* colors,
                                    int32_t* radii) {
  const Options o = read_options(sizes, planes, inputs);
  if (!acceptable(o)) return kBadArgument;
  const Outputs out{radii, means2d, depths, conics, opacities, o.degree < 0 ? nullptr : colors};
  const int threads = static_cast<int>(sizes[9]);
  parallel_for((o.gaussians + kProjectTask - 1) / kProjectTask, threads, [&](int64_t task, int) {
    const int64_t begin = task * kProjectTask;
    const int64_t end = begin + kProjectTask < o.gaussians ? begin + kProjectTask : o.gaussians;
    Harmonics h;
    for (int64_t first = begin; first < end; first += kLanes) {
      const int valid = static_cast<int>(end - first < kLanes ? end - first : kLanes);
      const Gaussians g = read_gaussians(o, first, valid);
      if (out.colors) read_harmonics(o, first, valid, h);
      for (int64_t c = 0; c < o.cameras; ++c) {
        project_block(o, read_camera(o, c), g, h, out, c * o.gaussians + first, valid);
      }
    }
  });
  return kOk;
}

Status SPLAT_KERNEL(raster_project_backward)(const int64_t* sizes, const double* planes, const float* const* inputs,
                                             const int32_t* radii, const float* colors, const float* const* v_outputs,
                                             float* const* v_inputs, float* v_poses) {
  const Options o = read_options(sizes, planes, inputs);
  if (!acceptable(o)) return kBadArgument;
  const bool colored = o.degree >= 0 && v_outputs[4];
  const Gradients io{radii,
                     colors,
                     v_outputs[0],
                     v_outputs[1],
                     v_outputs[2],
                     v_outputs[3],
                     colored ? v_outputs[4] : nullptr,
                     v_inputs[0],
                     v_inputs[1],
                     v_inputs[2],
                     v_inputs[3],
                     colored ? v_inputs[4] : nullptr,
                     v_inputs[5],
                     v_poses};
  parallel_for((o.gaussians + kProjectTask - 1) / kProjectTask, static_cast<int>(sizes[9]),
               [&](int64_t task, int) { backward_task(o, io, task); });
  return kOk;
}
