"""Projections: their folders, their simulation from voxels, backprojection, and reconstruction with Gaussians."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch

from splat_ssim import _files
from splat_ssim.ct import Projections, XrayGeometry, circle, load_projections, project, save_projections
from splat_ssim.ct.config import CTConfig, CTDataConfig
from splat_ssim.ct.fdk import fdk
from splat_ssim.ct.reference import rays
from splat_ssim.ct.simulate import ray_sums, simulate, with_photon_noise
from splat_ssim.ct.training import CTTask
from splat_ssim.errors import UserError
from splat_ssim.trainer.cli import main
from splat_ssim.trainer.loop import load
from splat_ssim.volume import Volume, VoxelGrid, load_volume, save_volume, voxelize

GRID = VoxelGrid.regular((16, 18, 20), spacing=1.5, origin=(-14, -13, -11))
CONE = {"source_object": 80.0, "source_detector": 120.0}
GEOMETRY = XrayGeometry("cone", (24, 30), (2, 2), circle(12, "cone"), **CONE)


def blobs():
    """A smooth volume on GRID: three Gaussians that vanish at its borders."""
    means = torch.tensor([[0.0, 0, 0], [4, -3, 2], [-5, 2, -3]])
    quats, scales = torch.eye(4)[:1].repeat(3, 1), torch.tensor([[2.0, 2.5, 2.2], [1.6, 1.8, 1.7], [1.8, 1.5, 2.0]])
    return means, quats, scales, torch.tensor([1.0, 0.6, 0.8])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of projections, and the volume that they show."""
    place = tmp_path_factory.mktemp("ct")
    truth = voxelize(*blobs(), GRID)
    save_volume(place / "truth.npy", Volume(truth.numpy(), GRID, "mm"))
    pictures = ray_sums(truth[0], GRID, GEOMETRY).float()
    return save_projections(place / "projections", Projections(pictures, GEOMETRY, GRID))


# --- projections of voxels


@pytest.mark.parametrize("kind", ["cone", "parallel"])
def test_sums_of_voxels_are_near_the_integrals_of_the_field(kind):
    """Compares both projectors, which share no formula, on a field that a fine grid resolves."""
    grid = VoxelGrid.regular((48, 48, 48), spacing=0.6, origin=-14.1)
    distances = CONE if kind == "cone" else {}
    geometry = XrayGeometry(kind, (11, 13), (3, 3), (0, 33), **distances, center=(0.5, 0, -0.3))
    sums = ray_sums(voxelize(*blobs(), grid)[0], grid, geometry)
    exact = project(*(t.double() for t in blobs()), geometry)[:, 0]
    assert (sums - exact).abs().max() < 0.015 * exact.max()


def test_a_ray_through_a_slab_has_its_thickness():
    # The volume falls to 0 within a voxel past the outermost centres, which adds half a voxel on either side. So the
    # slab counts as 9 voxels of 2 mm. At 60 degrees, the ray through it is twice as long.
    grid = VoxelGrid.regular((41, 41, 9), spacing=2.0, origin=(-8, -40, -40))
    sums = ray_sums(torch.ones(grid.shape), grid, XrayGeometry("parallel", (1, 1), (1, 1), (0, 60)))
    torch.testing.assert_close(sums.flatten(), torch.tensor([18.0, 36.0], dtype=torch.float64), rtol=2e-3, atol=0)


def test_rays_that_miss_are_zero():
    sums = ray_sums(torch.ones(GRID.shape), GRID, XrayGeometry("parallel", (3, 3), (200, 200), (0, 45)))
    assert sums[:, 1, 1].min() > 0
    assert torch.count_nonzero(sums) == 2


def test_an_oblique_grid_is_projected_where_it_lies():
    turned = np.eye(4)
    turned[:3, :3] = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0] * 0.6
    turned[:3, 3] = -turned[:3, :3] @ np.full(3, 24.5)
    grid = VoxelGrid((50, 50, 50), turned.tolist())
    sums = ray_sums(voxelize(*blobs(), grid)[0], grid, GEOMETRY)
    exact = project(*(t.double() for t in blobs()), GEOMETRY)[:, 0]
    assert (sums - exact).abs().max() < 0.02 * exact.max()


