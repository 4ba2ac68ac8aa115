"""Fitting 2D Gaussians to one image, from the command line to the run folder."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from splat_ssim.image import ImageConfig, ImageField, ImageOutputConfig, Task
from splat_ssim.trainer import load
from splat_ssim.trainer.cli import evaluate_run, main, render_run
from splat_ssim.trainer.loop import Run
from splat_ssim.volume import VoxelGrid
from splat_ssim.volume.export import load_gaussians_ply
from tests.test_checkpoint import kill_after_a_checkpoint

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def photo(tmp_path):
    """A 48×32 picture with edges, a ramp and a little texture."""
    y, x = np.mgrid[:32, :48] / 32.0
    red, green = (np.hypot(x - 0.7, y - 0.5) < 0.3) * 0.8, 0.5 * x
    blue = 0.4 + 0.2 * np.sin(20 * x) * np.cos(15 * y)
    pixels = (255 * np.clip(np.stack([red, green, blue], -1), 0, 1)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def options(photo, folder, *more, steps=120):
    line = ["--config", ROOT / "configs/image.yaml", "--data-dir", photo, "--result-dir", folder, "--steps", steps]
    return [*map(str, line), "--model.budget", "120", "--output.no-progress", *map(str, more)]


def test_a_run_writes_what_it_promises(photo, tmp_path):
    folder = tmp_path / "run"
    metrics = main(options(photo, folder))
    assert metrics == json.loads((folder / "metrics.json").read_text())
    assert metrics["psnr"] > 24 and metrics["ssim"] > 0.8
    assert metrics["num_gaussians"] == 120 and metrics["bytes"] == 120 * 9 * 4
    assert metrics["source_bytes"] == photo.stat().st_size
    assert metrics["bytes_quantized"] == (folder / "gaussians.quantized").stat().st_size < metrics["bytes"]
    assert metrics["psnr_quantized"] > metrics["psnr"] - 2
    render = np.asarray(Image.open(folder / "render.png")).astype(float) / 255
    truth = np.asarray(Image.open(photo)).astype(float) / 255
    assert -10 * np.log10(np.square(render - truth).mean()) == pytest.approx(metrics["psnr"], abs=0.05)
    assert Image.open(folder / "pictures" / "comparison.png").size == (3 * 48, 32)
    # The PLY holds the same picture. Its first channel is the density of the Gaussians.
    drawn = load_gaussians_ply(folder / "gaussians.ply")(load(folder).grid)[1:, :, 0].clamp(0, 1)
    torch.testing.assert_close(drawn.permute(1, 2, 0).detach().numpy(), render, atol=0.003, rtol=0, check_dtype=False)
    assert evaluate_run(folder)["psnr"] == metrics["psnr"]
    again = render_run(folder, output=tmp_path / "again.png")
    assert again.read_bytes() == (folder / "render.png").read_bytes()


def test_growth_helps_and_keeps_the_budget(photo, tmp_path):
    config = ImageConfig(
        data_dir=photo, steps=40, result_dir=tmp_path / "run", output=ImageOutputConfig(progress=False)
    )
    config.model.budget = 100
    one = Run(Task(config))
    counts = []
    while one.step < 40:
        one.task.step(one.step)
        one.step += 1
        counts.append(len(one.task.model))
    assert counts[0] == 50 and counts[15] == counts[-1] == max(counts) == 100


def test_a_resumed_run_ends_with_the_same_bits(photo, tmp_path):
    whole = main(options(photo, tmp_path / "whole", steps=30))
    config = ImageConfig(data_dir=photo, steps=30, result_dir=tmp_path / "part")
    config.model.budget, config.output.progress = 120, False
    part = Run(Task(config))
    while part.step < 7:
        part.task.step(part.step)
        part.step += 1
    part.save()
    resumed = main(["--resume", str(tmp_path / "part")])
    measured = {"train_seconds": 0, "peak_memory_bytes": 0}
    assert resumed | measured == whole | measured
    for name in ("render.png", "gaussians.ply", "gaussians.quantized"):
        assert (tmp_path / "part" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.slow
def test_a_killed_run_resumed_ends_with_the_same_bits(photo, tmp_path):
    line = [*options(photo, tmp_path / "whole", steps=400), "--checkpoint-every", "20"]
    main(line)
    kill_after_a_checkpoint(tmp_path / "killed", *line)
    main(["--resume", str(tmp_path / "killed")])
    for name in ("render.png", "gaussians.ply"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_large_and_transparent_images(photo, tmp_path):
    small = main(options(photo, tmp_path / "small", "--data.max-side", 24, steps=5))
    assert Image.open(tmp_path / "small" / "render.png").size == (24, 16) and small["step"] == 5
    pixels = np.zeros((20, 20, 4), np.uint8)
    pixels[5:15, 5:15] = (255, 0, 0, 255)
    Image.fromarray(pixels).save(tmp_path / "clear.png")
    for background, corner in (("white", 1.0), ("black", 0.0)):
        config = ImageConfig(data_dir=tmp_path / "clear.png")
        config.data.background, config.model.budget = background, 20
        task = Task(config)
        assert task.target[0, :, 0, 0].tolist() == [corner] * 3 and task.target[0, 0, 10, 10] == 1


def test_rotated_gaussians_are_drawn_as_they_are_meant():
    angle = 0.6
    tensors = {
        "means": torch.tensor([[12.0, 8.0]]),
        "log_scales": torch.tensor([[3.0, 1.0]]).log(),
        "turns": torch.tensor([[np.cos(angle / 2), np.sin(angle / 2)]], dtype=torch.float32),
        "colors": torch.tensor([[1.0, -0.5, 0.25]]),
    }
    image = ImageField(tensors)(VoxelGrid.regular((20, 1, 24), axes="yzx"))[:, :, 0].detach()
    y, x = np.mgrid[:20, :24].astype(float)
    u = np.cos(angle) * (x - 12) + np.sin(angle) * (y - 8)
    v = -np.sin(angle) * (x - 12) + np.cos(angle) * (y - 8)
    q = (u / 3) ** 2 + v**2
    expected = np.where(q <= 9, np.exp(-q / 2), 0)
    for channel, colour in enumerate((1.0, -0.5, 0.25)):
        np.testing.assert_allclose(image[channel].numpy(), colour * expected, atol=1e-5)


@pytest.mark.parametrize(
    "change,text",
    [
        (["--data-dir", "nowhere.png"], r"nowhere\.png: required an image, got nothing there"),
        (["--data-dir", "README.md"], r"README\.md: required an image that decodes"),
        (["--model.budget", "5000"], "model.budget must be at most 1536, the number of pixels, got 5000"),
        (["--loss", "nonsense"], "a loss must be one of"),
        (["--model.start", "2"], r"model\.start must be from 1e-06 to 1, got 2"),
    ],
)
def test_mistakes_end_in_one_sentence(photo, tmp_path, change, text):
    with pytest.raises(SystemExit, match=text):
        main([*options(photo, tmp_path / "run"), *change])
