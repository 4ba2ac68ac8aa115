"""Files of Gaussians: read back by us and by packages that are not ours, within what each format rounds to."""

import gzip
import io
import json
import math
import shutil
import struct
import subprocess
import zipfile

import gaussforge
import numpy as np
import pygltflib
import pytest
import torch
from PIL import Image

from splat_ssim.errors import UserError
from splat_ssim.formats import FORMATS, FormatError, format_of, read_splats, save_splats
from splat_ssim.formats.cloud import cloud_of, from_smallest_three, morton_order, smallest_three
from splat_ssim.formats.palette import codebook, palette
from splat_ssim.ply import load_ply
from splat_ssim.render import rasterization

OFFSET = (412_345.5, -5_123_456.25, 80.0)
#: Half a step of values from 0 to 1 in bytes.
HALF = 0.5 / 255 + 1e-6


def make(count=300, degree=3, seed=0, spread=1.0):
    """Random Gaussians with values that every format has room for."""
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
    """The rows of `means` in the order of those that they were written from: formats may change it."""
    distances = np.linalg.norm(means[None].astype(np.float64) - expected[:, None], axis=2)
    order = distances.argmin(1)
    assert len(set(order.tolist())) == len(expected)
    return order


def harmonics(shN, directions):
    """(N, M, 3) what real harmonics of degree 1 to 3 add in unit directions (M, 3), written down from the literature."""
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
    """That Gaussians, a Cloud each, are the same but for what a format rounds."""
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
    """What GaussForge (Apache-2.0, C++), which knows nothing of us, reads in a file: a Cloud."""
    kind = {"compressed-ply": "compressed.ply"}.get(name, name)
    content = gaussforge.GaussForge().read(path.read_bytes(), kind)
    assert "error" not in content, content
    content = content["data"]
    count = content["numPoints"]

    def field(key, *shape):
        return torch.from_numpy(np.frombuffer(content[key], np.float32).reshape(count, *shape).copy())

    # It takes no notice of SPZ's axes: y and z of its result are those of the file.
    splats = {"means": field("positions", 3), "scales": field("scales", 3), "quats": field("rotations", 4)}
    splats.update(opacities=field("alphas"), sh0=field("colors", 1, 3))
    splats["shN"] = field("sh", -1, 3) if content["sh"] else torch.zeros(count, 0, 3)
    return cloud_of(splats)


# --- round trips, ours and others'


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("degree,count,spread", [(0, 1, 1.0), (1, 257, 0.1), (2, 300, 30.0), (3, 700, 1.0)])
def test_what_was_written_is_read(tmp_path, name, degree, count, spread):
    splats = make(count, degree, seed=degree, spread=spread)
    path = tmp_path / f"a{FORMATS[name].suffix}"
    save_splats(path, splats)
    check(name, read_splats(path), cloud_of(splats))
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("name", ["ply", "compressed-ply", "spz", "sog"])
@pytest.mark.parametrize("degree,count,spread", [(1, 257, 0.1), (2, 300, 30.0), (3, 700, 1.0)])
def test_gaussforge_reads_the_same(tmp_path, name, degree, count, spread):
    splats = make(count, degree, seed=10 + degree, spread=spread)
    path = tmp_path / f"a{FORMATS[name].suffix}"
    save_splats(path, splats)
    expected = cloud_of(splats)
    check(name, by_gaussforge(path, name), expected.flipped("yz") if name == "spz" else expected)


@pytest.mark.parametrize("name", ["ply", "splat", "sog"])
def test_what_gaussforge_writes_is_read(tmp_path, name):
    splats = make(500, 0 if name == "splat" else 3, seed=4)
    save_splats(tmp_path / "a.ply", splats)
    content = gaussforge.GaussForge().convert((tmp_path / "a.ply").read_bytes(), "ply", name)["data"]
    path = tmp_path / f"b{FORMATS[name].suffix}"
    path.write_bytes(content)
    # It cuts off where others round.
    check(name, read_splats(path), cloud_of(splats), half=1 / 255 + 1e-6)