def test_photon_noise_is_seeded_and_has_its_size():
    pictures = torch.full((1, 200, 200), 3.0, dtype=torch.float64)
    first, again, other = (with_photon_noise(pictures, photons=1e4, attenuation=2, seed=s) for s in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    # The standard deviation of -log(N) for a count N is 1/sqrt(N), here in units of 1.5.
    assert abs(float(first.std()) - 1.5 / (1e4 * np.exp(-2)) ** 0.5) < 0.001
    assert abs(float(first.mean()) - 3) < 0.002


def test_filtered_backprojection_has_the_values_of_the_volume():
    geometry = XrayGeometry("cone", (30, 36), (2, 2), circle(90, "cone"), **CONE)
    truth = voxelize(*blobs(), GRID)[0]
    found = fdk(ray_sums(truth, GRID, geometry).float(), geometry, GRID)
    assert (found - truth).abs().mean() < 0.02
    assert abs(float(found.sum() / truth.sum()) - 1) < 0.03
    assert np.corrcoef(found.flatten(), truth.flatten())[0, 1] > 0.97


# --- folders


def test_a_folder_comes_back(folder):
    data = load_projections(folder)
    assert data.geometry == GEOMETRY and data.grid == GRID
    assert data.pictures.shape == (12, 24, 30) and data.pictures.dtype == torch.float32


@pytest.mark.parametrize("name", ["stack.tif", "stack.nii.gz", "stack.mha"])
def test_other_formats_of_projections(folder, tmp_path, name):
    pictures = np.load(folder / "projections.npy")
    if name.endswith(".tif"):
        import tifffile

        tifffile.imwrite(tmp_path / name, pictures)
    elif name.endswith(".mha"):
        import SimpleITK as sitk

        sitk.WriteImage(sitk.GetImageFromArray(pictures), str(tmp_path / name))
    else:
        import nibabel

        nibabel.save(nibabel.Nifti1Image(pictures.transpose(2, 1, 0), np.eye(4)), tmp_path / name)
    header = json.loads((folder / "geometry.json").read_text())
    del header["projections"]
    (tmp_path / "geometry.json").write_text(json.dumps(header))
    assert torch.equal(load_projections(tmp_path).pictures, torch.from_numpy(pictures))


def test_a_volume_as_a_box():
    header = {"shape": [4, 6, 8], "low": [-8, -6, -4], "high": [8, 6, 4]}
    from splat_ssim.ct.data import _grid

    assert _grid(header) == VoxelGrid.regular((4, 6, 8), spacing=2.0, origin=(-7, -5, -3))


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"geometry": "fan"}, "geometry must be one of cone, parallel, got 'fan'"),
        ({"angles": [0, 1]}, r"must have shape \(2, 24, 30\).*got \(12, 24, 30\)"),
        ({"angles": "many"}, "angles must be one finite number or more, got many"),
        ({"angles": {str(angle): 1 for angle in range(12)}}, "angles must be one finite number or more"),
        ({"angles": [True] * 12}, "angles must be one finite number or more"),
        ({"detector": {"rows": "24", "columns": 30, "spacing": 2}}, "rows and columns must be 2 finite numbers"),
        ({"source_object": True}, "0 < source_object < source_detector .* got source_object True"),
        ({"volume": {"shape": [True, 4, 4], "affine": np.eye(4).tolist()}}, "volume.shape must be three whole numbers"),
        ({"volume": {"shape": [4, 4, 4], "low": ["0", "0", "0"], "high": [1, 1, 1]}}, "low must be below"),
        (
            {"volume": {"shape": [4, 4, 4], "affine": [list("1000"), *np.eye(4)[1:].tolist()]}},
            "affine must be a finite",
        ),
        ({"detector": {"rows": 24, "columns": 31, "spacing": 2}}, r"must have shape \(12, 24, 31\)"),
        ({"detector": {"rows": 24}}, "detector must hold rows, columns and spacing"),
        ({"detector": None}, "detector must hold rows"),
        ({"source_object": None}, "0 < source_object < source_detector"),
        ({"center": [0, 0, 5000]}, r"the rays must meet the volume, got none .* turn about \(0, 0, 5000\)"),
        ({"source_object": 10}, "the source must turn outside the volume"),
        ({"volume": {"shape": [4, 4]}}, "volume.shape must be three whole numbers"),
        ({"volume": {"shape": [4, 4, 4], "low": [0, 0, 0]}}, "either affine or low and high"),
        ({"volume": {"shape": [4, 4, 4], "low": [0, 0, 0], "high": [1, 0, 1]}}, "low must be below volume.high"),
        ({"volume": {"shape": [4, 4, 4], "affine": [[1]]}}, "affine must be a finite 4x4 matrix"),
        ({"volume": None}, "volume must hold shape"),
        ({"unknown": 1}, "unknown is unknown"),
        ({"projections": "projections.txt"}, "projections must name a .npy"),
        ({"projections": "other.npy"}, "no volume at .*other.npy"),
    ],
)
def test_folders_that_are_refused(folder, tmp_path, changes, message):
    header = {**json.loads((folder / "geometry.json").read_text()), **changes}
    (tmp_path / "geometry.json").write_text(json.dumps(header))
    (tmp_path / "projections.npy").write_bytes((folder / "projections.npy").read_bytes())
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load_projections(tmp_path)


