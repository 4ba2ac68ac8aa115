"""Fits brick by brick, for volumes beyond memory: nearly the same as in memory, and resumed byte by byte."""

import numpy as np
import pytest
import torch

from splat_ssim.errors import UserError
from splat_ssim.trainer.config import ConfigError
from splat_ssim.trainer.loop import load, run
from splat_ssim.volume import brick_scale
from splat_ssim.volume.blocks import BlockedVolume, blocks_of
from splat_ssim.volume.brick_layout import counted, passes_of, shares
from splat_ssim.volume.brick_scale import averaged, in_blocks, into, out_of, read_averaged, weight_of
from splat_ssim.volume.bricks import BrickConfig, BrickTask
from splat_ssim.volume.config import VolumeDataConfig
from splat_ssim.volume.evaluation import evaluate_volume
from splat_ssim.volume.export import load_field
from splat_ssim.volume.gaussians import GaussianField
from splat_ssim.volume.grid import VoxelGrid
from splat_ssim.volume.io import Volume, load_volume, save_volume
from splat_ssim.volume.rebuild import rebuild
from splat_ssim.volume.target import read_target


def smooth_volume(shape=(36, 30, 40), seed=0):
    """Blobs of several sizes, uint8."""
    generator = np.random.default_rng(seed)
    axes = np.meshgrid(*[np.arange(n, dtype=float) for n in shape], indexing="ij")
    values = np.zeros(shape)
    for _ in range(14):
        center, radius = generator.uniform(0, shape), generator.uniform(2.5, 7)
        values += generator.uniform(0.3, 1) * np.exp(
            -0.5 * sum((a - c) ** 2 for a, c in zip(axes, center, strict=True)) / radius**2
        )
    return (255 * values / values.max()).astype(np.uint8)


def config_of(tmp_path, name="run", **changes):
    """A short fit of 120 Gaussians in bricks of 20 voxels."""
    values = {"brick": 20, "brick_steps": 30, "device": "cpu", "checkpoint_every": 0, **changes}
    config = BrickConfig(data_dir=tmp_path / "volume.npy", result_dir=tmp_path / name, **values)
    config.strategy.budget = 120
    config.output.progress = False
    return config


@pytest.fixture
def volume(tmp_path):
    values = smooth_volume()
    np.save(tmp_path / "volume.npy", values)
    return values


def test_blocks_cover_a_volume_once_at_any_shift():
    for shape, edge, shift in (((7, 5, 9), 4, 0), ((7, 5, 9), 4, 2), ((3, 3, 3), 8, 4), ((8, 8, 8), 4, 2)):
        seen = np.zeros(shape, int)
        for first, count in blocks_of(shape, edge, shift=shift):
            seen[tuple(slice(f, f + c) for f, c in zip(first, count, strict=True))] += 1
            assert max(count) <= edge
        assert (seen == 1).all()


def test_passes_cover_a_volume_and_their_bricks_begin_at_whole_blocks():
    for factor in (1, 2, 3):
        passes = passes_of((70, 41, 128), 16, factor, 60)
        assert [each.steps for each in passes] == [60, 30, 10][: len(passes)]
        assert [each.factor for each in passes] == ([1, 1] if factor == 1 else [factor, factor, 1])
        for each in passes:
            assert sum(int(np.prod(shape)) for _, shape in each.cores) == 70 * 41 * 128
            assert all(first % each.factor == 0 for start, _ in each.cores for first in start)


def test_a_share_is_in_proportion_and_all_of_it_is_given():
    generator = np.random.default_rng(0)
    for _ in range(50):
        weights = generator.uniform(0, 1, generator.integers(1, 9)).tolist()
        total = int(generator.integers(1, 1000))
        parts = shares(weights, total, [((0, 0, 0), (50, 50, 50))] * len(weights))
        assert sum(parts) == total
        assert all(abs(part - weight / sum(weights) * total) < 1 for part, weight in zip(parts, weights, strict=True))


def test_voxels_count_where_bricks_are_or_have_been_fitted_and_windows_end_inside():
    weights = counted(
        ((5, 0, 0), (20, 12, 12)), [((10, 0, 0), (10, 12, 12)), ((0, 0, 0), (10, 12, 12))], 3, (40, 12, 12)
    )
    line = weights[:, 6, 6]
    # From voxel 8 on, where windows stay inside, to 20, where the next brick begins.
    assert line.tolist() == [0.0] * 3 + [1.0] * 12 + [0.0] * 5


