"""Random Gaussians, comparisons of files of them, and independent readers."""

import gaussforge
import numpy as np
import pygltflib
import torch

from splat_ssim.formats.cloud import cloud_of

OFFSET = (412_345.5, -5_123_456.25, 80.0)
#: Half a step of values from 0 to 1 in bytes.
HALF = 0.5 / 255 + 1e-6


def make(count=300, degree=3, seed=0, spread=1.0):
    """Makes random Gaussians with values that every format can hold."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(count, *shape, generator=generator)

    return {
        "means": draw(3) * spread,
        "scales": (draw(3) - 3).clamp(-9, 5),
        "quats": draw(4),
        "opacities": draw() * 3,
        "sh0": draw(1, 3).clamp(-1.7, 1.7),
        "shN": (draw((degree + 1) ** 2 - 1, 3) * 0.3).clamp(-0.95, 0.95),
    }


def matrices(quats):
    """(N, 3, 3) float64 rotations of quaternions wxyz."""
    w, x, y, z = (quats / np.linalg.norm(quats, axis=1, keepdims=True)).astype(np.float64).T
    rows = [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)]
    rows += [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)]
    rows += [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)]
    return np.stack(rows, 1).reshape(-1, 3, 3)


def covariances(scales, quats):
    axes = matrices(quats) * np.exp(scales.astype(np.float64))[:, None]
    return axes @ axes.transpose(0, 2, 1)


def matched(means, expected):
    """Returns the rows of `means` in the original order, which formats may change."""
    distances = np.linalg.norm(means[None].astype(np.float64) - expected[:, None], axis=2)
    order = distances.argmin(1)
    assert len(set(order.tolist())) == len(expected)
    return order


def harmonics(shN, directions):
    """(N, M, 3) sums of the real harmonics of degree 1 to 3 in unit directions (M, 3)."""
    x, y, z = directions.astype(np.float64).T
    c2 = [1.0925484305920792, 0.31539156525252005, 0.5462742152960396]
    c3 = [0.5900435899266435, 2.890611442640554, 0.4570457994644658, 0.3731763325901154, 1.445305721320277]
    basis = [-0.4886025119029199 * y, 0.4886025119029199 * z, -0.4886025119029199 * x]
    basis += [c2[0] * x * y, -c2[0] * y * z, c2[1] * (2 * z * z - x * x - y * y), -c2[0] * x * z]
    basis += [c2[2] * (x * x - y * y), -c3[0] * y * (3 * x * x - y * y), c3[1] * x * y * z]
    basis += [-c3[2] * y * (4 * z * z - x * x - y * y), c3[3] * z * (2 * z * z - 3 * x * x - 3 * y * y)]
    basis += [-c3[2] * x * (4 * z * z - x * x - y * y), c3[4] * z * (x * x - y * y)]
    basis += [-c3[0] * x * (x * x - 3 * y * y)]
    return np.einsum("nkc,km->nmc", shN.astype(np.float64), np.stack(basis)[: shN.shape[1]])


def check(name, result, expected, half=HALF):
    """Checks that two Clouds are equal up to the rounding of a format."""
    order = matched(result.means, expected.means)
    result = result.ordered(order)
    reach = float(np.abs(expected.means).max())
    # Compressed PLY: a chunk's range in 10 bits; SPZ: the bits that `encode` takes; SOG: 16 bits of logarithms.
    largest = 2 * reach
    position = {"compressed-ply": largest / 1023, "spz": 2.0**-13, "sog": largest * (1 + reach) / 65535}
    np.testing.assert_allclose(result.means, expected.means, atol=position.get(name, 0) + 1e-6 * reach, rtol=0)
    scale = {"compressed-ply": 14 / 1023, "spz": 1 / 32, "sog": 0.15}.get(name, 0)
    np.testing.assert_allclose(result.scales, expected.scales, atol=scale + 1e-5, rtol=0)
    # √2/1023 and √½/511 and √2/255 for each of three components, and 1/128 for each of four.
    turn = {"compressed-ply": 0.005, "spz": 0.005, "sog": 0.025, "splat": 0.04}.get(name, 1e-5)
    np.testing.assert_allclose(matrices(result.quats), matrices(expected.quats), atol=turn)
    np.testing.assert_allclose(result.alphas, expected.alphas, atol=1e-6 if name in ("ply", "glb") else half)
    color = {"compressed-ply": 1.1 / 255, "spz": 0.5 / 255 * 0.2820948 / 0.15, "sog": 0.02, "splat": half}
    np.testing.assert_allclose(result.colors, expected.colors, atol=color.get(name, 0) + 1e-6)
    if name == "splat":
        assert result.shN.shape[1] == 0
        return
    rest = {"compressed-ply": 4 / 256, "spz": 4 / 128, "sog": 0.05}.get(name, 0)
    assert result.shN.shape == expected.shN.shape
    np.testing.assert_allclose(result.shN, expected.shN, atol=rest + 1e-6)


def by_gaussforge(path, name):
    """Reads a file by GaussForge (Apache-2.0, C++), which is independent of this package. Returns a Cloud."""
    kind = {"compressed-ply": "compressed.ply"}.get(name, name)
    content = gaussforge.GaussForge().read(path.read_bytes(), kind)
    assert "error" not in content, content
    content = content["data"]
    count = content["numPoints"]

    def field(key, *shape):
        return torch.from_numpy(np.frombuffer(content[key], np.float32).reshape(count, *shape).copy())

    # It ignores SPZ's axes: y and z of its result are those of the file.
    splats = {"means": field("positions", 3), "scales": field("scales", 3), "quats": field("rotations", 4)}
    splats.update(opacities=field("alphas"), sh0=field("colors", 1, 3))
    splats["shN"] = field("sh", -1, 3) if content["sh"] else torch.zeros(count, 0, 3)
    return cloud_of(splats)


EXTENSION = "KHR_gaussian_splatting"


def by_pygltflib(path):
    """Reads attribute -> (N, components) float64 by pygltflib, which parses the container but not the extension."""
    file = pygltflib.GLTF2().load_binary(str(path))
    primitive, body = file.meshes[0].primitives[0], file.binary_blob()
    assert primitive.mode == pygltflib.POINTS and EXTENSION in file.extensionsUsed
    found = {}
    for name, index in vars(primitive.attributes).items():
        if index is None:
            continue
        accessor = file.accessors[index]
        view = file.bufferViews[accessor.bufferView]
        kind = {pygltflib.FLOAT: np.float32, pygltflib.UNSIGNED_BYTE: np.uint8}[accessor.componentType]
        width = {"SCALAR": 1, "VEC3": 3, "VEC4": 4}[accessor.type]
        start = view.byteOffset + (accessor.byteOffset or 0)
        values = np.frombuffer(body, kind, accessor.count * width, start).reshape(-1, width)
        found[name] = values.astype(np.float64)
    return found