def test_a_key_that_is_there_twice_is_refused(folder, tmp_path):
    text = (folder / "geometry.json").read_text()
    (tmp_path / "geometry.json").write_text(text.replace('"angles"', '"angles": [0], "angles"'))
    with pytest.raises(ValueError, match=r"geometry\.json: the key 'angles' must be there once, got it twice"):
        load_projections(tmp_path)


def test_damaged_files_are_refused(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"geometry\.json, got none"):
        load_projections(tmp_path)
    (tmp_path / "geometry.json").write_text("[1")
    with pytest.raises(ValueError, match=r"geometry\.json"):
        load_projections(tmp_path)
    (tmp_path / "geometry.json").write_text("[]")
    with pytest.raises(ValueError, match="a JSON object must be given, got list"):
        load_projections(tmp_path)
    header = json.loads((folder / "geometry.json").read_text())
    del header["projections"]
    (tmp_path / "geometry.json").write_text(json.dumps(header))
    with pytest.raises(ValueError, match="must hold one file of projections"):
        load_projections(tmp_path)
    for damaged, message in (
        (np.full((12, 24, 30), np.nan), "finite numbers, got 8640 NaN"),
        (np.zeros((12, 24)), r"must hold \(pictures, rows, columns\)"),
    ):
        np.save(tmp_path / "projections.npy", damaged)
        with pytest.raises(ValueError, match=message):
            load_projections(tmp_path)
    np.save(tmp_path / "projections.npy", np.zeros((12, 24, 30), complex))
    with pytest.raises(TypeError, match="real numbers"):
        load_projections(tmp_path)


# --- scripts/project.py


@pytest.mark.parametrize("kind", ["cone", "parallel"])
def test_simulation_sees_the_whole_volume(folder, tmp_path, kind):
    made = simulate(folder.parent / "truth.npy", tmp_path / "made", views=4, geometry=kind)
    data = load_projections(made)
    edges = torch.cat([data.pictures[:, 0], data.pictures[:, -1]], 1)
    assert not edges.any() and data.grid == GRID
    assert data.geometry.center == pytest.approx((0.25, -0.25, 0.25))
    noisy = load_projections(
        simulate(folder.parent / "truth.npy", tmp_path / "noisy", views=4, geometry=kind, photons=1e4)
    )
    assert 0 < (noisy.pictures - data.pictures).abs().max() < 0.5 * data.pictures.max()


