"""`compat.install` and `uninstall`. Each program runs in its own process, whose sys.modules is clean."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import splat_ssim.compat

ROOT = Path(__file__).resolve().parent.parent
NAMES = ("fused_ssim", "fused_ssim3d", "pytorch_msssim", "kornia")

#: Start of every program. `names_of` says which object each name of the packages refers to.
PRELUDE = """
import pickle, sys, types, warnings
warnings.simplefilter("ignore")
import torch
from splat_ssim import compat

# Images are so small that threads wait for each other longer than they work.
torch.set_num_threads(1)

def is_ours(value):
    return value.__module__.startswith("splat_ssim.compat")

def state(*packages):
    found = {}
    for name, module in list(sys.modules.items()):
        if any(name == package or name.startswith(package + ".") for package in packages):
            found[name] = module
            if isinstance(module, types.ModuleType):
                found.update({(name, key): value for key, value in vars(module).items()})
    return found

def assert_unchanged(before, after):
    assert before.keys() == after.keys(), before.keys() ^ after.keys()
    changed = [key for key in before if before[key] is not after[key]]
    assert not changed, changed

x, y = torch.rand(1, 3, 32, 32), torch.rand(1, 3, 32, 32)
"""

#: Makes the packages look as if they were not installed.
HIDDEN = """
class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("fused_ssim", "fused_ssim3d", "fussim", "pytorch_msssim"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Hide())
"""


#: Imports torch once. Then it runs each program that it reads in a fork, and answers with the error.
SERVER = """
import json, os, sys, tempfile, traceback
for line in sys.stdin:
    with tempfile.TemporaryFile() as output:
        child = os.fork()
        if child == 0:
            for stream in (1, 2):
                os.dup2(output.fileno(), stream)
            code = 1
            try:
                exec(json.loads(line), {"__name__": "__main__"})
                code = 0
            except BaseException:
                traceback.print_exc()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        _, status = os.waitpid(child, 0)
        output.seek(0)
        print(json.dumps([status, output.read().decode()]), flush=True)
"""


@pytest.fixture(scope="module")
def run():
    """Runs a program, given in parts, in a process that has imported what PRELUDE imports."""
    with subprocess.Popen(
        [sys.executable, "-c", PRELUDE + SERVER], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:

        def run(*parts):
            print(json.dumps("\n".join((PRELUDE, *parts))), file=server.stdin, flush=True)
            status, output = json.loads(server.stdout.readline())
            assert status == 0, output

        yield run
        server.stdin.close()


FUSED_SSIM_NAMES = """
import fused_ssim
from fused_ssim import FusedSSIMMap, fused_ssim as function, fused_ssim3d
assert fused_ssim.allowed_padding == ["same", "valid"]
assert is_ours(function) and is_ours(fused_ssim3d) and is_ours(FusedSSIMMap)
ssim_map = FusedSSIMMap.apply(0.01**2, 0.03**2, x, y, "valid", True)
assert ssim_map.shape == (1, 3, 22, 22)
torch.testing.assert_close(ssim_map.mean(), function(x, y, "valid"))
volume = torch.rand(1, 1, 12, 12, 12)
ssim_map = fused_ssim.FusedSSIMMap.apply(0.01**2, 0.03**2, volume, 1 - volume, "same", False, 3)
torch.testing.assert_close(ssim_map.mean(), fused_ssim3d(volume, 1 - volume))
"""

FUSSIM_NAMES = """
import fussim
from fussim import SSIM, FusedSSIMMap, FusedSSIMMapFP16, check_compatibility, fused_ssim, get_build_info, ssim
from fussim import SUPPORTED_WINDOW_SIZES, __version__
for value in (SSIM, FusedSSIMMap, FusedSSIMMapFP16, check_compatibility, fused_ssim, get_build_info, ssim):
    assert is_ours(value)
torch.testing.assert_close(fused_ssim(x, y, "valid"), ssim(x, y, data_range=1.0))
"""

PYTORCH_MSSSIM_NAMES = """
import pytorch_msssim
import pytorch_msssim.ssim as imported_as
from pytorch_msssim import MS_SSIM, SSIM, ms_ssim, ssim
from pytorch_msssim.ssim import MS_SSIM as M, SSIM as S, ms_ssim as m, ssim as s
from pytorch_msssim.ssim import _fspecial_gauss_1d, _ssim, gaussian_filter
for value in (MS_SSIM, SSIM, ms_ssim, ssim, _fspecial_gauss_1d, _ssim, gaussian_filter):
    assert is_ours(value)
