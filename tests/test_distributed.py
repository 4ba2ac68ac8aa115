"""Volumes beyond memory and split over ranks: values and gradients equal those of the whole volume."""

import os
import tempfile

import dask.array as da
import numpy as np
import pytest
import torch
import torch.distributed as dist
from PIL import Image

import splat_ssim
from splat_ssim import distributed
from splat_ssim.comparison import compare
from splat_ssim.errors import UserError
from splat_ssim.loss import photometric_loss
from splat_ssim.volume import Volume, VoxelGrid, load_volume, save_volume
from tests import forked


def pair(shape, seed=0, dtype=np.float32):
    generator = np.random.default_rng(seed)
    first = generator.random(shape)
    return first.astype(dtype), np.clip(first + 0.1 * generator.normal(size=shape), 0, 1).astype(dtype)


def whole(first, second, **options):
    return splat_ssim.ssim3d(torch.from_numpy(first)[None], torch.from_numpy(second)[None], **options)


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("window_size", [7, 11])
def test_blocks_give_the_whole_volumes_ssim(padding, window_size):
    first, second = pair((2, 45, 38, 50))
    options = {"padding": padding, "window_size": window_size, "data_range": 1.3}
    in_memory = whole(first, second, reduction="none", **options)[0].numpy()
    found = distributed.ssim3d(first, second, reduction="none", block=17, **options)
    assert found.shape == in_memory.shape and found.npartitions > 8
    np.testing.assert_allclose(found.compute(), in_memory, rtol=0, atol=2e-6)  # float32 sums
    # dask arrays, whatever their chunks, are computed in another way.
    overlapped = distributed.ssim3d(
        da.from_array(first, chunks=20),
        da.from_array(second, chunks=(1, 45, 9, 31)),
        reduction="none",
        block=17,
        **options,
    )
    np.testing.assert_allclose(overlapped.compute(), found.compute(), rtol=0, atol=1e-6)
    mean = distributed.ssim3d(first, second, block=17, **options)
    assert mean == pytest.approx(in_memory.mean(dtype=np.float64), abs=1e-7)


def test_float64_blocks_are_exact():
    first, second = pair((30, 33, 26), dtype=np.float64)
    found = distributed.ssim3d(first, second, block=12)
    assert found == pytest.approx(float(whole(first[None], second[None])), abs=1e-12)


def test_files_on_disk_are_read_in_blocks(tmp_path):
    zarr = pytest.importorskip("zarr")
    first, second = pair((40, 36, 33))
    expected = float(whole(first[None], second[None]))
    arrays = []
    for name, data in (("a", first), ("b", second)):
        # zarr 2, the last version for Python 3.10, has this function too.
        path = str(tmp_path / f"{name}.zarr")
        array = zarr.open_array(path, mode="w", shape=data.shape, dtype="f4", chunks=(16, 20, 16))
        array[...] = data
        arrays.append(array)
        np.save(tmp_path / f"{name}.npy", data)
    mapped = [np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in "ab"]
    assert distributed.ssim3d(*arrays, block=20) == pytest.approx(expected, abs=1e-7)
    assert distributed.ssim3d(*mapped, block=20) == pytest.approx(expected, abs=1e-7)


def test_integers():
    first, second = ((255 * v).astype(np.uint8) for v in pair((24, 20, 22)))
    assert distributed.ssim3d(first, second, block=12) == pytest.approx(
        float(whole(first[None], second[None])), abs=1e-7
    )
    wide = [v.astype(np.int16) * 100 for v in (first, second)]
    assert distributed.ssim3d(*wide, block=12, data_range=25500) == pytest.approx(
        distributed.ssim3d(first, second, block=12), abs=1e-6
    )


@pytest.mark.parametrize(
    "shapes,options,text",
    [
        (((20, 20, 20), (20, 20, 21)), {}, "must have the same shape"),
        (((20, 20), (20, 20)), {}, r"must have shape \(n0, n1, n2\)"),
        (((20, 20, 20),) * 2, {"block": 8}, "block must be at least the window's 11 voxels, got 8"),
        (((20, 20, 20),) * 2, {"padding": "reflect"}, "padding must be"),
        (((20, 20, 9),) * 2, {"padding": "valid"}, "needs axes of at least 11"),
    ],
)
def test_wrong_volumes(shapes, options, text):
    with pytest.raises(ValueError, match=text):
        distributed.ssim3d(*(np.zeros(shape, np.float32) for shape in shapes), **options)


