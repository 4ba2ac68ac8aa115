import math

import pytest
import torch

from splat_ssim.scene.config import SceneConfig as Config
from splat_ssim.scene.options import StrategyConfig
from splat_ssim.scene.strategies import make_strategy
from splat_ssim.strategy import CappedStrategy, DefaultStrategy, MCMCStrategy
from splat_ssim.strategy.default import gsplat_resets_opacity
from splat_ssim.strategy.mcmc import position_noise, relocation

SHAPES = {"means": (3,), "scales": (3,), "quats": (4,), "opacities": (), "sh0": (1, 3), "shN": (3, 3)}


def make_gaussians(count: int):
    """Parameters, and for each an Adam that has made one step."""
    torch.manual_seed(0)
    params = torch.nn.ParameterDict({name: torch.randn(count, *shape) for name, shape in SHAPES.items()})
    params["scales"].data -= 3
    params["opacities"].data.fill_(2.0)
    optimizers = {name: torch.optim.Adam([param], lr=1e-3) for name, param in params.items()}
    for name, optimizer in optimizers.items():
        params[name].grad = torch.ones_like(params[name])
        optimizer.step()
        optimizer.zero_grad()
    return params, optimizers


def make_info(gradient: torch.Tensor, *, visible: torch.Tensor | None = None):
    """The renderer's info of one view. `gradient` (N,) is the length of each image-plane gradient in pixels."""
    count = len(gradient)
    means2d = torch.zeros(1, count, 2, requires_grad=True)
    means2d.grad = torch.stack([gradient, torch.zeros(count)], -1)[None]
    radii = torch.ones(1, count, 2, dtype=torch.int32)
    if visible is not None:
        radii *= visible[None, :, None]
    return {"means2d": means2d, "radii": radii, "width": 10, "height": 20, "n_cameras": 1, "gaussian_ids": None}


def assert_aligned(params, optimizers, count):
    for name, param in params.items():
        assert param.shape == (count, *SHAPES[name])
        optimizer = optimizers[name]
        assert optimizer.param_groups[0]["params"][0] is param
        assert optimizer.state[param]["exp_avg"].shape == param.shape
        assert len(optimizer.state) == 1
        assert param.requires_grad


def test_the_budget_is_reached_and_never_exceeded():
    params, optimizers = make_gaussians(20)
    strategy = CappedStrategy(budget=33, refine_start_iter=0, refine_every=2, refine_stop_iter=100, growth=0.2)
    strategy.check_sanity(params, optimizers)
    state = strategy.initialize_state(scene_scale=1.0)
    counts = []
    for step in range(1, 40):
        info = make_info(torch.rand(len(params["means"])))
        strategy.step_pre_backward(params, optimizers, state, step, info)
        strategy.step_post_backward(params, optimizers, state, step, info)
        counts.append(len(params["means"]))
        assert_aligned(params, optimizers, counts[-1])
    assert counts[:4] == [20, 24, 24, 28]
    assert max(counts) == counts[-1] == 33


def test_the_largest_summed_gradients_are_split_along_their_longest_axis():
    params, optimizers = make_gaussians(10)
    with torch.no_grad():
        params["quats"][4] = torch.tensor([1.0, 0, 0, 0])
        params["scales"][4] = torch.log(torch.tensor([0.1, 0.4, 0.2]))
        params["opacities"][4] = 0.0
    before = {name: param.detach().clone() for name, param in params.items()}
    strategy = CappedStrategy(budget=11, refine_start_iter=0, refine_every=3, refine_stop_iter=10, growth=1.0)
    state = strategy.initialize_state()
    # The largest sum over the views decides, not the largest gradient in a single view or in the last one.
    for step, largest in ((1, 4), (2, 7), (3, 4)):
        gradient = torch.full((10,), 0.1)
        gradient[largest] = 1.0
        strategy.step_post_backward(params, optimizers, state, step, make_info(gradient))
    assert len(params["means"]) == 11
    offset = torch.tensor([0, 0.2, 0])
    torch.testing.assert_close(params["means"][4], before["means"][4] - offset)
    torch.testing.assert_close(params["means"][10], before["means"][4] + offset)
    for child in (4, 10):
        torch.testing.assert_close(params["scales"][child].exp(), torch.tensor([0.1, 0.25, 0.2]))
        shared = 0.5 * (0.5 + 1 - math.sqrt(0.5))
        assert torch.sigmoid(params["opacities"][child]).item() == pytest.approx(shared)
        assert torch.equal(params["shN"][child], before["shN"][4])
        assert optimizers["means"].state[params["means"]]["exp_avg"][child].abs().max() == 0
    untouched = [0, 1, 2, 3, 5, 6, 7, 8, 9]
    assert torch.equal(params["means"][untouched], before["means"][untouched])
    assert optimizers["means"].state[params["means"]]["exp_avg"][untouched].abs().min() > 0
    # The sums start again from 0.
    assert state["grad2d"].tolist() == [0.0] * 11


def test_transparent_gaussians_are_recycled_at_the_budget():
    params, optimizers = make_gaussians(10)
    params["opacities"].data[[2, 6]] = -10.0
    strategy = CappedStrategy(budget=10, refine_start_iter=0, refine_every=1, refine_stop_iter=10)
    gradient = torch.arange(10.0)
    strategy.step_post_backward(params, optimizers, strategy.initialize_state(), 1, make_info(gradient))
    assert_aligned(params, optimizers, 10)
    assert torch.sigmoid(params["opacities"]).min() > 0.1
    # The children of 9 and 8, which have the largest gradients, took the places of 2 and 6.
    assert torch.equal(params["sh0"][2], params["sh0"][9])
    assert torch.equal(params["sh0"][6], params["sh0"][8])


