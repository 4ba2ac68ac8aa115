"""Models of a volume, their growth, crops, and exports."""

import json
import math

import numpy as np
import pytest
import torch

from splat_ssim import ssim3d
from splat_ssim.loss import photometric_loss
from splat_ssim.volume import VoxelGrid
from splat_ssim.volume.crops import make_crop, random_crop
from splat_ssim.volume.evaluation import evaluate_volume, psnr3d
from splat_ssim.volume.export import load_gaussians_ply, load_quantized, save_gaussians_ply, save_quantized
from splat_ssim.volume.gaussians import GaussianField, lattice_frame, sample_voxels
from splat_ssim.volume.grid_model import GridField, grid_shape, interpolation_matrix
from splat_ssim.volume.growth import CappedGrowth, replace_gaussians, sort_gaussians
from splat_ssim.volume.losses import tv3d
from splat_ssim.volume.pictures import mip_frames, save_mip_video, save_slice_sheet, slice_sheet
from splat_ssim.volume.reference import rotation_matrices

GRID = VoxelGrid.regular((20, 24, 22), spacing=(1.0, 2.0, 1.5), origin=(5, 6, 7))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def blobs(channels=1, grid=GRID):
    """A smooth volume in [0, 1] with two bright places."""
    z, y, x = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in grid.shape), indexing="ij")
    volume = torch.exp(-8 * ((x - 0.3) ** 2 + y**2 + z**2)) + 0.7 * torch.exp(
        -12 * ((x + 0.4) ** 2 + (y - 0.4) ** 2 + z**2)
    )
    volume = volume.clamp(0, 1)[None]
    return torch.cat([volume, *[volume * c for c in (0.2, 0.5, 0.9)[: channels - 1]]])


def adam(field):
    groups = [{"params": [tensor], "name": name, "lr": 0.02} for name, tensor in field.tensors.items()]
    return torch.optim.Adam(groups, eps=1e-12)


def some_steps(field, optimizer, target, grid, steps=30):
    for _ in range(steps):
        (field(grid) - target).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("channels", [1, 4])
def test_a_field_starts_near_its_volume_and_comes_nearer(channels):
    target = blobs(channels)
    field = GaussianField.from_volume(target, GRID, 300, generator=generator())
    assert len(field) == 300 and field.nbytes == 300 * (11 + channels - 1) * 4
    start = psnr3d(field(GRID).detach(), target)
    some_steps(field, adam(field), target, GRID)
    assert psnr3d(field(GRID).detach(), target) > start + 3


def test_start_is_reproducible_and_checked():
    first, second = (GaussianField.from_volume(blobs(), GRID, 50, generator=generator(3)) for _ in range(2))
    assert torch.equal(first(GRID), second(GRID))
    with pytest.raises(ValueError, match=r"count must be from 1 to the 10560 voxels, got 0"):
        GaussianField.from_volume(blobs(), GRID, 0)


def test_gaussians_start_along_the_lattice():
    matrix = np.eye(4)
    matrix[:3, :3] = np.linalg.qr(np.random.default_rng(2).normal(size=(3, 3)))[0] * [1.0, -0.5, 3.0]
    grid = VoxelGrid((9, 9, 9), matrix.tolist())
    R = rotation_matrices(torch.from_numpy(lattice_frame(grid))[None])[0].numpy()
    columns = matrix[:3, :3] / np.linalg.norm(matrix[:3, :3], axis=0)
    np.testing.assert_allclose(np.abs(R.T @ columns), np.eye(3), atol=1e-9)
    field = GaussianField.from_volume(torch.rand(1, 9, 9, 9, generator=generator()), grid, 20, generator=generator())
    sizes = field.tensors["log_scales"].detach().exp()
    torch.testing.assert_close(sizes / sizes[:, :1], torch.tensor([1.0, 0.5, 3.0]).expand(20, 3))


def test_an_empty_volume_can_be_started_from():
    field = GaussianField.from_volume(torch.zeros(1, *GRID.shape), GRID, 10, generator=generator())
    assert not field(GRID).any()


