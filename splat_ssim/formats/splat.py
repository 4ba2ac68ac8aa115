"""The .splat format: 32 bytes a Gaussian, no harmonics but the constant one.

Source: the README and converter's description of antimatter15/splat (MIT): position and scale as three float32 each,
colour and opacity as four bytes, rotation wxyz as four bytes (128 is 0, 128 a unit), the most important Gaussian first.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from splat_ssim.formats.cloud import Cloud, logits, require, to_bytes
from splat_ssim.ply import SH0

_LAYOUT = np.dtype([("means", "<f4", 3), ("scales", "<f4", 3), ("rgba", "u1", 4), ("quats", "u1", 4)])
#: Largest logarithm of a float32.
_MAX_LOG = 88.0


def encode(cloud: Cloud, path: Path) -> bytes:
    """The bytes of a .splat file."""
    require(
        float(cloud.scales.max()) < _MAX_LOG,
        path,
        f"scales below e^{_MAX_LOG:g}, which float32 holds",
        f"e^{cloud.scales.max():.4g}",
    )
    if cloud.degree:
        cloud.notes.append(f"harmonics of degree 1 to {cloud.degree} are not kept: .splat has none")
    if any(cloud.offset):
        cloud.notes.append("the offset of the coordinates is not kept: .splat has no place for it")
    if cloud.antialiased:
        cloud.notes.append("that the scene is antialiased is not kept: .splat has no place for it")
    colors = cloud.colors
    cloud.note_cut((colors < 0) | (colors > 1), "colour values were cut to [0, 1]")
    # A viewer shows what has come so far: the large and opaque first.
    importance = cloud.scales.astype(np.float64).sum(1) + np.log(cloud.alphas)
    rows = np.zeros(len(cloud), _LAYOUT)
    rows["means"], rows["scales"] = cloud.means, np.exp(cloud.scales)
    rows["rgba"] = to_bytes(255 * np.column_stack([colors, cloud.alphas]))
    rows["quats"] = to_bytes(cloud.quats * 128 + 128)
    return rows[np.argsort(-importance, kind="stable")].tobytes()


def decode(data: bytes, path: Path) -> Cloud:
    """The Gaussians of a .splat file."""
    require(
        len(data) > 0 and len(data) % _LAYOUT.itemsize == 0,
        path,
        "a .splat file of 32 bytes a Gaussian",
        f"{len(data)} bytes",
    )
    rows = np.frombuffer(data, _LAYOUT)
    require(
        bool(np.isfinite(rows["means"]).all() and (rows["scales"] >= 0).all() and np.isfinite(rows["scales"]).all()),
        path,
        "finite positions and scales from 0",
        "others",
    )
    rgba = rows["rgba"] / 255.0
    quats = (rows["quats"].astype(np.float64) - 128) / 128
    lengths = np.linalg.norm(quats, axis=1, keepdims=True)
    quats = np.where(lengths > 0, quats / np.where(lengths > 0, lengths, 1), [1.0, 0, 0, 0])
    return Cloud(
        means=rows["means"].copy(),
        scales=np.log(np.maximum(rows["scales"], 1e-38)),
        quats=quats.astype(np.float32),
        opacities=logits(rgba[:, 3]),
        sh0=((rgba[:, :3] - 0.5) / SH0).astype(np.float32),
        shN=np.zeros((len(rows), 0, 3), np.float32),
    )