# --- ranks

SHAPE = (1, 2, 27, 14, 16)
CUTS = {2: (0, 12, 27), 3: (0, 7, 19, 27)}


def ranks_inputs():
    generator = torch.Generator().manual_seed(0)
    target = torch.rand(SHAPE, generator=generator, dtype=torch.float64)
    pred = target + 0.1 * torch.randn(SHAPE, generator=generator, dtype=torch.float64)
    mask = (torch.rand(1, 1, *SHAPE[2:], generator=generator) > 0.3).double()
    return pred, target, mask


def one_rank(rank, size, folder, masked):
    with forked.group(folder, rank, size):
        whole_loss(rank, size, folder, masked)


def whole_loss(rank, size, folder, masked):
    """The loss of this rank's planes and its gradients, written to a file of the rank."""
    start, stop = CUTS[size][rank], CUTS[size][rank + 1]
    pred, target, mask = (t[:, :, start:stop].contiguous() for t in ranks_inputs())
    pred.requires_grad_()
    target.requires_grad_()
    loss = distributed.photometric_loss(pred, target, mask=mask if masked else None, lambda_dssim=0.4)
    (3 * loss).backward()
    torch.save((loss.detach(), pred.grad, target.grad), os.path.join(folder, f"{rank}.pt"))
    if not masked:
        try:
            distributed.photometric_loss(pred[:, :, : 3 + 9 * rank], target[:, :, : 3 + 9 * rank])
            raise AssertionError("too few planes must be refused on every rank")
        except ValueError as error:
            assert "every rank must have at least 5 planes for window 11, got 3" in str(error)


