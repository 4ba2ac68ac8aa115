"""`fit` and the field that it returns: from arrays and files, at points, on grids, in boxes, on disk."""

import json

import numpy as np
import pytest
import torch

from splat_ssim.trainer.loop import load, run
from splat_ssim.volume import GaussianField, Volume, VoxelGrid, fit, load_field, load_volume, save_volume
from splat_ssim.volume.config import VolumeConfig
from splat_ssim.volume.export import FieldSource
from splat_ssim.volume.reference import voxelize_reference
from splat_ssim.volume.training import VolumeTask
from tests.volumes import GRID, SHAPE, ball

HU = ball(-1000, 1500, "int16")
#: Unexpected warnings are errors.
pytestmark = pytest.mark.filterwarnings("error")


def quick(volume, **options):
    return fit(volume, **{"budget": 120, "steps": 40, "device": "cpu", "axes": "xyz", **options})


def random_field(count=60, channels=1, dtype=torch.float64, source=None):
    generator = torch.Generator().manual_seed(4)
    tensors = {
        "means": torch.rand(count, 3, generator=generator, dtype=dtype) * torch.tensor([8.0, 12, 30]) + 3,
        "log_scales": torch.rand(count, 3, generator=generator, dtype=dtype) * 1.5 - 0.5,
        "quats": torch.randn(count, 4, generator=generator, dtype=dtype),
        "densities": torch.randn(count, generator=generator, dtype=dtype),
    }
    if channels > 1:
        tensors["features"] = torch.randn(count, channels - 1, generator=generator, dtype=dtype)
    return GaussianField(tensors, source)


def by_definition(field, grid):
    tensors = field.tensors
    values = tensors["densities"][:, None]
    if "features" in tensors:
        values = torch.cat([values, values * tensors["features"]], 1)
    return voxelize_reference(tensors["means"], tensors["quats"], tensors["log_scales"].exp(), values, grid)


def test_masked_arrays_are_refused():
    masked = np.ma.masked_less(HU, 0)
    with pytest.raises(ValueError, match=r"volume must be an array without a mask, got one with [1-9].* masked voxels"):
        quick(masked)
    with pytest.raises(ValueError, match="mask must be an array without a mask"):
        quick(HU, mask=masked)


# --- fit


def test_an_array_is_fitted_in_its_own_intensities_without_a_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    field = quick(HU, spacing=(0.5, 1.0, 2.0), origin=(-3, 4, 5))
    assert not list(tmp_path.iterdir())
    assert field.source.grid == GRID and len(field) == 120
    rendered = field.render()
    assert rendered.shape == (1, *SHAPE) and rendered.min() >= -1000 and rendered.max() <= 1500
    error = (rendered[0].detach().double().numpy() - HU) ** 2
    assert 10 * np.log10(2500**2 / error.mean()) == pytest.approx(field.metrics["psnr3d_source"], abs=1e-3)
    assert field.metrics["psnr3d"] > 20 and field.metrics["step"] == 40
    assert field.notes[0].startswith("volume: values: -1000 to 1500 in the file; fitted from -1000 to 1500")
    assert capsys.readouterr() == ("", "")


def test_it_is_the_run_of_the_command_line(tmp_path):
    """The same trainer gives the same bits from an array, a tensor, a Volume, a file and a config."""
    scan = save_volume(tmp_path / "scan.nii.gz", Volume(HU[None], GRID, "mm"))
    options = {"budget": 120, "steps": 30, "device": "cpu", "seed": 3}
    fields = [
        fit(HU, spacing=(0.5, 1, 2), origin=(-3, 4, 5), axes="xyz", **options),
        fit(torch.from_numpy(HU), spacing=(0.5, 1, 2), origin=(-3, 4, 5), axes="xyz", **options),
        fit(Volume(HU[None], GRID), **options),
        fit(scan, **options),
        fit(str(scan), folder=tmp_path / "run", **options),
    ]
    for field in fields[1:]:
        for name, tensor in fields[0].tensors.items():
            assert torch.equal(tensor, field.tensors[name]), name
    assert fields[3].source.unit == "mm"
    found = load(tmp_path / "run")
    assert torch.equal(found.gaussians().tensors["means"], fields[0].tensors["means"])
    assert json.loads((tmp_path / "run" / "metrics.json").read_text()) == fields[4].metrics


