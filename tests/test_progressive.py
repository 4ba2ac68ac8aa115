"""Training on small images first, and pruning of redundant Gaussians when densification ends."""

import math

import pytest
import torch

from splat_ssim.errors import UserError
from splat_ssim.scene import Task
from splat_ssim.scene.config import SceneConfig as Config
from splat_ssim.scene.config import coarseness
from splat_ssim.scene.data import SceneError, View, load_scene
from splat_ssim.scene.model import create_splats, render
from splat_ssim.strategy import CappedStrategy
from splat_ssim.strategy.scoring import ViewStats
from splat_ssim.trainer._old import Trainer
from splat_ssim.trainer.config import ConfigError, from_mapping
from splat_ssim.trainer.loop import load, run
from tests.scenes import write_blender
from tests.test_strategy_taming import make_scene, run_step


@pytest.fixture(scope="module")
def ball(tmp_path_factory):
    return write_blender(tmp_path_factory.mktemp("scenes") / "ball", size=32)


def make_config(ball, folder, **changes):
    values = {
        "data_dir": str(ball),
        "result_dir": str(folder),
        "steps": 60,
        "model": {"init_count": 50},
        "strategy": {"budget": 60, "refine_every": 10, "refine_start": 5},
        "output": {"progress": False, "images": 0},
    }
    return from_mapping(Config, {**values, **changes}, "test")


def test_a_reduced_view_shows_what_the_whole_one_shows(ball):
    scene = load_scene(ball)
    view = scene.train[0]
    small = view.reduced(2)
    assert (small.height, small.width) == (16, 16)
    blocks = view.pixels()[0].permute(1, 2, 0).reshape(16, 2, 16, 2, 3).mean((1, 3))
    torch.testing.assert_close(small.image, blocks)
    # A render for the reduced camera equals the reduced render, except for the blur that a pixel adds.
    splats = create_splats(scene, Config().model, seed=0, device=torch.device("cpu"))
    # The Gaussians are so wide that they vary little over a pixel of either size.
    splats["scales"].data.fill_(math.log(0.25))
    background = torch.ones(3)
    with torch.no_grad():
        whole, reduced = (render(splats, v, sh_degree=0, background=background)[0] for v in (view, small))
    whole = whole.reshape(1, 16, 2, 16, 2, 3).mean((2, 4))
    assert (whole - reduced).abs().mean() < 0.02 < (whole - reduced.roll(1, 1)).abs().mean()


def test_rows_and_columns_beyond_a_whole_box_are_left_out():
    image, mask = torch.rand(7, 9, 3), torch.ones(7, 9, dtype=torch.bool)
    mask[:3, :4] = False
    K = torch.tensor([[8.0, 0, 4.5], [0, 8.0, 3.5], [0, 0, 1]])
    view = View("a", torch.eye(4), K, image, mask).reduced(4)
    assert view.image.shape == (1, 2, 3)
    torch.testing.assert_close(view.image[0, 1], image[:4, 4:8].mean((0, 1)))
    assert view.mask.tolist() == [[False, True]]
    assert view.K.tolist() == [[2.0, 0.0, 1.125], [0.0, 2.0, 0.875], [0.0, 0.0, 1.0]]
    with pytest.raises(SceneError, match="a: required at least 8x8 pixels to reduce by 8, got 7x9"):
        View("a", torch.eye(4), K, image).reduced(8)


@pytest.mark.parametrize(("every", "kept"), [(1, 1.0), (2, 1.0), (3, 1 / 3), (5, 5 / 6)])
def test_a_thin_mask_keeps_pixels_of_the_colours_that_it_keeps(every, kept):
    image, mask = torch.zeros(24, 24, 3), torch.zeros(24, 24, dtype=torch.bool)
    mask[:, ::every] = True
    image[mask] = 0.75
    view = View("a", torch.eye(4), torch.eye(3), image, mask).reduced(4)
    assert view.mask.float().mean() == pytest.approx(kept)
    torch.testing.assert_close(view.image[view.mask], torch.full_like(view.image[view.mask], 0.75))


