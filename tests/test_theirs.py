"""Our renderer and loss in code that was written for gsplat, nerfstudio and INRIA's trainer.

The tests at the end run copies of that code with at most one edited line. They need SPLAT_SSIM_THEIRS, the folder that
holds the copies and the packages they import: `make theirs THEIRS=FOLDER`, and the Makefile says how it is filled.
"""

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from splat_ssim import compat, render
from splat_ssim.compat.gsplat_rendering import Meta
from splat_ssim.loss import photometric_loss
from tests.cuda_is_cpu import cuda_is_cpu
from tests.oracle import ssim as oracle_ssim
from tests.run_theirs import KEPT, textbook_ssim
from tests.scenes import camera_to_world, write_nerfstudio

gsplat = pytest.importorskip("gsplat", reason="gsplat is not installed")
from splat_ssim.compat import gsplat_rendering as ours  # noqa: E402 - needs gsplat

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def installed():
    compat.install("gsplat")
    yield
    compat.uninstall("gsplat")


def example(count=100, width=300, height=200, device="cpu"):
    """The arguments of the usage example in gsplat's documentation."""
    generator = torch.Generator().manual_seed(0)
    means = torch.randn((count, 3), generator=generator)
    quats = torch.randn((count, 4), generator=generator)
    scales = torch.rand((count, 3), generator=generator) * 0.1
    colors = torch.rand((count, 3), generator=generator)
    opacities = torch.rand((count,), generator=generator)
    viewmats = torch.eye(4)[None, :, :]
    Ks = torch.tensor([[300.0, 0.0, width / 2], [0.0, 300.0, height / 2], [0.0, 0.0, 1.0]])[None, :, :]
    tensors = (means, quats, scales, opacities, colors, viewmats, Ks)
    return (*(tensor.to(device) for tensor in tensors), width, height)


# --- gsplat.rasterization on the CPU


def test_usage_example_of_gsplat(installed):
    from gsplat import rasterization

    assert rasterization is gsplat.rendering.rasterization is ours.rasterization
    colors, alphas, meta = rasterization(*example())
    assert colors.shape == (1, 200, 300, 3) and alphas.shape == (1, 200, 300, 1)
    expected = render.rasterization(*example(), packed=True)
    torch.testing.assert_close(colors, expected[0], rtol=0, atol=0)
    assert alphas.max() > 0.5
    # Every key of gsplat's documentation except the lists of tiles.
    keys = "camera_ids gaussian_ids radii means2d depths conics opacities tile_width tile_height width height tile_size"
    assert set(keys.split()) <= meta.keys()
    assert meta["radii"].shape == (len(meta["gaussian_ids"]), 2)  # gsplat packs by default


def test_uninstall_puts_gsplat_back():
    before = gsplat.rasterization, gsplat.rendering.rasterization, gsplat.rasterization_2dgs
    compat.install("gsplat")
    compat.install("gsplat")
    assert gsplat.rasterization is gsplat.rendering.rasterization is ours.rasterization
    compat.uninstall("gsplat")
    assert before == (gsplat.rasterization, gsplat.rendering.rasterization, gsplat.rasterization_2dgs)


def test_the_signature_is_the_installed_one():
    assert inspect.signature(ours.rasterization) == inspect.signature(ours._theirs)
    means, *rest = example()
    for arguments, keywords in (((), {}), ((means, means), {}), ((means, *rest), {"means": means})):
        with pytest.raises(TypeError, match="argument"):
            ours.rasterization(*arguments, **keywords)


def test_every_option_arrives():
    scene, options = example(200, 64, 48), {}
    options |= {"near_plane": 0.5, "far_plane": 3.0, "radius_clip": 2.0, "eps2d": 0.1, "packed": False}
    options |= {
        "backgrounds": torch.tensor([[0.2, 0.4, 0.6]]),
        "render_mode": "RGB+ED",
        "rasterize_mode": "antialiased",
    }
    for tile_size in (16, 32):
        found = ours.rasterization(*scene, **options, tile_size=tile_size, segmented=True, channel_chunk=8)
        expected = render.rasterization(*scene, **options, tile_size=tile_size)
        torch.testing.assert_close(found[:2], expected[:2], rtol=0, atol=0)
        assert found[2]["tile_size"] == tile_size
    # By position, in gsplat's order.
    values = [options[name] for name in ("near_plane", "far_plane", "radius_clip", "eps2d")]
    found = ours.rasterization(*scene, *values, None, False)
    expected = render.rasterization(*scene, **dict(list(options.items())[:5]))
    torch.testing.assert_close(found[:2], expected[:2], rtol=0, atol=0)


