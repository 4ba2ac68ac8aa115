"""Files of Gaussians: codes come back bit for bit, and requested sizes and qualities are met."""

import doctest
import hashlib
import json
import signal
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("constriction")

from splat_ssim.errors import UserError
from splat_ssim.trainer.loop import Interrupted
from splat_ssim.volume import GaussianField, Volume, VoxelGrid, load_field, load_volume, save_volume
from splat_ssim.volume.codec import Packed, compress_volume, load_packed
from splat_ssim.volume.codec.commands import compress, decompress
from splat_ssim.volume.codec.entropy import Adaptive, Decoder, Encoder
from splat_ssim.volume.codec.exact import eigen, exp
from splat_ssim.volume.codec.field import CodedField, shapes_of
from splat_ssim.volume.codec.loss import cut_error
from splat_ssim.volume.codec.occupancy import code_occupancy
from splat_ssim.volume.codec.quantizer import (
    Codes,
    Steps,
    coded_values,
    dequantize,
    place_levels,
    quantize,
    shape_values,
)
from splat_ssim.volume.codec.rounding import round_field
from splat_ssim.volume.codec.stream import decode, encode
from splat_ssim.volume.codec.ties import has_ties, without_ties
from splat_ssim.volume.export import FieldSource
from splat_ssim.volume.rebuild import rebuild
from splat_ssim.volume.reference import mahalanobis_squared, rotation_matrices, voxelize_reference

SHAPE = (24, 20, 26)
GRID = VoxelGrid.regular(SHAPE, spacing=(0.7, 0.7, 2.5), origin=(-30, 4, 5.5), axes="xyz")


def blob(low, high, dtype, shape=SHAPE):
    """A ball with texture, whose intensities span low to high."""
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    values = np.exp(-4 * (x**2 + 1.5 * y**2 + z**2)) * (1 + 0.2 * np.sin(4 * x) * np.cos(3 * y))
    return (low + (high - low) * (values - values.min()) / np.ptp(values)).astype(dtype)