@pytest.mark.parametrize("version", [2, 3, 4])
def test_spz_of_every_version_is_read(tmp_path, version):
    splats = make(400, 2, seed=version)
    # 8 bits of each component in version 2, and SH of 4 bits.
    splats["shN"] = (splats["shN"] * 8).round().clamp(-7, 7) / 8
    save_splats(tmp_path / "a.ply", splats)
    forge = gaussforge.GaussForge()
    content = forge.convert((tmp_path / "a.ply").read_bytes(), "ply", "spz", spz_version=version)["data"]
    (tmp_path / "b.spz").write_bytes(content)
    result = read_splats(tmp_path / "b.spz").flipped("yz")
    expected = cloud_of(splats)
    order = matched(result.means, expected.means)
    turn = 0.2 if version == 2 else 0.005
    np.testing.assert_allclose(matrices(result.quats[order]), matrices(expected.quats), atol=turn)
    np.testing.assert_allclose(result.shN[order], expected.shN, atol=1e-6)
    np.testing.assert_allclose(result.means[order], expected.means, atol=2.0**-12)


@pytest.mark.parametrize("name", FORMATS)
def test_renders_of_what_is_read_back(tmp_path, name):
    splats = make(400, 0 if name == "splat" else 3, seed=7, spread=0.5)
    path = tmp_path / f"a{FORMATS[name].suffix}"
    save_splats(path, splats)

    def rendered(splats):
        view = torch.eye(4)
        view[2, 3] = 4
        camera = torch.tensor([[80.0, 0, 32], [0, 80, 32], [0, 0, 1]])
        colors, _, _ = rasterization(
            splats["means"],
            torch.nn.functional.normalize(splats["quats"], dim=-1),
            splats["scales"].exp(),
            splats["opacities"].sigmoid(),
            torch.cat([splats["sh0"], splats["shN"]], 1),
            view[None],
            camera[None],
            64,
            64,
            sh_degree=math.isqrt(1 + splats["shN"].shape[1]) - 1,
            packed=False,
        )
        return colors.clamp(0, 1)

    difference = rendered(read_splats(path).splats()) - rendered(splats)
    quality = -10 * math.log10(float(difference.square().mean()) + 1e-12)
    assert quality > {"ply": 100, "glb": 90}.get(name, 38)


def test_splat_transform_reads_the_same(tmp_path):
    """PlayCanvas's own converter; not on every machine: `npm install -g @playcanvas/splat-transform@2`."""
    program = shutil.which("splat-transform")
    if program is None:
        pytest.skip("splat-transform of npm's @playcanvas/splat-transform is not on PATH")
    splats = make(600, 3, seed=11)
    expected = cloud_of(splats)
    for name in ("ply", "compressed-ply", "splat", "spz", "sog"):
        path, back = tmp_path / f"a{FORMATS[name].suffix}", tmp_path / f"{name}.back.ply"
        save_splats(path, splats)
        command = [program, "-q", "-w", str(path), str(back)]
        subprocess.run(command, check=True, timeout=100, stdin=subprocess.DEVNULL, capture_output=True)
        check(name, cloud_of(load_ply(back)), expected)
    save_splats(tmp_path / "a.glb", splats)
    command = [program, "-q", "-w", str(tmp_path / "a.ply"), str(tmp_path / "b.glb")]
    subprocess.run(command, check=True, timeout=100, stdin=subprocess.DEVNULL, capture_output=True)
    ours, theirs = (by_pygltflib(tmp_path / each) for each in ("a.glb", "b.glb"))
    assert ours.keys() == theirs.keys()
    for key in ours.keys() - {f"{EXTENSION}:ROTATION"}:
        np.testing.assert_allclose(ours[key], theirs[key], rtol=1e-6, atol=1e-6, err_msg=key)
    # Its rotations have other signs of the Gaussians' own axes, which are the same Gaussians.
    ours, theirs = (
        covariances(np.log(each[f"{EXTENSION}:SCALE"]), each[f"{EXTENSION}:ROTATION"][:, [3, 0, 1, 2]])
        for each in (ours, theirs)
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-7)