def test_a_folder_keeps_arrays_too(tmp_path):
    mask = np.zeros(SHAPE, np.uint8)
    mask[4:9, 3:9, 5:12] = 1
    field = quick(HU, mask=mask, folder=tmp_path / "run", steps=10)
    assert len(list((tmp_path / "run").iterdir())) > 5
    task = load(tmp_path / "run")
    again = {**task.evaluate(None)}
    assert again["psnr3d_masked"] == field.metrics["psnr3d_masked"]
    before = (tmp_path / "run" / "source.npy").read_bytes()
    with pytest.raises(ValueError, match=r"required a new folder for a new run, got one with metrics.json"):
        quick(HU[::-1], folder=tmp_path / "run", steps=10)
    assert (tmp_path / "run" / "source.npy").read_bytes() == before


def test_a_callers_draws_go_on():
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    one = quick(HU, steps=3)
    assert torch.equal(torch.rand(3), expected)
    other = quick(HU, steps=3, seed=7)
    assert not torch.equal(one.tensors["means"], other.tensors["means"])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_voxels_and_weights_must_be_finite(bad):
    voxels = HU.astype(np.float32)
    weights = np.ones(SHAPE)
    weights[1, 2, 3] = bad
    with pytest.raises(ValueError, match=r"mask must be one channel of weights, finite and 0 or more"):
        quick(voxels, mask=weights)
    voxels[1, 2, 3] = bad
    with pytest.raises(ValueError, match=r"volume must hold finite voxels, got NaN or infinite ones"):
        fit(Volume(voxels[None], GRID), steps=2)


def test_target_psnr_ends_a_fit_and_says_when_it_is_not_reached():
    field = quick(HU, target_psnr=20, steps=2000)
    assert field.metrics["step"] < 400 and field.metrics["step"] % 50 == 0
    assert field.metrics["target_psnr_reached"] and field.metrics["psnr3d"] >= 20
    with pytest.warns(
        UserWarning, match=r"target_psnr 90 was not reached after 60 steps with 120 Gaussians: \d\d\.\d+ dB"
    ):
        field = quick(HU, target_psnr=90, steps=60)
    assert field.metrics["step"] == 60 and field.metrics["target_psnr_reached"] is False


def test_target_psnr_of_the_command_line(tmp_path, capsys):
    scan = save_volume(tmp_path / "scan.nii.gz", Volume(HU[None], GRID))
    config = VolumeConfig(data_dir=scan, result_dir=tmp_path / "run", steps=1000, target_psnr=18.0, device="cpu")
    config.strategy.budget, config.output.progress, config.output.video = 120, False, False
    metrics = run(VolumeTask(config))
    assert metrics["step"] < 1000 and metrics["target_psnr_reached"] is True
    config.result_dir, config.steps, config.target_psnr = tmp_path / "more", 20, 80.0
    assert run(VolumeTask(config))["target_psnr_reached"] is False
    assert "target_psnr 80 was not reached: " in capsys.readouterr().err


def test_a_mask_steers_the_fit_and_its_target():
    mask = np.zeros(SHAPE, np.float32)
    mask[4:9, 3:9, 5:12] = 1
    field = quick(HU, mask=mask, target_psnr=25, steps=400)
    assert field.metrics["psnr3d_masked"] >= 25
    places = field.source.grid.to_index(field.positions().detach()).round().long()
    assert torch.from_numpy(mask)[places[:, 0], places[:, 1], places[:, 2]].mean() > 3 * mask.mean()