assert (M, S, m, s) == (MS_SSIM, SSIM, ms_ssim, ssim)
assert imported_as is ssim is pytorch_msssim.ssim  # as in the original
scope = {}
exec("from pytorch_msssim.ssim import *", scope)
names = {"F", "List", "MS_SSIM", "SSIM", "Tensor", "gaussian_filter", "ms_ssim", "ssim", "torch", "warnings"}
assert names <= set(scope)
scope = {}
exec("from pytorch_msssim import *", scope)
assert {"MS_SSIM", "SSIM", "ms_ssim", "ssim"} <= set(scope)
"""

KORNIA_NAMES = """
import kornia.losses, kornia.metrics, kornia.losses.ssim, kornia.losses.ssim3d
import kornia.losses.ssim as module
assert isinstance(module, types.ModuleType) and isinstance(kornia.losses.ssim3d, types.ModuleType)
from kornia.losses.ms_ssim import MS_SSIMLoss
from kornia.losses.psnr import PSNRLoss, psnr_loss
from kornia.losses.ssim import SSIMLoss, ssim_loss
from kornia.losses.ssim3d import SSIM3DLoss, ssim3d_loss
from kornia.losses.total_variation import TotalVariation, total_variation
from kornia.metrics.psnr import psnr
from kornia.metrics.ssim import SSIM, ssim
from kornia.metrics.ssim3d import SSIM3D, ssim3d
for value in (MS_SSIMLoss, PSNRLoss, psnr_loss, SSIMLoss, ssim_loss, SSIM3DLoss, ssim3d_loss, TotalVariation,
              total_variation, psnr, SSIM, ssim, SSIM3D, ssim3d):
    assert is_ours(value), value
    holder = kornia.losses if hasattr(kornia.losses, value.__name__) else kornia.metrics
    if isinstance(getattr(holder, value.__name__), types.ModuleType):
        holder = kornia.metrics
    assert getattr(holder, value.__name__) is value
assert is_ours(kornia.losses.ssim.SSIMLoss)
kornia.losses.ssim.SSIMLoss(11, reduction="mean")(x, y)
from kornia.losses.dice import DiceLoss
assert not is_ours(DiceLoss) and kornia.losses.DiceLoss is DiceLoss
"""


@pytest.mark.parametrize("hidden", ["", HIDDEN], ids=["as it is", "nothing installed"])
@pytest.mark.parametrize(
    ("package", "names"),
    [("fused_ssim", FUSED_SSIM_NAMES), ("fussim", FUSSIM_NAMES), ("pytorch_msssim", PYTORCH_MSSSIM_NAMES)],
)
def test_whole_packages(run, hidden, package, names):
    run(hidden, f"compat.install({package!r})", names)


def test_fused_ssim3d(run):
    run(
        HIDDEN,
        """
compat.install("fused_ssim3d")
from fused_ssim3d import FusedSSIMMap, allowed_padding, fused_ssim2d, fused_ssim3d
assert allowed_padding == ["same", "valid"]
assert FusedSSIMMap.apply(0.01**2, 0.03**2, x, y).shape == x.shape
assert fused_ssim2d(x, x) == 1
""",
    )


def test_kornia_before_it_is_imported(run):
    run("compat.install('kornia')", KORNIA_NAMES)


def test_kornia_after_it_is_imported(run):
    run(
        """
import kornia.losses, kornia.metrics
losses, metrics, ssim_module = kornia.losses, kornia.metrics, kornia.losses.ssim
bound_before = losses.SSIMLoss
compat.install("kornia")
assert is_ours(losses.ssim_loss) and is_ours(metrics.ssim) and is_ours(ssim_module.SSIMLoss)
assert losses.SSIMLoss is not bound_before
""",
        KORNIA_NAMES,
    )


TORCHMETRICS_NAMES = """
import torchmetrics, torchmetrics.functional.image, torchmetrics.image
from torchmetrics.functional import structural_similarity_index_measure as function
from torchmetrics.functional.image.ssim import multiscale_structural_similarity_index_measure as multiscale
from torchmetrics.image import StructuralSimilarityIndexMeasure as Metric
from torchmetrics.image.ssim import MultiScaleStructuralSimilarityIndexMeasure as MultiScale
assert torchmetrics.functional.image.structural_similarity_index_measure is function
for value in (function, multiscale, Metric, MultiScale):
    assert is_ours(value), value