def test_sampling_follows_the_weights_without_repeats():
    weight = torch.zeros(10, 10, 10)
    weight[3, 4, 5:8] = 1.0
    assert sample_voxels(weight, 3, generator()).tolist() == [345, 346, 347]
    many = sample_voxels(torch.rand(10, 10, 10, generator=generator()), 400, generator(1))
    assert len(many.unique()) == 400


def test_growth_reaches_the_budget_and_keeps_the_moments():
    target = blobs()
    field = GaussianField.from_volume(target, GRID, 40, generator=generator())
    optimizer = adam(field)
    growth = CappedGrowth(100, at_steps=(10, 20, 30), recycle=0.1)
    errors = []
    for step in range(1, 41):
        some_steps(field, optimizer, target, GRID, steps=1)
        before = len(field)
        grew = growth.step(step, field, optimizer, target, GRID, generator(step))
        assert grew == (step in (10, 20, 30))
        assert before <= len(field) <= 100
        for tensor in field.tensors.values():
            if grew and tensor in optimizer.state:
                assert optimizer.state[tensor]["exp_avg"].shape == tensor.shape
        errors.append(psnr3d(field(GRID).detach(), target))
    assert len(field) == 100
    assert errors[-1] > errors[8] + 3


def test_growth_goes_where_the_residual_is():
    target = torch.zeros(1, *GRID.shape)
    target[0, 14:17, 3:6, 3:6] = -1.0
    field = GaussianField.from_volume(blobs() * 0, GRID, 5, generator=generator())
    assert CappedGrowth(25, at_steps=(1,)).step(1, field, adam(field), target, GRID, generator())
    new = GRID.to_index(field.tensors["means"].detach())[5:]
    assert ((new - torch.tensor([15.0, 4.0, 4.0])).abs() < 6).all()
    assert (field.tensors["densities"][5:] < 0).all()
    # Twenty Gaussians for 27 voxels overlap. They share the residual instead of overshooting it.
    assert (field(GRID) - target).square().sum() < 0.8 * target.square().sum()


def test_replacing_gaussians_carries_the_optimiser_along():
    target = blobs()
    field = GaussianField.from_volume(target, GRID, 30, generator=generator())
    optimizer = adam(field)
    some_steps(field, optimizer, target, GRID, steps=3)
    means, moment = field.tensors["means"].detach().clone(), optimizer.state[field.tensors["means"]]["exp_avg"].clone()
    keep = torch.tensor([4, 2, 9])
    replace_gaussians(field, optimizer, keep)
    assert torch.equal(field.tensors["means"], means[keep])
    assert torch.equal(optimizer.state[field.tensors["means"]]["exp_avg"], moment[keep])
    assert len(optimizer.state) == len(field.tensors)
    some_steps(field, optimizer, target, GRID, steps=1)  # The optimiser holds the new parameters.
    assert not torch.equal(field.tensors["means"], means[keep])


def test_sorting_keeps_the_field():
    field = GaussianField.from_volume(blobs(), GRID, 60, generator=generator())
    before = field(GRID)
    sort_gaussians(field, adam(field), GRID)
    torch.testing.assert_close(field(GRID), before)


# --- the grid


def test_interpolation_matrix():
    matrix = interpolation_matrix(3, 5)
    expected = torch.tensor([[1, 0, 0], [0.5, 0.5, 0], [0, 1, 0], [0, 0.5, 0.5], [0, 0, 1]])
    torch.testing.assert_close(matrix, expected)
    torch.testing.assert_close(interpolation_matrix(3, 5, start=1, size=2), expected[1:3])
    assert interpolation_matrix(1, 4).tolist() == [[1.0]] * 4
    assert interpolation_matrix(1, 1).tolist() == [[1.0]]


def test_grid_reads_as_torch_interpolates_and_crops_agree():
    field = GridField(torch.rand(2, 5, 6, 7, generator=generator()), GRID)
    volume = field(GRID)
    wanted = torch.nn.functional.interpolate(
        field.tensors["nodes"][None], GRID.shape, mode="trilinear", align_corners=True
    )[0]
    torch.testing.assert_close(volume, wanted)
    torch.testing.assert_close(field(GRID.crop((3, 4, 5), (6, 7, 8))), volume[:, 3:9, 4:11, 5:13])
    with pytest.raises(ValueError, match="lattice it spans"):
        field(VoxelGrid.regular((20, 24, 22)))


