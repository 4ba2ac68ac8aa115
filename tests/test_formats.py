"""Files of Gaussians, read back by us and by independent packages, are equal up to the rounding of each format."""

import math
import shutil
import subprocess

import gaussforge
import numpy as np
import pygltflib
import pytest
import torch

from splat_ssim.formats import FORMATS, read_splats, save_splats
from splat_ssim.formats.cloud import cloud_of
from splat_ssim.ply import load_ply
from splat_ssim.render import rasterization

from .gaussians import (
    EXTENSION,
    OFFSET,
    by_gaussforge,
    by_pygltflib,
    check,
    covariances,
    harmonics,
    make,
    matched,
    matrices,
)

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
    # GaussForge truncates where others round.
    check(name, read_splats(path), cloud_of(splats), half=1 / 255 + 1e-6)


def test_a_palette_smaller_than_the_scene(tmp_path, monkeypatch):
    monkeypatch.setattr("splat_ssim.formats.sog._MOST_ROWS", 300)
    splats = make(2000, 2, seed=3)
    # Nearly 400 different sets of harmonics.
    splats["shN"] = splats["shN"][:400].repeat(5, 1, 1) + 0.001 * splats["shN"]
    path = tmp_path / "a.sog"
    save_splats(path, splats)
    expected = cloud_of(splats)
    ours, theirs = (
        each.ordered(matched(each.means, expected.means)) for each in (read_splats(path), by_gaussforge(path, "sog"))
    )
    np.testing.assert_allclose(ours.shN, theirs.shN, atol=1e-6)
    assert len(np.unique(ours.shN, axis=0)) <= 300
    # Of 400 sets at least 100 share a row. With a row of zeros for all, the error would be the sets themselves.
    assert np.square(ours.shN - expected.shN).mean() < 0.4 * np.square(expected.shN).mean()


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
    """Needs PlayCanvas's own converter: `npm install -g @playcanvas/splat-transform@2`."""
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
    # Its rotations differ in the signs of the Gaussians' own axes, which does not change the Gaussians.
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


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_gltf_by_another_parser(tmp_path, degree):
    splats = make(50, degree)
    save_splats(tmp_path / "a.glb", splats, offset=OFFSET, antialiased=True)
    found = by_pygltflib(tmp_path / "a.glb")
    # The axes right, down, front become left, up, front.
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
