"""The phase in which opacities may exceed 1, as the Taming 3DGS paper intends it and as the released code does it."""

import pytest
import torch

import splat_ssim
from splat_ssim.scene.config import SceneConfig as Config
from splat_ssim.scene.model import activated_opacities, standard_splats
from splat_ssim.strategy import TamingStrategy
from splat_ssim.trainer._old import Trainer
from splat_ssim.trainer.cli import evaluate_run
from splat_ssim.trainer.config import from_mapping
from tests.scenes import write_blender


@pytest.fixture(scope="module")
def ball(tmp_path_factory):
    return write_blender(tmp_path_factory.mktemp("scenes") / "ball", size=16)


def make_trainer(ball, folder, form, **changes):
    strategy = {"name": "taming", "budget": 60, "refine_start": 5, "refine_every": 10, "refine_stop": 20}
    strategy["reset_every"] = 100
    values = {
        "data_dir": str(ball),
        "result_dir": str(folder),
        "steps": 40,
        "model": {"init_count": 50},
        "strategy": {**strategy, "high_opacity": form, "high_opacity_start": 24},
        "output": {"progress": False, "images": 0},
    }
    config = from_mapping(Config, {**values, **changes}, "test")
    return Trainer(config)


def advance(trainer, stop):
    while trainer.step < stop:
        trainer.train_step(trainer.step)
        trainer.step += 1


@pytest.mark.parametrize("form", ["off", "intended", "released"])
def test_the_turn_changes_no_picture_and_then_each_form_does_its_own(ball, tmp_path, form):
    trainer = make_trainer(ball, tmp_path / "run", form)
    advance(trainer, 24)
    assert trainer.opacity_activation == "sigmoid"
    view = trainer.scene.test[0]
    logits = trainer.splats["opacities"].detach().clone()
    # Only the strategy's hook changes the activation, so pictures before and after the hook are compared.
    before = trainer.render(view)[0].detach()
    trainer.strategy.step_post_backward(trainer.splats, trainer.optimizers, trainer.strategy_state, 24, {})
    after = trainer.render(view)[0].detach()
    torch.testing.assert_close(before, after, atol=1e-5, rtol=0)
    turned = trainer.splats["opacities"]
    if form == "off":
        assert trainer.opacity_activation == "sigmoid" and torch.equal(turned, logits)
        return
    assert trainer.opacity_activation == "absolute"
    torch.testing.assert_close(turned.detach(), torch.sigmoid(logits))
    start, means = turned.detach().clone(), trainer.splats["means"].detach().clone()
    trainer.step = 25
    advance(trainer, 40)
    moved = trainer.splats["opacities"].detach() != start
    assert moved.any() == (form == "intended")
    assert not torch.equal(trainer.splats["means"], means)


def test_opacities_pass_one_where_that_is_intended(ball, tmp_path):
    changes = {"opacity_penalty": -1.0, "optimizer": {"opacities": 0.1}}
    trainer = make_trainer(ball, tmp_path / "run", "intended", **changes)
    trainer.run()
    opacities = activated_opacities(trainer.splats, trainer.opacity_activation)
    assert opacities.max() > 1
    metrics = trainer.finish()
    assert evaluate_run(tmp_path / "run")["psnr"] == metrics["psnr"]
    # Viewers expect logits: opacities above 0.99 are cut to it, the others come back unchanged.
    written = torch.sigmoid(splat_ssim.load_ply(tmp_path / "run" / "scene.ply")["opacities"])
    torch.testing.assert_close(written, opacities.detach().clamp(max=0.99), atol=1e-5, rtol=0)


@pytest.mark.parametrize("form", ["intended", "released"])
@pytest.mark.parametrize("kind", ["adam", "sparse_adam"])
def test_resuming_after_the_turn_is_exact(ball, tmp_path, form, kind):
    optimizer = {"name": kind}
    whole = make_trainer(ball, tmp_path / "whole", form, optimizer=optimizer)
    whole.run()
    part = make_trainer(ball, tmp_path / "part", form, optimizer=optimizer)
    advance(part, 30)
    part.save()
    resumed = make_trainer(ball, tmp_path / "part", form, optimizer=optimizer, resume=str(tmp_path / "part"))
    assert resumed.splats["opacities"].requires_grad == (form == "intended")
    resumed.run()
    for name, parameter in whole.splats.items():
        assert torch.equal(parameter, resumed.splats[name]), name


def test_by_default_it_begins_when_densification_ends(ball, tmp_path):
    config = make_trainer(ball, tmp_path / "run", "off").config
    config.strategy.high_opacity_start = None
    assert config.resolved().strategy.high_opacity_start == 20
    assert TamingStrategy(budget=1, score_views=list, refine_stop_iter=70).high_opacity_start == 70


def test_errors():
    with pytest.raises(ValueError, match="high_opacity must be off, intended or released, got 'on'"):
        TamingStrategy(budget=1, score_views=list, high_opacity="on")
    with pytest.raises(ValueError, match=r"must not come before refine_stop_iter \(50\), got 40"):
        TamingStrategy(budget=1, score_views=list, refine_stop_iter=50, high_opacity="intended", high_opacity_start=40)
    with pytest.raises(ValueError, match="must be sigmoid or absolute, got 'linear'"):
        activated_opacities({"opacities": torch.ones(1)}, "linear")
    logits = {"opacities": torch.zeros(2)}
    assert standard_splats(logits, "sigmoid")["opacities"] is logits["opacities"]