def drawn(count, shape=SHAPE, seed=0):
    """Means, shapes and weights of random Gaussians. Some are outside, round, tiny, huge or of small weight."""
    rng = np.random.default_rng(seed)
    means = rng.uniform(-2, np.array(shape) + 1, (count, 3))
    shapes = np.concatenate([rng.normal(0.4, 0.5, (count, 3)), rng.normal(0, 0.3, (count, 3))], 1)
    shapes[: count // 8, 3:] = 0
    shapes[count // 8 : count // 6] = [5.5, -4, 3, 2, -2, 2]
    return means, shapes, rng.laplace(0, 1, count)


def rows(codes):
    """The codes of each Gaussian as sorted rows, for comparisons that ignore the order."""
    table = np.concatenate([codes.cells, codes.weights[:, None], codes.shapes, codes.places], 1)
    return table[np.lexsort(table.T)]


def psnr(decoded, source):
    low, high = float(source.min()), float(source.max())
    error = np.square(decoded.astype(np.float64) - source).mean()
    return 10 * np.log10((high - low) ** 2 / error)


# --- arithmetic


def test_eigenvalues_and_axes_are_those_of_the_matrix():
    shapes = drawn(500)[1]
    shapes[:5] = 0
    shapes[5:10] = [1, 1, 1, 0, 0, 0]
    shapes[10:15] = [1, 1, 2, 0.5, 0, 0]
    values, quats = eigen(shapes)
    R = rotation_matrices(torch.from_numpy(quats)).numpy()
    expected = shapes[:, [0, 3, 4, 3, 1, 5, 4, 5, 2]].reshape(-1, 3, 3)
    assert np.abs(R @ (values[:, :, None] * R.transpose(0, 2, 1)) - expected).max() < 1e-14
    assert np.abs(np.sort(values, 1) - np.linalg.eigvalsh(expected)).max() < 1e-13


def test_exponential_is_accurate():
    x = np.linspace(-50, 50, 10001)
    assert np.abs(exp(x) / np.exp(x) - 1).max() < 1e-15


def test_gradient_of_a_coded_field():
    rng = np.random.default_rng(3)
    means, shapes = rng.uniform(2, 6, (4, 3)), rng.normal(0.3, 0.3, (4, 6))
    tensors = {"means": means, "shapes": shapes, "weights": rng.normal(size=4)}
    names = list(tensors)
    grid = VoxelGrid((8, 8, 8))
    field = CodedField({name: torch.from_numpy(array) for name, array in tensors.items()}, grid.shape)

    def total(*values):
        given = {f"tensors.{name}": value for name, value in zip(names, values, strict=True)}
        return torch.func.functional_call(field, given, (grid,)).square().sum()

    values = [torch.from_numpy(tensors[name]).requires_grad_() for name in names]
    # The cut-off at three standard deviations is a step, so differences across it are not small.
    assert torch.autograd.gradcheck(total, values, eps=1e-6, atol=2e-2, rtol=1e-2)


def test_field_of_gaussians_is_the_same_by_shapes_and_weights():
    torch.manual_seed(0)
    grid = VoxelGrid(SHAPE)
    field = GaussianField.from_volume(torch.from_numpy(blob(0, 1, "float32"))[None], grid, 60)
    coded = CodedField.of_field(field, SHAPE)
    assert (coded(grid) - field(grid)).abs().max() < 1e-5
    again = shapes_of(*(torch.from_numpy(a) for a in eigen(coded.tensors["shapes"].detach().double().numpy())))
    assert (again - coded.tensors["shapes"]).abs().max() < 1e-6


def test_error_below_an_empty_voxel_is_none():
    pred = torch.tensor([-0.5, 0.25, -0.5, 0.75], requires_grad=True)
    loss = cut_error(pred, torch.tensor([0.0, 0.0, 0.5, 0.5]), low=0.0)
    loss.backward()
    assert loss.item() == pytest.approx((0.25**2 + 1 + 0.25**2) / 4)
    assert pred.grad.tolist() == pytest.approx([0, 0.125, -0.5, 0.125])
    with pytest.raises(ValueError, match="cut_error takes no mask"):
        cut_error(pred, pred, mask=pred)


# --- codes


@pytest.mark.parametrize("steps", [Steps(0.2), Steps(0.01, 0.4, 0.6, 4), Steps(3.0, 1.0, 2.0, 1)])
def test_codes_are_within_half_a_step_and_stay_when_coded_again(steps):
    means, shapes, weights = drawn(300)
    codes = quantize(means, shapes, weights, steps, SHAPE)
    values = coded_values(codes, steps)
    inside = ((means > -0.5) & (means < np.array(SHAPE) - 0.5)).all(1)
    levels = place_levels(codes.weights, values["shapes"], steps)
    assert (np.abs(values["means"] - means) <= 0.5 * steps.cell / levels + 1e-5)[inside].all()
    assert np.abs(values["shapes"] - shapes).max() <= 0.25 + 1e-9
    large = np.abs(weights) > 0.5 * steps.weight
    assert np.abs(values["weights"] - weights)[large].max() <= 0.5 * steps.weight + 1e-9
    assert (codes.weights != 0).all()
    # float32, as training keeps them.
    kept = {name: value.astype(np.float32).astype(np.float64) for name, value in values.items()}
    again = quantize(kept["means"], kept["shapes"], kept["weights"], steps, SHAPE)
    assert (rows(again) == rows(codes)).all()


@pytest.mark.parametrize("shape", [SHAPE, (1, 1, 1), (1, 7, 300), (65, 3, 2)])
@pytest.mark.parametrize("count", [1, 2, 700])
def test_codes_come_back_from_bytes(shape, count):
    steps = Steps(0.15, cell=2)
    codes = quantize(*drawn(count, shape), steps, shape)
    content = encode(codes, steps, shape)
    decoded = decode(content, steps, shape, count)
    assert (rows(decoded) == rows(codes)).all()
    assert encode(decoded, steps, shape) == content


def test_crowded_cells_come_back():
    counts = np.zeros((5, 6, 7), np.int64)
    counts[2, 3, 4], counts[0, 0, 0], counts[4, 5, 6] = 3000, 17, 1
    encoder = Encoder()
    code_occupancy(encoder, counts, counts.shape, int(counts.sum()))
    assert (code_occupancy(Decoder(encoder.finish()), None, counts.shape, int(counts.sum())) == counts).all()


def test_model_comes_near_the_entropy():
    rng = np.random.default_rng(0)
    contexts = rng.integers(0, 3, 20000)
    symbols = np.clip(np.rint(rng.normal(10 + 5 * contexts, 1 + contexts)), 0, 30).astype(np.int64)
    encoder = Encoder()
    Adaptive(3, 31).code(encoder, symbols, contexts)
    bits = 0.0
    for context in range(3):
        counts = np.bincount(symbols[contexts == context], minlength=31)
        bits -= (counts[counts > 0] * np.log2(counts[counts > 0] / counts.sum())).sum()
    size = len(encoder.finish())
    assert bits / 8 < size < 1.02 * bits / 8
    decoded = Adaptive(3, 31).code(Decoder(encoder._coder.get_compressed().astype("<u4").tobytes()), None, contexts)
    assert (decoded == symbols).all()


def test_bytes_and_gaussians_have_the_same_bits_everywhere():
    """These digests must never change. Otherwise old files could not be read, or would decode to something else."""
    steps = Steps(0.15)

    def numbers(count, columns, below, seed):
        """Makes whole numbers that do not depend on the version of a library."""
        mixed = (np.arange(count * columns, dtype=np.int64) + seed) * 2654435761 % (1 << 32)
        return (mixed >> 7).reshape(count, columns) % np.asarray(below)

    cells, shapes = numbers(400, 3, [12, 10, 13], 1), numbers(400, 6, 19, 2) - 9
    weights = (numbers(400, 1, 90, 3) + 1)[:, 0] * (1 - 2 * numbers(400, 1, 2, 4)[:, 0])
    places = numbers(400, 3, place_levels(weights, shape_values(weights, shapes, steps), steps), 5)
    codes = Codes(cells, weights, shapes, places)
    packed = Packed(FieldSource(GRID, -1000, 936), "int16", steps, codes)
    content = packed.to_bytes()
    body = encode(codes, steps, SHAPE)
    gaussians = Packed.of_bytes(content).gaussians()
    digest = hashlib.sha256(b"".join(gaussians[name].astype("<f4").tobytes() for name in sorted(gaussians)))
    assert hashlib.sha256(body).hexdigest()[:16] == BODY
    assert digest.hexdigest()[:16] == GAUSSIANS


BODY, GAUSSIANS = "334202142c5f6327", "e53674caba2c8503"


# --- rounding


def test_rounding_by_parts_costs_less_than_rounding_at_once():
    torch.manual_seed(0)
    grid = VoxelGrid(SHAPE)
    target = torch.from_numpy(blob(0, 1, "float32"))[None]
    field = CodedField.of_field(GaussianField.from_volume(target, grid, 60), SHAPE)
    optimizer = torch.optim.Adam(field.parameters(), lr=0.02)
    for _ in range(80):
        optimizer.zero_grad()
        cut_error(field(grid), target).backward()
        optimizer.step()
    steps = Steps(0.4)

    def error(of):
        tensors = {name: torch.from_numpy(a) for name, a in dequantize(of.codes(steps), steps).items()}
        with torch.no_grad():
            return float(cut_error(GaussianField(tensors)(grid), target))

    at_once = error(field)
    round_field(field, target, steps, length=90)
    assert error(field) < 0.6 * at_once
    assert cut_error(field(grid), target).item() == pytest.approx(error(field), rel=1e-3)


def test_no_voxel_lies_on_a_cut_off():
    steps = Steps(0.1)
    codes = quantize(*drawn(8000), steps, SHAPE)
    tied = has_ties(dequantize(codes, steps), SHAPE)
    levels = place_levels(codes.weights, shape_values(codes.weights, codes.shapes, steps), steps)
    # Gaussians with only one or two places cannot be moved.
    some = (np.arange(8000) % 40 == 0) | tied
    chosen = np.flatnonzero(some & (levels.max(1) > 4))
    codes, tied = codes.taken(chosen), tied[chosen]
    assert tied.any()
    settled = without_ties(codes, steps, SHAPE)
    gaussians = dequantize(settled, steps)
    assert not has_ties(gaussians, SHAPE).any()
    assert ((settled.places != codes.places).any(1) == tied).all()
    g = {name: torch.from_numpy(a).double() for name, a in gaussians.items()}
    points = VoxelGrid(SHAPE).points(dtype=torch.float64).reshape(-1, 3)
    distances = mahalanobis_squared(g["means"], g["quats"], g["log_scales"].exp(), points)
    assert float((distances - 9).abs().min()) > 2e-5
    before = {name: torch.from_numpy(a).double() for name, a in dequantize(codes, steps).items()}
    distances = mahalanobis_squared(before["means"], before["quats"], before["log_scales"].exp(), points)
    assert (((distances - 9).abs() < 3e-5).any(1).numpy() == tied).all()


# --- files


@pytest.fixture(scope="module")
def made():
    source = blob(-1000, 1500, "int16")
    return source, compress_volume(Volume(source[None], GRID, "mm"), bytes=1500, steps=80, device="cpu")


def test_file_has_everything(made):
    source, compressed = made
    packed = Packed.of_bytes(compressed.content)
    volume = packed.volume()
    assert len(compressed.content) == compressed.metrics["bytes"] <= 1500
    assert volume.data.dtype == np.int16 and volume.data.shape == (1, *SHAPE)
    assert np.allclose(volume.grid.matrix, GRID.matrix, atol=0) and volume.unit == "mm"
    assert compressed.metrics["psnr3d"] == pytest.approx(psnr(volume.data[0], source), abs=1e-3)
    assert psnr(volume.data[0], source) > 30
    assert compressed.metrics["max_error"] == np.abs(volume.data[0].astype(int) - source).max()
    # The definition in float64 decodes the Gaussians alone.
    g = {name: torch.from_numpy(a).double() for name, a in packed.gaussians().items()}
    exact = voxelize_reference(g["means"], g["quats"], g["log_scales"].exp(), g["densities"][:, None], VoxelGrid(SHAPE))
    expected = np.rint((exact + packed.base).clamp(0, 1).numpy() * 2500 - 1000)
    assert np.abs(volume.data - expected).max() <= 1


def test_same_seed_gives_the_same_file(made):
    source, compressed = made
    again = compress_volume(Volume(source[None], GRID, "mm"), bytes=1500, steps=80, device="cpu")
    assert again.content == compressed.content


def test_field_lies_in_the_world(made, tmp_path):
    _, compressed = made
    path = tmp_path / "scan.gsv"
    path.write_bytes(compressed.content)
    field = load_field(path)
    # Only the file's volume is clamped to the range of the original.
    rendered = field.render().detach().numpy().clip(-1000, 1500)
    decoded = load_packed(path).volume().data
    assert np.abs(rendered - decoded).max() <= 0.5 + 2500 * 4e-4
    assert field.source.grid.shape == SHAPE


def damages(content):
    yield b"", "starts with"
    yield b"PK\3\4 nothing of ours", "starts with"
    yield content[:10], "at least"
    yield content[:-1], "cut short or damaged"
    yield content + b"x", "cut short or damaged"
    yield content[:8] + b"\2" + content[9:], "version 1, got 2"
    for at in (14, 40, len(content) // 2, len(content) - 2):
        yield content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :], "cut short or damaged|at least|version"


def test_damaged_files_are_refused_by_name(made, tmp_path):
    for content, text in damages(made[1].content):
        path = tmp_path / "bad.gsv"
        path.write_bytes(content)
        with pytest.raises(UserError, match=f"bad.gsv: required .*({text})"):
            decompress(path, tmp_path / "out.nii.gz")
        assert not (tmp_path / "out.nii.gz").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"shape": [24, 20]},
        {"shape": [1 << 40, 1 << 40, 1 << 40]},
        {"shape": [0, 4, 4]},
        {"affine": [0.0] * 12},
        {"affine": "no"},
        {"dtype": "complex64"},
        {"range": [5, 2]},
        {"range": [0.5, 2]},
        {"range": ["a", "b"]},
        {"range": [0, 1e999]},
        {"count": 1 << 50},
        {"count": -1},
        {"steps": [0.0, 1.0, 1.0, 2]},
        {"steps": [1e-30, 1e-30, 1e-30, 2]},
        {"steps": [0.1, 1e-11, 1.0, 2]},
        {"steps": [0.1, 1.0, 1.0, 1 << 30]},
        {"unit": 5},
        {"count": 0},
    ],
)
def test_files_that_claim_nonsense_are_refused(made, tmp_path, change):
    content = made[1].content
    length = struct.unpack("<I", content[9:13])[0]
    header = json.loads(zlib.decompress(content[17 : 17 + length])) | change
    head = zlib.compress(json.dumps(header).encode())
    rest = head + content[17 + length :]
    path = tmp_path / "liar.gsv"
    path.write_bytes(b"SPLATGSV" + struct.pack("<BII", 1, len(head), zlib.crc32(rest)) + rest)
    with pytest.raises(UserError, match=r"liar\.gsv"):
        decompress(path, tmp_path / "out.npy")


