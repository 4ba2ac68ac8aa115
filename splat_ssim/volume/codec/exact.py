"""Arithmetic that has the same bits on every machine: IEEE 754's + - * / and sqrt, one at a time, in a fixed order.

NumPy's element-wise + - * / and sqrt are correctly rounded wherever they run; its exp, and LAPACK, are not. What a
decoder computes is therefore made of the former alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np

#: Sweeps of Jacobi's method: it converges quadratically, and a 3 x 3 matrix is diagonal in float64 after five.
SWEEPS = 6

_LN2_HIGH, _LN2_LOW = 0.6931471803691238, 1.9082149292705877e-10
#: 1/13!, …, 1/1!, 1: the exponential's series.
_SERIES = (
    *(1.6059043836821613e-10, 2.08767569878681e-09, 2.505210838544172e-08, 2.755731922398589e-07),
    *(2.7557319223985893e-06, 2.48015873015873e-05, 0.0001984126984126984, 0.001388888888888889),
    *(0.008333333333333333, 0.041666666666666664, 0.16666666666666666, 0.5, 1.0, 1.0),
)


def exp(x: np.ndarray) -> np.ndarray:
    """The exponential of float64 numbers between -700 and 700, to a few units in the last place, the same everywhere.

    Example:
        >>> import numpy as np
        >>> from splat_ssim.volume.codec.exact import exp
        >>> bool(abs(exp(np.array([1.0]))[0] - np.e) < 1e-15)
        True
    """
    x = np.clip(np.asarray(x, np.float64), -700.0, 700.0)
    halves = np.rint(x * 1.4426950408889634)
    rest = (x - halves * _LN2_HIGH) - halves * _LN2_LOW
    result = np.full_like(rest, _SERIES[0])
    for coefficient in _SERIES[1:]:
        result = result * rest + coefficient
    return np.ldexp(result, halves.astype(np.int32))


def eigen(shapes: Any, library: Any = np, sweeps: int = SWEEPS) -> tuple[Any, Any]:
    """Computes eigenvalues and axes of symmetric 3 x 3 matrices, by cyclic Jacobi rotations.

    Args:
        shapes: (N, 6) entries xx, yy, zz, xy, xz, yz: a NumPy array or a tensor.
        library: numpy or torch, whichever `shapes` belongs to. With NumPy in float64 the result has the same bits on
            every machine.
        sweeps: Number of sweeps. Each rotates once in each of the three planes.

    Returns:
        Eigenvalues (N, 3), not sorted, and unit quaternions (N, 4), w x y z, of the rotation whose columns are the
        eigenvectors.

    Source:
        G. H. Golub, C. F. Van Loan, "Matrix Computations", 4th edition, section 8.5.
    """
    xx, yy, zz, xy, xz, yz = (shapes[:, k] for k in range(6))
    diagonal, across = [xx, yy, zz], {2: xy, 1: xz, 0: yz}  # An off-diagonal by the axis that it leaves out.
    one, zero = library.ones_like(xx), library.zeros_like(xx)
    quaternion = [one, zero, zero, zero]
    for _ in range(sweeps):
        for axis in (2, 1, 0):
            first, second = (k for k in range(3) if k != axis)
            tangent, cosine, sine = _rotation(diagonal[first], diagonal[second], across[axis], library)
            diagonal[first] = diagonal[first] - tangent * across[axis]
            diagonal[second] = diagonal[second] + tangent * across[axis]
            # The other two off-diagonals turn into each other.
            p, q = across[second], across[first]
            across[second], across[first] = cosine * p - sine * q, sine * p + cosine * q
            across[axis] = zero
            quaternion = _turned(quaternion, axis, cosine, sine, library)
    length = library.sqrt(
        quaternion[0] * quaternion[0]
        + quaternion[1] * quaternion[1]
        + quaternion[2] * quaternion[2]
        + quaternion[3] * quaternion[3]
    )
    stack = library.stack
    return stack(diagonal, -1), stack([part / length for part in quaternion], -1)


def _rotation(p: Any, q: Any, between: Any, library: Any) -> tuple[Any, Any, Any]:
    """tan, cos and sin of the smaller angle that makes an off-diagonal number of ((p, between), (between, q)) 0."""
    apart = q - p
    twice = between + between
    sign = library.where(apart < 0, -library.ones_like(apart), library.ones_like(apart))
    below = library.where(apart < 0, -apart, apart) + library.sqrt(apart * apart + twice * twice)
    tangent = sign * twice / library.where(below == 0, library.ones_like(below), below)
    cosine = 1.0 / library.sqrt(tangent * tangent + 1.0)
    return tangent, cosine, tangent * cosine


def _turned(quaternion: list[Any], axis: int, cosine: Any, sine: Any, library: Any) -> list[Any]:
    """The quaternion times that of one of Jacobi's rotations, whose angle is at most 45 degrees."""
    half = library.sqrt((cosine + 1.0) * 0.5)
    turn = 0.5 * sine / half
    # Columns p, q become c p - s q and s p + c q: a turn by minus the angle about x and z, by the angle about y.
    turn = turn if axis == 1 else -turn
    w, x, y, z = quaternion
    if axis == 0:
        return [w * half - x * turn, x * half + w * turn, y * half + z * turn, z * half - y * turn]
    if axis == 1:
        return [w * half - y * turn, x * half - z * turn, y * half + w * turn, z * half + x * turn]
    return [w * half - z * turn, x * half + y * turn, y * half - x * turn, z * half + w * turn]