@pytest.mark.parametrize(
    "options,message",
    [
        ({"views": 0}, "views and photons must be at least 1"),
        ({"photons": math.nan}, "views and photons must be at least 1 .* got 50, nan, 4.0"),
        ({"attenuation": math.inf, "photons": 9}, "attenuation above 0, all of them finite, got 50, 9, inf"),
        ({"attenuation": 2.0}, "attenuation and seed are those of the noise, and require photons, got none"),
        ({"seed": 3}, "attenuation and seed are those of the noise"),
        ({"seed": 2**64, "photons": 100}, "seed must be from 0 to 9223372036854775807, got 18446744073709551616"),
        ({"read": {"colour": 1}}, "read must hold shape, .* got 'colour'"),
        ({"spacing": 0.0}, "detector spacing must be above 0 mm"),
        ({"source_object": 0.0}, "0 < source_object < source_detector in mm, got source_object 0"),
        ({"source_detector": 0.0}, "source_object < source_detector in mm, got .* source_detector 0"),
        ({"geometry": "parallel", "source_object": 0.0}, "a parallel beam has no source"),
        ({"source_object": 5.0}, "source_object must be above"),
        ({"geometry": "parallel", "source_object": 500.0}, "a parallel beam has no source"),
        ({"source_object": 500.0, "source_detector": 400.0}, "source_object < source_detector"),
    ],
)
def test_simulations_that_are_refused(folder, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        simulate(folder.parent / "truth.npy", tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("unit,size,told", [("um", 1e3, "from um to mm"), ("", 1, "not known: mm is taken")])
def test_lengths_become_mm(folder, tmp_path, capsys, unit, size, told):
    matrix = GRID.matrix
    matrix[:3] *= size
    truth = Volume(load_volume(folder.parent / "truth.npy").data, VoxelGrid(GRID.shape, matrix.tolist()), unit)
    path = save_volume(tmp_path / "truth.npz", truth)
    data = load_projections(simulate(path, tmp_path / "made", views=2))
    np.testing.assert_allclose(data.grid.matrix, GRID.matrix, rtol=1e-12)
    assert data.geometry.spacing[0] == pytest.approx(1.5 * 1.5)
    assert f"{path}: its" in capsys.readouterr().out
    config = CTConfig(data_dir=tmp_path / "made", data=CTDataConfig(truth=path))
    config.strategy.budget = 50
    notes = CTTask(config).notes
    assert notes[0].endswith(
        "angles from 0 to 180 degrees; the detector sees 100% of the volume's corners, over all views"
    )
    assert told in notes[-1]


def test_voxels_that_are_no_attenuations(folder, tmp_path, capsys):
    truth = load_volume(folder.parent / "truth.npy").data

    def made(values, **options):
        return simulate(
            save_volume(tmp_path / "v.npy", Volume(values, GRID, "mm")), tmp_path / "out", views=1, **options
        )

    for values in (0 * truth, -truth, 1000 * truth - 1000):
        with pytest.raises(UserError, match=r"v\.npy must have line integrals above 0, got .*CT numbers \(HU\)"):
            made(values, photons=1e3)
    mixed = 1000 * truth - 50
    with pytest.raises(UserError, match=r"must leave fewer than 2\^63 of 1000 photons on every ray"):
        made(mixed, photons=1e3, attenuation=1e3)
    assert not (tmp_path / "out").exists()
    several = np.concatenate([truth, 2 * truth])
    with pytest.raises(UserError, match=r"must have one channel, got 2; --read '\{channel: 0\}' takes one of a file"):
        made(several)
    one = load_projections(made(several, read={"channel": 1})).pictures
    assert torch.equal(one, load_projections(made(2 * truth)).pictures)
    mended = truth.copy()
    mended[0, 0, 0, 0] = np.nan
    with pytest.raises(
        UserError, match=r"pass nonfinite=0\.0 \(--data\.read .* of train, --read of compress and project\)"
    ):
        made(mended)
    made(mended, read={"nonfinite": 0.0})
    made(mixed)
    assert "v.npy: warning: its voxels reach down to -50" in capsys.readouterr().out


@pytest.mark.parametrize(("factor", "got"), [(1e200, r"e\+20\d"), (1e-310, r"e-3\d\d"), (1.7e308, "inf|nan")])
def test_line_integrals_that_float32_does_not_hold(folder, tmp_path, factor, got):
    truth = load_volume(folder.parent / "truth.npy").data.astype(np.float64)
    path = save_volume(tmp_path / "v.npy", Volume(truth / truth.max() * factor, GRID, "mm"))
    with pytest.raises(
        UserError, match=rf"the line integrals of .*v\.npy must be numbers that float32 holds.* got .*({got})"
    ):
        simulate(path, tmp_path / "out", views=1)
    assert not (tmp_path / "out").exists()
    for name in ("geometry.json", "projections.npy"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    if factor < 1e300:
        np.save(tmp_path / "projections.npy", np.load(tmp_path / "projections.npy").astype(np.float64) * factor)
        with pytest.raises(ValueError, match=r"the values of .*projections\.npy must be numbers that float32 holds"):
            load_projections(tmp_path)


def test_what_views_miss_is_told(folder, tmp_path, capsys):
    simulate(folder.parent / "truth.npy", tmp_path / "out", views=4, detector=(6, 6))
    said = "angles from 0 to 270 degrees; the detector sees 0% of the volume's corners, over all views"
    assert f"{tmp_path / 'out'}: {said}" in capsys.readouterr().out
    alike = Projections(torch.zeros(12, 24, 30), dataclasses.replace(GEOMETRY, angles=(5.0,) * 12), GRID).lines()
    assert "all views have the angle 5 degrees" in alike[1]
    angles = tuple(math.radians(angle) for angle in GEOMETRY.angles)
    radians = Projections(torch.zeros(12, 24, 30), dataclasses.replace(GEOMETRY, angles=angles), GRID).lines()
    assert radians[0].startswith("angles from 0 to 5.76 degrees") and "read as degrees, not as radians" in radians[1]


@pytest.mark.parametrize("kind", ["cone", "parallel"])
def test_points_on_a_ray_appear_at_its_pixel(kind):
    geometry = XrayGeometry(kind, (7, 9), (1, 2), (10, 200), offset=(3, -2), **(CONE if kind == "cone" else {}))
    for frame, places in zip(geometry.frames(), (0, 1), strict=True):
        origin, direction = rays(frame, geometry.detector, cone=kind == "cone")
        found = geometry.pixels(origin + 0.6 * direction)[places]
        torch.testing.assert_close(found.reshape(7, 9, 2)[5, 4], torch.tensor([4.0, 5.0], dtype=torch.float64))


def test_a_simulation_on_other_voxels_has_the_truth_there(folder, tmp_path):
    made = simulate(folder.parent / "truth.npy", tmp_path / "made", views=3, size=25)
    own = load_projections(simulate(folder.parent / "truth.npy", tmp_path / "own", views=3, detector=(30, 30)))
    data, truth = load_projections(made), load_volume(made / "truth.npz")
    assert truth.grid == data.grid and data.grid.shape == (25, 25, 25)
    assert data.grid.spacing == pytest.approx([1.2] * 3) and data.grid.origin == pytest.approx((-14.15, -14.65, -14.15))
    exact = voxelize(*blobs(), data.grid)
    error = (torch.from_numpy(truth.data) - exact).abs()
    assert error.max() < 0.2 and error.mean() < 0.005
    # The file's own voxels are projected, not those of the new grid.
    assert data.geometry.center == own.geometry.center
    assert abs(float(data.pictures.max() / own.pictures.max()) - 1) < 0.02


def test_projections_are_not_read_with_the_geometry_of_others(folder, tmp_path, monkeypatch):
    source = folder.parent / "truth.npy"
    made = simulate(source, tmp_path / "made", views=3, size=9)
    before = {path.name: path.read_bytes() for path in made.iterdir()}
    replace, seen = _files._replace, []

    def watched(from_path, to_path):
        replace(from_path, to_path)
        seen.append({path.name: path.read_bytes() for path in made.iterdir() if not path.name.endswith(".tmp")})

    monkeypatch.setattr(_files, "_replace", watched)
    simulate(source, made, views=4, size=8)
    monkeypatch.undo()
    # As a process leaves the folder that ends after any of the times that a file is renamed, but the last.
    assert len(seen) == 4 and set(seen[-1]) == set(before) and all(seen[-1][name] != before[name] for name in before)
    for state in seen[:-1]:
        for name, content in state.items():
            (made / name).write_bytes(content)
        with pytest.raises(
            ValueError, match=r"geometry\.json: it and the projections must be of one writing, got the end"
        ):
            load_projections(made)
    simulate(source, made, views=4, size=8)
    assert {path.name: path.read_bytes() for path in made.iterdir()} == seen[-1]
    with pytest.raises(UserError, match=r"made: required a folder without truth\.npz, since none is written"):
        simulate(source, made, views=4)


def test_a_simulation_keeps_what_is_there(folder, tmp_path, monkeypatch):
    made = simulate(folder.parent / "truth.npy", tmp_path / "made", views=3, size=9)
    (tmp_path / "file").write_text("old")
    monkeypatch.setattr("splat_ssim.ct.simulate.load_volume", None)
    for volume, output, options, told in (
        (
            "truth.npz",
            "made",
            {"size": 9},
            r"made/truth\.npz: required an output apart from the input .*, got the same",
        ),
        ("projections.npy", "made", {"size": 9}, r"made/projections\.npy: required an output apart from the input"),
        ("truth.npz", "file", {}, "file: required a folder to write to, got a file"),
        ("truth.npz", "file/below", {}, "below: required a folder to write it to, got the file"),
        ("truth.npz", "made/projections.npy/x", {}, "x: required a folder to write it to, got the file"),
    ):
        with pytest.raises(UserError, match=told):
            simulate(made / volume, tmp_path / output, **options)
    assert load_projections(made).pictures.shape[0] == 3 and (tmp_path / "file").read_text() == "old"


# --- the task


def fit(folder, result, *more):
    arguments = ["--data-dir", str(folder), "--result-dir", str(result), "--output.no-progress"]
    small = ["--steps", "60", "--strategy.budget", "150", "--tv-block", "10"]
    return main(["--config", "configs/ct.yaml", *arguments, *small, *more])


def test_a_reconstruction_beats_the_backprojection(folder, tmp_path):
    truth = folder.parent / "truth.npy"
    metrics = fit(folder, tmp_path / "run", "--data.truth", str(truth))
    assert metrics["num_gaussians"] == 150
    expected = load_volume(truth).data
    written = load_volume(tmp_path / "run" / "volume.nii.gz")
    span = expected.max() - expected.min()
    error = np.square(written.data.transpose(0, 1, 2, 3) - expected).mean()
    assert metrics["psnr3d"] == pytest.approx(10 * np.log10(span**2 / error), abs=1e-3)
    data = load_projections(folder)
    first = fdk(data.pictures, data.geometry, data.grid).clamp(min=0).numpy()
    assert metrics["psnr3d"] > 10 * np.log10(span**2 / np.square(first - expected[0]).mean()) + 3
    assert metrics["psnr3d"] > 30 and metrics["psnr_projections"] > 40
    for name in ("pictures/slices.png", "pictures/projections.png", "gaussians.ply", "metrics.json"):
        assert (tmp_path / "run" / name).stat().st_size > 100


def test_a_run_resumes_to_the_same_bits(folder, tmp_path, monkeypatch):
    fit(folder, tmp_path / "whole", "--steps", "30", "--checkpoint-every", "10")
    saved = torch.load(tmp_path / "whole" / "checkpoint.pt", weights_only=True)
    step = CTTask.step

    def interrupted(self, index):
        if index == 17:
            raise RuntimeError("power cut")
        return step(self, index)

    monkeypatch.setattr(CTTask, "step", interrupted)
    with pytest.raises(RuntimeError, match="power cut"):
        fit(folder, tmp_path / "cut", "--steps", "30", "--checkpoint-every", "10")
    monkeypatch.undo()
    main(["--resume", str(tmp_path / "cut"), "--output.no-progress"])
    again = torch.load(tmp_path / "cut" / "checkpoint.pt", weights_only=True)
    for name, tensor in saved["tensors"].items():
        assert torch.equal(tensor, again["tensors"][name]), name
    task = load(tmp_path / "cut")
    task.render("projections", tmp_path / "seen.png", 1)
    assert (tmp_path / "seen.png").exists()


@pytest.mark.parametrize(
    "change", [{"angles": circle(12, "parallel")}, {"source_object": 81.0}, {"shape": [16, 18, 21]}]
)
def test_a_run_keeps_its_geometry(folder, tmp_path, capsys, change):
    fit(folder, tmp_path / "run", "--steps", "2")
    header = json.loads((folder / "geometry.json").read_text())
    for part in (header, header["volume"]):
        part.update({key: value for key, value in change.items() if key in part})
    save_projections(tmp_path / "other", load_projections(folder))
    (tmp_path / "other" / "geometry.json").write_text(json.dumps(header))
    required = (
        r"required the data that .*run was trained on, projections of shape 12x24x30 \(checksum .*\), their geometry"
    )
    with pytest.raises(SystemExit, match=required):
        main(["--resume", str(tmp_path / "run"), "--data-dir", str(tmp_path / "other"), "--steps", "4"])
    with pytest.raises(UserError, match=required):
        load(tmp_path / "run", data_dir=tmp_path / "other")
    # A checkpoint of before knows its projections only.
    saved = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    torch.save({**saved, "data": saved["data"].partition(", their")[0]}, tmp_path / "run" / "checkpoint.pt")
    assert load(tmp_path / "run").data.geometry == GEOMETRY


def test_a_random_start_and_no_growth(folder, tmp_path):
    metrics = fit(
        folder, tmp_path / "run", "--model.start-from", "random", "--strategy.name", "none", "--output.format", ""
    )
    assert metrics["psnr_projections"] > 20 and "psnr3d" not in metrics
    assert not (tmp_path / "run" / "volume.nii.gz").exists()


@pytest.mark.parametrize(
    "more,message",
    [
        (["--strategy.budget", "100000"], "at most as many Gaussians as voxels, 5760, got 50000"),
        (["--data.truth", "nothing.npy"], "no volume at nothing.npy"),
        (["--data.read", "{spacing: 2}"], "data.read"),
        (["--strategy.name", "none", "--strategy.rounds", "3"], "strategy.rounds"),
        (["--views", "0"], "views must be at least 1"),
    ],
)
def test_options_that_are_refused(folder, tmp_path, more, message):
    with pytest.raises(SystemExit, match=message):
        fit(folder, tmp_path / "run", *more)


def test_a_truth_elsewhere_is_refused(folder, tmp_path):
    truth = load_volume(folder.parent / "truth.npy")
    save_volume(tmp_path / "moved.npy", Volume(truth.data, GRID.moved((3, 0, 0))))
    with pytest.raises(SystemExit, match=r"must lie where geometry\.json puts the volume, got one 2 voxels away"):
        fit(folder, tmp_path / "run", "--data.truth", str(tmp_path / "moved.npy"))
    save_volume(tmp_path / "small.npy", Volume(truth.data[:, 1:], VoxelGrid.regular((15, 18, 20))))
    with pytest.raises(SystemExit, match="must have shape"):
        fit(folder, tmp_path / "run", "--data.truth", str(tmp_path / "small.npy"))


@pytest.mark.parametrize("values", [np.full(GRID.shape, 7), np.linspace(0, 1e300, 5760).reshape(GRID.shape)])
def test_a_truth_without_a_range_is_refused(folder, tmp_path, values):
    save_volume(tmp_path / "truth.npy", Volume(values[None], GRID, "mm"))
    with pytest.raises(SystemExit, match=r"truth\.npy must span a range from 1e-36 to 1e\+36, got (0|1e\+300)"):
        fit(folder, tmp_path / "run", "--data.truth", str(tmp_path / "truth.npy"))


def test_one_voxel_is_reconstructed(tmp_path):
    one = VoxelGrid((1, 1, 1))
    path = save_volume(tmp_path / "one.npy", Volume(np.ones((1, 1, 1, 1)), one, "mm"))
    made = simulate(path, tmp_path / "made", views=3, geometry="parallel")
    metrics = fit(made, tmp_path / "run", "--strategy.budget", "1", "--steps", "2")
    assert metrics["num_gaussians"] == 1


def test_projections_of_nothing_are_refused(tmp_path):
    save_projections(tmp_path / "dark", Projections(torch.zeros(12, 24, 30), GEOMETRY, GRID))
    with pytest.raises(SystemExit, match="projections must have values above 0"):
        fit(tmp_path / "dark", tmp_path / "run")
    pictures = torch.zeros(12, 24, 30)
    pictures[:, 0, 0] = 1
    save_projections(tmp_path / "corner", Projections(pictures, GEOMETRY, GRID))
    with pytest.raises(SystemExit, match=r"projections must show something inside the volume of geometry\.json, got"):
        fit(tmp_path / "corner", tmp_path / "run")


def test_every_view_has_its_turn(folder, tmp_path):
    config = CTConfig(data_dir=folder, views=5)
    config.strategy.budget = 50
    task = CTTask(config)
    drawn = [view for index in range(12) for view in task.views_of(index)]
    assert all(sorted(drawn[i : i + 12]) == list(range(12)) for i in range(0, 60, 12))