@pytest.mark.parametrize("size,masked", [(2, False), (3, True)])
def test_ranks_give_the_single_process_loss_and_gradient(size, masked):
    pred, target, mask = ranks_inputs()
    pred.requires_grad_()
    target.requires_grad_()
    expected = photometric_loss(pred, target, lambda_dssim=0.4, mask=mask if masked else None)
    (3 * expected).backward()
    with tempfile.TemporaryDirectory() as folder:
        forked.start(one_rank, (size, folder, masked), size)
        parts = [torch.load(os.path.join(folder, f"{rank}.pt")) for rank in range(size)]
    for loss, _, _ in parts:
        torch.testing.assert_close(loss, expected.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(torch.cat([p[1] for p in parts], 2), pred.grad, rtol=1e-9, atol=1e-14)
    torch.testing.assert_close(torch.cat([p[2] for p in parts], 2), target.grad, rtol=1e-9, atol=1e-14)


def test_one_process_alone(tmp_path):
    pred, target, _ = ranks_inputs()
    with pytest.raises(RuntimeError, match="init_process_group first"):
        distributed.photometric_loss(pred, target)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        torch.testing.assert_close(distributed.photometric_loss(pred, target), photometric_loss(pred, target))
        with pytest.raises(ValueError, match="window_size must be odd"):
            distributed.photometric_loss(pred, target, window_size=10)
        with pytest.raises(ValueError, match=r"same shape \(B, C, d, H, W\)"):
            distributed.photometric_loss(pred[0], target[0])
    finally:
        dist.destroy_process_group()


# --- compare


def test_compare_images_and_folders(tmp_path):
    first, second = pair((200, 190, 3))
    for name, pixels in (("a", first), ("b", second)):
        (tmp_path / name).mkdir()
        for i in range(2):
            shifted = np.roll(pixels, i, 0)
            Image.fromarray((255 * shifted).astype(np.uint8)).save(tmp_path / name / f"{i}.png")
    result = compare(tmp_path / "a" / "0.png", tmp_path / "b" / "0.png", map=tmp_path / "map.png")
    loaded = [
        torch.from_numpy(np.asarray(Image.open(tmp_path / n / "0.png")).astype(np.float32) / 255).permute(2, 0, 1)[None]
        for n in "ab"
    ]
    assert result["ssim"] == pytest.approx(float(splat_ssim.ssim(*loaded)), abs=1e-6)
    assert result["ms_ssim"] == pytest.approx(float(splat_ssim.ms_ssim(*loaded)), abs=1e-6)
    error = float((loaded[0] - loaded[1]).square().mean())
    assert result["psnr"] == pytest.approx(-10 * np.log10(error), abs=1e-3)
    assert Image.open(tmp_path / "map.png").size == (190, 200)
    folders = compare(tmp_path / "a", tmp_path / "b", map=tmp_path / "maps", output=tmp_path / "result.json")
    assert [row["name"] for row in folders["images"]] == ["0.png", "1.png"]
    assert folders["ssim"] == pytest.approx(np.mean([row["ssim"] for row in folders["images"]]))
    assert (tmp_path / "maps" / "1.png.png").exists() and (tmp_path / "result.json").exists()
    (tmp_path / "b" / "1.png").unlink()
    with pytest.raises(ValueError, match=r"same names, got \['1.png'\]"):
        compare(tmp_path / "a", tmp_path / "b")
    with pytest.raises(ValueError, match="one kind, got folder"):
        compare(tmp_path / "a", tmp_path / "b" / "0.png")


def test_compare_shows_transparency_and_says_what_it_does_not_see(tmp_path, capsys):
    a, b = tmp_path / "a", tmp_path / "b"
    for folder, alpha in ((a, 255), (b, 51)):
        folder.mkdir()
        pixels = np.full((16, 16, 4), 100, np.uint8)
        pixels[..., 3] = alpha
        Image.fromarray(pixels).save(folder / "1.png")
        Image.fromarray(pixels[..., 0].astype(np.uint16) * 257).save(folder / "2.tif")
        (folder / "notes.txt").write_text("seen")
    result = compare(a, b)
    assert [row["name"] for row in result["images"]] == ["1.png", "2.tif"]
    # Over white, a fifth of the alpha is a fifth of the distance to it.
    assert result["images"][0]["mse"] == pytest.approx((0.8 * 155 / 255) ** 2, rel=1e-5)
    assert capsys.readouterr().err.splitlines() == [
        f"passed over, since it is no image: 2 ({a}/notes.txt, {b}/notes.txt)",
        f"transparent, compared over white: 1 ({b}/1.png)",
        f"of 16 bits, compared as 8: 2 ({a}/2.tif, {b}/2.tif)",
    ]
    Image.fromarray(pixels).save(a / "3.avif")
    Image.fromarray(pixels).save(b / "3.bmp")
    with pytest.raises(ValueError, match=r"same names, got \['3.avif', '3.bmp'\]"):
        compare(a, b)


def test_compare_volumes(tmp_path):
    grid = VoxelGrid.regular((30, 28, 26), spacing=2.0)
    first, second = pair((1, 30, 28, 26))
    a = save_volume(tmp_path / "a.nii.gz", Volume(first, grid))
    b = save_volume(tmp_path / "b.zarr", Volume(second, grid))
    result = compare(a, b, map=tmp_path / "map.nii.gz", block=16)
    span = float(max(first.max(), second.max()) - min(first.min(), second.min()))
    assert result["data_range"] == pytest.approx(span) and result["ms_ssim"] is None
    assert result["ssim"] == pytest.approx(float(whole(first, second, data_range=span)), abs=1e-6)
    assert result["psnr"] == pytest.approx(10 * np.log10(span**2 / np.square(first - second).mean()), abs=1e-4)
    written = load_volume(tmp_path / "map.nii.gz")
    np.testing.assert_allclose(written.data, whole(first, second, data_range=span, reduction="none")[0], atol=2e-6)
    np.testing.assert_allclose(written.grid.matrix, grid.matrix)
    compare(a, b, map=tmp_path / "map.zarr", padding="valid", data_range=1.0)
    inside = load_volume(tmp_path / "map.zarr")
    assert inside.data.shape == (1, 20, 18, 16) and inside.grid == grid.crop((5, 5, 5), (20, 18, 16)).rebased()
    data = [(255 * v).astype(np.uint8) for v in (first, second)]
    for name, values in zip("cd", data, strict=True):
        np.save(tmp_path / f"{name}.npy", values[0])
    bytes_result = compare(tmp_path / "c.npy", tmp_path / "d.npy")
    assert bytes_result["data_range"] == 255
    assert bytes_result["ssim"] == pytest.approx(float(whole(*data)), abs=1e-5)


@pytest.mark.parametrize("dtype", ["int32", "uint32", "int64", "uint64"])
def test_wide_integers_are_compared_exactly(tmp_path, dtype):
    rng = np.random.default_rng(0)
    first = rng.integers(0, 3000, (14, 13, 12))
    second = first + rng.integers(-20, 20, first.shape)
    for name, values in (("a", first), ("b", second)):
        np.save(tmp_path / f"{name}.npy", (values + 2**30).astype(dtype))
    result = compare(tmp_path / "a.npy", tmp_path / "b.npy", padding="valid", data_range=60)
    assert result["mse"] == np.square(first - second).mean()
    exact = [(values + 2.0**30)[None] for values in (first, second)]
    assert result["ssim"] == pytest.approx(float(whole(*exact, data_range=60, padding="valid")), abs=1e-9)
    ones = [(values % 2 + 2**30).astype(dtype) for values in (first, second)]
    assert distributed.ssim3d(*ones, block=12, padding="valid") < 0.9  # As float32 they would be equal.


def test_integers_that_float64_rounds_are_told(tmp_path, capsys):
    values = np.random.default_rng(0).integers(0, 2**62, (12, 12, 12))
    np.save(tmp_path / "a.npy", values)
    compare(tmp_path / "a.npy", tmp_path / "a.npy")
    assert "hold integers above 2^53: they are compared as float64" in capsys.readouterr().err


def test_volumes_that_lie_elsewhere_are_told(tmp_path, capsys):
    voxels = pair((1, 13, 13, 13))[0]
    grid = VoxelGrid.regular((13, 13, 13), axes="xyz")
    a = save_volume(tmp_path / "a.nii.gz", Volume(voxels, grid))
    compare(a, save_volume(tmp_path / "same.nrrd", Volume(voxels, grid)))
    assert not capsys.readouterr().err
    compare(a, save_volume(tmp_path / "turned.npy", Volume(voxels, VoxelGrid.regular((13, 13, 13)))))
    told = capsys.readouterr().err
    assert "turned.npy lies elsewhere than" in told and "up to 13 voxels away" in told


@pytest.mark.parametrize(
    ("name", "text"),
    [("m.foo", "must end in one of"), ("m.dcm", "dicom volumes are read only")],
)
def test_a_map_that_cannot_be_written_is_refused_at_once(tmp_path, monkeypatch, name, text):
    np.save(tmp_path / "a.npy", pair((12, 12, 12))[0])
    monkeypatch.setattr(distributed, "ssim3d", None)
    with pytest.raises(UserError, match=text):
        compare(tmp_path / "a.npy", tmp_path / "a.npy", map=tmp_path / name)
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"--map must end in one of \.png, .* for images, got 'm.nii'"):
        compare(tmp_path / "a.png", tmp_path / "a.png", map=tmp_path / "m.nii")


