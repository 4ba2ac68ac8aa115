"""Gaussians divided among processes: rendered, trained, saved and resumed as if one process held them all."""

import contextlib
import inspect
import io
import json
import os
import sys
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
import torch.distributed as dist

from splat_ssim.errors import UserError
from splat_ssim.render import rasterization, reference
from splat_ssim.render._problem import Options, Scene
from splat_ssim.scene.config import SceneConfig
from splat_ssim.scene.options import DataConfig, StrategyConfig
from splat_ssim.scene.training import SceneTask
from splat_ssim.trainer.cli import main
from splat_ssim.trainer.ranks import Ranks
from tests import forked
from tests.scenes import write_blender
from tests.test_rasterize import make_scene

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="gloo of torch for Windows needs libuv")
WIDTH, HEIGHT = 40, 36


# --- rendering


def split(scene, counts):
    """The scene's Gaussians and cameras, for each process. Every process has as many cameras."""
    each = len(scene[5]) // len(counts)
    ends = np.cumsum(counts).tolist()
    for rank, (end, count) in enumerate(zip(ends, counts, strict=True)):
        cameras = slice(rank * each, (rank + 1) * each)
        yield [t[end - count : end] for t in scene[:5]] + [t[cameras] for t in scene[5:]]


def rendered(render, scene, weights, options):
    """Images, gradients of the scene for given weights of the pixels, and info, detached."""
    inputs = [tensor.clone().requires_grad_(i < 6) for i, tensor in enumerate(scene)]
    images, alphas, info = render(*inputs, WIDTH, HEIGHT, **options)
    info["means2d"].retain_grad()
    ((images * weights[..., : images.shape[-1]]).sum() + (alphas * weights[..., -1:]).sum()).backward()
    # Depths alone have no gradient with respect to colours.
    gradients = [torch.zeros_like(tensor) if tensor.grad is None else tensor.grad for tensor in inputs[:6]]
    gradients.append(info["means2d"].grad)
    return images.detach(), gradients, {name: info[name].detach() for name in ("radii", "means2d", "depths")}


def one_process(rank, parts, weights, options, folder, render=rasterization):
    """What process `rank` of several renders; it is called in that process."""
    with forked.group(folder, rank, len(parts)):
        found = rendered(render, parts[rank], weights[rank], {**options, "distributed": True})
        torch.save(found, os.path.join(folder, f"{rank}.pt"))


def in_processes(function, parts, weights, options, folder):
    forked.start(function, (parts, weights, options, str(folder)), len(parts))
    return [torch.load(folder / f"{rank}.pt") for rank in range(len(parts))]


@pytest.mark.parametrize("seed", range(3))
def test_processes_render_what_one_renders(seed, tmp_path):
    rng = np.random.default_rng(seed)
    counts = rng.integers(5, 40, size=rng.integers(2, 4)).tolist()
    each = int(rng.integers(1, 3))
    cameras, dtype = each * len(counts), [torch.float32, torch.float64][seed % 2]
    scene = [t.to(dtype) for t in make_scene(sum(counts), cameras, seed=seed, spread=1.5)]
    modes = ("RGB", "RGB+ED", "D", "ED", "RGB+D")
    options = {
        "sh_degree": int(rng.integers(0, 4)),
        "render_mode": modes[rng.integers(len(modes))],
        "rasterize_mode": ["classic", "antialiased"][rng.integers(2)],
    }
    weights = torch.rand(cameras, HEIGHT, WIDTH, 5, generator=torch.Generator().manual_seed(seed)).to(dtype)
    images, gradients, info = rendered(rasterization, scene, weights, options)
    parts = list(split(scene, counts))
    found = in_processes(one_process, parts, weights.split(each), options, tmp_path)

    assert torch.equal(torch.cat([part[0] for part in found]), images)
    tolerance = {"rtol": 1e-10, "atol": 1e-10} if dtype == torch.float64 else {"rtol": 2e-4, "atol": 2e-4}
    for index in range(6):
        gathered = torch.cat([part[1][index] for part in found])
        torch.testing.assert_close(gathered, gradients[index], **tolerance)
    for name in ("radii", "means2d", "depths"):
        assert torch.equal(torch.cat([part[2][name] for part in found], 1), info[name]), name
    torch.testing.assert_close(torch.cat([part[1][6] for part in found], 1), gradients[6], **tolerance)


