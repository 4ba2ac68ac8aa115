"""The sums over a Gaussian's pixels as computed on CUDA, with torch functions instead of gsplat's kernels."""

import gsplat
import pytest
import torch

from splat_ssim.render import gsplat_accumulate, gsplat_cuda, rasterization
from tests.test_rasterize import make_scene

torch_impl = pytest.importorskip("gsplat.cuda._torch_impl")

WIDTH, HEIGHT, TILE = 40, 36, 16


def pairs_in_range(
    range_start, range_end, transmittances, means2d, conics, opacities, width, height, tile, offsets, flatten_ids
):
    """gsplat.rasterize_to_indices_in_range in Python: like the kernel, but one pixel at a time."""
    images, count = means2d.shape[:2]
    assert transmittances.shape == (images, height, width) and offsets.shape[0] == images
    assert offsets.dtype == flatten_ids.dtype == torch.int32 and opacities.shape == (images, count)
    bounds = [*offsets.flatten().tolist(), len(flatten_ids)]
    tiles_across = offsets.shape[2]
    rows, pixels, image_ids = [], [], []
    for image in range(images):
        for y in range(height):
            for x in range(width):
                index = image * offsets[0].numel() + (y // tile) * tiles_across + x // tile
                left = transmittances[image, y, x].item()
                batch = tile * tile
                first = bounds[index] + range_start * batch
                flat = flatten_ids[first : min(bounds[index + 1], bounds[index] + range_end * batch)].long()
                dx, dy = (means2d.reshape(-1, 2)[flat] - torch.tensor([x + 0.5, y + 0.5])).unbind(1)
                a, b, c = conics.reshape(-1, 3)[flat].unbind(1)
                sigmas = 0.5 * (a * dx * dx + c * dy * dy) + b * dx * dy
                alphas = (opacities.reshape(-1)[flat] * torch.exp(-sigmas)).clamp(max=0.999)
                touches = (sigmas >= 0) & (alphas >= 1 / 255)
                # Transmittance only falls, so the pairs after the end are cut off too.
                within = left * torch.cumprod(1 - alphas[touches], 0) > 1e-4
                found = flat[touches][within] % count
                rows.append(found)
                pixels.append(torch.full_like(found, y * width + x))
                image_ids.append(torch.full_like(found, image))
    return torch.cat(rows), torch.cat(pixels), torch.cat(image_ids)


def gsplat_lists(info):
    """The tile lists that gsplat's torch functions make of our renderer's projections."""
    across, down = -(-WIDTH // TILE), -(-HEIGHT // TILE)
    radii, means2d, depths = (info[name].detach() for name in ("radii", "means2d", "depths"))
    _, keys, flatten_ids = torch_impl._isect_tiles(means2d, radii, depths, TILE, across, down)
    return torch_impl._isect_offset_encode(keys, len(means2d), across, down), flatten_ids


def packed_lists(info, offsets, flatten_ids):
    """The same lists with indices into the visible Gaussians only, as in gsplat's packed form."""
    visible = (info["radii"] > 0).all(-1)
    row_of = visible.flatten().cumsum(0) - 1
    camera_ids, gaussian_ids = visible.nonzero(as_tuple=True)
    taken = {
        name: info[name][camera_ids, gaussian_ids] for name in ("radii", "means2d", "depths", "conics", "opacities")
    }
    lists = {"isect_offsets": offsets, "flatten_ids": row_of[flatten_ids.long()].int()}
    return {**info, **taken, **lists, "camera_ids": camera_ids, "gaussian_ids": gaussian_ids}


@pytest.fixture(scope="module")
def scene():
    # Opaque Gaussians close together end pixels early. A second camera has lists of its own.
    scene = make_scene(70, 2, spread=1.6, size=(0.03, 0.2))
    scene[3][:40] = 0.95
    weights = torch.rand(2, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(1))
    wanted = rasterization(*scene, WIDTH, HEIGHT, sh_degree=0, pixel_weights=weights)[2]
    offsets, flatten_ids = gsplat_lists(wanted)
    return wanted, {**wanted, "tile_size": TILE, "isect_offsets": offsets, "flatten_ids": flatten_ids}, weights


@pytest.mark.parametrize("max_pairs", [1 << 24, 8 * TILE * TILE])
@pytest.mark.parametrize("packed", [False, True])
def test_sums_equal_our_rasterisers(scene, monkeypatch, packed, max_pairs):
    wanted, info, weights = scene
    expected = wanted["accumulators"]
    if packed:
        info = packed_lists(info, info["isect_offsets"], info["flatten_ids"])
        expected = type(expected)(*(field[info["camera_ids"], info["gaussian_ids"]] for field in expected))
    monkeypatch.setattr(gsplat_accumulate, "MAX_PAIRS", max_pairs)
    calls = []

    def query(*arguments):
        calls.append(len(arguments[-1]))
        return pairs_in_range(*arguments)

    sums = gsplat_accumulate.accumulate(info, weights, max_alpha=0.999, query=query)
    # Two cameras with three rows of tiles: all at once, or row by row where the bound allows no more.
    assert len(calls) == (2 if max_pairs > 1 << 20 else 6) and sum(calls) == len(info["flatten_ids"])
    # The pairs must be exactly the same, or the count would differ.
    assert torch.equal(sums.count, expected.count) and expected.count.max() > 50
    for name in ("weight", "opacity", "distance"):
        # Sums in float32 are compared with sums in float64.
        torch.testing.assert_close(getattr(sums, name), getattr(expected, name), rtol=1e-5, atol=1e-5)


def test_nothing_in_view():
    scene = make_scene(5)
    scene[0][:, 2] = -10.0
    weights = torch.ones(1, HEIGHT, WIDTH)
    info = rasterization(*scene, WIDTH, HEIGHT, sh_degree=0)[2]
    info |= {"tile_size": TILE, "isect_offsets": torch.zeros(1, 3, 3, dtype=torch.int32)}
    info["flatten_ids"] = torch.zeros(0, dtype=torch.int32)
    sums = gsplat_accumulate.accumulate(info, weights, max_alpha=0.999, query=pairs_in_range)
    assert sums.count.shape == (1, 5) and sum(field.abs().sum() for field in sums) == 0


def test_the_cuda_renderer_hands_them_on(scene, monkeypatch):
    """gsplat_cuda.render as it runs on a GPU, with gsplat's two functions replaced."""
    wanted, info, weights = scene
    monkeypatch.setattr(gsplat, "rasterization", lambda *arguments, **options: ("images", "alphas", dict(info)))
    monkeypatch.setattr(gsplat, "rasterize_to_indices_in_range", pairs_in_range)
    inputs = make_scene(70, 2)
    options = {"antialiased": False, "raw": False, "tile_size": None, "max_alpha": 0.999}
    result = gsplat_cuda.render(*inputs, WIDTH, HEIGHT, pixel_weights=weights, **options)[2]
    torch.testing.assert_close(result["accumulators"].count, wanted["accumulators"].count)