def test_grid_least_squares_is_the_best():
    target = torch.rand(1, 8, 9, 7, generator=generator())
    grid = VoxelGrid.regular((8, 9, 7))
    field = GridField.from_volume(target, grid, (4, 5, 3))
    (gradient,) = torch.autograd.grad((field(grid) - target).square().sum(), field.tensors["nodes"])
    assert gradient.abs().max() < 1e-4
    exact = GridField.from_volume(target, grid, grid.shape)
    torch.testing.assert_close(exact(grid), target, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match=r"from 1 to \(8, 9, 7\) nodes, got \(9, 9, 7\)"):
        GridField.from_volume(target, grid, (9, 9, 7))


def test_grid_upsampling_keeps_a_field_it_can_hold():
    field = GridField.from_volume(
        torch.rand(1, 9, 9, 9, generator=generator()), VoxelGrid.regular((9, 9, 9)), (3, 3, 3)
    )
    fine = field.upsampled((5, 5, 5))
    assert fine.tensors["nodes"].shape == (1, 5, 5, 5)
    torch.testing.assert_close(fine(field.grid), field(field.grid))


def test_grid_shape_stays_under_its_parameters():
    grid = VoxelGrid.regular((124, 160, 140))
    for parameters in (1000, 110_000, 550_000, 10_000_000):
        shape = grid_shape(parameters, grid)
        assert math.prod(shape) <= min(parameters, 124 * 160 * 140)
        assert math.prod(shape) > 0.9 * min(parameters, 124 * 160 * 140)


# --- crops and losses


@pytest.mark.parametrize(
    "core_start,core_shape", [((0, 0, 0), (6, 7, 8)), ((7, 8, 6), (5, 4, 9)), ((14, 18, 16), (6, 6, 6))]
)
def test_ssim_of_a_crop_is_the_whole_volumes(core_start, core_shape):
    target = torch.rand(1, 1, *GRID.shape, generator=generator(), dtype=torch.float64)
    pred = target + 0.1 * torch.randn(target.shape, generator=generator(1), dtype=torch.float64)
    whole = ssim3d(pred, target, reduction="none")
    crop = make_crop(GRID.shape, core_start, core_shape, halo=5)
    part = ssim3d(crop.of(pred), crop.of(target), reduction="none")
    window = tuple(slice(a, a + n) for a, n in zip(core_start, core_shape, strict=True))
    torch.testing.assert_close(crop.core(part), whole[(..., *window)], rtol=0, atol=1e-10)
    # The masked loss averages both terms over the core.
    loss = photometric_loss(crop.of(pred), crop.of(target), mask=crop.mask())
    core = 0.8 * (pred - target).abs()[(..., *window)].mean() + 0.2 * (1 - whole[(..., *window)].mean())
    torch.testing.assert_close(loss.double(), core, rtol=1e-6, atol=1e-7)


def test_random_crops_lie_inside_and_reach_the_corners():
    starts = set()
    for seed in range(60):
        crop = random_crop((6, 30, 9), 8, halo=5, generator=generator(seed))
        assert crop.core_shape == (6, 8, 8)
        starts.add(crop.start[1] + crop.core_start[1])
        assert crop.grid(VoxelGrid.regular((6, 30, 9))).shape == crop.shape
    assert min(starts) == 0 and max(starts) == 22
    with pytest.raises(ValueError, match="core must lie in"):
        make_crop((6, 6, 6), (3, 0, 0), (4, 6, 6), halo=5)


@pytest.mark.parametrize("inside", [None, torch.cartesian_prod(*[torch.arange(2, n - 1) for n in (6, 30, 9)])])
def test_random_crops_draw_the_border_as_often_as_the_middle(inside):
    drawn, source = torch.zeros(6, 30, 9), generator(3)
    for _ in range(4000):
        crop = random_crop((6, 30, 9), 8, halo=0, generator=source, inside=inside)
        crop.core(crop.of(drawn)).add_(1.0)
    allowed = drawn if inside is None else drawn[2:5, 2:29, 2:8]
    rows = allowed.mean((0, 2))
    least, most = (0.85, 2.2) if inside is None else (0.4, 1.6)
    assert least * rows.median() < rows.min() and rows.max() < most * rows.median()