def test_random_bodies_are_read_or_refused(made):
    content = made[1].content
    length = struct.unpack("<I", content[9:13])[0]
    rng = np.random.default_rng(0)
    for _ in range(20):
        body = bytearray(content[17 + length :])
        for at in rng.integers(0, len(body), 3):
            body[at] = rng.integers(256)
        rest = content[17 : 17 + length] + bytes(body)
        forged = b"SPLATGSV" + struct.pack("<BII", 1, length, zlib.crc32(rest)) + rest
        try:
            assert np.isfinite(Packed.of_bytes(forged).volume().data).all()
        except ValueError as error:
            assert str(error)


# --- goals, and kinds of volumes


@pytest.mark.parametrize(
    ("low", "high", "dtype"),
    [(0, 250, "uint8"), (3, 60000, "uint16"), (-1024, 3071, "int16"), (-0.3, 1.7, "float32"), (0, 5e9, "float64")],
)
def test_ratio_is_kept_for_every_dtype(low, high, dtype):
    source = blob(low, high, dtype)
    made = compress_volume(Volume(source[None], GRID), ratio=20, steps=40, device="cpu")
    assert len(made.content) <= source.nbytes / 20
    decoded = Packed.of_bytes(made.content).volume().data[0]
    assert decoded.dtype == source.dtype and decoded.min() >= source.min() and decoded.max() <= source.max()
    assert psnr(decoded, source) > 25