metric = pickle.loads(pickle.dumps(torchmetrics.MetricCollection([Metric(data_range=1.0)])))
torch.testing.assert_close(metric(x, y)["StructuralSimilarityIndexMeasure"], function(x, y, data_range=1.0))
assert not is_ours(torchmetrics.functional.image.peak_signal_noise_ratio)
"""

SKIMAGE_NAMES = """
import numpy as np, skimage.metrics
from skimage.metrics import structural_similarity
assert is_ours(structural_similarity) and is_ours(skimage.metrics.structural_similarity)
assert structural_similarity(np.eye(9), np.eye(9), data_range=1) == 1
assert not is_ours(skimage.metrics.peak_signal_noise_ratio)
"""

MONAI_NAMES = """
import monai.losses, monai.metrics
from monai.losses.ssim_loss import SSIMLoss
from monai.metrics.regression import MultiScaleSSIMMetric, SSIMMetric, compute_ms_ssim, compute_ssim_and_cs
assert monai.losses.SSIMLoss is SSIMLoss and monai.metrics.SSIMMetric is SSIMMetric
for value in (SSIMLoss, MultiScaleSSIMMetric, SSIMMetric, compute_ms_ssim, compute_ssim_and_cs):
    assert is_ours(value), value
torch.testing.assert_close(1 - SSIMLoss(2)(x, y), SSIMMetric(2)(x, y).mean())
assert not is_ours(monai.losses.DiceLoss)
"""

PIQ_NAMES = """
import piq
from piq import MultiScaleSSIMLoss, SSIMLoss, multi_scale_ssim, ssim
for value in (MultiScaleSSIMLoss, SSIMLoss, multi_scale_ssim, ssim, sys.modules["piq.ssim"].ssim):
    assert is_ours(value), value
torch.testing.assert_close(SSIMLoss()(x, y), 1 - piq.ssim(x, y))
assert not is_ours(piq.psnr)
"""

GSPLAT_NAMES = """
import gsplat, gsplat.losses
from gsplat.losses import masked_ssim, ssim_loss
assert is_ours(ssim_loss) and is_ours(masked_ssim) and gsplat.ssim_loss is ssim_loss
ssim_loss(x, y)
assert not is_ours(gsplat.losses.l1_loss)
"""

#: The package's modules that are imported first, and code that uses its names.
PARTS = {
    "torchmetrics": ("torchmetrics.functional, torchmetrics.image", TORCHMETRICS_NAMES),
    "skimage": ("skimage.metrics", SKIMAGE_NAMES),
    "monai": ("monai.losses, monai.metrics", MONAI_NAMES),
    "piq": ("piq", PIQ_NAMES),
    "gsplat.losses": ("gsplat.losses", GSPLAT_NAMES),
}


@pytest.mark.parametrize("name", PARTS)
def test_packages_of_which_a_part_is_replaced(run, name):
    pytest.importorskip(name, reason=f"{name} is not installed, or lacks a package that it needs", exc_type=ImportError)
    modules, names = PARTS[name]
    name = name.split(".")[0]
    run(f"compat.install({name!r})", names)
    run(
        f"""
import {modules}
before = state({name!r})
compat.install({name!r})
compat.install({name!r})
""",
        names,
        f"""
compat.uninstall({name!r})
after = state({name!r})
assert_unchanged(before, {{key: value for key, value in after.items() if key in before}})
modules = {{key: str(getattr(value, "__module__", "")) for key, value in after.items()}}
assert not [key for key, module in modules.items() if module.startswith("splat_ssim.compat")]
""",
    )


def test_a_package_that_is_not_installed(run):
    run(
        """
sys.modules["torchmetrics"] = None
try:
    compat.install("fused_ssim", "torchmetrics")
