import math

import pytest
import torch
from gsplat.strategy.base import Strategy

from splat_ssim import reference
from splat_ssim.render import rasterization
from splat_ssim.render.reference import Accumulators
from splat_ssim.scene.config import SceneConfig as Config
from splat_ssim.scene.data import View
from splat_ssim.scene.scoring import score_views
from splat_ssim.scene.strategies import make_strategy
from splat_ssim.strategy import scoring
from splat_ssim.strategy.scoring import ViewStats, budget_curve
from splat_ssim.strategy.taming import TamingStrategy, _draw
from splat_ssim.trainer.config import from_mapping


def make_scene(count, seed=0, scale=0.005):
    generator = torch.Generator().manual_seed(seed)
    values = {
        "means": torch.rand(count, 3, generator=generator),
        "scales": torch.full((count, 3), math.log(scale)),
        "quats": torch.randn(count, 4, generator=generator),
        "opacities": torch.zeros(count),
        "sh0": torch.rand(count, 1, 3, generator=generator),
        # Every operation must carry along these names of the Gaussians.
        "names": torch.arange(count, dtype=torch.float32),
    }
    params = torch.nn.ParameterDict({name: torch.nn.Parameter(value) for name, value in values.items()})
    optimizers = {name: torch.optim.Adam([{"params": params[name], "lr": 1e-3}]) for name in params}
    return params, optimizers


def run_step(strategy, params, optimizers, state, step, gradient=1.0):
    """One step of a loop written like gsplat's example, with a renderer that only projects."""
    means2d = params["means"][None, :, :2] * 100
    info = {
        "means2d": means2d,
        "width": 100,
        "height": 100,
        "n_cameras": 1,
        "radii": torch.ones(1, len(params["means"]), 2, dtype=torch.int32),
        "gaussian_ids": None,
    }
    loss = sum((p * 0.01).sum() for p in params.values()) + gradient * means2d.sum()
    strategy.step_pre_backward(params, optimizers, state, step, info)
    loss.backward()
    for optimizer in optimizers.values():
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    strategy.step_post_backward(params, optimizers, state, step, info, packed=False)


def even_views(params):
    def views(count):
        for view in range(count):
            ones = torch.ones(len(params["means"]))
            yield ViewStats(0.1 * (view + 1), ones, ones, ones, ones, ones, ones)

    return views


class TestBudgetCurve:
    def test_formula(self):
        # S = 100, B = 500, N = 4: 100 + 400·(2x/4 - x²/16).
        assert budget_curve(100, 500, 4) == [275, 400, 475, 500]

    @pytest.mark.parametrize("start,budget,events", [(54275, 814125, 28), (7, 8, 144), (1000, 1000, 28), (1, 10**9, 3)])
    def test_rises_to_the_budget(self, start, budget, events):
        curve = budget_curve(start, budget, events)
        assert len(curve) == events and curve[-1] == budget and curve == sorted(curve) and curve[0] >= start

    def test_start_above_budget(self):
        assert budget_curve(900, 500, 3) == [500, 500, 500]

    def test_paper_schedules_have_28_and_144_events(self):
        for every, events in ((500, 28), (100, 144)):
            assert len(TamingStrategy(budget=1, score_views=list, refine_every=every).event_steps) == events


