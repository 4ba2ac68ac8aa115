"""Cameras of a scene: their models, and the checks that every reader makes of lenses and poses."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from splat_ssim.scene.data.scene import SceneError

#: Lens models that are undistorted, by COLMAP's names. The first two have no distortion.
CAMERA_MODELS = (
    "PINHOLE",
    "SIMPLE_PINHOLE",
    "SIMPLE_RADIAL",
    "RADIAL",
    "OPENCV",
    "OPENCV_FISHEYE",
    "FULL_OPENCV",
    "FOV",
    "SIMPLE_RADIAL_FISHEYE",
    "RADIAL_FISHEYE",
    "THIN_PRISM_FISHEYE",
)
#: Largest deviation of a pose's axes from orthogonal ones, because files are written with few digits.
_SKEW = 0.02
#: Largest deviation of an axis' length from 1 that counts as rounding.
_ROUNDING = 1e-3


@dataclass(frozen=True)
class Pinhole:
    """A camera without distortion, in pixels. It has the attributes of a pycolmap.Camera that make_view needs."""

    width: int
    height: int
    focal_x: float
    focal_y: float
    center_x: float
    center_y: float

    model_name = "PINHOLE"

    @property
    def params(self) -> list[float]:
        """Focal lengths and centre, in COLMAP's order."""
        return [self.focal_x, self.focal_y, self.center_x, self.center_y]

    def calibration_matrix(self) -> np.ndarray:
        """(3, 3) float64."""
        return np.array([[self.focal_x, 0, self.center_x], [0, self.focal_y, self.center_y], [0, 0, 1]])


def proportions(camera: Any) -> tuple[float, ...]:
    """What tells cameras apart at any size of their images.

    These are the focal lengths and the centre over the size, the focal lengths over its width because that of a reduced
    image is rounded; then the distortion.
    """
    K, width, height = camera.calibration_matrix(), camera.width, camera.height
    pinhole = (K[0, 0] / width, K[1, 1] / width, K[0, 2] / width, K[1, 2] / height)
    distortion = () if isinstance(camera, Pinhole) else (camera.params[i] for i in camera.extra_params_idxs())
    return tuple(float(value) for value in (*pinhole, *distortion))


def rescaled(camera: Any, width: int, height: int) -> Any:
    """A copy of a camera for another image size."""
    if isinstance(camera, Pinhole):
        x, y = width / camera.width, height / camera.height
        focal = {"focal_x": camera.focal_x * x, "focal_y": camera.focal_y * y}
        center = {"center_x": camera.center_x * x, "center_y": camera.center_y * y}
        return replace(camera, width=width, height=height, **focal, **center)
    import pycolmap

    camera = pycolmap.Camera(camera.todict())
    if (camera.width, camera.height) != (width, height):
        camera.rescale(width, height)
    return camera


def check_pose(matrix: np.ndarray, where: str) -> np.ndarray:
    """Checks a (4, 4) pose and returns it. If its axes have a scale, it is removed.

    Raises:
        SceneError: The pose is not finite, not invertible, or not a rotation and translation.
    """
    if not np.isfinite(matrix).all():
        raise SceneError(f"{where}: required finite numbers, got {matrix[~np.isfinite(matrix)][0]}")
    lengths = np.linalg.norm(matrix[:3, :3], axis=0)
    directions = matrix[:3, :3] / np.maximum(lengths, np.finfo(np.float64).tiny)
    determinant = np.linalg.det(directions)
    if not np.isfinite(lengths).all() or lengths.min() <= 1e-12 * lengths.max() or abs(determinant) < 1e-6:
        raise SceneError(f"{where}: required an invertible matrix, got a singular one")
    if np.abs(matrix[3] - (0, 0, 0, 1)).max() > 1e-6:
        raise SceneError(f"{where}: required 0 0 0 1 as its last row, got {' '.join(f'{v:g}' for v in matrix[3])}")
    skew = np.abs(directions.T @ directions - np.eye(3)).max()
    if skew > _SKEW:
        raise SceneError(f"{where}: required axes at right angles, got a cosine of {skew:.2g} between two of them")
    if np.abs(lengths - 1).max() <= _ROUNDING:
        return matrix
    unscaled: np.ndarray = matrix.copy()
    unscaled[:3, :3] = directions
    return unscaled


def check_camera(camera: Any, where: str) -> None:
    """Raises SceneError for a camera whose size or focal length is not positive, or of which a number is not finite."""
    if min(camera.width, camera.height) < 1:
        raise SceneError(f"{where}: required a camera of a positive size, got {camera.width}x{camera.height}")
    K, params = camera.calibration_matrix(), np.asarray(camera.params)
    # Numbers beyond the range of float32 count as infinite.
    if not (np.abs(params) < np.finfo(np.float32).max).all():
        raise SceneError(f"{where}: required finite camera parameters, got {' '.join(f'{v:g}' for v in params)}")
    if min(K[0, 0], K[1, 1]) <= 0:
        raise SceneError(f"{where}: required a positive focal length, got {min(K[0, 0], K[1, 1]):g}")


def fits(size: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether one size is the other one scaled, up to a pixel of rounding in the smaller one.

    Example:
        >>> from splat_ssim.scene.data.lens import fits
        >>> fits((342, 256), (1365, 1024)), fits((1631, 1605), (204, 201)), fits((144, 192), (192, 144))
        (True, True, False)
    """
    size, other = sorted((size, other), key=sum)
    low = max((pixels - 1) / whole for pixels, whole in zip(size, other, strict=True))
    high = min((pixels + 1) / whole for pixels, whole in zip(size, other, strict=True))
    return low <= high


def check_shape(size: tuple[int, int], camera: Any, file: Path) -> None:
    """Raises SceneError for an image, (width, height), that is no scaled picture of its camera."""
    if fits(size, (camera.width, camera.height)):
        return
    from PIL import Image

    with Image.open(file) as image:
        orientation = image.getexif().get(274, 1)
    turned = f" (EXIF orientation {orientation}, which is not applied)" if orientation != 1 else ""
    raise SceneError(
        f"{file}: required an image of its camera's shape, got an image of {size[0]}x{size[1]} and a camera of "
        f"{camera.width}x{camera.height}{turned}"
    )