def test_total_variation():
    volume = torch.rand(2, 3, 4, 1, generator=generator(), dtype=torch.float64, requires_grad=True)
    expected = (volume.diff(dim=1).abs().mean() + volume.diff(dim=2).abs().mean()) / 3
    torch.testing.assert_close(tv3d(volume), expected)
    assert torch.autograd.gradcheck(tv3d, volume)
    assert tv3d(torch.full((1, 4, 4, 4), 3.0)) == 0


def test_evaluation_of_known_volumes():
    target = torch.rand(1, 12, 12, 12, generator=generator())
    assert psnr3d(target, target) == math.inf
    assert psnr3d(target + 0.1, target) == pytest.approx(20.0, abs=1e-4)
    assert psnr3d(target * 255, target * 255 + 25.5, data_range=255) == pytest.approx(20.0, abs=1e-4)
    assert evaluate_volume(target, target)["ssim3d"] == pytest.approx(1.0, abs=1e-6)
    # For a volume smaller than the window, zero padding still gives a number, as documented.
    assert 0 < evaluate_volume(target[:, :4, :4, :4] * 0.9, target[:, :4, :4, :4])["ssim3d"] < 1


# --- exports and pictures


@pytest.mark.parametrize("channels", [1, 4])
def test_ply_round_trip(tmp_path, channels):
    field = GaussianField.from_volume(blobs(channels), GRID, 40, generator=generator())
    field.tensors["densities"].data[:5] *= -1
    path = save_gaussians_ply(tmp_path / "field.ply", field)
    assert b"property float signed_density\n" in path.read_bytes()
    torch.testing.assert_close(load_gaussians_ply(path)(GRID), field(GRID), atol=1e-6, rtol=1e-5)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(ValueError, match="bytes after its header"):
        load_gaussians_ply(path)
    (tmp_path / "other.ply").write_bytes(b"ply\nelement vertex 0\nend_header\n")
    with pytest.raises(ValueError, match="PLY of Gaussians with signed_density"):
        load_gaussians_ply(tmp_path / "other.ply")


@pytest.mark.parametrize("channels", [1, 4])
def test_quantized_round_trip(tmp_path, channels):
    target = blobs(channels)
    field = GaussianField.from_volume(target, GRID, 400, generator=generator())
    some_steps(field, adam(field), target, GRID)
    path = save_quantized(tmp_path / "field.quantized", field, GRID)
    assert path.stat().st_size < field.nbytes / 2
    with torch.no_grad():
        assert psnr3d(load_quantized(path)(GRID), field(GRID)) > 45
        fine = dict.fromkeys(("means", "log_scales", "quats", "densities", "features"), 16)
        path = save_quantized(tmp_path / "fine.quantized", field, GRID, bits=fine)
        assert psnr3d(load_quantized(path)(GRID), field(GRID)) > 70
    content, whole = path.read_bytes(), load_quantized(path)
    for cut in (1, 20):
        path.write_bytes(content[:-cut])
        with pytest.raises(ValueError, match="complete quantised field, got codes that are cut short or damaged"):
            load_quantized(path)
    # The header is text, in which a wrong bit may turn a digit into another.
    length = int.from_bytes(content[9:13], "little")
    for at in [*range(content.index(b'"checksum"')), *range(13 + length, len(content), 97)]:
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        try:
            means = load_quantized(path).tensors["means"]
        except ValueError as error:
            assert "quantised field" in str(error)
        else:  # the last digit of a number may be one that float64 does not tell apart
            assert torch.equal(means, whole.tensors["means"])
    header = json.loads(content[13 : 13 + length])
    del header["checksum"]  # as older files
    head = json.dumps(header).encode()
    path.write_bytes(content[:9] + len(head).to_bytes(4, "little") + head + content[13 + length :])
    assert len(load_quantized(path)) == 400
    with pytest.raises(ValueError, match="must be a quantised field"):
        load_quantized(save_gaussians_ply(tmp_path / "field.ply", field))
    with pytest.raises(ValueError, match="bits must be from 2 to 16"):
        save_quantized(tmp_path / "x", field, GRID, bits={"means": 20})