def test_gradients_reach_what_a_trainer_optimises(installed):
    """One step of gsplat's own DefaultStrategy, which reads the gradient of meta["means2d"]."""
    means, quats, scales, opacities, colors, viewmats, Ks, width, height = example(300, 64, 48)
    shs = torch.cat([colors[:, None], torch.zeros(300, 15, 3)], 1)
    values = {"means": means, "quats": quats, "scales": scales.log(), "opacities": opacities.logit(), "shs": shs}
    params = torch.nn.ParameterDict({name: torch.nn.Parameter(value) for name, value in values.items()})
    optimizers = {name: torch.optim.Adam([param], lr=1e-3) for name, param in params.items()}
    strategy = gsplat.DefaultStrategy(
        refine_start_iter=0, refine_every=1, grow_grad2d=1e-6, reset_every=10, absgrad=True
    )
    strategy.check_sanity(params, optimizers)
    state = strategy.initialize_state(scene_scale=1.0)
    viewmats.requires_grad_()  # as with simple_trainer's --pose-opt
    for step in (1, 2):
        picture, _, meta = gsplat.rasterization(
            params["means"],
            params["quats"],
            params["scales"].exp(),
            params["opacities"].sigmoid(),
            params["shs"],
            viewmats,
            Ks,
            width,
            height,
            sh_degree=3,
            absgrad=True,
        )
        strategy.step_pre_backward(params, optimizers, state, step, meta)
        picture.square().mean().backward()
        assert all(param.grad.abs().max() > 0 for param in params.values())
        strategy.step_post_backward(params, optimizers, state, step, meta, packed=True)
    assert len(params["means"]) > 300 and viewmats.grad[0, :3].abs().min() > 0


REFUSED = {
    "covars": torch.zeros(100, 3, 3),
    "sparse_grad": True,
    "camera_model": "fisheye",
    "with_ut": True,
    "with_eval3d": True,
    "radial_coeffs": torch.zeros(1, 6),
    "tangential_coeffs": torch.zeros(1, 2),
    "thin_prism_coeffs": torch.zeros(1, 4),
    "ftheta_coeffs": object(),
    "rolling_shutter": 0,
    "viewmats_rs": torch.eye(4)[None],
}
#: Parameters that gsplat 1.6 has added to 1.5.3 -> their default, and a value that is refused.
LATER = {
    "return_normals": (False, True),
    "global_z_order": (True, False),
    "rays": (None, torch.zeros(1, 200, 300, 6)),
    "lidar_coeffs": (None, object()),
    "external_distortion_coeffs": (None, object()),
    "ut_params": (None, object()),
    "extra_signals": (None, torch.zeros(100, 2)),
    "extra_signals_sh_degree": (None, 3),
    "renderer_config": (None, object()),
}


def test_no_argument_of_gsplat_is_forgotten():
    """Each is passed on, has no effect, or is refused by the tests below."""
    names = set(ours._SIGNATURE.parameters)
    assert names <= ours._TAKEN | ours._WITHOUT_EFFECT | set(REFUSED) | set(LATER)
    assert len(ours._TAKEN) == 21


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_renderer_lacks_is_refused_by_name(name):
    for error in (NotImplementedError, ValueError):
        with pytest.raises(error, match=f"^{name} must be .*, gsplat's default, on the CPU, got "):
            ours.rasterization(*example(), **{name: REFUSED[name]})
    default = ours._SIGNATURE.parameters[name].default
    ours.rasterization(*example(), **{name: default})


def test_packed_rows_are_not_exchanged_between_processes():
    with pytest.raises(ValueError, match=r"^packed must be False with distributed on the CPU, got True"):
        ours.rasterization(*example(), distributed=True)
    with pytest.raises(RuntimeError, match=r"needs torch.distributed.init_process_group first"):
        ours.rasterization(*example(), distributed=True, packed=False)


