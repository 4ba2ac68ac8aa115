"""Photographs of a textured corner of a room from known places, for the tests of scripts/prepare.py."""

import math
from pathlib import Path

import numpy as np
from PIL import Image

WIDTH, HEIGHT, FOCAL = 320, 240, 300.0
#: EXIF's 35 mm equivalent of the focal length above, for a film that is 35 mm wide.
FOCAL_35MM = round(FOCAL / WIDTH * 35)


def texture(seed, size=512):
    """(size, size, 3) float64 in [0, 255]: rectangles of every size, slightly smoothed."""
    random = np.random.default_rng(seed)
    image = np.full((size, size, 3), 128.0)
    for _ in range(900):
        extent = size * random.uniform(0.008, 0.06, 2)
        y, x = random.uniform(-10, size, 2)
        rows, columns = (slice(max(0, int(a)), max(0, int(a + e)) + 1) for a, e in zip((y, x), extent, strict=True))
        image[rows, columns] = random.uniform(0, 255, 3)
    return np.asarray(Image.fromarray(image.astype(np.uint8)).resize((size, size), Image.Resampling.BICUBIC), float)


TEXTURES, OTHER_TEXTURES = [texture(seed) for seed in range(3)], [texture(seed) for seed in range(3, 6)]


def look_at(center, target=(0.9, 0.9, 0.7)):
    """(4, 4) OpenCV world to camera, with the world's z axis up."""
    forward = np.subtract(target, center)
    forward = forward / np.linalg.norm(forward)
    right = np.cross(forward, [0, 0, 1])
    right /= np.linalg.norm(right)
    rotation = np.stack([right, np.cross(forward, right), forward])
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = rotation, -rotation @ center
    return matrix


def viewmats(count):
    """World-to-camera matrices of `count` places on an arc around the corner."""
    angles = np.linspace(0.25, 1.15, count)
    centers = [(3.4 * math.cos(a), 3.4 * math.sin(a), 1.4 + 0.5 * math.sin(5 * a)) for a in angles]
    return [look_at(np.array(center)) for center in centers]


def render(viewmat, width=WIDTH, height=HEIGHT, focal=FOCAL, oversample=2, textures=TEXTURES):
    """(height, width, 3) uint8: a pinhole camera's view of the three walls x = 0, y = 0 and z = 0."""
    wide, high = width * oversample, height * oversample
    rows, columns = np.mgrid[:high, :wide] + 0.5
    directions = np.stack(
        [(columns / oversample - width / 2) / focal, (rows / oversample - height / 2) / focal, np.ones_like(rows)], -1
    )
    rotation, center = viewmat[:3, :3], -viewmat[:3, :3].T @ viewmat[:3, 3]
    directions = directions @ rotation
    image, nearest = np.zeros((high, wide, 3)), np.full((high, wide), np.inf)
    for axis in range(3):
        with np.errstate(divide="ignore"):
            distance = -center[axis] / directions[..., axis]
        points = center + distance[..., None] * directions
        others = np.delete(points, axis, 2)
        size = textures[axis].shape[0]
        places = np.floor(others / 3.0 * size)
        hit = (distance > 0) & (distance < nearest) & ((places >= 0) & (places < size)).all(-1)
        nearest[hit] = distance[hit]
        first, second = places[hit].astype(int).T
        image[hit] = textures[axis][first, second]
    image = image.reshape(height, oversample, width, oversample, 3).mean((1, 3))
    return image.round().astype(np.uint8)


def exif_bytes(orientation=1, focal_35mm=None):
    """EXIF data of a camera."""
    exif = Image.Exif()
    exif[271], exif[272], exif[274] = "Acme", "One", orientation
    if focal_35mm is not None:
        exif.get_ifd(0x8769)[41989] = focal_35mm
    return exif.tobytes()


def write_jpeg(path: Path, pixels, **exif):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, quality=97, subsampling=0, exif=exif_bytes(**exif))


def angles_to_truth(expected, result):
    """Measures the errors of cameras after the similarity transform that fits them best.

    Args:
        expected: (N, 4, 4) world to camera.
        result: (N, 4, 4) world to camera in other coordinates.

    Returns:
        (N,) angles in degrees between the rotations, and (N,) distances as fractions of the extent of the cameras.
    """
    expected, result = np.asarray(expected), np.asarray(result)
    centers = [-np.einsum("nji,nj->ni", poses[:, :3, :3], poses[:, :3, 3]) for poses in (expected, result)]
    means = [points.mean(0) for points in centers]
    # The rotation G with R_result ≈ R_expected Gᵀ for all cameras.
    u, _, vt = np.linalg.svd(np.einsum("nji,njk->ik", result[:, :3, :3], expected[:, :3, :3]))
    world = u @ np.diag([1, 1, np.linalg.det(u @ vt)]) @ vt
    between = np.einsum("nij,jk,nlk->nil", result[:, :3, :3], world, expected[:, :3, :3])
    cosines = (np.trace(between, axis1=1, axis2=2) - 1) / 2
    a, b = (centers[0] - means[0]) @ world.T, centers[1] - means[1]
    scale = (a * b).sum() / (a * a).sum()
    extent = np.linalg.norm(b, axis=1).max()
    return np.degrees(np.arccos(cosines.clip(-1, 1))), np.linalg.norm(scale * a - b, axis=1) / extent