# --- axes


@pytest.mark.parametrize("axes", ["yz", "xy", "xz"])
def test_a_flipped_frame_shows_the_same(axes):
    cloud = cloud_of(make(20, 3))
    flipped = cloud.flipped(axes)
    signs = np.array([-1.0 if axis in axes else 1.0 for axis in "xyz"])
    np.testing.assert_allclose(flipped.means, cloud.means * signs)
    expected = covariances(cloud.scales, cloud.quats) * signs[:, None] * signs
    np.testing.assert_allclose(covariances(flipped.scales, flipped.quats), expected, rtol=1e-4, atol=1e-9)
    directions = np.random.default_rng(0).normal(size=(9, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    seen = harmonics(flipped.shN, directions * signs)
    np.testing.assert_allclose(seen, harmonics(cloud.shN, directions), rtol=1e-5, atol=1e-6)
    back = flipped.flipped(axes)
    assert (back.means == cloud.means).all() and (back.shN == cloud.shN).all() and (back.quats == cloud.quats).all()


EXTENSION = "KHR_gaussian_splatting"


def by_pygltflib(path):
    """Attribute -> (N, components) float64, by pygltflib, which parses a container without knowing the extension."""
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


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_gltf_by_another_parser(tmp_path, degree):
    splats = make(50, degree)
    save_splats(tmp_path / "a.glb", splats, offset=OFFSET, antialiased=True)
    found = by_pygltflib(tmp_path / "a.glb")
    # Left, up, front of right, down, front.
    means = splats["means"].numpy().astype(np.float64) * (-1, -1, 1)
    np.testing.assert_array_equal(found["POSITION"], means)
    np.testing.assert_allclose(found[f"{EXTENSION}:SCALE"], splats["scales"].double().exp().numpy(), rtol=1e-6)
    np.testing.assert_allclose(found[f"{EXTENSION}:OPACITY"][:, 0], splats["opacities"].double().sigmoid(), rtol=1e-6)
    np.testing.assert_array_equal(found[f"{EXTENSION}:SH_DEGREE_0_COEF_0"], splats["sh0"][:, 0].double())
    rotations = found[f"{EXTENSION}:ROTATION"]
    np.testing.assert_allclose(np.linalg.norm(rotations, axis=1), 1, atol=1e-6)
    turn = np.diag([-1.0, -1, 1])
    expected = turn @ covariances(splats["scales"].numpy(), splats["quats"].numpy()) @ turn
    scales = np.log(found[f"{EXTENSION}:SCALE"])
    np.testing.assert_allclose(covariances(scales, rotations[:, [3, 0, 1, 2]]), expected, rtol=1e-3, atol=1e-7)
    names = [f"{EXTENSION}:SH_DEGREE_{each}_COEF_{i}" for each in range(1, 4) for i in range(2 * each + 1)]
    assert [name for name in names if name in found] == names[: (degree + 1) ** 2 - 1]
    if degree:
        shN = np.stack([found[name] for name in names[: (degree + 1) ** 2 - 1]], 1)
        directions = np.eye(3)[[0, 1, 2, 0]] * 0.6 + np.array([[0.1, 0.5, -0.4]])
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        seen = harmonics(shN, directions * (-1, -1, 1))
        np.testing.assert_allclose(seen, harmonics(splats["shN"].numpy(), directions), atol=1e-6)
    file = pygltflib.GLTF2().load_binary(str(tmp_path / "a.glb"))
    np.testing.assert_allclose(file.accessors[0].min, means.min(0), rtol=1e-6)
    np.testing.assert_allclose(file.accessors[0].max, means.max(0), rtol=1e-6)
    assert file.nodes[0].extras == {"offset": list(OFFSET), "antialiased": True}
    kind = file.meshes[0].primitives[0].extensions[EXTENSION]
    assert kind["kernel"] == "ellipse" and kind["colorSpace"] == "srgb_rec709_display"


def test_the_bytes_of_splat(tmp_path):
    splats = {
        "means": torch.tensor([[1.0, 2, 3], [4, 5, 6]]),
        "scales": torch.tensor([[0.0, 0, 0], [1, 1, 1]]),
        "quats": torch.tensor([[2.0, 0, 0, 0], [0, 0, -1, 0]]),
        "opacities": torch.tensor([0.0, math.inf]),
        "sh0": torch.zeros(2, 1, 3),
        "shN": torch.ones(2, 3, 3),
    }
    notes = save_splats(tmp_path / "a.splat", splats, offset=OFFSET)
    assert any("harmonics of degree 1 to 1" in note for note in notes) and any("offset" in note for note in notes)
    first, second = struct.iter_unpack("<6f8B", (tmp_path / "a.splat").read_bytes())
    # The larger one comes first.
    assert first == (4, 5, 6, *[pytest.approx(math.e)] * 3, 128, 128, 128, 255, 128, 128, 0, 128)
    assert second == (1, 2, 3, 1, 1, 1, 128, 128, 128, 128, 255, 128, 128, 128)


def test_the_bytes_of_spz(tmp_path):
    splats = {
        "means": torch.tensor([[1.0, -2, 0.25]]),
        "scales": torch.tensor([[-10.0, 0, 5]]),
        "quats": torch.tensor([[1.0, 0, 0, 0]]),
        "opacities": torch.tensor([0.0]),
        "sh0": torch.zeros(1, 1, 3),
        "shN": torch.zeros(1, 3, 3),
    }
    save_splats(tmp_path / "a.spz", splats, antialiased=True)
    content = gzip.decompress((tmp_path / "a.spz").read_bytes())
    assert content[:16] == b"NGSP" + bytes([3, 0, 0, 0, 1, 0, 0, 0, 1, 12, 1, 0])
    assert [int.from_bytes(content[i : i + 3], "little", signed=True) for i in (16, 19, 22)] == [4096, 8192, -1024]
    assert content[25:] == bytes([128, 128, 128, 128, 0, 160, 240, 0, 0, 0, 0xC0, *[128] * 9])


def test_the_parts_of_sog(tmp_path):
    splats = make(70, 1)
    save_splats(tmp_path / "a.sog", splats, antialiased=True)
    with zipfile.ZipFile(tmp_path / "a.sog") as archive:
        meta = json.loads(archive.read("meta.json"))
        sizes = {name: Image.open(io.BytesIO(archive.read(name))).size for name in archive.namelist()[1:]}
        # Lossless WebP says so in its first chunk.
        assert all(archive.read(name)[12:16] == b"VP8L" for name in sizes)
    assert meta["version"] == 2 and meta["count"] == 70 and meta["antialias"] is True
    assert sizes.pop("shN_centroids.webp") == (64 * 3, 2) and set(sizes.values()) == {(12, 8)}
    assert meta["shN"]["count"] == 70 and meta["shN"]["bands"] == 1
    assert all(len(meta[name]["codebook"]) == 256 for name in ("scales", "sh0", "shN"))


# --- what goes along


@pytest.mark.parametrize("name", FORMATS)
def test_offset_and_antialiasing_are_kept_or_said(tmp_path, name):
    path = tmp_path / f"a{FORMATS[name].suffix}"
    notes = save_splats(path, make(4, 1), offset=OFFSET, antialiased=True)
    back = read_splats(path)
    assert back.offset == OFFSET or (any("offset" in note for note in notes) and not any(back.offset))
    assert (back.offset == OFFSET) == (name not in ("splat", "spz"))
    assert back.antialiased or any("antialiased" in note for note in notes)
    assert back.antialiased == (name != "splat")
    save_splats(path, make(4, 1))
    back = read_splats(path)
    assert back.offset == (0, 0, 0) and not back.antialiased


@pytest.mark.parametrize("name", FORMATS)
def test_the_same_gaussians_are_the_same_bytes(tmp_path, name):
    first, second = (tmp_path / f"{each}{FORMATS[name].suffix}" for each in "ab")
    save_splats(first, make(90, 2))
    save_splats(second, make(90, 2))
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("name", FORMATS)
def test_no_gaussians_and_broken_ones_are_refused(tmp_path, name):
    path = tmp_path / f"a{FORMATS[name].suffix}"
    with pytest.raises(FormatError, match="required Gaussians to write, got none"):
        save_splats(path, make(0, 1))
    for key in ("means", "scales", "quats", "sh0", "shN"):
        splats = make(5, 1)
        splats[key].view(5, -1)[3, 0] = math.nan
        with pytest.raises(FormatError, match=rf"NaN or infinity in the {key} of 1 of 5 Gaussians, number 3 first"):
            save_splats(path, splats)
    assert not path.exists()


@pytest.mark.parametrize("name", FORMATS)
def test_extreme_but_finite_values(tmp_path, name):
    splats = make(6, 3)
    splats["opacities"] = torch.tensor([math.inf, -math.inf, 1e9, -1e9, 0, 0])
    splats["quats"][0] = 0
    splats["scales"][1] = -60
    splats["shN"][2] = 50
    splats["sh0"][3] = -30
    path = tmp_path / f"a{FORMATS[name].suffix}"
    notes = save_splats(path, splats)
    back = read_splats(path)
    assert all(bool(torch.isfinite(value).all()) for value in back.splats().values())
    np.testing.assert_allclose(sorted(back.alphas), [0, 0, 0.5, 0.5, 1, 1], atol=0.003)
    assert any("rotations had no length" in note for note in notes)
    if name in ("compressed-ply", "spz"):
        assert any("harmonics were cut" in note for note in notes) and any("scales were cut" in note for note in notes)


def test_spz_of_large_and_tiny_scenes(tmp_path):
    path = tmp_path / "a.spz"
    splats = make(50, 0, spread=20_000.0)
    notes = save_splats(path, splats)
    reach = float(splats["means"].abs().max())
    bits = math.floor(math.log2((2**23 - 1) / reach))
    assert any(f"rounded to 1/{2**bits} instead of 1/4096" in note for note in notes)
    np.testing.assert_allclose(read_splats(path).means, splats["means"], atol=2.0**-bits)
    splats = make(50, 0, spread=1e-4)
    splats["scales"] -= 6
    assert not any("rounded" in note for note in save_splats(path, splats))
    np.testing.assert_allclose(read_splats(path).means, splats["means"], atol=2e-5)
    splats["means"][0, 0] = 1e8
    with pytest.raises(FormatError, match=r"a.spz: required positions within ±8388607, which 24 bits hold, got 1e\+08"):
        save_splats(path, splats)


def test_a_single_place_for_all(tmp_path):
    splats = make(10, 1)
    splats["means"][:] = torch.tensor([3.0, -2, 1])
    for kind in FORMATS.values():
        path = tmp_path / f"a{kind.suffix}"
        save_splats(path, splats)
        np.testing.assert_allclose(read_splats(path).means, splats["means"], atol=1e-4)


# --- names and broken files


def test_formats_by_name(tmp_path):
    assert format_of("A.SPZ").name == "spz" and format_of("x/b.compressed.PLY").name == "compressed-ply"
    with pytest.raises(FormatError, match=r"a\.obj: required a name that ends in \.ply, .*, got \.obj"):
        format_of("a.obj")
    with pytest.raises(FormatError, match="the format must be one of ply, compressed-ply, .*, got 'ksplat'"):
        save_splats(tmp_path / "a.spz", make(2), format="ksplat")
    save_splats(tmp_path / "a.bin", make(2), format="glb")
    assert len(read_splats(tmp_path / "a.bin", format="glb")) == 2
    # A compressed PLY is known by what is in it.
    save_splats(tmp_path / "a.ply", make(2), format="compressed-ply")
    assert len(read_splats(tmp_path / "a.ply")) == 2


@pytest.mark.parametrize("name", FORMATS)
def test_missing_and_broken_files_are_one_sentence(tmp_path, name):
    path = tmp_path / f"a{FORMATS[name].suffix}"
    with pytest.raises(UserError):
        read_splats(path)
    save_splats(path, make(40, 1))
    whole = path.read_bytes()
    generator = np.random.default_rng(0)
    for _ in range(60):
        broken = bytearray(whole)
        start = int(generator.integers(len(whole)))
        if generator.random() < 0.5:
            del broken[start:]
        else:
            for place in generator.integers(len(whole), size=3):
                broken[place] = generator.integers(256)
        path.write_bytes(bytes(broken))
        try:
            read_splats(path)
        except UserError as error:
            assert str(error).isprintable()


def test_gltf_that_is_not_ours_to_read(tmp_path):
    path = tmp_path / "a.glb"
    save_splats(path, make(3, 0))
    file = pygltflib.GLTF2().load_binary(str(path))
    file.nodes[0].translation = [1, 2, 3]
    file.save_binary(str(tmp_path / "b.glb"))
    with pytest.raises(FormatError, match="required a node without a transformation, got one with a translation"):
        read_splats(tmp_path / "b.glb")
    del file.meshes[0].primitives[0].extensions[EXTENSION]
    file.save_binary(str(tmp_path / "c.glb"))
    with pytest.raises(FormatError, match=f"required a node with a primitive of {EXTENSION}, got none"):
        read_splats(tmp_path / "c.glb")


# --- parts


def test_smallest_three_is_its_own_inverse():
    quats = np.random.default_rng(0).normal(size=(500, 4))
    quats[0] = (0, 0, 0, -1)
    quats /= np.linalg.norm(quats, axis=1, keepdims=True)
    largest, others = smallest_three(quats)
    assert np.abs(others).max() <= math.sqrt(0.5) + 1e-12
    np.testing.assert_allclose(matrices(from_smallest_three(largest, others)), matrices(quats), atol=1e-5)


def test_a_codebook_is_near_the_best_that_uniform_values_have():
    values = np.random.default_rng(0).random(20_000)
    centers, index = codebook(values)
    assert (np.diff(centers) >= 0).all() and index.dtype == np.uint8
    # 256 even steps have an error of 1/256/√12.
    assert np.sqrt(np.square(centers[index] - values).mean()) < 1.02 / 256 / math.sqrt(12)
    distances = np.abs(values[:, None] - centers[None])
    np.testing.assert_allclose(np.abs(centers[index] - values), distances.min(1), atol=1e-7)


def test_a_palette_finds_clusters():
    generator = np.random.default_rng(0)
    middles = generator.normal(size=(40, 9)).astype(np.float32)
    rows = middles[generator.integers(40, size=3000)] + 0.001 * generator.normal(size=(3000, 9)).astype(np.float32)
    centers, index = palette(rows, 200)
    assert len(centers) <= 200 and index.shape == (3000,)
    assert np.square(centers[index] - rows).mean() < 0.02 * np.square(rows).mean()
    centers, index = palette(middles[:7], 200)
    np.testing.assert_array_equal(centers[index], middles[:7])


def test_a_morton_order_keeps_neighbours_together():
    points = np.random.default_rng(0).random((2000, 3))
    steps = np.linalg.norm(np.diff(points[morton_order(points)], axis=0), axis=1)
    assert steps.mean() < 0.3 * np.linalg.norm(np.diff(points, axis=0), axis=1).mean()
