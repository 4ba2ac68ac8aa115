"""Sparse Adam and the lazy step of the harmonics: their effects, and their state in densification and resuming."""

import copy
import math

import pytest
import torch

from splat_ssim import optim
from splat_ssim.optim import Adam, SelectiveAdam, hold_gradient, release_gradient
from splat_ssim.scene.config import SceneConfig as Config
from splat_ssim.scene.optimizers import make_optimizers, set_learning_rates, step_optimizers
from splat_ssim.scene.options import OptimizerConfig
from splat_ssim.strategy import CappedStrategy, DefaultStrategy, MCMCStrategy, TamingStrategy
from splat_ssim.strategy.scoring import ViewStats
from splat_ssim.trainer._old import Trainer
from splat_ssim.trainer.config import ConfigError, from_mapping
from tests.scenes import write_blender

NAMES = ("means", "scales", "quats", "opacities", "sh0", "shN")


def make_splats(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"means": (3,), "scales": (3,), "quats": (4,), "opacities": (), "sh0": (1, 3), "shN": (15, 3)}
    values = {name: torch.randn(count, *shape, generator=generator) for name, shape in shapes.items()}
    values["scales"] = torch.full((count, 3), math.log(0.02))
    return torch.nn.ParameterDict({name: torch.nn.Parameter(value) for name, value in values.items()})


def give_gradients(splats, step):
    generator = torch.Generator().manual_seed(100 + step)
    for parameter in splats.values():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    return torch.rand(len(splats["means"]), generator=generator) < 0.5


def radii_of(visible):
    return visible.int()[None, :, None].expand(1, -1, 2)


def values_of(splats):
    return {name: parameter.detach().clone() for name, parameter in splats.items()}


class TestSteps:
    def test_sparse_adam_changes_only_what_is_seen(self):
        splats = make_splats(40)
        config = OptimizerConfig(name="sparse_adam")
        optimizers = make_optimizers(splats, config)
        before = values_of(splats)
        visible = give_gradients(splats, 0)
        step_optimizers(optimizers, config, step=0, radii=radii_of(visible))
        for name, parameter in splats.items():
            moved = (parameter != before[name]).reshape(40, -1)
            assert not moved[~visible].any() and moved[visible].all()
            assert parameter.grad is None

    def test_torch_path_equals_the_compiled_one(self, monkeypatch):
        """The plain path runs on CUDA."""
        results = []
        for compiled in (True, False):
            if not compiled:
                monkeypatch.setattr(optim._ops, "supported", lambda *tensors: False)
            splats = make_splats(60)
            config = OptimizerConfig(name="sparse_adam", sh_every=4)
            optimizers = make_optimizers(splats, config)
            for step in range(10):
                step_optimizers(optimizers, config, step=step, radii=radii_of(give_gradients(splats, step)))
            results.append(splats)
        for name in NAMES:
            # Steps are up to 0.1 in float32, and roundings differ.
            torch.testing.assert_close(results[0][name], results[1][name], rtol=1e-5, atol=2e-6)

    @pytest.mark.parametrize("kind", ["adam", "torch_adam", "sparse_adam"])
    def test_lazy_harmonics_are_one_step_on_the_sum(self, kind):
        splats, config = make_splats(30), OptimizerConfig(name=kind, sh_every=16)
        optimizers = make_optimizers(splats, config)
        before = values_of(splats)["shN"]
        total, seen = torch.zeros_like(before), torch.zeros(30, dtype=torch.bool)
        others = make_splats(30)
        dense = make_optimizers(others, OptimizerConfig(name=kind))
        for step in range(16):
            visible = give_gradients(splats, step)
            give_gradients(others, step)
            # None of the first five Gaussians is ever in view.
            visible[:5] = False
            total += splats["shN"].grad
            seen |= visible
            assert torch.equal(splats["shN"], before)
            step_optimizers(optimizers, config, step=step, radii=radii_of(visible))
            step_optimizers(dense, OptimizerConfig(name=kind), step=step, radii=radii_of(visible))
        for name in NAMES[:-1]:
            assert torch.equal(splats[name], others[name])
        # Adam's first step is lr times the sign of the gradient; without bias correction, lr·0.1/sqrt(0.001) times it.
        rate = config.shN * (0.1 / math.sqrt(0.001) if kind == "sparse_adam" else 1)
        wanted = before - rate * total.sign()
        if kind == "sparse_adam":
            assert not seen[:5].any() and seen[5:].all()
            wanted[:5] = before[:5]
        torch.testing.assert_close(splats["shN"].detach(), wanted, rtol=1e-5, atol=1e-6)
        state = optimizers["shN"].state[splats["shN"]]
        assert state.keys() == {"step", "exp_avg", "exp_avg_sq"} and state["step"].item() == 1

    def test_a_held_gradient_is_part_of_the_state_dict(self):
        splats, again = make_splats(20), make_splats(20)
        first, second = (make_optimizers(s, OptimizerConfig(sh_every=16))["shN"] for s in (splats, again))
        visible = give_gradients(splats, 0)
        gradient = splats["shN"].grad.clone()
        hold_gradient(first, visible)
        assert splats["shN"].grad is None
        second.load_state_dict(copy.deepcopy(first.state_dict()))
        assert torch.equal(release_gradient(second), visible)
        assert torch.equal(again["shN"].grad, gradient)

    def test_nothing_to_hold(self):
        optimizer = Adam([torch.nn.Parameter(torch.ones(3))])
        hold_gradient(optimizer)
        assert release_gradient(optimizer) is None

    @pytest.mark.parametrize("kind", [Adam, SelectiveAdam])
    def test_kinds(self, kind):
        config = OptimizerConfig(name="adam" if kind is Adam else "sparse_adam")
        optimizers = make_optimizers(make_splats(3), config)
        assert all(type(optimizer) is kind for optimizer in optimizers.values())
        set_learning_rates(optimizers, Config().resolved().optimizer, step=0, steps=10, extent=2.0)
        assert optimizers["means"].param_groups[0]["lr"] == pytest.approx(2 * config.means)

    def test_config_refuses(self):
        with pytest.raises(ConfigError, match=r"optimizer\.sh_every must be at least 1, got 0"):
            from_mapping(Config, {"optimizer": {"sh_every": 0}}, "a").resolved()
        with pytest.raises(ConfigError, match="required one of adam, torch_adam, sparse_adam, got 'sgd'"):
            from_mapping(Config, {"optimizer": {"name": "sgd"}}, "a")