def test_ratio_counts_the_bytes_of_the_file(tmp_path):
    nibabel = pytest.importorskip("nibabel")
    source = blob(0, 1000, "int16")
    image = nibabel.Nifti1Image(source, GRID.matrix)
    image.header.set_slope_inter(0.5, -100)
    nibabel.save(image, tmp_path / "ct.nii.gz")
    made = compress(tmp_path / "ct.nii.gz", tmp_path / "ct.gsv", ratio=25, steps=5, device="cpu", progress=False)
    assert load_volume(tmp_path / "ct.nii.gz").data.dtype == np.float32
    assert made.metrics["ratio"] == source.nbytes / len(made.content) >= 25


@pytest.mark.parametrize("size", [330, 700, 100_000])
def test_bytes_are_never_exceeded(size):
    made = compress_volume(Volume(blob(0, 250, "uint8")[None], GRID), bytes=size, steps=30, device="cpu")
    assert len(made.content) <= size
    assert made.metrics["num_gaussians"] >= 1


@pytest.mark.parametrize("options", [{"bytes": 10**400}, {"ratio": 1e-310}, {"bytes": np.int64(900)}])
def test_sizes_that_are_no_limit(options):
    made = compress_volume(Volume(blob(0, 250, "uint8")[None], GRID), steps=5, device="cpu", **options)
    assert made.metrics["num_gaussians"] >= 1


