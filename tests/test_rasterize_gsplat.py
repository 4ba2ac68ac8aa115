"""The renderer compared with gsplat: conventions, strategies, and errors for invalid arguments."""

import math

import numpy as np
import pytest
import torch

from splat_ssim.render import gsplat_cuda, rasterization
from tests.test_rasterize import BACKGROUND, make_scene

torch_impl = pytest.importorskip("gsplat.cuda._torch_impl")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("seed", range(3))
def test_projection_is_gsplats(dtype, seed):
    """Opacities are 1, because gsplat's torch function has none. Some Gaussians are off-centre or off-screen."""
    scene = [t.to(dtype) for t in make_scene(300, 2, seed=seed, spread=4.0)]
    means, quats, scales, _, colors, viewmats, Ks = scene
    covariances, _ = torch_impl._quat_scale_to_covar_preci(quats, scales, compute_preci=False)
    wanted = torch_impl._fully_fused_projection(
        means, covariances, viewmats, Ks, 40, 36, near_plane=0.2, calc_compensations=True
    )
    radii, means2d, depths, conics, compensations = wanted
    options = dict(sh_degree=0, near_plane=0.2, rasterize_mode="antialiased")
    info = rasterization(means, quats, scales, torch.ones_like(means[:, 0]), colors, viewmats, Ks, 40, 36, **options)[2]
    ours, theirs = (info["radii"] > 0).all(-1), (radii > 0).all(-1)
    # Compensated opacities shrink the radii, so we may see fewer Gaussians, but never more.
    assert bool((theirs | ~ours).all()) and int(ours.sum()) > 100
    scale = 1e-5 if dtype == torch.float32 else 1e-10
    for name, value in (("means2d", means2d), ("depths", depths), ("conics", conics), ("opacities", compensations)):
        torch.testing.assert_close(info[name][ours], value[ours], rtol=20 * scale, atol=scale)
    plain = rasterization(
        means, quats, scales, torch.ones_like(means[:, 0]), colors, viewmats, Ks, 40, 36, sh_degree=0, near_plane=0.2
    )[2]
    # gsplat's torch function rounds up 3.33 standard deviations. Its kernel and ours round up 3.329 for opacity 1.
    assert int((plain["radii"] - radii).abs().max()) <= 1
    assert float((plain["radii"] == radii).double().mean()) > 0.99


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_harmonics_are_gsplats(degree, dtype):
    scene = [t.to(dtype) for t in make_scene(50)]
    means, colors, viewmats = scene[0], scene[4], scene[5]
    directions = means - torch.linalg.inv(viewmats)[0, :3, 3]
    wanted = (torch_impl._spherical_harmonics(degree, directions, colors[:, : (degree + 1) ** 2]) + 0.5).clamp(min=0)
    from splat_ssim.render import cpu, reference
    from splat_ssim.render._problem import Options, Scene

    backend = cpu if dtype == torch.float32 else reference
    projected = backend.project(Scene(*scene, 40, 36), colors, None, Options(sh_degree=degree))
    seen = (projected.radii[0] > 0).all(-1)
    torch.testing.assert_close(projected.colors[0][seen], wanted[seen], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("absgrad", [False, True])
def test_default_strategy_runs(packed, absgrad):
    from gsplat.strategy import DefaultStrategy

    scene = make_scene(200, 2, coefficients=4)
    names = ("means", "quats", "scales", "opacities", "sh")
    values = (*scene[:2], scene[2].log(), scene[3].clamp(0.05, 0.95).logit(), scene[4])
    params = torch.nn.ParameterDict({n: torch.nn.Parameter(v) for n, v in zip(names, values, strict=True)})
    optimizers = {name: torch.optim.Adam([p], lr=1e-3) for name, p in params.items()}
    strategy = DefaultStrategy(refine_start_iter=1, refine_every=3, grow_grad2d=1e-5, absgrad=absgrad)
    strategy.check_sanity(params, optimizers)
    state = strategy.initialize_state(scene_scale=1.0)
    target, before = torch.rand(2, 36, 40, 3, generator=torch.Generator().manual_seed(0)), len(params["means"])
    for step in range(5):
        images, _, info = rasterization(
            *(params[name] for name in names),
            *scene[5:],
            40,
            36,
            sh_degree=1,
            packed=packed,
            absgrad=absgrad,
            raw=True,
        )
        strategy.step_pre_backward(params, optimizers, state, step, info)
        (images - target).abs().mean().backward()
        strategy.step_post_backward(params, optimizers, state, step, info, packed=packed)
        for optimizer in optimizers.values():
            optimizer.step()
            optimizer.zero_grad()
    assert len(params["means"]) > before


def change(index, value):
    return lambda scene: scene.__setitem__(index, value(scene[index]) if callable(value) else value)


BAD_SCENES = [
    (change(0, lambda t: t[:, :2]), ValueError, r"means must have shape \[N, 3\], got \(60, 2\)"),
    (change(1, lambda t: t[1:]), ValueError, r"quats must have shape \[N, 4\] = \(60, 4\), got \(59, 4\)"),
    (change(3, lambda t: t[:, None]), ValueError, r"opacities must have shape \[N\] = \(60,\), got \(60, 1\)"),
    (change(2, lambda t: t.double()), TypeError, "scales must have the floating dtype of means, torch.float32"),
    (change(0, lambda t: t.half()), TypeError, "must have the floating dtype of means, torch.float16"),
    (change(5, lambda t: t[0]), ValueError, r"viewmats must have shape \[C, 4, 4\] with C >= 1, got \(4, 4\)"),
    (change(6, lambda t: t.repeat(2, 1, 1)), ValueError, r"Ks must have shape \[C, 3, 3\] = \(1, 3, 3\)"),
    (change(4, lambda t: t[:, :3]), ValueError, "sh_degree 1 needs 4 coefficients, got 3"),
    (change(4, lambda t: t[1:]), ValueError, r"colors must be \[N, K, 3\], \[C, N, K, 3\] or a pair"),
    (change(4, lambda t: t[..., 0]), ValueError, r"colors must be \[N, K, 3\], \[C, N, K, 3\] or a pair"),
    (change(4, lambda t: t[:, :0]), ValueError, "sh_degree 1 needs 4 coefficients, got 0"),
    (change(4, None), TypeError, "colors must be a tensor, got NoneType"),
    (change(4, lambda t: (t, t)), ValueError, r"colors\[0\] must have shape \[N, 1, 3\]"),
    (change(1, lambda t: t.to("meta")), ValueError, "quats must be on the device of means, cpu, got meta"),
]


@pytest.mark.parametrize("alter, error, message", BAD_SCENES)
def test_bad_tensors(alter, error, message):
    scene = make_scene()
    alter(scene)
    with pytest.raises(error, match=message):
        rasterization(*scene, 40, 36, sh_degree=1)


BAD_OPTIONS = [
    (dict(sh_degree=4), "sh_degree must be None, 0, 1, 2 or 3, got 4"),
    (dict(tile_size=8), "tile_size must be None .*, 16 or 32, got 8"),
    (dict(render_mode="depth"), "render_mode must be one of RGB, D, ED, RGB\\+D, RGB\\+ED, got 'depth'"),
    (dict(rasterize_mode="fast"), "rasterize_mode must be one of classic, antialiased, got 'fast'"),
    (dict(max_alpha=1.0), "max_alpha must lie between 1/255 and 1, both excluded, got 1.0"),
    (dict(near_plane=0.0), "0 < near_plane < far_plane is required, got 0.0"),
    (dict(eps2d=-0.1), "must be finite and not negative, got 0.0 and -0.1"),
    (dict(eps2d=math.nan), "must be finite and not negative, got 0.0 and nan"),
    (dict(eps2d=math.inf), "must be finite and not negative, got 0.0 and inf"),
    (dict(radius_clip=math.nan), "must be finite and not negative, got nan and 0.3"),
    (dict(tile_size=16.0), "tile_size must be None .*, 16 or 32, got 16.0"),
    (dict(backgrounds=BACKGROUND), r"backgrounds must have shape \[C, D\] = \(1, 3\), got \(2, 3\)"),
    (dict(pixel_weights=torch.ones(1, 40, 36)), r"pixel_weights must have shape \[C, H, W\] = \(1, 36, 40\)"),
]


@pytest.mark.parametrize("shape", [(60, 0), (), (60,), (2, 60, 3)])
def test_bad_colours(shape):
    scene = make_scene()
    scene[4] = torch.ones(shape)
    with pytest.raises(ValueError, match=r"colors must have shape \[N, D\] or \[C, N, D\], N = 60, C = 1, got"):
        rasterization(*scene, 40, 36)


@pytest.mark.parametrize("options, message", BAD_OPTIONS)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        rasterization(*make_scene(), 40, 36, **{"sh_degree": 1, **options})


def test_no_image():
    with pytest.raises(ValueError, match="width and height must be at least 1, got 0 and 5"):
        rasterization(*make_scene(), 0, 5, sh_degree=1)
    for width in (32.5, 32.0, "32", True):
        with pytest.raises(TypeError, match=f"width must be a whole number, got {width!r}"):
            rasterization(*make_scene(), width, 5, sh_degree=1)
    assert rasterization(*make_scene(), np.int64(8), 5, sh_degree=1)[0].shape == (1, 5, 8, 3)


def test_what_gsplat_cannot_do_on_cuda():
    scene, common = make_scene(), dict(antialiased=False, raw=False, tile_size=None)
    with pytest.raises(ValueError, match=r"max_alpha must be 0\.999 on CUDA"):
        gsplat_cuda.render(*scene, 40, 36, max_alpha=0.99, pixel_weights=None, **common)
