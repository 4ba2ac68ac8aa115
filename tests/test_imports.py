"""The loss half of the package only needs torch and numpy, and does not import the trainer half."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# Packages that the trainer, the volumes, the viewer, the benchmark and the compared packages import.
BLOCKED = """gsplat tyro yaml tqdm imageio PIL pycolmap tensorboard nibabel tifffile zarr dask viser matplotlib
SimpleITK imagecodecs h5py mrcfile
pytorch_msssim kornia torchmetrics skimage monai piq scipy splat_ssim.trainer splat_ssim.render splat_ssim.strategy
splat_ssim.volume splat_ssim.optim splat_ssim.scene splat_ssim.image splat_ssim.ply""".split()

PROGRAM = f"""
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if any(name == blocked or name.startswith(blocked + ".") for blocked in {BLOCKED!r}):
            raise ModuleNotFoundError(f"blocked: {{name}}")
sys.meta_path.insert(0, Block())
import torch
import splat_ssim, splat_ssim.loss, splat_ssim.registry, splat_ssim.reference
import splat_ssim.compat, splat_ssim.compat.fused_ssim, splat_ssim.compat.fused_ssim3d
import splat_ssim.compat.kornia, splat_ssim.compat.kornia_0_8, splat_ssim.compat.pytorch_msssim
import splat_ssim.compat.torchmetrics, splat_ssim.compat.skimage, splat_ssim.compat.monai
import splat_ssim.compat.piq, splat_ssim.compat.gsplat, splat_ssim.compat.fussim
image = torch.rand(1, 3, 24, 24, requires_grad=True)
splat_ssim.loss.photometric_loss(image, torch.rand(1, 3, 24, 24)).backward()
assert image.grad is not None
try:
    splat_ssim.load_ply
except ModuleNotFoundError as error:
    print(error)
"""


def test_the_loss_half_imports_alone():
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    # The trainer half is imported only when one of its functions is used.
    assert done.stdout.strip() == "blocked: splat_ssim.ply"


def test_no_bare_class_variables():
    """Python 3.10 evaluates the hints of no class that has one."""
    bare = [
        path for path in (ROOT / "splat_ssim").rglob("*.py") if re.search(r": ClassVar($| =)", path.read_text(), re.M)
    ]
    assert not bare