def gsplats(*scene, **options):
    """gsplat's own rasterization, whose kernels are replaced by our definition, and NCCL's exchanges by gloo's."""
    import gsplat.rendering

    seen = {}

    def project(means, _, quats, scales, viewmats, Ks, width, height, opacities=None, **rest):
        names = ("near_plane", "far_plane", "radius_clip", "eps2d")
        problem = Options(**{name: rest[name] for name in names})
        found = reference.project(
            Scene(means, quats, scales, opacities, None, viewmats, Ks, width, height), None, None, problem
        )
        return found.radii, found.means2d, found.depths, found.conics, None

    def harmonics(degree, directions, coefficients, masks=None):
        basis = reference.harmonics_basis(degree, torch.nn.functional.normalize(directions, dim=-1))
        values = (basis[..., None] * coefficients[..., : (degree + 1) ** 2, :]).sum(-2)
        return torch.where(masks[..., None], values, -0.5)

    def lists(means2d, radii, depths, *_, **__):
        seen.update(radii=radii, depths=depths)
        return None, None, None

    def composite(means2d, conics, colors, opacities, width, height, *_, backgrounds=None, **__):
        visible = reference.Projection(seen["radii"], means2d, seen["depths"], conics, opacities, None)
        return reference.composite(visible, colors, backgrounds, width, height, max_alpha=0.999, absgrad=False)

    def numbers(count, value, device=None):
        parts = [torch.empty(1, dtype=torch.int32) for _ in range(count)]
        dist.all_gather(parts, torch.tensor([value], dtype=torch.int32))
        return [int(part) for part in parts]

    def exchange(collected, given):
        joined = torch.cat(list(given)).contiguous()
        result = joined.new_empty(sum(len(part) for part in collected), *joined.shape[1:])
        dist.all_to_all_single(result, joined, [len(part) for part in collected], [len(part) for part in given])
        for part, values in zip(collected, result.split([len(part) for part in collected]), strict=True):
            part.copy_(values)

    offsets = mock.MagicMock()
    replaced = {
        "fully_fused_projection": project,
        "spherical_harmonics": harmonics,
        "isect_tiles": lists,
        "isect_offset_encode": lambda *_, **__: offsets,
        "rasterize_to_pixels": composite,
        "all_gather_int32": numbers,
    }
    with mock.patch.multiple(gsplat.rendering, **replaced), mock.patch.object(dist, "all_to_all", exchange):
        return gsplat.rendering.rasterization(*scene, packed=False, **options)


def one_process_of_gsplat(rank, *arguments):
    one_process(rank, *arguments, render=gsplats)


def test_it_is_gsplats_distributed_mode(tmp_path):
    """The same images, gradients and rows of info as gsplat's own code. Gloo needs equal parts for it."""
    rendering = pytest.importorskip("gsplat.rendering")
    assert "distributed" in inspect.signature(rendering.rasterization).parameters
    counts, options = [30, 30], {"sh_degree": 2, "render_mode": "RGB+ED"}
    scene = [t.double() for t in make_scene(sum(counts), 2, spread=1.5)]
    weights = torch.rand(2, HEIGHT, WIDTH, 5, generator=torch.Generator().manual_seed(1)).double().split(1)
    parts = list(split(scene, counts))
    folders = [tmp_path / name for name in ("ours", "theirs")]
    for folder in folders:
        folder.mkdir()
    ours = in_processes(one_process, parts, weights, options, folders[0])
    theirs = in_processes(one_process_of_gsplat, parts, weights, options, folders[1])
    for own, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own[0], other[0], rtol=1e-9, atol=1e-9)
        for first, second in zip(own[1], other[1], strict=True):
            torch.testing.assert_close(first, second, rtol=1e-8, atol=1e-8)
        for name, value in own[2].items():
            torch.testing.assert_close(value, other[2][name], rtol=1e-9, atol=1e-9)
    assert ours[0][2]["radii"].shape == (2, counts[0], 2), "its own Gaussians, for the cameras of both processes"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"absgrad": True}, "absgrad must be False with distributed"),
        ({"packed": True}, "packed must be False with distributed on the CPU, got True"),
        ({"pixel_weights": torch.ones(1, HEIGHT, WIDTH)}, "pixel_weights must be None with distributed"),
    ],
)
def test_what_processes_cannot_exchange_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        rasterization(*make_scene(5), WIDTH, HEIGHT, sh_degree=0, distributed=True, **options)