def test_quality_is_reached(tmp_path, capsys):
    scan = save_volume(tmp_path / "scan.nii.gz", Volume(blob(0, 250, "uint8")[None], GRID, "mm"))
    made = compress(scan, tmp_path / "scan.gsv", psnr=32, steps=60, device="cpu", progress=False)
    assert made.reached
    decompress(tmp_path / "scan.gsv", tmp_path / "back.nii.gz")
    source, back = load_volume(scan), load_volume(tmp_path / "back.nii.gz")
    assert psnr(back.data[0], source.data[0]) >= 32
    assert back.data.dtype == np.uint8 and np.allclose(back.grid.matrix, source.grid.matrix, atol=1e-4)
    assert "required" not in capsys.readouterr().err


def test_quality_out_of_reach_is_said_in_a_line(tmp_path, capsys):
    noise = np.random.default_rng(0).integers(0, 250, (8, 8, 8)).astype(np.uint8)
    scan = save_volume(tmp_path / "scan.npy", Volume(noise[None], VoxelGrid.regular((8, 8, 8))))
    with pytest.raises(UserError, match=r"scan\.gsv: required a PSNR of 90 dB, which was not reached; it has \d"):
        compress(scan, tmp_path / "scan.gsv", psnr=90, steps=5, device="cpu", progress=False)
    assert "scan.gsv: bytes" in capsys.readouterr().out
    assert load_packed(tmp_path / "scan.gsv").dtype == "uint8"