def test_what_was_assumed_is_a_warning():
    with pytest.warns(UserWarning, match=r"volume: shape \(2, 14, 12, 16\) is read as 2 channels, axes czyx"):
        field = fit(np.stack([HU, HU]), budget=50, steps=2, device="cpu")
    assert field.render().shape == (2, *SHAPE)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"mask": np.ones((3, 3, 3))}, r"mask must have shape \(14, 12, 16\), that of .*, got \(3, 3, 3\)"),
        ({"budget": 10**6}, "at most as many Gaussians as voxels"),
        ({"budget": 0}, "strategy.budget must be at least 1"),
        ({"steps": 0}, "steps times steps_scaler must be at least 1"),
        ({"axes": "zyy"}, "axes must name x, y, z"),
        ({"spacing": 0}, "spacing must not be 0"),
        ({"normalize": "minmax", "low": 3.0}, "low has no meaning: normalize minmax takes no bounds"),
        ({"low": 3.0}, "a window must be given by both"),
        ({"read": {"key": "a"}}, "read applies to files only"),
        ({"config": VolumeConfig(resume="x")}, "config must be for a new fit"),
    ],
)
def test_mistakes_are_one_sentence(options, text):
    with pytest.raises(ValueError, match=text):
        quick(HU, **options)


def test_a_volume_has_its_own_grid():
    with pytest.raises(ValueError, match="a Volume has its own grid: spacing must be None"):
        fit(Volume(HU[None], GRID), spacing=2.0)
    with pytest.raises(ValueError, match="got 1 NaN or infinite ones"):
        quick(np.where(np.arange(HU.size).reshape(SHAPE) == 5, np.nan, HU))
    with pytest.raises(FileNotFoundError, match="no volume at"):
        fit("missing.nii.gz")


def test_a_default_budget_fits_small_volumes():
    assert len(fit(HU, steps=2, device="cpu")) <= HU.size // 20


# --- the field


@pytest.mark.parametrize("channels", [1, 3])
def test_samples_are_the_definition(channels):
    field = random_field(channels=channels)
    grid = VoxelGrid.regular((9, 11, 13), spacing=(1.1, 1.3, 2.9), origin=(1, 2, 0))
    points = grid.points(dtype=torch.float64)
    expected = by_definition(field, grid)
    torch.testing.assert_close(field.sample(points), expected, rtol=1e-12, atol=1e-13)
    # A plane, a line, one point, no points, and points far from each other.
    for part in ((4,), (4, 5), (4, 5, 6)):
        torch.testing.assert_close(field.sample(points[part]), expected[(slice(None), *part)], rtol=1e-12, atol=1e-13)
    assert field.sample(points[:0]).shape == (channels, 0, 11, 13)
    far = torch.cat([points.reshape(-1, 3), torch.tensor([[1e6, -1e6, 3.0]], dtype=torch.float64)])
    torch.testing.assert_close(field.sample(far)[:, :-1], expected.flatten(1), rtol=1e-12, atol=1e-13)
    assert not field.sample(far)[:, -1].any()


def test_samples_are_the_kernels_rendering():
    """They agree to float32, except at the cut-off, where a Gaussian drops to 0 from 1.1% of its density."""
    field = random_field(dtype=torch.float32)
    grid = VoxelGrid(SHAPE, np.diag([0.7, 1.1, 2.3, 1]).tolist())
    difference = (field.sample(grid.points()) - field.render(grid)).abs()
    assert (difference > 1e-5).sum() <= 3 and difference.max() < 0.05
    assert field.sample(grid.points().double()).dtype == torch.float64


def test_samples_are_differentiable(monkeypatch):
    import splat_ssim.volume.sampling as sampling

    field = random_field(count=7, channels=2)
    points = (torch.rand(12, 3, dtype=torch.float64) * torch.tensor([8.0, 12, 30]) + 3).requires_grad_()
    # The same with the pairs in several parts.
    for pairs in (1 << 20, 5):
        monkeypatch.setattr(sampling, "_PAIRS", pairs)
        monkeypatch.setattr(sampling, "_ROWS", pairs)
        tensors = {name: tensor.detach().clone().requires_grad_() for name, tensor in field.tensors.items()}

        def sampled(points, *values, names=tuple(tensors)):
            t = dict(zip(names, values, strict=True))
            v = torch.cat([t["densities"][:, None], t["densities"][:, None] * t["features"]], 1)
            return sampling.sample_gaussians(t["means"], t["quats"], t["log_scales"].exp(), v, points)

        assert torch.autograd.gradcheck(sampled, (points, *tensors.values()))