class TestScore:
    def test_median_normalization(self):
        values = torch.tensor([0.0, 1.0, 2.0, 8.0, -3.0])
        # The median of the positive values 1, 2, 8 is 2.
        assert scoring.normalize_by_median(10.0, values).tolist() == [0, 5, 10, 40, 0]
        assert scoring.normalize_by_median(10.0, torch.zeros(3)).tolist() == [0, 0, 0]

    def test_view_score_by_hand(self):
        one, zero = torch.ones(3), torch.zeros(3)
        stats = ViewStats(
            loss=0.5,
            depths=torch.tensor([2.0, 2.0, 2.0]),
            radii=torch.tensor([4.0, 4.0, 0.0]),
            pixel_count=one,
            pixel_weight=torch.tensor([1.0, 3.0, 100.0]),
            contribution=one,
            distance=one,
        )
        score = scoring.view_score(stats, zero, one * 0.5, torch.full((3, 3), 0.1))
        # Both visible Gaussians are at the median of every term except the pixel weight, where torch's median of (1, 3)
        # is 1. There is no gradient. The score is 50·0.5·(100 + 5 + 10 + 25 + 50 + 10·w + 0.1 + 50).
        rest = 100 + 5 + 10 + 25 + 50 + 0.1 + 50
        torch.testing.assert_close(score, torch.tensor([25 * (rest + 10), 25 * (rest + 30), 0.0]))

    def test_each_of_the_nine_terms_by_hand(self):
        # The middle one of the three Gaussians is the median of every quantity. The last one has twice its value.
        ramp = torch.tensor([1.0, 2.0, 4.0])
        rest = dict(loss=0.25, depths=ramp, radii=ramp, pixel_count=ramp, pixel_weight=ramp, contribution=ramp)
        stats = ViewStats(**rest, distance=ramp)
        volumes = torch.stack([ramp, torch.ones(3), torch.ones(3)], 1)
        total = 25 + 100 + 5 + 10 + 25 + 50 + 10 + 0.1 + 50
        score = scoring.view_score(stats, 3e-4 * ramp, 0.1 * ramp, volumes)
        torch.testing.assert_close(score, 50 * 0.25 * total * torch.tensor([0.5, 1.0, 2.0]))
        # Without one of the quantities, the score lacks its weight.
        zero = torch.zeros(3)
        for weight, field in ((5, "depths"), (10, "pixel_weight"), (0.1, "pixel_count"), (50, "contribution")):
            less = ViewStats(**{**rest, field: zero}, distance=ramp)
            score = scoring.view_score(less, 3e-4 * ramp, 0.1 * ramp, volumes)
            torch.testing.assert_close(score[1].item(), 12.5 * (total - weight))
        for weight, arguments in (
            (25, (zero, 0.1 * ramp, volumes)),
            (100, (3e-4 * ramp, zero, volumes)),
            (25, (3e-4 * ramp, 0.1 * ramp, 0 * volumes)),
        ):
            score = scoring.view_score(stats, *arguments)
            torch.testing.assert_close(score[1].item(), 12.5 * (total - weight))
        score = scoring.view_score(ViewStats(**rest, distance=zero), 3e-4 * ramp, 0.1 * ramp, volumes)
        torch.testing.assert_close(score[1].item(), 12.5 * (total - 50))

    def test_pixel_weights(self):
        truth = torch.zeros(3, 5, 5)
        truth[:, 2, 2] = 1.0
        render = truth.clone()
        render[:, 0, 0] = 0.5
        weights = scoring.pixel_weights(render, truth)
        # The Laplacian of a single white pixel is 4 at it and 1 at its four neighbours; the error is only at (0, 0).
        assert weights[2, 2] == pytest.approx(50) and weights[2, 1] == pytest.approx(12.5)
        assert weights[0, 0] == pytest.approx(50) and weights[4, 4] == 0
        assert scoring.pixel_weights(truth * 0, truth * 0).abs().sum() == 0
        with pytest.raises(ValueError, match=r"same shape \(3, H, W\), got \(3, 5, 5\) and \(3, 5, 4\)"):
            scoring.pixel_weights(truth, truth[..., :4])


