"""Fits run in voxel coordinates: spacing and position do not change them. Their files are in world coordinates."""

import numpy as np
import pytest
import torch

from splat_ssim.trainer import checkpoint
from splat_ssim.trainer.loop import load
from splat_ssim.volume import Volume, VoxelGrid, fit, load_field, load_volume
from splat_ssim.volume.frames import transformed, world_offset
from splat_ssim.volume.gaussians import GaussianField
from splat_ssim.volume.rebuild import rebuild
from splat_ssim.volume.reference import quaternions, rotation_matrices
from tests.volumes import SHAPE, TURNED, ball

HU = ball(-1000, 1500, "int16")
#: An anisotropic, sheared and mirrored grid; a distant one; and one that is both.
PLACES = {
    "1:1": VoxelGrid.regular(SHAPE, axes="xyz"),
    "20:1": VoxelGrid.regular(SHAPE, spacing=(0.5, 0.5, 10), origin=(-3, 4, 5), axes="xyz"),
    "oblique": VoxelGrid(SHAPE, TURNED.tolist()),
    "sheared": VoxelGrid(SHAPE, [[0, 0.3, -0.7, 12], [0.2, 0.8, 0, 3], [-2.5, 0, 0.4, 33], [0, 0, 0, 1]]),
    "far": VoxelGrid.regular(SHAPE, spacing=0.5, origin=(5e6, -5e6, 1e7), axes="xyz"),
    "far and 20:1": VoxelGrid.regular(SHAPE, spacing=(0.5, 0.5, 10), origin=(5e6, 0, 1e8), axes="xyz"),
}


def volume(place):
    return Volume(HU[None], PLACES[place])


def fitted(place, **options):
    return fit(volume(place), budget=120, steps=40, device="cpu", **options)


def test_quaternions_are_the_inverse_of_rotations():
    quats = torch.nn.functional.normalize(torch.randn(200, 4, dtype=torch.float64, generator=torch.Generator()), dim=1)
    quats[:4] = torch.eye(4)
    rotations = rotation_matrices(quats)
    torch.testing.assert_close(rotation_matrices(quaternions(rotations)), rotations)


@pytest.mark.parametrize("place", PLACES)
def test_a_map_of_the_gaussians_is_a_map_of_the_field(place):
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "means": torch.rand(30, 3, generator=generator, dtype=torch.float64) * 12,
        "log_scales": torch.rand(30, 3, generator=generator, dtype=torch.float64) - 0.5,
        "quats": torch.randn(30, 4, generator=generator, dtype=torch.float64),
        "densities": torch.randn(30, generator=generator, dtype=torch.float64),
        "features": torch.randn(30, 2, generator=generator, dtype=torch.float64),
    }
    grid = PLACES[place]
    lattice = VoxelGrid(SHAPE)
    moved = GaussianField(transformed(tensors, grid.matrix))
    expected = GaussianField(tensors).sample(lattice.points(dtype=torch.float64)).detach()
    tolerance = 1e-6 if "far" in place else 1e-11
    torch.testing.assert_close(
        moved.sample(grid.points(dtype=torch.float64)), expected, rtol=0, atol=tolerance * float(expected.abs().max())
    )


@pytest.mark.parametrize("place", PLACES)
def test_spacing_and_place_cost_nothing(tmp_path, place):
    plain = fitted("1:1")
    field = fitted(place, folder=tmp_path / "run")
    assert field.metrics["psnr3d"] == pytest.approx(plain.metrics["psnr3d"], abs=1e-6)
    # The field in the world and both its files match too. Quantised numbers are those of the lattice.
    voxels = plain.render().detach()
    span = 2500
    for found, tolerance in (
        (field, 2e-3),
        (load_field(tmp_path / "run"), 2e-3),
        (load_field(field.save(tmp_path / "a.ply")), 2e-3),
    ):
        assert (found.render().detach() - voxels).abs().max() < tolerance * span
        sampled = found.sample(field.source.grid.points(dtype=torch.float64))
        assert (sampled - voxels).abs().mean() < 1e-3 * span
    small = load_field(tmp_path / "run" / "gaussians.quantized")
    assert 10 * np.log10(span**2 / float((small.render().detach() - voxels).square().mean())) > 35
    assert field.metrics["psnr3d_quantized"] == pytest.approx(field.metrics["psnr3d"], abs=0.15)
    written = rebuild(tmp_path / "run" / "gaussians.ply", tmp_path / "again.npz")
    np.testing.assert_allclose(load_volume(written).data, field.render().detach().numpy(), atol=2e-3 * span)


def test_far_fields_have_an_offset():
    assert world_offset(PLACES["20:1"]) == (0, 0, 0)
    field = fitted("far")
    assert field.offset == (5e6, -5e6, 1e7)
    inside = field.source.grid.to_index(field.positions().detach())
    assert inside.dtype == torch.float64 and (inside > -4).all() and (inside < 20).all()
    part = field.crop(((5e6 + 1, -5e6 + 1, 1e7 + 1), (5e6 + 3, -5e6 + 3, 1e7 + 4)))
    assert part.source.grid.shape == (5, 5, 7)
    torch.testing.assert_close(part.render(), field.render()[:, 2:7, 2:7, 2:9], rtol=1e-4, atol=0.1)


def test_a_checkpoint_in_world_coordinates_goes_on(tmp_path):
    """An older run has no entry for the lattice, and its means are in world coordinates."""
    field = fitted("20:1", folder=tmp_path / "run")
    state = checkpoint.load_checkpoint(tmp_path / "run", torch.device("cpu"))
    assert state.pop("lattice") is True
    state["tensors"] = {name: tensor.detach() for name, tensor in field.tensors.items()}
    checkpoint.save_checkpoint(tmp_path / "run", state)
    task = load(tmp_path / "run")
    assert task.lattice == PLACES["20:1"]
    assert task.evaluate(None)["psnr3d"] == pytest.approx(field.metrics["psnr3d"], abs=1e-3)
    assert torch.equal(task.gaussians().tensors["means"], field.tensors["means"])


def test_swapped_axes_of_a_cube_lie_apart():
    grid = VoxelGrid.regular((4, 4, 4))
    swapped = VoxelGrid((4, 4, 4), np.asarray(grid.matrix)[:, [1, 2, 0, 3]].tolist())
    assert grid.apart(grid) == 0 and grid.apart(swapped) == 4