def test_blocks_are_evaluated_as_the_whole_volume_is(tmp_path, volume):
    task = BrickTask(config_of(tmp_path))
    for step in range(task.config.steps):
        task.step(step)
    found = task.evaluate(None)
    whole = ((0, 0, 0), volume.shape)
    expected = evaluate_volume(task.field(whole), task.volume.read(whole))
    assert abs(found["psnr3d"] - expected["psnr3d"]) < 1e-4
    assert abs(found["ssim3d"] - expected["ssim3d"]) < 1e-6
    assert len(task) == 120
    # The error at the borders of bricks is not much larger than elsewhere.
    error = (task.field(whole) - task.volume.read(whole))[0].square()
    border = torch.cat([error[18:22].flatten(), error[:, 18:22].flatten(), error[:, :, 18:22].flatten()]).mean()
    assert found["psnr3d"] > 30 and border < 2.5 * error.mean()


@pytest.mark.parametrize(("coarse_factor", "steps"), [(None, (47, 250)), (2, (17, 100))])
def test_a_fit_by_bricks_resumes_to_the_byte_from_within_a_brick_of_either_pass(tmp_path, volume, coarse_factor, steps):
    config = config_of(tmp_path, coarse_factor=coarse_factor)
    config.output.save_steps = steps
    metrics = run(BrickTask(config))
    assert metrics["num_gaussians"] == 120
    assert metrics["step"] == BrickTask(config_of(tmp_path, "other", coarse_factor=coarse_factor)).config.steps
    final = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["tensors"]
    for step in config.output.save_steps:
        kept = tmp_path / "run" / "steps" / f"{step:07d}"
        assert load(kept).evaluate(None)["psnr3d"] > 5
        run(BrickTask(BrickConfig(resume=kept)))
        resumed = torch.load(kept / "checkpoint.pt", weights_only=True)["tensors"]
        assert all(torch.equal(final[name], resumed[name]) for name in final)


def test_a_first_pass_at_half_the_resolution_ends_where_one_at_all_of_it_does(tmp_path, volume):
    found = {}
    for factor in (1, 2):
        task = BrickTask(config_of(tmp_path, coarse_factor=factor))
        for step in range(task.config.steps):
            task.step(step)
        found[factor] = task.evaluate(None)["psnr3d"]
        assert len(task) == 120
    assert task.config.steps < 400 and found[2] > found[1] - 0.5, found


def test_gaussians_in_blocks_of_voxels_are_those_of_the_volume():
    task_field, start, factor = torch.Generator().manual_seed(0), (4, 6, 2), 2
    means = torch.rand(20, 3, generator=task_field) * 16 + 5
    tensors = {
        "means": means,
        "log_scales": torch.rand(20, 3, generator=task_field) + 0.5,
        "quats": torch.randn(20, 4, generator=task_field),
        "densities": torch.rand(20, generator=task_field),
    }
    coarse = into(tensors, start, factor)
    back = out_of(coarse, start, factor)
    assert all(torch.allclose(back[name], tensors[name], atol=1e-5) for name in tensors)
    # The centres of the blocks, in voxels of the volume.
    middles = VoxelGrid((9, 8, 10)).points() * factor + (factor - 1) / 2 + torch.tensor(start)
    expected = GaussianField(tensors).sample(middles)
    assert torch.allclose(GaussianField(coarse)(VoxelGrid((9, 8, 10))), expected, atol=2e-5)


def test_blocks_at_the_far_border_are_means_of_what_there_is():
    assert averaged(torch.arange(5.0).expand(1, 2, 2, 5), 2).flatten().tolist() == [0.5, 2.5, 4.0]


def test_a_block_of_voxels_counts_where_all_of_it_does(tmp_path):
    np.save(tmp_path / "volume.npy", smooth_volume((71, 41, 38)))
    task = BrickTask(config_of(tmp_path, brick=16, coarse_factor=2, loss_kwargs={"window_size": 5}))
    everything = [((0, 0, 0), task.volume.shape)]
    for stage in task.stages:
        if stage.turn == 2:
            break
        done = everything if stage.turn else task.passes[0].cores[: stage.place + 1]
        region = task._region(stage)
        assert in_blocks(region, 2)[0] == tuple(first / 2 for first in region[0])
        voxels = counted(region, done, 2 * task.reach, task.volume.shape)
        assert torch.equal(task._counted(stage), (averaged(voxels[None], 2)[0] == 1).float())