class TestScoredViews:
    """Tests of the views that the trainer's callable yields."""

    def views(self, count):
        generator = torch.Generator().manual_seed(0)
        images = torch.rand(count, 6, 7, 3, generator=generator)
        return [View(str(index), torch.eye(4), torch.eye(3), image) for index, image in enumerate(images)]

    def test_loss_and_sums_of_a_view(self):
        (view,) = self.views(1)
        pred = torch.rand(1, 6, 7, 3, generator=torch.Generator().manual_seed(1))
        given_weights = []

        def render(view, pixel_weights=None):
            given_weights.append(pixel_weights)
            sums = Accumulators(*(torch.tensor([[float(i), 9.0]]) for i in range(1, 5)))
            info = {"depths": torch.tensor([[2.0, 3.0]]), "radii": torch.tensor([[[4, 6], [0, 0]]])}
            return pred, None, {**info, "accumulators": sums}

        (stats,) = score_views(render, [view], 10, torch.device("cpu"))
        truth, image = view.image.permute(2, 0, 1), pred[0].permute(2, 0, 1)
        ssim = reference.ssim(image[None], truth[None], padding="same")
        # L_v = 0.8·L1 + 0.2·(1 - SSIM).
        wanted = 0.8 * (image - truth).abs().mean() + 0.2 * (1 - ssim)
        assert stats.loss == pytest.approx(wanted.item(), rel=1e-5)
        assert given_weights[0] is None
        torch.testing.assert_close(given_weights[1][0], scoring.pixel_weights(image, truth))
        assert stats.depths.tolist() == [2.0, 3.0] and stats.radii.tolist() == [6.0, 0.0]
        sums = {name: value[0].item() for name, value in vars(stats).items() if name not in ("loss", "depths", "radii")}
        fields = dict(zip(Accumulators._fields, range(1, 5), strict=True))
        assert sums == {
            "pixel_count": fields["count"],
            "pixel_weight": fields["weight"],
            "contribution": fields["opacity"],
            "distance": fields["distance"],
        }

    @pytest.mark.parametrize("there,asked,seen", [(12, 10, 10), (4, 10, 4), (4, 0, 0)])
    def test_views_are_drawn_without_replacement(self, there, asked, seen):
        rendered = []

        def render(view, pixel_weights=None):
            rendered.append(view.name)
            one = torch.ones(1, 1)
            info = {"depths": one, "radii": torch.ones(1, 1, 2), "accumulators": Accumulators(one, one, one, one)}
            return view.image[None], None, info

        torch.manual_seed(0)
        assert len(list(score_views(render, self.views(there), asked, torch.device("cpu")))) == seen
        # Each view is rendered twice: for the error, and for the sums that the error weights.
        assert len(rendered) == 2 * seen and len(set(rendered)) == seen


class TestDraw:
    def test_exact_count_and_weightless_last(self):
        weights = torch.tensor([0.0, 1.0, 0.0, 2.0, 3.0])
        for count in range(6):
            mask = _draw(weights, count)
            assert int(mask.sum()) == count
            if 0 < count <= 3:
                assert not mask[0] and not mask[2]

    def test_among(self):
        among = torch.tensor([True, False, True, True])
        assert _draw(torch.tensor([1.0, 5.0, 0.0, 0.0]), 3, among).tolist() == among.tolist()

    def test_frequencies_follow_the_weights(self):
        torch.manual_seed(0)
        weights = torch.tensor([1.0, 2.0, 5.0])
        picks = sum(_draw(weights, 1).double() for _ in range(4000)) / 4000
        # Four standard deviations of a fraction estimated from 4000 draws are 0.03.
        torch.testing.assert_close(picks, weights.double() / 8, atol=0.032, rtol=0)


