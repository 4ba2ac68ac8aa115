"""Times the losses of other packages against our drop-ins for them, forward and backward, in turn in one process.

    python -m benchmarks.drop_ins

Each row is one loss at its defaults on one size: the median of the original's time by the median of ours, and of the
ratio pair by pair. The results must agree before anything is timed. Writes drop_ins.csv.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from torch import Tensor

import splat_ssim
from benchmarks.measure import Machine, add_output, commit, interleaved, medians, output_folder, run, update
from splat_ssim.compat import kornia, pytorch_msssim

Loss = Callable[[Tensor, Tensor], Tensor]


def losses() -> dict[str, tuple[str, str, tuple[int, ...], Loss, Loss]]:
    """Name -> (package, what of ours, shape, the original, ours)."""
    import kornia.losses as original_kornia
    import pytorch_msssim as original_msssim

    images, volumes = (1, 3, 256, 256), (1, 1, 64, 64, 64)
    ms_ssim_loss = original_kornia.MS_SSIMLoss(), kornia.MS_SSIMLoss()

    def ranged(function: Callable[..., Tensor]) -> Loss:
        return lambda x, y: function(x, y, data_range=1.0)

    return {
        "kornia ssim_loss": (
            "kornia",
            "drop-in",
            images,
            lambda x, y: original_kornia.ssim_loss(x, y, 11),
            lambda x, y: kornia.ssim_loss(x, y, 11),
        ),
        "kornia ssim3d_loss": (
            "kornia",
            "drop-in",
            volumes,
            lambda x, y: original_kornia.ssim3d_loss(x, y, 11),
            lambda x, y: kornia.ssim3d_loss(x, y, 11),
        ),
        "kornia MS_SSIMLoss": ("kornia", "drop-in", images, *ms_ssim_loss),
        "pytorch_msssim ssim": (
            "pytorch-msssim",
            "drop-in",
            images,
            ranged(original_msssim.ssim),
            ranged(pytorch_msssim.ssim),
        ),
        "pytorch_msssim ms_ssim": (
            "pytorch-msssim",
            "drop-in",
            images,
            ranged(original_msssim.ms_ssim),
            ranged(pytorch_msssim.ms_ssim),
        ),
        "ms_ssim": ("pytorch-msssim", "splat_ssim", images, ranged(original_msssim.ms_ssim), splat_ssim.ms_ssim),
    }


def call_of(function: Loss, shape: tuple[int, ...]) -> Callable[[], tuple[Tensor, Tensor]]:
    """Forward and backward on images of this shape: (value, gradient)."""
    generator = torch.Generator().manual_seed(0)
    img1 = torch.rand(shape, generator=generator)
    img2 = (img1 + 0.1 * torch.randn(shape, generator=generator)).clamp(0, 1)
    img1.requires_grad_()

    def call() -> tuple[Tensor, Tensor]:
        value = function(img1, img2)
        return value, torch.autograd.grad(value, img1)[0]

    return call


def main() -> None:
    """Command line."""
    from importlib.metadata import version

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=30)
    add_output(parser)
    arguments = parser.parse_args()
    output = output_folder(arguments.output, arguments.dirty_ok)
    machine = Machine("cpu", arguments.threads)
    provenance = {"threads": arguments.threads, "device": machine.name, "torch": torch.__version__, "commit": commit()}
    rows = []
    for name, (package, form, shape, original, ours) in losses().items():
        calls = call_of(original, shape), call_of(ours, shape)
        (value, grad), (own_value, own_grad) = (call() for call in calls)
        if abs(value - own_value) > 1e-4 * abs(value) or (grad - own_grad).abs().max() > 1e-3 * grad.abs().max():
            raise AssertionError(f"{name} must equal the original, got {own_value} for {value}")
        rounds = arguments.rounds
        times = medians(interleaved(machine, {name: calls}, float("inf"), rounds, rounds)[name])
        size = "x".join(map(str, shape))
        print(f"{name:24} {size:14} {times['milliseconds']:9.3f} ms: {times['ratio']:6.1f} times ours")
        row = {"name": name, "version": version(package), "form": form, "size": size, "mode": "forward+backward"}
        rows.append({**row, **times, **provenance})
    update(output / "drop_ins.csv", rows, ("name", "size", "mode", "threads", "device"))


if __name__ == "__main__":
    run(main)