def scored(params):
    def views(count):
        ones = torch.ones(len(params["means"]))
        for _ in range(count):
            yield ViewStats(1.0, ones, ones, ones, ones, ones, ones)

    return views


STRATEGIES = {
    "capped": lambda params: CappedStrategy(
        budget=260, refine_start_iter=2, refine_every=5, refine_stop_iter=8, growth=0.3
    ),
    "default": lambda params: DefaultStrategy(
        refine_start_iter=2, refine_every=5, refine_stop_iter=8, reset_every=7, grow_grad2d=1e-9, grow_scale3d=0.03
    ),
    "mcmc": lambda params: MCMCStrategy(cap_max=260, refine_start_iter=2, refine_every=5, refine_stop_iter=8),
    "taming": lambda params: TamingStrategy(
        budget=260,
        score_views=scored(params),
        refine_start_iter=2,
        refine_every=5,
        refine_stop_iter=8,
        reset_every=7,
        grow_scale3d=0.03,
    ),
}


def drive(strategy, splats, optimizers, config, steps):
    """Steps of the trainer's loop with a renderer that only projects. A harmonic's gradient is the Gaussian's name."""
    strategy.check_sanity(splats, optimizers)
    state = strategy.initialize_state(scene_scale=1.0)
    for step in range(steps):
        means2d = splats["means"][None, :, :2] * 10
        visible = torch.ones(len(splats["means"]), dtype=torch.bool)
        visible[:3] = False
        radii = radii_of(visible)
        info = {"means2d": means2d, "width": 10, "height": 10, "n_cameras": 1, "radii": radii, "gaussian_ids": None}
        strategy.step_pre_backward(splats, optimizers, state, step, info)
        # sh0 is the Gaussian's name and is not optimised. The gradient of shN is that name.
        names = splats["sh0"].detach()
        loss = means2d.sum() + 1e-3 * sum(splats[name].sum() for name in ("scales", "quats", "opacities"))
        (loss + (splats["shN"] * names).sum()).backward()
        step_optimizers(optimizers, config, step=step, radii=radii)
        strategy.step_post_backward(splats, optimizers, state, step, info, packed=False)
        yield step


