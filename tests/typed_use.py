"""A user's code. `make check` checks its types with mypy, and test_loss.py runs it."""

import torch
from torch import Tensor

import splat_ssim
from splat_ssim.loss import PhotometricLoss, ms_ssim_l1_loss, photometric_loss


def losses() -> list[Tensor]:
    """One loss of each kind."""
    render, truth = torch.rand(1, 3, 40, 40, requires_grad=True), torch.rand(1, 3, 40, 40)
    plain: Tensor = photometric_loss(render, truth)
    with_terms, terms = photometric_loss(render, truth, lambda_dssim=0.3, return_terms=True)
    l1: Tensor = terms["l1"]
    multi_scale: Tensor = ms_ssim_l1_loss(render, truth, weights=(0.5, 0.5))
    similarity: Tensor = 1 - splat_ssim.ssim(render, truth, padding="valid")
    module: Tensor = PhotometricLoss(channels_last=False)(render, truth)
    return [plain, with_terms, l1, multi_scale, similarity, module]