except ImportError as problem:
    assert "torchmetrics" in str(problem) and "fused_ssim" not in sys.modules
else:
    raise AssertionError("no error")
from splat_ssim.compat import torchmetrics as ours
ours.structural_similarity_index_measure(x, y)
try:
    ours.StructuralSimilarityIndexMeasure
except ImportError as problem:
    assert "StructuralSimilarityIndexMeasure needs torchmetrics to be installed" in str(problem), problem
else:
    raise AssertionError("no error")
"""
    )


def test_older_kornia_gets_the_older_definitions(run):
    run(
        """
import kornia
kornia.__version__ = "0.8.1"
compat.install("kornia")
import kornia.losses
assert kornia.losses.ssim3d_loss.__module__ == "splat_ssim.compat.kornia_0_8"
assert kornia.losses.ssim3d.SSIM3DLoss.__module__ == "splat_ssim.compat.kornia_0_8"
assert kornia.losses.ms_ssim.MS_SSIMLoss.__module__ == "splat_ssim.compat.kornia_0_8"
assert kornia.losses.ssim_loss.__module__ == "splat_ssim.compat.kornia"
"""
    )


def test_a_package_that_was_imported_before(run):
    run(
        """
import pytorch_msssim
import sys
held, held_ssim = pytorch_msssim, sys.modules["pytorch_msssim.ssim"]
bound_before = pytorch_msssim.ssim
theirs = bound_before(x, y, data_range=1.0)
held_names = dict(vars(held_ssim))
compat.install("pytorch_msssim")
assert is_ours(held.ssim) and is_ours(held.SSIM) and is_ours(held.MS_SSIM)
assert not is_ours(bound_before)  # cannot change
assert vars(held_ssim) == held_names and sys.modules["pytorch_msssim.ssim"] is not held_ssim
torch.testing.assert_close(bound_before(x, y, data_range=1.0), theirs, rtol=0, atol=0)
""",
        PYTORCH_MSSSIM_NAMES,
    )


#: Classes of each package, the options that they are made with, and the images.
CLASSES = {
    "pytorch_msssim": (
        "pytorch_msssim",
        "[(pytorch_msssim.SSIM, {'data_range': 1.0}), (pytorch_msssim.MS_SSIM, {'win_size': 3, 'weights': [1.0]})]",
    ),
    "kornia": (
        "kornia.losses, kornia.metrics",
        "[(kornia.metrics.SSIM, {'window_size': 5}), (kornia.losses.SSIMLoss, {'window_size': 5}),"
        " (kornia.losses.MS_SSIMLoss, {}), (kornia.losses.PSNRLoss, {'max_val': 1.0}),"
        " (kornia.losses.CharbonnierLoss, {'reduction': 'mean'})]",
    ),
    "torchmetrics": (
        "torchmetrics.image",
        "[(torchmetrics.image.StructuralSimilarityIndexMeasure, {'data_range': 1.0}),"
        " (torchmetrics.image.MultiScaleStructuralSimilarityIndexMeasure, {'betas': (1.0,), 'data_range': 1.0})]",
    ),
    "monai": (
        "monai.losses, monai.metrics",
        "[(monai.losses.SSIMLoss, {'spatial_dims': 2}), (monai.metrics.SSIMMetric, {'spatial_dims': 2})]",
    ),
    "piq": ("piq", "[(piq.SSIMLoss, {}), (piq.MultiScaleSSIMLoss, {'kernel_size': 1})]"),
}


@pytest.mark.parametrize("name", CLASSES)
def test_classes_that_were_bound_or_subclassed_before(run, name):
    """pytorch_msssim's classes call `super(SSIM, self)`, which must not find our class under this name."""
    pytest.importorskip(name, reason=f"{name} is not installed, or lacks a package that it needs", exc_type=ImportError)
    modules, classes = CLASSES[name]
    run(
        f"""
import {modules}
bound = {classes}
subclasses = [(type("Mine", (kind,), {{}}), options) for kind, options in bound]
x, y = torch.rand(1, 3, 48, 48), torch.rand(1, 3, 48, 48)
expected = [kind(**options)(x, y) for kind, options in bound]
for _ in range(2):
    compat.install({name!r})
    for (kind, options), value in zip(bound + subclasses, expected * 2):
        torch.testing.assert_close(kind(**options)(x, y), value, rtol=0, atol=1e-4)
    compat.uninstall()
"""
    )