def test_samples_and_renderings_are_intensities():
    grid = VoxelGrid.regular((5, 6, 7))
    field = random_field(source=FieldSource(grid, -1000.0, 1500.0), dtype=torch.float32)
    values = field(grid)
    torch.testing.assert_close(field.render(), values.clamp(0, 1) * 2500 - 1000)
    field.source = FieldSource(grid, 0.0, 1.0, clip=False)
    torch.testing.assert_close(field.render(), values)
    with pytest.raises(ValueError, match="render must be given a grid"):
        random_field().render()


@pytest.mark.parametrize(
    ("points", "error", "text"),
    [
        (torch.zeros(4, 2), ValueError, r"points must have shape \(..., 3\), got \(4, 2\)"),
        (torch.zeros(4, 3, dtype=torch.int64), TypeError, "points must be float32 or float64, got torch.int64"),
        (torch.zeros(4, 3, device="meta"), ValueError, "points must be on cpu, where the field is, got meta"),
    ],
)
def test_what_points_must_be(points, error, text):
    with pytest.raises(error, match=text):
        random_field().sample(points)


def test_a_crop_is_the_same_inside():
    grid = VoxelGrid.regular((40, 20, 14), spacing=(1, 1, 1), origin=(1, 2, 0))
    field = random_field(dtype=torch.float32, source=FieldSource(grid, 10.0, 20.0, clip=False))
    part = field.crop(((4, 5, 6), (7, 9.5, 11)))
    assert 0 < len(part) < len(field)
    assert part.source.grid.shape == (6, 5, 4) and part.source.grid.origin == (4, 5, 6)
    torch.testing.assert_close(part.render(), field.render()[:, 6:12, 3:8, 3:7], rtol=1e-5, atol=1e-5)
    for box, text in (
        (((0, 0, 0), (0, 1, 1)), "box must be least and largest"),
        (((900, 0, 0), (901, 1, 1)), "box must be where the field is not zero"),
        (((4.1, 5.1, 6.1), (4.2, 5.2, 6.2)), "box must hold voxels of the source's grid"),
    ):
        with pytest.raises(ValueError, match=text):
            field.crop(box)


def test_a_field_is_saved_and_loaded(tmp_path):
    field = quick(HU, spacing=(0.5, 1.0, 2.0), origin=(-3, 4, 5))
    whole = load_field(field.save(tmp_path / "field.ply"))
    assert whole.source == field.source
    torch.testing.assert_close(whole.render(), field.render(), rtol=1e-5, atol=0.1)
    small = load_field(field.save(tmp_path / "field.quantized"))
    assert small.source == field.source and len(small) == len(field)
    assert (tmp_path / "field.quantized").stat().st_size < (tmp_path / "field.ply").stat().st_size / 2
    assert (small.render() - field.render()).abs().mean() < 20
    with pytest.raises(ValueError, match=r"a field must be saved as .ply or .quantized, got 'field.npz'"):
        field.save(tmp_path / "field.npz")
    with pytest.raises(ValueError, match="must have a source"):
        random_field().save(tmp_path / "a.quantized")
    with pytest.raises(FileNotFoundError, match="no field at"):
        load_field(tmp_path / "missing.ply")


def test_the_field_of_a_run_folder(tmp_path):
    scan = save_volume(tmp_path / "scan.nii.gz", Volume(HU[None], GRID, "mm"))
    fit(scan, budget=80, steps=5, device="cpu", folder=tmp_path / "run")
    field = load_field(tmp_path / "run")
    exported = load_volume(tmp_path / "run" / "volume.nii.gz")
    np.testing.assert_allclose(field.render().detach().numpy(), exported.data, atol=0.05)
    assert field.source.unit == "mm"