@pytest.mark.parametrize("name", LATER)
def test_what_later_versions_add_is_refused_by_name(name, monkeypatch):
    default, value = LATER[name]
    if name not in ours._SIGNATURE.parameters:
        added = inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default)
        parameters = [*ours._SIGNATURE.parameters.values(), added]
        monkeypatch.setattr(ours, "_SIGNATURE", inspect.Signature(parameters))
    with pytest.raises(NotImplementedError, match=f"^{name} must be {default}, gsplat's default"):
        ours.rasterization(*example(), **{name: value})
    ours.rasterization(*example(), **{name: default})


def test_sparse_gradients_count_in_packed_mode_alone():
    ours.rasterization(*example(), packed=False, sparse_grad=True)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"tile_size": 8}, "tile_size must be None .*, 16 or 32, got 8"),
        ({"render_mode": "RGB-Ed"}, "render_mode must be one of RGB, D, .*, got 'RGB-Ed'"),
        ({"sh_degree": 4}, "sh_degree must be None, 0, 1, 2 or 3, got 4"),
        ({"colors": None}, "colors must be given for render_mode 'RGB', got None"),
        ({"means": torch.zeros(2, 100, 3)}, r"means must have shape \[N, 3\], got \(2, 100, 3\)"),
    ],
)
def test_what_gsplat_takes_and_ours_cannot(options, text):
    names = list(ours._SIGNATURE.parameters)[:9]
    with pytest.raises(ValueError, match=text):
        ours.rasterization(**{**dict(zip(names, example(), strict=True)), **options})


def test_depth_without_colors():
    """gsplat 1.6 accepts such calls."""
    scene = list(example())
    expected = ours.rasterization(*scene, render_mode="ED")[0]
    scene[4] = None
    torch.testing.assert_close(ours.rasterization(*scene, render_mode="ED", sh_degree=2)[0], expected, rtol=0, atol=0)


def test_lists_of_tiles_are_missing_with_a_reason():
    meta = ours.rasterization(*example())[2]
    assert isinstance(meta, Meta) and "isect_ids" not in meta and meta.get("flatten_ids") is None
    for key in ("tiles_per_gauss", "isect_ids", "flatten_ids", "isect_offsets"):
        with pytest.raises(KeyError) as error:
            meta[key]
        assert str(error.value) == f"meta[{key!r}] needs gsplat's lists of tiles, which exist on CUDA only"
    with pytest.raises(KeyError, match=r"^'color'$"):
        meta["color"]


def test_alpha_is_clamped_as_in_the_installed_version(monkeypatch):
    _, quats, _, _, colors, *camera = example()
    means = torch.tensor([[0.0, 0.0, 2.0]])
    wide = (means, quats[:1], torch.ones(1, 3), torch.ones(1), colors[:1], *camera)
    version = tuple(int(part) for part in gsplat.__version__.split(".")[:2])
    clamp = 0.99 if version >= (1, 6) else 0.999
    assert ours.rasterization(*wide)[1].max().item() == pytest.approx(clamp, abs=1e-6)
    for text, numbers in (("1.6.0", (1, 6)), ("1.5.3", (1, 5)), ("2.0rc1", (2, 0)), ("1.10.1+pt29", (1, 10))):
        monkeypatch.setattr(gsplat, "__version__", text)
        assert ours._version() == numbers
    monkeypatch.setattr(gsplat, "__version__", "main")
    with pytest.raises(ImportError, match="must start with two numbers, got 'main'"):
        ours._version()


def test_other_devices_stay_with_gsplat(monkeypatch):
    called = []
    monkeypatch.setattr(ours, "_theirs", lambda *arguments, **options: called.append((arguments, options)))
    monkeypatch.setattr(ours, "_theirs_2dgs", lambda *arguments, **options: called.append((arguments, options)))
    scene = example(device="meta")
    ours.rasterization(*scene, distributed=True)
    ours.rasterization_2dgs(*scene, packed=False)
    assert [options for _, options in called] == [{"distributed": True}, {"packed": False}]
    assert all(given is own for arguments, _ in called for given, own in zip(arguments, scene, strict=True))