@pytest.mark.parametrize("channels", [1, 2])
def test_a_region_is_averaged_and_weighed_without_being_read_whole(tmp_path, monkeypatch, channels):
    values = np.stack([smooth_volume((71, 41, 38), seed) for seed in range(channels)])
    np.save(tmp_path / "volume.npy", values)
    volume, region = BlockedVolume(tmp_path / "volume.npy", VolumeDataConfig(), 20), ((6, 3, 0), (65, 38, 37))
    whole = volume.read(region)
    expected = [averaged(whole, factor) for factor in (1, 2, 3, 8)]
    slopes = torch.gradient(whole[0], dim=[0, 1, 2])
    weight = float(sum(each.abs().double().sum() for each in slopes) + 0.05 * whole[0].abs().double().sum())
    read, sizes = BlockedVolume.read, []
    monkeypatch.setattr(brick_scale, "_AT_ONCE", 20_000)
    monkeypatch.setattr(BlockedVolume, "read", lambda self, block: sizes.append(block[1]) or read(self, block))
    for factor, means in zip((1, 2, 3, 8), expected, strict=True):
        sizes.clear()
        assert torch.equal(read_averaged(volume, region, factor), means)
        most = max(20_000, channels * factor * 38 * 37)  # At least a row of blocks.
        assert factor == 1 or (len(sizes) > 1 and channels * max(map(np.prod, sizes)) <= most)
    sizes.clear()
    assert weight_of(volume, region) == pytest.approx(weight, rel=1e-9)
    assert len(sizes) > 1 and channels * max(map(np.prod, sizes)) <= 20_000 + 2 * channels * 38 * 37


@pytest.mark.parametrize("lost", ["a chunk", "a voxel"])
def test_a_volume_that_changes_while_it_is_fitted_is_refused(tmp_path, lost):
    zarr = pytest.importorskip("zarr")
    place = tmp_path / "volume.zarr"
    array = zarr.open_array(str(place), mode="w", shape=(24, 20, 22), chunks=(8, 8, 8), dtype="u1")
    array[...] = smooth_volume((24, 20, 22)) // 2 + 20
    config = config_of(tmp_path, brick=16)
    config.data_dir = place
    task = BrickTask(config)
    task.step(0)
    before = task.evaluate(None)["psnr3d"]
    if lost == "a voxel":
        array[23, 19, 21] += 1
    else:
        # zarr silently returns zeros for a missing chunk.
        next(p for p in place.rglob("*") if p.is_file() and p.stat().st_size and "1" in p.name[:1]).unlink()
    with pytest.raises(UserError, match=rf"{place} must stay as it is while it is fitted, got other voxels .*checksum"):
        task.evaluate(None)
    assert before > 0


def test_blocks_that_are_larger_than_the_volume_are_refused(tmp_path):
    np.save(tmp_path / "volume.npy", np.random.default_rng(0).integers(0, 255, (3, 40, 40), np.uint8))
    with pytest.raises(UserError, match="coarse_factor must be at most 3, the volume's shortest side, got 4"):
        BrickTask(config_of(tmp_path, coarse_factor=4))


def test_what_a_fit_leaves_gives_the_volume_back(tmp_path, volume):
    turned = [[0, 0, -0.7, 120.5], [0, 0.8, 0, -90.25], [-2.5, 0, 0, 33], [0, 0, 0, 1]]
    placed = Volume(volume[None], VoxelGrid(volume.shape, turned), "um")
    save_volume(tmp_path / "volume.npy", placed)
    config = config_of(tmp_path)
    config.output.format = "npy"
    metrics = run(BrickTask(config))
    written = np.load(tmp_path / "run" / "volume.npy")
    assert written.shape == volume.shape and written.dtype == np.float32
    mse = np.square(written - volume.astype(float)).mean()
    assert abs(10 * np.log10(255**2 / mse) - metrics["psnr3d_source"]) < 0.01
    rebuilt = load_volume(rebuild(tmp_path / "run" / "gaussians.ply", tmp_path / "again.npy"))
    assert np.abs(rebuilt.data[0] - written).max() < 0.01
    source = load_field(tmp_path / "run").source
    for left in (load_volume(tmp_path / "run" / "volume.npy"), rebuilt, source):
        assert left.grid == placed.grid and left.unit == "um"
    assert {"slice_0.png", "slice_1.png", "slice_2.png"} <= {p.name for p in (tmp_path / "run" / "pictures").iterdir()}