def test_a_damaged_chunk_names_the_file(tmp_path):
    zarr = pytest.importorskip("zarr")
    array = zarr.open_array(str(tmp_path / "a.zarr"), mode="w", shape=(24, 24, 24), dtype="f4", chunks=(12, 12, 12))
    array[...] = pair((24, 24, 24))[0]
    chunk = max((p for p in (tmp_path / "a.zarr").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    chunk.write_bytes(chunk.read_bytes()[:100])
    with pytest.raises(UserError, match=r"a\.zarr must be a complete zarr volume"):
        compare(tmp_path / "a.zarr", tmp_path / "a.zarr")


def test_compare_refuses(tmp_path):
    np.save(tmp_path / "complex.npy", np.zeros((12, 12, 12), complex))
    with pytest.raises(UserError, match=r"complex\.npy must hold real numbers, got complex128"):
        compare(tmp_path / "complex.npy", tmp_path / "complex.npy")
    np.save(tmp_path / "flat.npy", np.zeros((12, 12, 12), np.float32))
    np.save(tmp_path / "small.npy", np.zeros((12, 12, 11), np.float32))
    np.save(tmp_path / "nan.npy", np.full((12, 12, 12), np.nan, np.float32))
    flat = tmp_path / "flat.npy"
    with pytest.raises(ValueError, match="must have the same shape"):
        compare(flat, tmp_path / "small.npy")
    with pytest.raises(ValueError, match="finite voxels"):
        compare(flat, tmp_path / "nan.npy")
    with pytest.raises(ValueError, match="require --data-range"):
        compare(flat, flat)
    assert compare(flat, flat, data_range=1.0)["ssim"] == pytest.approx(1.0)
    with pytest.raises(ValueError, match="got nothing at"):
        compare(flat, tmp_path / "missing.npy")