def test_2d_gaussians_are_refused_on_the_cpu(installed):
    for arguments, options in ((example(), {}), ((), {"means": torch.zeros(1, 3)})):
        with pytest.raises(NotImplementedError, match=r"^rasterization_2dgs must be given CUDA tensors"):
            gsplat.rasterization_2dgs(*arguments, **options)


# --- INRIA's style

CUSTOMARY = """Ll1 = l1_loss(image, gt)
    loss = (1 - lambda_dssim) * Ll1 + lambda_dssim * (1 - ssim(image, gt))"""
OURS = "loss = photometric_loss(image[None], gt[None], lambda_dssim=lambda_dssim)"


def documented(name):
    """The block of Python in docs/theirs.md that begins with this comment."""
    text = (ROOT / "docs" / "theirs.md").read_text()
    (found,) = re.findall(rf"```python\n(# {re.escape(name)}\n.*?)```", text, re.DOTALL)
    return found


def customary_ssim(image, gt):
    return textbook_ssim(image[None], gt[None])


def test_loop_in_the_style_of_inria():
    """The documented loop has the same losses with its customary lines and with ours, and it learns."""
    source = documented("a training loop in INRIA's style")
    assert source.count(CUSTOMARY) == 1 and documented("the same by one line").count(OURS) == 1
    losses = []
    for lines in (CUSTOMARY, OURS):
        scope = {"l1_loss": F.l1_loss, "ssim": customary_ssim, "photometric_loss": photometric_loss}
        exec(source.replace(CUSTOMARY, lines), scope)
        losses.append(scope["losses"])
    assert losses[0][:2] == pytest.approx(losses[1][:2], rel=2e-6)
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert len(losses[0]) >= 20 and losses[1][-1] < 0.7 * losses[1][0]


def test_customary_lines_and_ours_are_one_number():
    """Both give the same loss and the same gradient, in float64 and in float32."""
    generator = torch.Generator().manual_seed(0)
    image, gt = torch.rand(2, 3, 40, 52, generator=generator, dtype=torch.float64)
    image.requires_grad_()
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 2e-6)):
        gradients, losses = [], []
        for loss in (
            0.8 * F.l1_loss(image.to(dtype), gt.to(dtype)) + 0.2 * (1 - customary_ssim(image.to(dtype), gt.to(dtype))),
            photometric_loss(image.to(dtype)[None], gt.to(dtype)[None], lambda_dssim=0.2),
        ):
            losses.append(loss.item())
            gradients += torch.autograd.grad(loss, image)
        assert losses[0] == pytest.approx(losses[1], abs=tolerance)
        scale = gradients[0].abs().max()
        torch.testing.assert_close(gradients[0] / scale, gradients[1] / scale, rtol=0, atol=10 * tolerance)


def test_the_textbook_formula_is_the_oracle():
    generator = torch.Generator().manual_seed(1)
    img1, img2 = torch.rand(2, 1, 3, 24, 30, generator=generator, dtype=torch.float64)
    for padding in ("same", "valid"):
        expected = oracle_ssim(img1, img2, padding=padding)
        assert textbook_ssim(img1, img2, padding).item() == pytest.approx(expected.item(), abs=1e-12)


# --- "cuda" stands for the CPU


def test_cuda_is_cpu():
    before = torch.cuda.is_available()
    with cuda_is_cpu():
        device = torch.device("cuda:0")
        module = torch.nn.Linear(2, 3).to(device)
        made = [
            torch.zeros(2, device=device),
            torch.ones(2, device="cuda"),
            torch.ones(2).cuda(),
            torch.ones(2).to("cuda"),
        ]
        assert torch.cuda.is_available() and torch.cuda.device_count() == 1
        torch.cuda.synchronize()
        assert {tensor.device.type for tensor in [*made, *module.parameters()]} == {"cpu"}
        module(sum(made)).sum().backward()
    assert torch.cuda.is_available() == before


# --- their code: copies, which SPLAT_SSIM_THEIRS names

THEIRS = os.environ.get("SPLAT_SSIM_THEIRS")
needs_copies = pytest.mark.skipif(THEIRS is None, reason="SPLAT_SSIM_THEIRS names no folder of copies (make theirs)")