def test_the_page_on_the_codec_runs():
    page = Path(__file__).resolve().parent.parent / "docs" / "codec.md"
    failed, tried = doctest.testfile(str(page), module_relative=False)
    assert failed == 0 and tried > 8


@pytest.mark.parametrize(
    ("value", "dtype"), [(0, "int16"), (-3, "int16"), (True, "bool"), (0.1, "float64"), (2**53 + 1, "int64")]
)
def test_constant_volumes_come_back(value, dtype):
    source = np.full((1, 5, 6, 7), value, dtype)
    made = compress_volume(Volume(source, VoxelGrid.regular((5, 6, 7)), "um"), ratio=0.5)
    volume = Packed.of_bytes(made.content).volume()
    assert (volume.data == source).all() and volume.data.dtype == dtype and volume.unit == "um"
    with pytest.raises(ValueError, match=r"bytes must be at least \d+ for the header of this volume, got 10$"):
        compress_volume(Volume(source, VoxelGrid.regular((5, 6, 7))), bytes=10)


@pytest.mark.parametrize(
    ("low", "high", "dtype"),
    [(0, 2**63 - 1, "int64"), (-(2**63), 2**63 - 1, "int64"), (1, 2**64 - 1, "uint64"), (2**60, 2**60 + 99, "int64")],
)
def test_integers_beyond_float64_keep_their_ends(low, high, dtype):
    # The field is half of its range in the middle, and its ends outside.
    values = np.array([0, 0.5, 1], np.float32).reshape(1, 1, 3)
    packed = Packed(FieldSource(VoxelGrid((1, 1, 3)), low, high), dtype, Steps(1.0), Codes.none())
    back = Packed.of_bytes(packed.to_bytes())
    assert (back.source.low, back.source.high) == (low, high)
    first, middle, last = back._intensities(values).ravel().tolist()
    assert (first, last) == (low, high) and abs(middle - (low + high) / 2) <= 1e-15 * (high - low) + 64
    header = replace(packed, source=FieldSource(VoxelGrid((1, 1, 3)), float(low), float(high)))
    older = Packed.of_bytes(header.to_bytes()).source  # in float64, as files had it
    assert low <= older.low <= older.high <= np.iinfo(dtype).max