@pytest.mark.parametrize("kind", ["adam", "sparse_adam"])
@pytest.mark.parametrize("name", STRATEGIES)
class TestDensification:
    def make(self, name, kind):
        torch.manual_seed(0)
        splats = make_splats(200)
        with torch.no_grad():
            splats["sh0"].copy_((torch.arange(200.0) + 1)[:, None, None].expand(-1, 1, 3))
            splats["opacities"][50:90] = -20.0
            # Half are cloned, half are split.
            splats["scales"][::2] = math.log(0.1)
        config = OptimizerConfig(name=kind, sh_every=16)
        return STRATEGIES[name](splats), splats, make_optimizers(splats, config), config

    def test_held_gradients_stay_with_their_gaussians(self, name, kind):
        strategy, splats, optimizers, config = self.make(name, kind)
        for step in drive(strategy, splats, optimizers, config, 16):
            count = len(splats["means"])
            state = optimizers["shN"].state[splats["shN"]]
            for key, optimizer in optimizers.items():
                for value in optimizer.state[splats[key]].values():
                    assert value.dim() == 0 or len(value) == count
            if step == 4:
                assert torch.equal(state["held_gradient"], 5 * splats["sh0"].detach().expand(-1, 15, 3))
            if step == 5:
                # After the event, each sum is that of the Gaussian in its row, or 0 for new and replaced Gaussians.
                sums, wanted = state["held_gradient"], 6 * splats["sh0"].detach().expand(-1, 15, 3)
                kept = (sums == wanted).all((1, 2))
                fresh = (sums == 0).all((1, 2))
                assert (kept ^ fresh).all() and kept.sum() > 20 and fresh.sum() > 5
                assert (state["held_visibility"][fresh] == 0).all()
                names = splats["sh0"].detach()[:, 0, 0]
                assert sorted(set(names.tolist())) == sorted({round(n) for n in names.tolist()})
            if step == 15:
                assert "held_gradient" not in state

    def test_events_and_resets_act_on_the_moments(self, name, kind):
        strategy, splats, optimizers, config = self.make(name, kind)
        for step in drive(strategy, splats, optimizers, config, 8):
            state = optimizers["opacities"].state[splats["opacities"]]
            if step == 4:
                assert (state["exp_avg"][3:] != 0).all()
            if step == 5:
                # New Gaussians start without momentum. The others keep theirs.
                still = state["exp_avg"] == 0
                assert 5 < int(still.sum()) < len(still)
            if step == 7 and name in ("default", "taming"):
                assert (state["exp_avg"] == 0).all() and (state["exp_avg_sq"] == 0).all()
                assert torch.sigmoid(splats["opacities"]).max() <= 0.01 + 1e-6


# The whole run


@pytest.fixture(scope="module")
def ball(tmp_path_factory):
    return write_blender(tmp_path_factory.mktemp("scenes") / "ball", size=16)


def run_config(ball, folder, **changes):
    values = {
        "data_dir": str(ball),
        "result_dir": str(folder),
        "steps": 40,
        "model": {"init_count": 50},
        "output": {"progress": False, "images": 0},
        **changes,
        "strategy": {
            **{"budget": 80, "refine_every": 6, "refine_start": 5, "reset_every": 15},
            **changes.get("strategy", {}),
        },
    }
    return from_mapping(Config, values, "test")


@pytest.mark.parametrize("kind", ["adam", "sparse_adam"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_run_resumed_amid_the_sixteen_steps_goes_on_exactly(ball, tmp_path, strategy, kind):
    optimizer = {"name": kind, "sh_every": 16}
    options = {"optimizer": optimizer, "strategy": {"name": strategy}, "model": {"init_count": 50, "sh_degree": 1}}
    whole = Trainer(run_config(ball, tmp_path / "whole", **options))
    whole.run()
    part = Trainer(run_config(ball, tmp_path / "part", **options))
    # Step 22 is in the second period of sixteen steps, four steps after an event.
    while part.step < 22:
        part.train_step(part.step)
        part.step += 1
    assert "held_gradient" in part.optimizers["shN"].state[part.splats["shN"]]
    part.save()
    config = run_config(ball, tmp_path / "part", **options)
    config.resume = tmp_path / "part"
    resumed = Trainer(config)
    assert resumed.step == 22
    resumed.run()
    for name, parameter in whole.splats.items():
        assert torch.equal(parameter, resumed.splats[name]), name


def test_lazy_sparse_training_improves_the_picture(ball, tmp_path):
    config = run_config(ball, tmp_path / "run", steps=160, optimizer={"name": "sparse_adam", "sh_every": 16})
    trainer = Trainer(config)
    before = trainer.evaluate()["psnr"]
    trainer.run()
    assert trainer.evaluate()["psnr"] > before + 3
