"""Files of Gaussians: their bytes, their losses, broken files, and code that formats share."""

import gzip
import io
import json
import math
import re
import struct
import zipfile

import numpy as np
import pygltflib
import pytest
import torch
from PIL import Image
from scipy.spatial import KDTree

from splat_ssim.errors import UserError
from splat_ssim.formats import FORMATS, FormatError, format_of, read_splats, save_splats
from splat_ssim.formats.cloud import from_smallest_three, morton_order, smallest_three
from splat_ssim.formats.palette import codebook, palette

from .gaussians import EXTENSION, OFFSET, make, matrices, write_doubles


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
        # The first chunk of a lossless WebP says that it is lossless.
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
    with pytest.raises(FormatError, match="required at least one Gaussian, got none"):
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


def test_far_gaussians_spoil_few_others_in_compressed_ply_and_are_said(tmp_path):
    splats = make(20_000, 0)
    splats["scales"][:] = -5
    splats["means"][7_777] = torch.tensor([1e5, 0, 0])
    path = tmp_path / "a.compressed.ply"
    notes = save_splats(path, splats)
    # 19,999 others fill 78 chunks; only the 31 in the chunk of the far one are as coarse along x.
    back = read_splats(path).means[:-32].astype(np.float64)
    places = KDTree(splats["means"].double().numpy())
    assert places.query(back)[0].max() < math.exp(-5)
    count = int(
        re.fullmatch(r"(\d+) of 20000 positions are rounded by more than the size of their Gaussian", notes[0])[1]
    )
    assert 20 < count <= 31
    splats["means"][7_777] = 0
    assert save_splats(path, splats) == []


def test_sog_says_which_positions_it_moves(tmp_path):
    splats = make(50, 0)
    splats["scales"][:] = -12
    notes = save_splats(tmp_path / "a.sog", splats)
    assert any("positions are rounded by more than the size of their Gaussian" in note for note in notes)
    splats["scales"][:] = -5
    assert save_splats(tmp_path / "a.sog", splats) == []


def test_large_coordinates_in_double_precision_are_kept_by_an_offset(tmp_path):
    path = tmp_path / "a.ply"
    world = write_doubles(path, make(300, 1), (500_000.123, 4_600_000.456, 80))
    back = read_splats(path)
    np.testing.assert_allclose(back.means + np.array(back.offset), world, atol=1e-6, rtol=0)
    assert re.fullmatch(r"coordinates are too large for float32: the offset \(\d+, \d+, 80\) .*", back.notes[0])
    # An offset that the file has stays part of it.
    write_doubles(path, make(300, 1), (500_000.123, 4_600_000.456, 80), "comment offset 1000.0 0.0 -2.0")
    back = read_splats(path)
    np.testing.assert_allclose(back.means + np.array(back.offset), world + np.array([1000, 0, -2]), atol=1e-6, rtol=0)
    # What float32 holds is not moved.
    write_doubles(path, make(300, 1), (5, 4, 8))
    assert read_splats(path).offset == (0, 0, 0) and read_splats(path).notes == []


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
    with pytest.raises(FormatError, match=r"the format must be one of ply, compressed-ply, .*, got 'ksplat'"):
        save_splats(tmp_path / "a.spz", make(2), format="ksplat")
    save_splats(tmp_path / "a.bin", make(2), format="glb")
    assert len(read_splats(tmp_path / "a.bin", format="glb")) == 2
    # A compressed PLY is recognised by its contents.
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
    with pytest.raises(
        FormatError, match="required nodes without a transformation, got one with a translation: node 0"
    ):
        read_splats(tmp_path / "b.glb")
    del file.meshes[0].primitives[0].extensions[EXTENSION]
    file.save_binary(str(tmp_path / "c.glb"))
    with pytest.raises(FormatError, match=f"required a node with a primitive of {EXTENSION}, got none"):
        read_splats(tmp_path / "c.glb")


