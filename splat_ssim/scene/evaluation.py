"""Evaluates a scene: PSNR and SSIM of views, and pictures of render, truth and error."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from splat_ssim.errors import UserError
from splat_ssim.functional import ssim
from splat_ssim.scene.data import View
from splat_ssim.scene.exposure import color_corrected
from splat_ssim.trainer.metrics import psnr, reported_psnr
from splat_ssim.trainer.pictures import save_comparison


def check_padding(views: Sequence[View], ssim_padding: str) -> None:
    """Raises UserError for the first view that is too small for the SSIM that `evaluate` will report."""
    for view in views:
        # Only sides shorter than the window can be too small, so a probe of at most 32 pixels a side shows the problem.
        probe = torch.zeros(1, 1, min(view.height, 32), min(view.width, 32))
        try:
            ssim(probe, probe, padding=ssim_padding)
        except ValueError as error:
            raise UserError(f"{view.name}: output.ssim_padding {ssim_padding}: {error}") from None


@torch.no_grad()
def evaluate(
    render_view: Callable[[View], Tensor],
    views: Iterable[View],
    *,
    ssim_padding: str = "same",
    pictures: Path | None = None,
    max_pictures: int = 0,
    corrected: bool = False,
    perceptual: Callable[[Tensor, Tensor, Tensor | None], float] | None = None,
) -> dict[str, Any]:
    """Computes PSNR and SSIM of rendered views, each over the pixels that its mask keeps, and their means over views.

    Args:
        render_view: Function (view) -> (1, H, W, 3) colours.
        views: Views with the photographs to compare with.
        ssim_padding: Padding of SSIM, as for `splat_ssim.ssim`.
        pictures: Folder for pictures of the first `max_pictures` views: render, truth and error side by side.
        max_pictures: Number of views that get a picture.
        corrected: Whether to report cc_psnr and cc_ssim too: metrics of renders whose colours were fitted to the
            truth's by an affine map. They are useful because a test view's own exposure is unknown.
        perceptual: LPIPS network, see `scene.lpips.make_lpips`.

    Returns:
        psnr, ssim, ssim_padding, lpips if there is a network, and a row for each view with name, psnr, ssim and lpips.
    """
    rows = []
    for index, view in enumerate(views):
        target = view.pixels()
        pred = render_view(view).permute(0, 3, 1, 2).clamp(0, 1)
        mask = None if view.mask is None else view.mask[None, None].to(pred.dtype)
        row: dict[str, Any] = {"name": view.name}
        renders = {"": pred, "cc_": color_corrected(pred, target, view.mask)} if corrected else {"": pred}
        for prefix, render in renders.items():
            row[f"{prefix}psnr"] = reported_psnr(psnr(render, target, view.mask))
            row[f"{prefix}ssim"] = float(ssim(render, target, padding=ssim_padding, mask=mask))
            if perceptual is not None:
                row[f"{prefix}lpips"] = perceptual(render, target, view.mask)
        rows.append(row)
        if pictures is not None and index < max_pictures:
            save_comparison(pictures / f"{index:04d}.png", pred, target)
    means = {key: float(np.mean([row[key] for row in rows])) for key in rows[0] if key != "name"}
    return {**means, "ssim_padding": ssim_padding, "views": rows}
