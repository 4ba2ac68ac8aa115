"""The trainer's strategies for images, applied to the Gaussians of a volume: budget, mass, moments, state."""

import pytest
import torch

from splat_ssim.volume.config import VolumeStrategyConfig
from splat_ssim.volume.gaussians import GaussianField
from splat_ssim.volume.growth import sort_gaussians
from splat_ssim.volume.strategies import make_growth
from tests.test_volume_models import GRID, adam, blobs, generator

NAMES = ("capped", "default", "mcmc")


def started(name, *, count=40, channels=1, steps=50, **options):
    torch.manual_seed(0)
    field = GaussianField.from_volume(blobs(channels), GRID, count, generator=generator())
    optimizer = adam(field)
    growth = make_growth(VolumeStrategyConfig(name=name, budget=100, **options), steps, count, GRID)
    growth.check(field, optimizer)
    return field, optimizer, growth


def one_step(field, optimizer, target):
    optimizer.zero_grad()
    (field(GRID) - target).square().mean().backward()
    optimizer.step()


def mass(field):
    return (field.tensors["densities"] * field.tensors["log_scales"].sum(1).exp()).sum()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("channels", [1, 3])
def test_growth_keeps_the_budget_the_moments_and_the_mass(name, channels):
    field, optimizer, growth = started(name, channels=channels, noise=0.0)
    target, counts = blobs(channels), []
    for step in range(1, 51):
        one_step(field, optimizer, target)
        before, mass_before = len(field), mass(field)
        changed = growth.step(step, field, optimizer)
        # Pruned Gaussians have almost no mass.
        assert changed or len(field) == before
        torch.testing.assert_close(mass(field), mass_before, rtol=0.02, atol=0)
        for tensor in field.tensors.values():
            assert optimizer.state[tensor]["exp_avg"].shape == tensor.shape
            assert len(tensor) == len(field)
        assert len(optimizer.state) == len(field.tensors)
        counts.append(len(field))
        growth.reorder(sort_gaussians(field, optimizer, GRID))
    assert counts[0] <= 42 and 85 <= counts[-1] <= max(counts) <= 100
    # The optimiser holds every tensor and goes on changing it.
    loss = (field(GRID) - target).square().mean()
    for step in range(51, 70):
        one_step(field, optimizer, target)
        growth.step(step, field, optimizer)
    assert (field(GRID) - target).square().mean() < loss


def test_where_the_gradient_is_largest_is_grown():
    field, optimizer, growth = started("default", count=60, prune_density=0.0)
    one_step(field, optimizer, blobs())
    gradient = torch.zeros(60, 3)
    gradient[::6, 1] = torch.arange(1.0, 11.0)
    field.tensors["means"].grad = gradient
    places = field.tensors["means"].detach().clone()
    growth.budget = 64
    assert growth.step(6, field, optimizer)
    assert len(field) == 64
    # The four Gaussians with the largest gradients were cloned or split. The others have not moved.
    stayed = (places[:, None] == field.tensors["means"]).all(-1).any(1)
    assert stayed[[i for i in range(60) if i not in (36, 42, 48, 54)]].all()


def test_a_full_budget_stays_full():
    field, optimizer, growth = started("default", count=100)
    for step in range(1, 30):
        one_step(field, optimizer, blobs())
        growth.step(step, field, optimizer)
        assert len(field) <= 100


def test_noise_moves_only_what_has_next_to_no_density():
    field, optimizer, growth = started("mcmc", noise=1.0, steps=500)
    one_step(field, optimizer, blobs())
    with torch.no_grad():
        field.tensors["densities"][:20] = 0.5
        field.tensors["densities"][20:] = 1e-6
    before = field.tensors["means"].detach().clone()
    growth.step(1, field, optimizer)
    moved = (field.tensors["means"].detach() - before).norm(dim=1)
    assert moved[:20].max() < 1e-6 and moved[20:].min() > 1e-5


def test_gradients_must_still_be_there():
    field, optimizer, growth = started("capped")
    with pytest.raises(ValueError, match="call it before they are cleared"):
        growth.step(1, field, optimizer)


@pytest.mark.parametrize(
    "name,text", [("taming", "its score is over training views"), ("x", "must be one of residual")]
)
def test_strategies_that_do_not_fit(name, text):
    with pytest.raises(ValueError, match=text):
        make_growth(VolumeStrategyConfig(name=name), 100, 10, GRID)