def test_without_a_process_group_it_is_refused():
    with pytest.raises(RuntimeError, match=r"distributed rendering needs torch.distributed.init_process_group first"):
        rasterization(*make_scene(5), WIDTH, HEIGHT, sh_degree=0, distributed=True)


def unequal(rank, change, folder):
    scene = make_scene(5)
    scene[0].requires_grad_(rank == 0 or change != "gradient")
    width = WIDTH + (rank if change == "width" else 0)
    with forked.group(folder, rank, 2):
        try:
            rasterization(*scene, width, HEIGHT, sh_degree=0, distributed=True)
            message = "nothing"
        except ValueError as error:
            message = str(error)
        Path(folder, f"{rank}.txt").write_text(message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("width", "all processes must have as many cameras of the same width and height, got 1 of 40x36, 1 of 41x36"),
        ("gradient", "that require a gradient, or none, got True and False, False and False"),
    ],
)
def test_processes_that_would_wait_for_each_other_for_ever_are_refused(change, message, tmp_path):
    forked.start(unequal, (change, str(tmp_path)), 2)
    for rank in range(2):
        assert (tmp_path / f"{rank}.txt").read_text().endswith(message)


# --- training


def one_trainer(rank, count, arguments, folder):
    """Trains as process `rank` of `count`, as torchrun would start it, and keeps what it prints."""
    os.environ["WORLD_SIZE"] = str(count)
    with forked.group(folder, rank, count), open(f"{folder}/{rank}.txt", "w") as file:
        with contextlib.redirect_stdout(file):
            main(arguments)


def train(scene, folder, processes, *options):
    """Trains in this process, or in several. Returns what was printed."""
    arguments = [
        *("--data-dir", str(scene), "--result-dir", str(folder), "--preset", "none", "--device", "cpu"),
        *("--steps", "12", "--model.init-count", "60", "--output.images", "0", "--output.no-report", "--sharded"),
        *("--batch-size", "6", "--output.no-progress", *options),
    ]
    if processes == 1:
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            main(arguments)
        return said.getvalue()
    with tempfile.TemporaryDirectory() as told:
        forked.start(one_trainer, (processes, arguments, told), processes)
        return "".join(Path(told, f"{rank}.txt").read_text() for rank in range(processes))


def checkpoint(folder):
    return torch.load(folder / "checkpoint.pt", weights_only=True)


STILL = ("--strategy.refine-start", "100", "--opacity-penalty", "0.01", "--exposure.name", "affine", "--poses.refine")
GROWING = ("--strategy.refine-start", "1", "--strategy.refine-every", "2", "--strategy.refine-stop", "9")