def test_a_package_of_the_same_name_that_lacks_some(run):
    """An old fused_ssim, for example, has no FusedSSIMMap and no submodules."""
    run(
        """
old = types.ModuleType("fused_ssim")
old.fused_ssim = lambda img1, img2: "theirs"
sys.modules["fused_ssim"] = old
before = state("fused_ssim")
compat.install("fused_ssim")
assert sys.modules["fused_ssim"] is old and is_ours(old.fused_ssim)
""",
        FUSED_SSIM_NAMES,
        """
compat.uninstall("fused_ssim")
assert_unchanged(before, state("fused_ssim"))
assert old.fused_ssim(x, y) == "theirs" and not hasattr(old, "FusedSSIMMap")
""",
    )


@pytest.mark.parametrize("imported", [False, True])
def test_uninstall_restores_what_was_there(run, imported):
    run(
        f"""
names = {NAMES}
import kornia.losses, kornia.metrics
if {imported}:
    import pytorch_msssim
before = state(*names)
compat.install(*names)
assert sys.modules["fused_ssim"].FusedSSIMMap is not None
compat.install("kornia", "pytorch_msssim")  # twice
compat.install(*reversed(names))
compat.uninstall("pytorch_msssim")
import pytorch_msssim
assert pytorch_msssim.ssim.__module__ == "pytorch_msssim.ssim"
compat.uninstall("pytorch_msssim", "kornia")
assert kornia.losses.ssim_loss.__module__ == "kornia.losses.ssim"
compat.install("kornia")
compat.uninstall()
compat.uninstall()
compat.uninstall(*names)
if not {imported}:
    del sys.modules["pytorch_msssim"], sys.modules["pytorch_msssim.ssim"]
assert_unchanged(before, state(*names))
"""
    )


def test_uninstall_leaves_what_others_have_put_there(run):
    run(
        """
import kornia.losses
compat.install("kornia", "fused_ssim")
kornia.losses.ssim_loss = other = lambda img1, img2: 0
sys.modules["fused_ssim"] = third = types.ModuleType("fused_ssim")
compat.uninstall()
assert kornia.losses.ssim_loss is other and sys.modules["fused_ssim"] is third
assert kornia.losses.SSIMLoss.__module__ == "kornia.losses.ssim"
"""
    )


def test_install_again_after_an_import(run):
    run(
        """
compat.install("pytorch_msssim")
for name in ("pytorch_msssim", "pytorch_msssim.ssim"):  # a test runner that cleans up, say
    del sys.modules[name]
import pytorch_msssim
assert not is_ours(pytorch_msssim.ssim)
compat.install("pytorch_msssim")
assert is_ours(pytorch_msssim.ssim)
compat.uninstall("pytorch_msssim")
assert not is_ours(pytorch_msssim.ssim)
"""
    )


