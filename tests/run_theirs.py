"""Runs another project's training script, unedited, on the CPU: python -m tests.run_theirs [options] SCRIPT ARGUMENTS…

"cuda" stands for the CPU, `gsplat.rasterization` is answered by `splat_ssim.render`, and the loss is ours or the
original (`--loss`). Every loss that the script calls backward of, the gradients of its first steps, and where its
renderer and loss come from, are recorded in a file (`--record`), for tests/test_theirs.py to compare.
"""

import argparse
import importlib.util
import runpy
import sys
import types
from pathlib import Path

import torch
import torch.nn.functional as F
import torch.utils.cpp_extension
from torch.optim.optimizer import register_optimizer_step_pre_hook

from splat_ssim import compat
from tests.cuda_is_cpu import cuda_is_cpu

#: Steps of which the gradients are kept.
KEPT = 3


def textbook_ssim(img1, img2, padding="same", train=True):
    """fused_ssim's value in plain torch: Z. Wang et al. (2004), an 11-tap Gaussian of sigma 1.5, for (B, C, H, W)."""
    channels = img1.shape[1]
    x = torch.arange(11, dtype=img1.dtype) - 5
    taps = torch.exp(-(x**2) / (2 * 1.5**2))
    taps = taps / taps.sum()
    window = torch.outer(taps, taps).expand(channels, 1, 11, 11)

    def blurred(image):
        return F.conv2d(image, window, padding=5 if padding == "same" else 0, groups=channels)

    mu1, mu2 = blurred(img1), blurred(img2)
    var1, var2 = blurred(img1 * img1) - mu1**2, blurred(img2 * img2) - mu2**2
    cov = blurred(img1 * img2) - mu1 * mu2
    c1, c2 = 0.01**2, 0.03**2
    return ((2 * mu1 * mu2 + c1) * (2 * cov + c2) / ((mu1**2 + mu2**2 + c1) * (var1 + var2 + c2))).mean()


def install(loss):
    """Puts our renderer behind gsplat, and installs the requested loss."""
    # With a CUDA toolkit but no GPU, gsplat would compile its kernels.
    torch.utils.cpp_extension._find_cuda_home = lambda: None
    import gsplat  # noqa: F401

    own = getattr(sys.modules.get("gsplat.losses"), "ssim_loss", None)
    compat.install("gsplat")
    if loss == "installed":
        compat.install("fused_ssim", "pytorch_msssim")
    elif own is not None:
        for module in [module for name, module in sys.modules.items() if name.split(".")[0] == "gsplat"]:
            if hasattr(module, "ssim_loss"):
                module.ssim_loss = own
    if loss == "original":
        # fused_ssim itself needs CUDA.
        module = types.ModuleType("fused_ssim")
        module.fused_ssim = textbook_ssim
        sys.modules["fused_ssim"] = module


def origins(script):
    """Name in the script -> module that its renderer or loss comes from."""
    scope = {**script, **vars(sys.modules.get("nerfstudio.models.splatfacto", types.ModuleType("none")))}
    names = ("rasterization", "fused_ssim", "ssim_loss", "SSIM")
    return {name: scope[name].__module__ for name in names if name in scope}


def without_weights():
    """Uses LPIPS networks without pretrained weights. Their values mean nothing, but nothing is downloaded."""
    if importlib.util.find_spec("torchvision") is None:
        return
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        # A torchvision for CUDA does not load its compiled half with a torch for the CPU. It is not needed.
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    from torchvision import models

    for name in ("alexnet", "vgg16"):
        make = getattr(models, name)
        setattr(models, name, lambda *_, make=make, **__: make(weights=None))


def record(found):
    """Records losses and gradients in `found` while the script trains."""
    backward = torch.autograd.backward

    def recorded(tensors, *arguments, **keywords):
        loss = tensors[0] if isinstance(tensors, tuple) else tensors
        found["losses"].append(loss.item())
        return backward(tensors, *arguments, **keywords)

    def before_step(optimizer, arguments, keywords):
        step = len(found["losses"]) - 1
        if step >= KEPT:
            return
        while len(found["gradients"]) <= step:
            found["gradients"].append([])
        for group in optimizer.param_groups:
            found["gradients"][step] += [p.grad.detach().clone() for p in group["params"] if p.grad is not None]

    torch.autograd.backward = recorded
    register_optimizer_step_pre_hook(before_step)


def main():
    parser = argparse.ArgumentParser()
    # With "edited", the script imports our version itself.
    parser.add_argument("--loss", choices=["installed", "original", "edited"], default="installed")
    parser.add_argument("--record", type=Path)
    parser.add_argument("script", type=Path)
    parser.add_argument("arguments", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    found = {"losses": [], "gradients": []}
    sys.argv = [str(options.script), *options.arguments]
    sys.path.insert(0, str(options.script.resolve().parent))
    with cuda_is_cpu():
        install(options.loss)
        without_weights()
        record(found)
        found["origins"] = origins(runpy.run_path(str(options.script), run_name="__main__"))
    if options.record is not None:
        torch.save(found, options.record)


if __name__ == "__main__":
    main()