def test_slice_sheet_shows_field_target_and_error(tmp_path):
    target = blobs()
    field = target.clone()
    field[0, 10] += 0.1
    sheet = slice_sheet(field, target, count=4)
    # Three axes with three rows each. Every picture has a frame of two pixels on each side.
    assert sheet.shape[0] == 3 * (22 + 4) + 3 * (22 + 4) + 3 * (24 + 4)
    assert sheet.shape[1] == 4 * (24 + 4)
    # The third row is the error of slices 2, 7, 12 and 17: none of them slice 10, so it is black inside its frame.
    assert not sheet[2 * 26 + 2 : 2 * 26 + 24, 2:26].any()
    assert save_slice_sheet(tmp_path / "a" / "slices.png", field).stat().st_size > 0


def test_colours_are_shown_bright_enough():
    target = torch.zeros(4, 10, 10, 10)
    target[:, 2:8, 2:8, 2:8] = torch.tensor([0.1, 0.1, 0.05, 0.0]).reshape(4, 1, 1, 1)
    target[:2, 5, 5, 5] = 1.0  # One voxel of far more density.
    shown = slice_sheet(target * 0.5, target, count=2)[16:26, 2:12]  # The first slice of the target.
    for picture in (shown, *mip_frames(target, frames=2)):
        red, green, blue = picture.reshape(-1, 3).max(0)
        assert red >= 250 and 120 <= green <= 135 and blue == 0
    assert not slice_sheet(target * 0)[2:12, 2:12].any()


def test_pictures_keep_the_proportions():
    """On a grid of unequal spacing, a ball is still round in every slice and projection."""
    spacing = (1.0, 2.0, 0.5)
    z, y, x = torch.meshgrid(
        *((torch.arange(n) - (n - 1) / 2) * s for n, s in zip((24, 12, 48), spacing, strict=True)), indexing="ij"
    )
    ball = ((x**2 + y**2 + z**2).sqrt() < 9).float()[None]
    sheet = slice_sheet(ball, count=1, spacing=spacing)[..., 0]
    assert sheet.shape == (3 * (48 + 4), 48 + 4)
    pictures = [sheet[i * 52 + 2 : i * 52 + 50, 2:50] for i in range(3)]
    pictures += [frame[..., 0] for frame in mip_frames(ball, frames=4, spacing=spacing)]
    for picture in pictures:
        high, wide = (np.flatnonzero((picture > 128).any(axis)) for axis in (1, 0))
        # The diameter is 18, which is 36 pixels of 0.5. The tolerance is a voxel of the coarsest axis.
        assert abs(np.ptp(high) + 1 - 36) <= 4 and abs(np.ptp(wide) + 1 - 36) <= 4


@pytest.mark.parametrize(
    "axes,spacing,expected",
    [("zyx", 1.0, (0, False)), ("xyz", (1.0, 1.0, 0.2), (2, False)), ("xzy", (1.0, 1.0, -3.0), (1, True))],
)
def test_what_is_upright(axes, spacing, expected):
    assert VoxelGrid.regular((3, 4, 5), axes=axes, spacing=spacing).upright == expected


def test_mip_video_turns(tmp_path):
    volume = torch.zeros(1, 9, 9, 11)
    volume[0, 4, 7, 2] = 1.0
    frames = mip_frames(volume, frames=4)
    assert all(f.shape == frames[0].shape and f.shape[0] % 2 == 0 and f.shape[1] % 2 == 0 for f in frames)
    # The point is three voxels from the axis: in front of it, beside it, behind it, and on the other side.
    columns = [int(frame[..., 0].max(0).argmax()) for frame in frames]
    assert sorted(columns)[0] < sorted(columns)[1] == sorted(columns)[2] < sorted(columns)[3]
    rows = {int(frame[..., 0].max(1).argmax()) for frame in frames}
    assert rows == {11 - 1 - 2}
    assert np.all([frame.max() > 200 for frame in frames])
    assert save_mip_video(tmp_path / "mip.mp4", volume, frames=3).stat().st_size > 0