@pytest.mark.parametrize("imported", ["", "import pytorch_msssim"])
def test_pickles_of_pytorch_msssim(run, imported, tmp_path):
    """A pickle written by the original loads as our module and gives the same numbers."""
    path = tmp_path / "modules.pkl"
    options = [
        ("SSIM", {"data_range": 1.0}),
        ("SSIM", {"data_range": 2, "win_size": 7, "win_sigma": 0.8, "K": (0.02, 0.05), "size_average": False}),
        ("SSIM", {"data_range": 1.0, "win_size": 5, "channel": 1, "spatial_dims": 3, "nonnegative_ssim": True}),
        ("MS_SSIM", {"data_range": 1.0, "win_size": 3, "weights": [0.4, 0.6]}),
    ]
    images = """
torch.manual_seed(0)
def images(index, dtype):
    shape = (2, 1, 8, 9, 10) if index == 2 else (2, 3, 40, 44)
    img1 = torch.rand(shape, dtype=torch.float64)
    return img1.to(dtype), (img1 + 0.1 * torch.randn(shape, dtype=torch.float64)).to(dtype)
pairs = [images(index, dtype) for index in range(4) for dtype in (torch.float32, torch.float64)]
"""
    run(
        images,
        f"""
import pytorch_msssim
modules = [getattr(pytorch_msssim, name)(**options) for name, options in {options!r}]
values = [modules[index // 2](*pair) for index, pair in enumerate(pairs)]
torch.save((modules, torch.nn.Sequential(torch.nn.Linear(2, 2), modules[0]).state_dict(), values), {str(path)!r})
""",
    )
    run(
        images,
        imported,
        f"""
compat.install("pytorch_msssim")
modules, state_dict, values = torch.load({str(path)!r}, weights_only=False)
for index, pair in enumerate(pairs):
    module = modules[index // 2]
    assert is_ours(type(module)), type(module)
    tolerance = 1e-5 if pair[0].dtype == torch.float32 else 1e-12
    torch.testing.assert_close(module(*pair), values[index], rtol=0, atol=tolerance)
    again = pickle.loads(pickle.dumps(module))
    torch.testing.assert_close(again(*pair), module(*pair), rtol=0, atol=0)
    torch.testing.assert_close(again.win, module.win, rtol=0, atol=0)
import pytorch_msssim
torch.nn.Sequential(torch.nn.Linear(2, 2), pytorch_msssim.SSIM()).load_state_dict(state_dict)
""",
    )


def test_pickles_of_kornia(run, tmp_path):
    path = tmp_path / "modules.pkl"
    run(
        f"""
import kornia.losses as L, kornia.metrics as M
torch.manual_seed(0)
img1, img2 = torch.rand(2, 3, 20, 20), torch.rand(2, 3, 20, 20)
modules = [M.SSIM(5), L.SSIMLoss(7, 2.0, 1e-6, "sum", "valid"), L.MS_SSIMLoss(), L.MS_SSIMLoss((1.0, 1.5), 2.0),
           L.PSNRLoss(2.0), L.InverseDepthSmoothnessLoss(), L.CharbonnierLoss("mean"), L.WelschLoss(), L.CauchyLoss(),
           L.GemanMcclureLoss("sum")]
values = [module(img1, img2) for module in modules]
state_dict = torch.nn.Sequential(torch.nn.Linear(2, 2), *modules).state_dict()
torch.save((modules, values, img1, img2, state_dict), {str(path)!r})
"""
    )
    run(
        f"""
compat.install("kornia")
modules, values, img1, img2, state_dict = torch.load({str(path)!r}, weights_only=False)
for module, value in zip(modules, values):
    assert is_ours(type(module)), type(module)
    torch.testing.assert_close(module(img1, img2), value, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(pickle.loads(pickle.dumps(module))(img1, img2), module(img1, img2), rtol=0, atol=0)
import kornia.losses as L
torch.nn.Sequential(torch.nn.Linear(2, 2), *modules).load_state_dict(state_dict)
"""
    )


@pytest.mark.parametrize("function", [splat_ssim.compat.install, splat_ssim.compat.uninstall])
def test_unknown_names(function):
    with pytest.raises(ValueError, match=r"out of fused_ssim, .*, kornia, .*, got lpips"):
        function("fused_ssim", "lpips")


def test_install_refuses_no_names():
    with pytest.raises(ValueError, match="got none"):
        splat_ssim.compat.install()


@pytest.mark.parametrize(
    ("break_kornia", "error"),
    [
        ("sys.modules['kornia'] = None", "kornia"),
        ("import kornia; kornia.__version__ = 'main'", "kornia.__version__ must start with two numbers, got 'main'"),
        ("import kornia; del kornia.__version__", "kornia.__version__ must start with two numbers, got None"),
    ],
)
def test_nothing_is_installed_where_kornia_cannot_be(run, break_kornia, error):
    run(
        break_kornia,
        f"""
before = state("fused_ssim", "kornia.losses", "kornia.metrics")
try:
    compat.install("fused_ssim", "kornia")
except ImportError as problem:
    assert {error!r} in str(problem), problem
else:
    raise AssertionError("no error")
after = state("fused_ssim", "kornia.losses", "kornia.metrics")
assert "fused_ssim" not in sys.modules
assert_unchanged({{key: value for key, value in after.items() if key in before}}, before)
""",
    )