def test_differences_of_large_integers_are_kept():
    source = blob(0, 200, "int64")
    made = compress_volume(Volume(source[None] + 2**60, GRID), bytes=1500, steps=40, device="cpu")
    decoded = Packed.of_bytes(made.content).volume().data[0] - 2**60
    assert made.metrics["max_error"] == np.abs(decoded - source).max() > 0
    assert made.metrics["psnr3d"] == pytest.approx(psnr(decoded, source), abs=1e-3) and psnr(decoded, source) > 25


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "exactly one of bytes, psnr and ratio must be given, got none"),
        ({"bytes": 5000, "psnr": 30.0}, "got bytes, psnr"),
        ({"bytes": 0}, "bytes must be a finite number above 0, got 0"),
        ({"bytes": 500.7}, "bytes must be a whole number, got 500.7"),
        ({"bytes": "500"}, "bytes must be a number, got str"),
        ({"bytes": 500, "steps": 2.5}, "steps must be a whole number, got 2.5"),
        ({"ratio": float("nan")}, "ratio must be a finite number above 0, got nan"),
        ({"ratio": 10**400}, "ratio must be at most"),
        ({"psnr": 5000}, r"psnr must be in \[0, 100\], got 5000"),
        ({"bytes": 20}, "bytes must be at least"),
        ({"ratio": 1e9}, r"ratio must be at most \d+\.\d+ for the header of this volume and a Gaussian, got 1e\+09"),
        ({"bytes": 500, "steps": 0}, "steps must be at least 1, got 0"),
        ({"bytes": 500, "read": {"color": 1}}, "read must hold shape, .*, got 'color'"),
    ],
)
def test_wrong_options_are_refused(tmp_path, options, text):
    scan = save_volume(tmp_path / "scan.npy", Volume(blob(0, 250, "uint8")[None], GRID))
    with pytest.raises(UserError, match=text):
        compress(scan, tmp_path / "scan.gsv", progress=False, **options)
    assert not (tmp_path / "scan.gsv").exists()


@pytest.mark.parametrize(
    ("dtype", "name", "told"),
    [
        ("bool", "a.nii", "uint8, as the format has no bool"),
        ("bool", "a.tif", "uint8, as the format has no bool"),
        ("float16", "a.nii.gz", "float32, as the format has no float16"),
        ("float16", "a.nrrd", "float32, as the format has no float16"),
        ("float16", "a.tif", "float16"),
        ("uint8", "a.mrc", "uint16, as the format has no uint8"),
        ("bool", "a.npy", "bool"),
    ],
)
def test_the_dtype_that_is_written_is_said(tmp_path, capsys, dtype, name, told):
    packed = Packed(FieldSource(GRID, 0, 1), dtype, Steps(1.0), Codes.none(), base=1.0)
    (tmp_path / "a.gsv").write_bytes(packed.to_bytes())
    decompress(tmp_path / "a.gsv", tmp_path / name)
    assert capsys.readouterr().out.endswith(f" voxels, {told}\n")
    back = load_volume(tmp_path / name).data
    assert back.dtype == told.partition(",")[0] and (back == 1).all()