#: Versions of gsplat -> folders that precede the package's own on the path.
GSPLAT = {"gsplat-1.5.3": ["pycolmap", "old"], "gsplat-main": ["gsplat-main"]}
STEPS = 30


def run(script, *arguments, loss="installed", path=(), folder):
    """Runs a script of a copy in `folder`. Returns its losses and the gradients of its first steps."""
    found = folder / "found.pt"
    folders = [str(ROOT), *(str(Path(THEIRS) / name) for name in path), str(Path(THEIRS) / "packages")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(folders), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.run_theirs", "--loss", loss, "--record", found, script, *arguments]
    done = subprocess.run(
        list(map(str, command)), cwd=folder, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return torch.load(found)


def assert_same_training(found, expected, steps):
    """Compares losses and gradients. Adam divides by a gradient's size, so rounding grows after the first step."""
    assert len(found["losses"]) == len(expected["losses"]) == steps
    assert found["losses"][0] == pytest.approx(expected["losses"][0], rel=2e-6)
    assert found["losses"] == pytest.approx(expected["losses"], rel=1e-3)
    assert len(found["gradients"]) == len(expected["gradients"]) == KEPT
    for step, tolerance in ((0, 1e-4), (1, 2e-2)):
        pairs = list(zip(found["gradients"][step], expected["gradients"][step], strict=True))
        largest = max(theirs.abs().max().item() for _, theirs in pairs)
        sizes = [theirs.abs().max().item() for _, theirs in pairs]
        assert len(pairs) >= 5 and sum(size > 1e-2 * largest for size in sizes) >= 4
        for (here, theirs), size in zip(pairs, sizes, strict=True):
            # Gaussians are round at first, so the true gradient of their rotations is 0 and only rounding is left.
            scale = size if size > 1e-4 * largest else largest
            torch.testing.assert_close(here, theirs, rtol=0, atol=tolerance * scale)


def write_scene(folder):
    """Writes a ball of 400 Gaussians as a COLMAP scene: nine cameras of 64x48 pixels, the centres as points."""
    pycolmap = pytest.importorskip("pycolmap", reason="pycolmap, of the extra prepare, is not installed")
    generator = torch.Generator().manual_seed(0)
    means = F.normalize(torch.randn(400, 3, generator=generator), dim=-1)
    colors = torch.rand(400, 3, generator=generator)
    quats = torch.randn(400, 4, generator=generator)
    scales, opacities = torch.full((400, 3), 0.12), torch.full((400,), 0.9)
    K = torch.tensor([[60.0, 0.0, 32.0], [0.0, 60.0, 24.0], [0.0, 0.0, 1.0]])
    model = folder / "sparse" / "0"
    model.mkdir(parents=True)
    (folder / "images").mkdir()
    rows = []
    seen = " ".join(f"{index} {index} {index + 1}" for index in range(400))
    for index in range(9):
        camera = (
            torch.from_numpy(camera_to_world(2 * np.pi * index / 9))
            @ torch.diag(torch.tensor([1.0, -1, -1, 1])).double()
        )
        view = torch.linalg.inv(camera)
        scene = (means, quats, scales, opacities, colors, view.float()[None], K[None], 64, 48)
        pixels = (render.rasterization(*scene)[0][0].clamp(0, 1) * 255).byte().numpy()
        Image.fromarray(pixels).save(folder / "images" / f"{index}.png")
        rows.append(
            f"{index + 1} {quaternion(view)} {' '.join(map(str, view[:3, 3].tolist()))} 1 {index}.png\n{seen}\n"
        )
    (model / "cameras.txt").write_text("1 PINHOLE 64 48 60 60 32 24\n")
    (model / "images.txt").write_text("".join(rows))
    tracks = " ".join(f"{image + 1} {{0}}" for image in range(9))
    points = [
        f"{i + 1} {' '.join(map(str, means[i].tolist()))} {' '.join(str(int(c * 255)) for c in colors[i])} 0.5 "
        + tracks.format(i)
        for i in range(400)
    ]
    (model / "points3D.txt").write_text("\n".join(points) + "\n")
    pycolmap.Reconstruction(model).write_binary(model)  # gsplat 1.5.3's reader does not expect non-ASCII text
    for path in model.glob("*.txt"):
        path.unlink()
    return folder


def quaternion(view):
    """ "w x y z" of a rotation without a half turn."""
    w = (1 + view[:3, :3].trace()).sqrt() / 2
    skew = view[:3, :3] - view[:3, :3].T
    x, y, z = (skew[i, j] / (4 * w) for i, j in ((2, 1), (0, 2), (1, 0)))
    return " ".join(str(value.item()) for value in (w, x, y, z))


@needs_copies
@pytest.mark.parametrize("version", GSPLAT)
def test_image_fitting(version, tmp_path):
    """gsplat's unedited examples/image_fitting.py on our renderer."""
    script = Path(THEIRS) / version / "examples" / "image_fitting.py"
    size = ["--height", 48, "--width", 64, "--num-points", 1500, "--lr", 0.05]
    found = run(script, *size, "--iterations", 60, "--no-save-imgs", path=GSPLAT[version], folder=tmp_path)
    assert found["origins"] == {"rasterization": RENDERER}
    assert len(found["losses"]) == 60 and found["losses"][-1] < 0.2 * found["losses"][0]


@needs_copies
@pytest.mark.parametrize("version", GSPLAT)
def test_simple_trainer(version, tmp_path):
    """gsplat's examples/simple_trainer.py, unedited and with one line edited, compared with its own loss."""
    script = Path(THEIRS) / version / "examples" / "simple_trainer.py"
    scene = write_scene(tmp_path / "scene")
    options = ["default", "--data-dir", scene, "--data-factor", 1, "--max-steps", STEPS, "--eval-steps", STEPS]
    options += ["--disable-viewer", "--disable-video", "--save-steps", STEPS, "--result-dir", tmp_path / "result"]
    found = {
        loss: run(script, *options, loss=loss, path=GSPLAT[version], folder=tmp_path)
        for loss in ("original", "installed")
    }
    source, (name, module, before, after) = script.read_text(), EDITS[version]
    assert source.count(before) == 1
    edited = tmp_path / "simple_trainer.py"
    edited.write_text(source.replace(before, after))
    path = [*GSPLAT[version], f"{version}/examples"]
    found["edited"] = run(edited, *options, loss="edited", path=path, folder=tmp_path)
    for loss in ("installed", "edited"):
        assert found[loss]["origins"] == {"rasterization": RENDERER, name: module}
        assert_same_training(found[loss], found["original"], STEPS)
    assert not found["original"]["origins"][name].startswith("splat_ssim")


RENDERER = "splat_ssim.compat.gsplat_rendering"
#: The loss of simple_trainer.py, our module for it, and the line that imports it, as docs/theirs.md shows them.
EDITS = {
    "gsplat-1.5.3": (
        "fused_ssim",
        "splat_ssim.compat.fused_ssim",
        "from fused_ssim import fused_ssim\n",
        "from splat_ssim.compat.fused_ssim import fused_ssim\n",
    ),
    "gsplat-main": (
        "ssim_loss",
        "splat_ssim.compat.gsplat",
        "from torch import Tensor\n",
        "from torch import Tensor\nfrom splat_ssim.compat.gsplat import ssim_loss\n",
    ),
}


@needs_copies
def test_splatfacto(tmp_path):
    """nerfstudio's unedited ns-train splatfacto, compared with pytorch_msssim's loss."""
    script = Path(THEIRS) / "nerfstudio" / "nerfstudio" / "scripts" / "train.py"
    scene = write_nerfstudio(tmp_path / "scene", size=64)
    options = ["splatfacto", "--data", scene, "--max-num-iterations", STEPS, "--vis", "tensorboard"]
    options += ["--output-dir", tmp_path / "result"]
    found, expected = (
        run(script, *options, loss=loss, path=["nerfstudio"], folder=tmp_path) for loss in ("installed", "original")
    )
    assert found["origins"] == {"rasterization": RENDERER, "SSIM": "splat_ssim.compat.pytorch_msssim"}
    assert expected["origins"] == {"rasterization": RENDERER, "SSIM": "pytorch_msssim.ssim"}
    assert_same_training(found, expected, STEPS)