def test_sizes_grow_to_the_full_one(ball, tmp_path):
    config = make_config(ball, tmp_path / "run", data={"coarse_factor": 4})
    resolved = config.resolved()
    assert resolved.data.coarse_stop == 18 and resolved.resolved() == resolved
    assert config.data.coarse_stop is None
    assert [coarseness(resolved.data, step) for step in (0, 8, 9, 17, 18, 59)] == [4, 4, 2, 2, 1, 1]
    assert coarseness(Config().resolved().data, 0) == 1
    trainer = Trainer(config)
    names = [trainer.views.of_step(step)[0].name for step in range(60)]
    assert [trainer.views.of_step(step)[0].width for step in (0, 9, 18)] == [8, 16, 32]
    before = trainer.evaluate()["psnr"]
    trainer.run()
    assert trainer.evaluate()["psnr"] > before + 0.5
    # The views have the same order as in a run at full size.
    plain = Trainer(make_config(ball, tmp_path / "plain"))
    assert names == [plain.views.of_step(step)[0].name for step in range(60)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": {"coarse_factor": 3}}, r"data\.coarse_factor must be a power of 2, got 3"),
        ({"data": {"coarse_factor": 0}}, r"data\.coarse_factor must be at least 1, got 0"),
        ({"strategy": {"final_prune": 1.0}}, r"strategy\.final_prune must be in \[0, 1\), got 1\.0"),
    ],
)
def test_values_out_of_range_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        from_mapping(Config, change, "a").resolved()


def test_final_pruning_takes_the_least_seen_and_keeps_the_order():
    params, optimizers = make_scene(40)
    contribution = torch.arange(40.0)
    contribution[5] = 100.0

    def views(count):
        ones = torch.ones(40)
        for _ in range(count):
            yield ViewStats(1.0, ones, ones, ones, ones, contribution, ones)

    strategy = CappedStrategy(
        budget=40, refine_start_iter=50, refine_stop_iter=4, final_prune=0.25, score_views=views, num_views=3
    )
    state = strategy.initialize_state()
    for step in range(7):
        run_step(strategy, params, optimizers, state, step)
        assert len(params["means"]) == (40 if step < 4 else 30)
    wanted = [5, *range(11, 40)]
    # Optimiser steps change the names by 1e-3, so rounding restores them.
    assert params["names"].round().int().tolist() == wanted
    for name, parameter in params.items():
        assert optimizers[name].state[parameter]["exp_avg"].shape == parameter.shape


def test_a_run_that_pruned_last_is_read_again(ball, tmp_path):
    strategy = {"budget": 60, "refine_every": 10, "refine_start": 5, "final_prune": 0.5}
    metrics = run(Task(make_config(ball, tmp_path / "run", strategy=strategy)))
    again = load(tmp_path / "run")
    assert len(again.splats["means"]) == metrics["num_gaussians"] <= 30
    assert again.evaluate()["psnr"] == metrics["psnr"]


def test_a_coarse_factor_beyond_the_images_is_refused_before_the_run(ball, tmp_path):
    text = r"^data\.coarse_factor must be at most \d+, the shortest side of a training image, got 4096$"
    with pytest.raises(UserError, match=text):
        Trainer(make_config(ball, tmp_path / "run", data={"coarse_factor": 4096}))
    assert not (tmp_path / "run").exists()


def test_final_pruning_in_the_run(ball, tmp_path):
    strategy = {"budget": 60, "refine_every": 10, "refine_start": 5, "final_prune": 0.5}
    trainer = Trainer(make_config(ball, tmp_path / "run", strategy=strategy))
    trainer.run()
    assert len(trainer.splats["means"]) <= 30
    with pytest.raises(ValueError, match="final_prune needs score_views"):
        CappedStrategy(final_prune=0.5)
    with pytest.raises(ValueError, match=r"final_prune must be in \[0, 1\), got -1"):
        CappedStrategy(final_prune=-1)