@pytest.mark.parametrize("dtype", ["float16", "int64"])
def test_what_ome_tiff_cannot_hold(tmp_path, dtype):
    (tmp_path / "a.gsv").write_bytes(Packed(FieldSource(GRID, 0, 1), dtype, Steps(1.0), Codes.none()).to_bytes())
    with pytest.raises(UserError, match=rf"an OME-TIFF must have dtype int8, .*, got {dtype} for a\.ome\.tif"):
        decompress(tmp_path / "a.gsv", tmp_path / "a.ome.tif")
    decompress(tmp_path / "a.gsv", tmp_path / "a.tif")
    assert load_volume(tmp_path / "a.tif").data.dtype == dtype


def test_voxelize_names_the_command_for_such_a_file(tmp_path):
    (tmp_path / "a.gsv").write_bytes(Packed(FieldSource(GRID, 0, 1), "uint8", Steps(1.0), Codes.none()).to_bytes())
    with pytest.raises(UserError, match=r"a\.gsv is a file of splat-compress: splat-decompress writes its volume"):
        rebuild(tmp_path / "a.gsv", tmp_path / "a.npy")


def test_other_suffixes_and_several_channels_are_refused(tmp_path):
    several = Volume(np.stack([blob(0, 250, "uint8")] * 2), GRID)
    scan = save_volume(tmp_path / "two.npy", several)
    with pytest.raises(UserError, match=r"two\.npy: required one channel, got 2"):
        compress(scan, tmp_path / "scan.gsv", bytes=500, progress=False)
    with pytest.raises(UserError, match=r"output must end in \.gsv, got 'scan\.zip'"):
        compress(scan, tmp_path / "scan.zip", bytes=500)
    one = compress(scan, tmp_path / "one.gsv", bytes=600, steps=10, read={"channel": 1}, progress=False)
    assert one.metrics["bytes"] <= 600


def test_voxels_that_are_no_numbers_are_refused():
    source = blob(0, 1, "float32")
    source[3, 4, 5] = np.nan
    with pytest.raises(ValueError, match="required finite voxels, got NaN or infinities"):
        compress_volume(Volume(source[None], GRID), bytes=500)


def test_a_signal_ends_it_and_leaves_no_file(tmp_path, monkeypatch, capsys):
    scan = save_volume(tmp_path / "scan.npy", Volume(blob(0, 250, "uint8")[None], GRID))

    def stopped(*args, **options):
        signal.raise_signal(signal.SIGINT)
        return cut_error(*args, **options)

    monkeypatch.setattr("splat_ssim.volume.codec.rounding.cut_error", stopped)
    with pytest.raises(Interrupted, match="SIGINT"):
        compress(scan, tmp_path / "scan.gsv", bytes=500, steps=20, device="cpu", progress=False)
    assert {path.name for path in tmp_path.iterdir()} <= {"scan.npy", "scan.npy.json", "scan.json"}
    assert f"stopped by SIGINT; {tmp_path / 'scan.gsv'} is not written" in capsys.readouterr().err


def test_codes_of_no_gaussian_are_a_volume():
    packed = Packed(FieldSource(GRID, 4.0, 4.0), "uint8", Steps(1.0), Codes.none())
    assert (Packed.of_bytes(packed.to_bytes()).volume().data == 4).all()


def test_content_at_the_border_is_kept_like_the_rest():
    # The structure continues beyond the volume, as in a scan of a part of the body.
    z, y, x = np.mgrid[0:24, 0:20, 0:16].astype(np.float64)
    waves = np.sin(0.7 * z + 0.4 * y) + np.sin(0.6 * x - 0.5 * y) + np.sin(0.5 * z - 0.6 * x)
    values = (80 * (waves / 6 + 0.5) ** 2).astype(np.float32)
    made = compress_volume(Volume(values[None], VoxelGrid.regular(values.shape)), bytes=2500, steps=300, device="cpu")
    error = np.square(Packed.of_bytes(made.content).volume().data[0] - values)
    inside = error[2:-2, 2:-2, 2:-2].mean()
    faces = [error[0], error[-1], error[:, 0], error[:, -1], error[:, :, 0], error[:, :, -1]]
    assert max(face.mean() for face in faces) < 3 * inside and made.metrics["psnr3d"] > 40