def test_a_volume_of_zarr_in_the_world_and_of_floats_is_fitted_where_it_lies(tmp_path):
    zarr = pytest.importorskip("zarr")
    values = smooth_volume((24, 24, 24)).astype(np.float32) * 3 - 200
    array = zarr.open_array(str(tmp_path / "v.zarr"), mode="w", shape=values.shape, chunks=(8, 8, 8), dtype="f4")
    array[...] = values
    config = config_of(tmp_path, brick=16, brick_steps=20)
    config.data_dir = tmp_path / "v.zarr"
    task = BrickTask(config)
    assert task.volume.normalization.low == values.min() and task.volume.normalization.high == values.max()
    before = task.volume.read(((4, 4, 4), (3, 3, 3))) * (values.max() - values.min()) + values.min()
    assert (before[0].numpy() - values[4:7, 4:7, 4:7]).max() < 1e-3
    metrics = run(task)
    assert metrics["psnr3d"] > 20


def test_a_fit_says_what_a_fit_in_memory_says(tmp_path):
    np.save(tmp_path / "volume.npy", np.stack([smooth_volume((18, 20, 22)) // 64] * 3, -1))
    config = config_of(tmp_path)
    own, target = BrickTask(config).notes, read_target(config.data_dir, config.data)
    assert own[: len(target.lines)] == list(target.lines)
    assert "read as 3 channels" in own[0] and "as label maps do" in own[2]


def test_a_damaged_chunk_names_its_file(tmp_path):
    zarr = pytest.importorskip("zarr")
    options = {"compressors": None} if zarr.__version__ >= "3" else {"compressor": None}
    create = zarr.create_array if zarr.__version__ >= "3" else zarr.create
    array = create(store=str(tmp_path / "v.zarr"), shape=(16, 16, 16), chunks=(8, 8, 8), dtype="i2", **options)
    array[...] = np.arange(4096).reshape(16, 16, 16)
    chunk = next(p for p in (tmp_path / "v.zarr").rglob("*") if p.is_file() and p.stat().st_size == 1024)
    chunk.write_bytes(chunk.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"v\.zarr must be a complete zarr volume, got "):
        BlockedVolume(tmp_path / "v.zarr", VolumeDataConfig(), 16)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: setattr(c, "brick", 21), r"brick must be even"),
        (lambda c: setattr(c.model, "name", "grid"), r"requires model\.name gaussians and strategy\.name residual"),
        (lambda c: setattr(c.output, "format", "nii.gz"), r"output\.format of a fit by bricks must be npy"),
        (
            lambda c: c.data.read.update(nonfinite=0.0),
            r"data\.read of a fit by bricks must hold key, channel, time",
        ),
        (lambda c: setattr(c.data, "low", 5.0), r"a window must be given by both data\.low and data\.high"),
        (lambda c: setattr(c.data, "mask", c.data_dir), r"data\.mask requires a fit of the whole volume at once"),
    ],
)
def test_options_that_bricks_do_not_have_are_refused(tmp_path, volume, change, message):
    config = config_of(tmp_path)
    change(config)
    with pytest.raises((UserError, ConfigError), match=message):
        BrickTask(config)


def test_a_budget_beyond_the_voxels_is_told(tmp_path):
    np.save(tmp_path / "volume.npy", smooth_volume((8, 8, 8)))
    config = config_of(tmp_path)
    config.strategy.budget = 200
    assert any("at most 64 Gaussians, not the 200 of strategy.budget" in note for note in BrickTask(config).notes)
    config.strategy.budget = 64
    assert not any("at most" in note for note in BrickTask(config).notes)


def test_numbers_that_are_none_are_found_before_anything_is_fitted(tmp_path):
    values = smooth_volume().astype(np.float32)
    values[30, 2, 3] = np.nan
    np.save(tmp_path / "volume.npy", values)
    with pytest.raises(ValueError, match=r"must hold finite voxels, got others in the block from \(20, 0, 0\) on"):
        BlockedVolume(tmp_path / "volume.npy", VolumeDataConfig(), 20)