def test_two_processes_train_the_gaussians_of_one(tmp_path):
    scene = write_blender(tmp_path / "scene", train=7)
    options = ("--optimizer.name", "torch_adam", *STILL, "--steps", "6")
    said = train(scene, tmp_path / "one", 1, *options)
    assert "Gaussians: all in this process, since there is no other (--sharded, torchrun)" in said
    said = train(scene, tmp_path / "two", 2, *options)
    assert said.count("scene (blender)") == 1
    assert said.count("Gaussians: divided among 2 processes (--sharded)") == 1
    one, two = checkpoint(tmp_path / "one"), checkpoint(tmp_path / "two")
    assert two["shards"] == [30, 30]
    # The processes have every second Gaussian, one after the other in the file.
    order = torch.arange(60).view(30, 2).T.flatten()
    for name, values in one["splats"].items():
        # Gaussians start as spheres: rotations have gradients of rounding alone, which Adam turns into steps of 1e-3.
        tolerance = 2e-2 if name in ("quats", "scales") else 2e-4
        torch.testing.assert_close(two["splats"][name], values[order], rtol=tolerance, atol=tolerance, msg=name)
    for name in ("exposures", "poses"):
        for first, second in zip(one[name]["values"], two[name]["values"], strict=True):
            torch.testing.assert_close(second, first, rtol=1e-4, atol=1e-4, msg=name)
    metrics = [json.loads((tmp_path / run / "metrics.json").read_text()) for run in ("one", "two")]
    assert metrics[0]["psnr"] == pytest.approx(metrics[1]["psnr"], abs=1e-3)
    assert metrics[1]["num_gaussians"] == 60


@pytest.mark.parametrize(
    "strategy",
    [
        ("--strategy.name", "capped", "--strategy.budget", "101", "--strategy.final-prune", "0.2"),
        ("--strategy.name", "mcmc", "--strategy.budget", "101"),
        ("--strategy.name", "default", "--strategy.grow-gradient", "1e-7"),
    ],
    ids=lambda strategy: strategy[1],
)
def test_a_sharded_run_that_stops_ends_with_the_same_bits(strategy, tmp_path):
    scene = write_blender(tmp_path / "scene", train=7)
    options = (*GROWING, *strategy)
    saving = ("--output.save-steps", "7", "--checkpoint-every", "5", "--output.eval-every", "4")
    train(scene, tmp_path / "run", 2, *options, *saving)
    step = tmp_path / "run" / "steps" / "0000007"
    assert (step / "scene.ply").is_file() and (tmp_path / "run" / "eval" / "0000004.json").is_file()
    train(scene, step, 2, *options, "--resume", str(step))
    whole, resumed = checkpoint(tmp_path / "run"), checkpoint(step)
    assert whole["step"] == resumed["step"] == 12
    count = len(whole["splats"]["means"])
    assert sum(whole["shards"]) == count != 60
    if "capped" in strategy:
        assert count <= 0.8 * 101 + 1
    for name, values in whole["splats"].items():
        assert torch.equal(values, resumed["splats"][name]), name
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["num_gaussians"] == count


def test_it_goes_on_with_another_number_of_processes(tmp_path):
    scene = write_blender(tmp_path / "scene", train=7)
    train(scene, tmp_path / "run", 2, *GROWING)
    before = checkpoint(tmp_path / "run")
    count = len(before["splats"]["means"])
    train(scene, tmp_path / "run", 3, *GROWING, "--steps", "13", "--resume", str(tmp_path / "run"))
    shards = checkpoint(tmp_path / "run")["shards"]
    assert sum(shards) == count and max(shards) - min(shards) <= 1 and len(shards) == 3
    train(scene, tmp_path / "run", 1, *GROWING, "--steps", "14", "--resume", str(tmp_path / "run"))
    after = checkpoint(tmp_path / "run")
    assert "shards" not in after and after["splats"]["means"].shape == before["splats"]["means"].shape
    # Two more steps in other groups change the Gaussians a little, and mix up none of them.
    assert (after["splats"]["means"] - before["splats"]["means"]).abs().max() < 0.05


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        ({"name": "taming"}, "strategy.name must be capped, default or mcmc, got taming"),
        ({"name": "default", "absgrad": True}, "strategy.absgrad must be off, as in gsplat's distributed mode, got on"),
    ],
)
def test_strategies_that_need_all_gaussians_are_refused(strategy, message, tmp_path, monkeypatch):
    monkeypatch.setattr("splat_ssim.scene.training.launched", lambda: Ranks(0, 2))
    scene = write_blender(tmp_path)
    config = SceneConfig(
        data_dir=scene, batch_size=2, device="cpu", sharded=True, strategy=StrategyConfig(**strategy), data=DataConfig()
    )
    with pytest.raises(UserError, match=f"sharded with several processes .--sharded.: {message}"):
        SceneTask(config)
