"""`pytorch_msssim.ssim`, the module behind the package: public code imports private names from it.

It has no `__all__`, as the original: some code relies on what `from pytorch_msssim.ssim import *` brings along.
"""

# ruff: noqa: F401, UP035
import warnings
from typing import List, Optional, Tuple, Union

import torch
import torch.nn.functional as F
from torch import Tensor

from splat_ssim.compat.pytorch_msssim import (
    MS_SSIM,
    SSIM,
    _fspecial_gauss_1d,
    _ssim,
    gaussian_filter,
    ms_ssim,
    ssim,
)