class TestStrategy:
    def strategy(self, params, **options):
        defaults = dict(
            budget=300, num_views=2, refine_start_iter=5, refine_stop_iter=50, refine_every=10, reset_every=20
        )
        return TamingStrategy(score_views=even_views(params), **{**defaults, **options})

    def test_is_a_gsplat_strategy(self):
        assert issubclass(TamingStrategy, Strategy)

    @pytest.mark.parametrize("start,budget", [(40, 300), (10, 300), (300, 300), (400, 300), (1, 64)])
    def test_count_equals_the_curve_at_every_event(self, start, budget):
        torch.manual_seed(0)
        params, optimizers = make_scene(start)
        strategy = self.strategy(params, budget=budget)
        strategy.check_sanity(params, optimizers)
        state = strategy.initialize_state(scene_scale=1.0)
        for step in range(60):
            run_step(strategy, params, optimizers, state, step)
            assert len(params["means"]) <= budget
            for name, parameter in params.items():
                assert len(parameter) == len(params["means"])
                assert optimizers[name].state[parameter]["exp_avg"].shape == parameter.shape
        assert state["num_gaussians"] == state["budget_curve"]
        assert len(state["num_gaussians"]) == 4 and len(params["means"]) == budget

    def test_grows_to_the_curve_without_any_gradient(self):
        params, optimizers = make_scene(50)
        strategy = self.strategy(params)
        state = strategy.initialize_state()
        for step in range(50):
            run_step(strategy, params, optimizers, state, step, gradient=0.0)
        assert state["num_gaussians"] == state["budget_curve"]

    def test_clones_small_and_splits_large(self):
        for scale, changed in ((0.005, False), (0.05, True)):
            torch.manual_seed(0)
            params, optimizers = make_scene(40, scale=scale)
            strategy = self.strategy(params, refine_stop_iter=11, reset_every=1000, budget=60)
            state = strategy.initialize_state(scene_scale=1.0)
            for step in range(11):
                run_step(strategy, params, optimizers, state, step)
            smallest = params["scales"].exp().amin()
            assert bool(smallest < scale / 1.5) == changed

    def test_clones_and_splits_share_the_room_as_they_qualify(self):
        torch.manual_seed(0)
        params, optimizers = make_scene(90)
        with torch.no_grad():
            # 30 Gaussians qualify to be cloned and 20 to be split. The other 40 have no gradient.
            params["scales"][30:50] = math.log(0.05)
        strategy = self.strategy(params, budget=115, refine_stop_iter=11, reset_every=1000)
        state = strategy.initialize_state(scene_scale=1.0)
        run_step(strategy, params, optimizers, state, 0)
        state["grad2d"] = torch.cat([torch.ones(50), torch.zeros(40)])
        state["gradient"], state["score"] = state["grad2d"], torch.ones(90)
        strategy._grow(params, optimizers, state, 115)
        # floor(25 · 30 / 50) = 15 clones. The other 10 are splits, each of which removes its parent.
        names = params["names"].round().int()
        copies = torch.bincount(names, minlength=90)
        assert len(names) == 115 and copies[50:].tolist() == [1] * 40
        assert int((copies[:30] == 2).sum()) == 15 and int((copies[30:50] == 2).sum()) == 10
        halves = copies[names] == 2
        split = halves & (names >= 30)
        # Split parents become two of scale/1.6. No other scale changes, except by an optimiser step of 1e-3.
        torch.testing.assert_close(
            params["scales"].detach()[split].exp(), torch.full((20, 3), 0.05 / 1.6), rtol=3e-3, atol=0
        )
        assert params["scales"].detach()[~split & (names >= 30) & (names < 50)].exp().min() > 0.049

    def test_the_gradient_is_the_mean_over_the_views_that_saw_it(self):
        params, optimizers = make_scene(3)
        strategy = self.strategy(params, budget=3)
        state = strategy.initialize_state()
        for step, (gradient, radii) in enumerate(
            [
                ([[3e-3, 0.0], [0.0, 4e-3], [1.0, 1.0]], [1, 1, 0]),
                ([[6e-3, 8e-3], [1.0, 1.0], [1.0, 1.0]], [5, 0, 0]),
            ]
        ):
            means2d = torch.zeros(1, 3, 2, requires_grad=True)
            means2d.grad = torch.tensor([gradient])
            info = {"means2d": means2d, "width": 200, "height": 100, "n_cameras": 1, "gaussian_ids": None}
            info["radii"] = torch.tensor(radii)[None, :, None].expand(1, 3, 2)
            strategy.step_post_backward(params, optimizers, state, step, info)
        # Half the image is 100 by 50 pixels. The means are (0.3 + |0.6, 0.4|) / 2, 0.2, and 0 for the unseen one.
        assert state["count"].tolist() == [2, 1, 0]
        mean = state["grad2d"] / state["count"].clamp_min(1)
        assert mean.tolist() == pytest.approx([(0.3 + math.hypot(0.6, 0.4)) / 2, 0.2, 0.0])

    @pytest.mark.parametrize("step,pruned", [(20, False), (30, True)])
    def test_size_is_pruned_only_after_the_first_reset(self, step, pruned):
        torch.manual_seed(0)
        params, optimizers = make_scene(100)
        with torch.no_grad():
            params["scales"][:10] = math.log(0.2)
        strategy = self.strategy(params, budget=100)
        state = strategy.initialize_state(scene_scale=1.0)
        state["score"] = torch.ones(100)
        # This fraction is so large that all candidates are drawn and pruned: those above 0.1 of the extent.
        strategy.prune_fraction = 10.0
        strategy._prune(params, optimizers, state, step)
        assert len(params["means"]) == (90 if pruned else 100)

    def test_the_score_decides_who_grows(self):
        torch.manual_seed(0)
        params, optimizers = make_scene(100)
        favoured = torch.zeros(100)
        favoured[:10] = 1e9

        def views(count):
            ones = torch.ones(100)
            yield ViewStats(1.0, ones, ones, ones, favoured + 1, ones, ones)

        strategy = self.strategy(params, budget=110, refine_stop_iter=11)
        strategy.score_views = views
        state = strategy.initialize_state(scene_scale=1.0)
        for step in range(11):
            run_step(strategy, params, optimizers, state, step)
        # Optimiser steps change the names by 1e-3, so rounding restores them.
        assert sorted(params["names"][100:].round().int().tolist()) == list(range(10))

    def test_prune_takes_candidates_of_low_score_and_keeps_state_aligned(self):
        torch.manual_seed(0)
        params, optimizers = make_scene(200)
        with torch.no_grad():
            params["opacities"][:50] = -20.0
        strategy = self.strategy(params, refine_stop_iter=11, reset_every=1000, budget=200)
        state = strategy.initialize_state(scene_scale=1.0)

        def views(count):
            visible = torch.cat([torch.zeros(50), torch.ones(len(params["means"]) - 50)])
            yield ViewStats(1.0, visible, visible, visible, visible, visible, visible)

        strategy.score_views = views
        for step in range(11):
            run_step(strategy, params, optimizers, state, step)
        transparent = int((params["opacities"] < -10).sum())
        # All 25 that are drawn have score 0, so they are candidates. Others fill their places.
        assert transparent == 25 and len(params["means"]) == 200
        assert len(state["grad2d"]) == len(state["count"]) == 200

    def test_a_loop_written_like_gsplats_example(self):
        """A user's own loop with a real renderer needs only the hooks and the callable."""
        torch.manual_seed(0)
        params, optimizers = make_scene(60, scale=0.05)
        generator = torch.Generator().manual_seed(3)
        K = torch.tensor([[30.0, 0, 12], [0, 30, 12], [0, 0, 1]])
        cameras = [torch.eye(4) for _ in range(3)]
        for index, viewmat in enumerate(cameras):
            viewmat[:3, 3] = torch.tensor([-0.5 + 0.1 * index, -0.5, 2.0])
        views = [View(str(i), m, K, torch.rand(24, 24, 3, generator=generator)) for i, m in enumerate(cameras)]

        def render(view, pixel_weights=None):
            names = ("means", "quats", "scales", "opacities")
            means, quats, scales, opacities = (params[name] for name in names)
            return rasterization(
                *(means, quats, scales.exp(), opacities.sigmoid(), params["sh0"], view.viewmat[None], view.K[None]),
                *(24, 24),
                sh_degree=0,
                pixel_weights=pixel_weights,
            )

        asked = []

        def scored(count):
            asked.append(count)
            return score_views(render, views, count, torch.device("cpu"))

        strategy = TamingStrategy(
            budget=150, score_views=scored, refine_start_iter=5, refine_every=10, refine_stop_iter=50, reset_every=20
        )
        strategy.check_sanity(params, optimizers)
        state = strategy.initialize_state(scene_scale=1.0)
        for step in range(60):
            view = views[step % 3]
            colors, _, info = render(view)
            strategy.step_pre_backward(params, optimizers, state, step, info)
            (colors[0] - view.image).abs().mean().backward()
            for optimizer in optimizers.values():
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            strategy.step_post_backward(params, optimizers, state, step, info, packed=False)
        assert asked == [10] * 4
        assert state["num_gaussians"] == state["budget_curve"] == budget_curve(60, 150, 4)
        assert len(params["means"]) == 150

    @pytest.mark.parametrize("name", ["default", "taming"])
    def test_the_config_says_who_is_cloned_and_who_is_split(self, name):
        for values, wanted in (({}, 0.01), ({"grow_scale": 0.002}, 0.002)):
            config = from_mapping(Config, {"strategy": {"name": name, **values}}, "test").resolved()
            assert make_strategy(config.strategy, lambda count: iter(())).grow_scale3d == wanted

    def test_opacity_reset(self):
        params, optimizers = make_scene(20)
        strategy = self.strategy(params, budget=20)
        state = strategy.initialize_state()
        for step in range(21):
            run_step(strategy, params, optimizers, state, step)
        assert torch.sigmoid(params["opacities"]).max() <= 0.01 + 1e-6

    def test_errors(self):
        with pytest.raises(ValueError, match="budget must be at least 1 Gaussian, got 0"):
            TamingStrategy(budget=0, score_views=list)
        params, optimizers = make_scene(3)
        del params["scales"], optimizers["scales"]
        with pytest.raises(ValueError, match=r"got none for \['scales'\]"):
            self.strategy(params).check_sanity(params, optimizers)
        params, optimizers = make_scene(0)
        strategy = self.strategy(params)
        with pytest.raises(ValueError, match="at least 1 Gaussian to start from, got 0"):
            run_step(strategy, params, optimizers, strategy.initialize_state(), 0)