def rewritten_gltf(path, change):
    """A file whose JSON was changed."""
    data = path.read_bytes()
    length = struct.unpack_from("<I", data, 12)[0]
    content = json.loads(data[20 : 20 + length])
    change(content)
    text = json.dumps(content).encode()
    text += b" " * (-len(text) % 4)
    rest = data[20 + length :]
    path.write_bytes(struct.pack("<5I", 0x46546C67, 2, 20 + len(text) + len(rest), len(text), 0x4E4F534A) + text + rest)


def _primitive(content):
    return content["meshes"][0]["primitives"][0]


@pytest.mark.parametrize(
    "change,message",
    [
        (
            lambda c: c.update(nodes=[{"children": [1], "translation": [9, 0, 0]}, {"mesh": 0}]),
            "required nodes without a transformation, got one with a translation: node 0",
        ),
        (
            lambda c: _primitive(c)["extensions"][EXTENSION].update(colorSpace="lin_rec709_display"),
            "required Gaussians of the colorSpace srgb_rec709_display, got 'lin_rec709_display'",
        ),
        (
            lambda c: _primitive(c)["extensions"][EXTENSION].update(kernel="other"),
            "required Gaussians of the kernel ellipse, got 'other'",
        ),
        (lambda c: c["accessors"][0].update(sparse={"count": 1}), "required dense accessors, got a sparse one"),
    ],
)
def test_gltf_that_moves_or_recolours_gaussians_is_refused(tmp_path, change, message):
    save_splats(tmp_path / "a.glb", make(3, 1))
    rewritten_gltf(tmp_path / "a.glb", change)
    with pytest.raises(FormatError, match=rf"a\.glb: {message}"):
        read_splats(tmp_path / "a.glb")


def test_gltf_that_moves_nothing_is_read_and_what_is_left_out_is_said(tmp_path):
    path = tmp_path / "a.glb"
    save_splats(path, make(3, 2))

    def change(content):
        unmoved = {"translation": [0.0, 0.0, 0.0], "rotation": [0, 0, 0, 1], "scale": [1, 1, 1]}
        content["nodes"] = [{"mesh": 0, **unmoved}, {"children": [0], "matrix": np.eye(4).ravel().tolist()}]
        del _primitive(content)["attributes"][f"{EXTENSION}:SH_DEGREE_2_COEF_3"]
        del _primitive(content)["extensions"][EXTENSION]["colorSpace"]

    rewritten_gltf(path, change)
    back = read_splats(path)
    np.testing.assert_array_equal(back.means, make(3, 2)["means"])
    assert back.degree == 1 and back.notes == [
        "it names no colorSpace: taken as srgb_rec709_display",
        "harmonics above degree 1 are not whole: 4 coefficients were ignored",
    ]


def test_gltf_of_numbers_that_are_none(tmp_path):
    path = tmp_path / "a.glb"
    save_splats(path, make(3, 1))
    whole = path.read_bytes()
    # The position of the first Gaussian begins the buffer.
    place = 20 + struct.unpack_from("<I", whole, 12)[0] + 8
    path.write_bytes(whole[:place] + struct.pack("<f", math.nan) + whole[place + 4 :])
    with pytest.raises(FormatError, match="got NaN or infinity in the means of 1 of 3 Gaussians, number 0 first"):
        read_splats(path)
    path.write_bytes(whole.replace(b'"count":3', b'"count":2', 3))
    with pytest.raises(FormatError, match=r"a.glb: required as many|a.glb: required harmonics"):
        read_splats(path)


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
    # 256 even steps have a root mean squared error of 1/256/√12.
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


def test_a_morton_order_of_points_with_some_far_away():
    points = np.random.default_rng(0).random((2000, 3))
    points[:2] = [[1e6, 0, 0], [1e9, 0, 0]]
    order = morton_order(points)
    assert sorted(order) == list(range(2000)) and order[-2:].tolist() == [0, 1]
    np.testing.assert_array_equal(order[:-2] - 2, morton_order(points[2:]))
