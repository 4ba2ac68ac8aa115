// The rotation of a Gaussian and its gradient, shared by the CPU and the CUDA kernels.
//
// T is a number or a vector of numbers: kLanes float32 in the renderer, double elsewhere. The caller normalises the
// quaternion, since each caller does so in its own precision.
#pragma once

#if defined(SPLAT_DEVICE)
#define SPLAT_GAUSSIAN SPLAT_DEVICE
#else
#define SPLAT_GAUSSIAN inline __attribute__((always_inline))
#endif

namespace {

// The rotation matrix, row-major, of the unit quaternion q = (w, x, y, z). Its columns are the axes of the Gaussian.
template <class T>
SPLAT_GAUSSIAN void rotation_of(const T (&q)[4], T (&R)[9]) {
  const T w = q[0], x = q[1], y = q[2], z = q[3];
  R[0] = 1.0f - 2.0f * (y * y + z * z), R[1] = 2.0f * (x * y - w * z), R[2] = 2.0f * (x * z + w * y);
  R[3] = 2.0f * (x * y + w * z), R[4] = 1.0f - 2.0f * (x * x + z * z), R[5] = 2.0f * (y * z - w * x);
  R[6] = 2.0f * (x * z - w * y), R[7] = 2.0f * (y * z + w * x), R[8] = 1.0f - 2.0f * (x * x + y * y);
}

// Computes dq from dR, the gradient with respect to the rotation matrix. dq is the gradient with respect to the
// quaternion before its normalisation, times the quaternion's length. The part along q is removed, since the length of
// the quaternion does not change the rotation.
template <class T>
SPLAT_GAUSSIAN void rotation_gradient(const T (&q)[4], const T (&dR)[9], T (&dq)[4]) {
  const T w = q[0], x = q[1], y = q[2], z = q[3];
  dq[0] = 2.0f * (x * (dR[7] - dR[5]) + y * (dR[2] - dR[6]) + z * (dR[3] - dR[1]));
  dq[1] = 2.0f * (y * (dR[1] + dR[3]) + z * (dR[2] + dR[6]) + w * (dR[7] - dR[5]) - 2.0f * x * (dR[4] + dR[8]));
  dq[2] = 2.0f * (x * (dR[1] + dR[3]) + z * (dR[5] + dR[7]) + w * (dR[2] - dR[6]) - 2.0f * y * (dR[0] + dR[8]));
  dq[3] = 2.0f * (x * (dR[2] + dR[6]) + y * (dR[5] + dR[7]) + w * (dR[3] - dR[1]) - 2.0f * z * (dR[0] + dR[4]));
  const T along = w * dq[0] + x * dq[1] + y * dq[2] + z * dq[3];
  for (int i = 0; i < 4; ++i) dq[i] = dq[i] - q[i] * along;
}

}  // namespace