def test_nothing_happens_outside_its_steps():
    params, optimizers = make_gaussians(10)
    strategy = CappedStrategy(budget=20, refine_start_iter=4, refine_every=2, refine_stop_iter=6)
    state = strategy.initialize_state()
    for step in (0, 1, 2, 4, 5, 6, 8):
        strategy.step_post_backward(params, optimizers, state, step, make_info(torch.ones(10)))
    assert len(params["means"]) == 10


def test_packed_info_counts_alike():
    gradients = torch.tensor([0.3, 0.0, 0.5, 0.2])
    states = []
    for packed in (False, True):
        params, optimizers = make_gaussians(4)
        strategy = CappedStrategy(refine_start_iter=5)
        state = strategy.initialize_state()
        info = make_info(gradients)
        if packed:
            grad = info["means2d"].grad[0, [0, 2, 3]]
            info["means2d"] = torch.zeros(3, 2, requires_grad=True)
            info["means2d"].grad = grad
            info["gaussian_ids"] = torch.tensor([0, 2, 3])
        strategy.step_post_backward(params, optimizers, state, 1, info, packed=packed)
        states.append(state["grad2d"])
    torch.testing.assert_close(states[0], states[1])
    torch.testing.assert_close(states[0], gradients * 5)


def test_default_strategy_resets_opacities_once_per_interval():
    params, optimizers = make_gaussians(6)
    strategy = DefaultStrategy(refine_start_iter=100, refine_stop_iter=50, reset_every=10)
    state = strategy.initialize_state()
    for step, expected in ((9, 2.0), (10, math.log(0.01 / 0.99)), (60, 2.0)):
        params["opacities"].data.fill_(2.0)
        strategy.step_post_backward(params, optimizers, state, step, make_info(torch.zeros(6)))
        assert params["opacities"].detach().numpy() == pytest.approx(expected), step


def test_the_defect_is_worked_around_only_where_it_is():
    import inspect

    import gsplat

    source = inspect.getsource(gsplat.DefaultStrategy.step_post_backward)
    assert gsplat_resets_opacity() is ("== 0 & step > 0" not in source)


@pytest.mark.parametrize(("opacity", "copies"), [(0.75, 2), (0.5, 1), (0.9, 7), (0.99, 51), (0.01, 20)])
def test_relocation_formula(opacity, copies):
    new_opacity = 1 - (1 - opacity) ** (1 / copies)
    denominator = sum(
        math.comb(i - 1, k) * (-1) ** k * new_opacity ** (k + 1) / math.sqrt(k + 1)
        for i in range(1, copies + 1)
        for k in range(i)
    )
    found = relocation(torch.tensor([opacity], dtype=torch.float64), torch.ones(1, 3).double(), torch.tensor([copies]))
    assert found[0].item() == pytest.approx(new_opacity, rel=1e-9)
    assert found[1][0].tolist() == pytest.approx([opacity / denominator] * 3, rel=1e-6)


def test_mcmc_relocates_the_dead_and_grows_to_its_cap():
    params, optimizers = make_gaussians(40)
    params["opacities"].data[:5] = -10.0
    strategy = MCMCStrategy(cap_max=43, noise_lr=0.0, refine_start_iter=0, refine_every=1, refine_stop_iter=10)
    strategy.check_sanity(params, optimizers)
    state = strategy.initialize_state(scene_scale=2.0)
    for step, count in ((1, 42), (2, 43), (3, 43)):
        strategy.step_post_backward(params, optimizers, state, step, make_info(torch.zeros(len(params["means"]))))
        assert_aligned(params, optimizers, count)
        assert torch.sigmoid(params["opacities"]).min() > 0.005


def test_mcmc_noise_follows_the_shape_of_transparent_gaussians():
    params, _ = make_gaussians(4000)
    with torch.no_grad():
        params["quats"][:] = torch.tensor([1.0, 0, 0, 0])
        params["scales"][:] = torch.log(torch.tensor([0.1, 0.2, 0.4]))
        params["opacities"][:2000] = -12.0
    noise = position_noise(params, scaler=2.0)
    # Σ n has standard deviation scale² in each axis; the gate of a transparent Gaussian is sigmoid(0.5).
    expected = 2.0 * torch.tensor([0.01, 0.04, 0.16]) / (1 + math.exp(-0.5))
    torch.testing.assert_close(noise[:2000].std(0), expected, rtol=0.08, atol=0)
    assert noise[2000:].abs().max() < 1e-20


def test_strategies_by_name():
    config = Config(strategy=StrategyConfig(budget=77), steps=500).resolved().strategy
    assert make_strategy(config, lambda count: []).budget == 77
    assert make_strategy(config, lambda count: []).refine_stop_iter == 300
    config.name = "mcmc"
    assert make_strategy(config, lambda count: []).cap_max == 77
    config.name = "adc"
    with pytest.raises(ValueError, match=r"strategy\.name must be one of capped, default, mcmc, taming, got 'adc'"):
        make_strategy(config, lambda count: [])


def test_errors():
    with pytest.raises(ValueError, match="budget and refine_every must be at least 1, got 0 and 100"):
        CappedStrategy(budget=0)
    params, optimizers = make_gaussians(3)
    for container in (params, optimizers):
        del container["quats"]
    with pytest.raises(ValueError, match=r"got none for \['quats'\]"):
        CappedStrategy().check_sanity(params, optimizers)
