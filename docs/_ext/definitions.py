"""Every package's SSIM beside ours: the rows of the definition page, which tests/test_definition.py measures.

`theirs` and `ours` are Python expressions on the same images, and give the same number. In them `a` and `b` are two
batches of RGB images (2, 3, 48, 56) with values in [0, 1], `large_a` and `large_b` the same of 192 by 200 pixels, and
`u` and `v` two volumes (1, 1, 20, 22, 24).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Definition:
    """One function of one package: what it computes, and the call of ours that gives the same number."""

    package: str
    call: str
    #: Imports that `theirs` needs.
    imports: str
    theirs: str
    ours: str
    padding: str
    window: str
    sigma: str
    covariance: str
    data_range: str
    returns: str
    dtype: str
    volumes: str
    #: What `theirs` is evaluated with: the package itself, or our drop-in where the package needs a GPU.
    held_to: str


_BIASED = "biased"
_HALF = "the images'"

DEFINITIONS = [
    Definition(
        "fused-ssim",
        "`fused_ssim(a, b)`",
        "from splat_ssim.compat.fused_ssim import fused_ssim",
        "fused_ssim(a, b)",
        "ssim(a, b)",
        "zeros (`same`, the default)",
        "11, Gaussian",
        "1.5, fixed",
        _BIASED,
        "1, fixed",
        "mean; no clamp",
        "float32",
        "`fused_ssim3d`, zeros",
        "our drop-in: the package needs a GPU",
    ),
    Definition(
        "fused-ssim",
        '`fused_ssim(a, b, padding="valid")`',
        "from splat_ssim.compat.fused_ssim import fused_ssim",
        'fused_ssim(a, b, padding="valid")',
        'ssim(a, b, padding="valid")',
        "none (`valid`)",
        "11, Gaussian",
        "1.5, fixed",
        _BIASED,
        "1, fixed",
        "mean; no clamp; NaN for sides of 10 or less (ours: an error)",
        "float32",
        '`fused_ssim3d(padding="valid")`',
        "our drop-in: the package needs a GPU",
    ),
    Definition(
        "fussim",
        "`fussim.ssim(a, b, data_range=1.0)`",
        "from splat_ssim.compat import fussim",
        "fussim.ssim(a, b, data_range=1.0)",
        'ssim(a, b, padding="valid")',
        "none; `fused_ssim` has zeros too",
        "7, 9 or 11 (default), Gaussian",
        "1.5, fixed",
        _BIASED,
        "255 unless given",
        "mean; `nonnegative_ssim` clamps each pixel at 0",
        "float32, float16",
        "no",
        "our drop-in: the package needs a GPU",
    ),
    Definition(
        "pytorch-msssim 1.0",
        "`ssim(a, b, data_range=1)`",
        "import pytorch_msssim",
        "pytorch_msssim.ssim(a, b, data_range=1)",
        'ssim(a, b, padding="valid")',
        "none; an axis shorter than the window is not filtered at all",
        "11, Gaussian, rounded to float32",
        "1.5",
        _BIASED,
        "255 unless given",
        "mean, or one per image; `nonnegative_ssim` clamps the mean of each channel at 0",
        _HALF,
        "yes, the same",
        "the package",
    ),
    Definition(
        "pytorch-msssim 1.0",
        "`ssim(u, v, data_range=1)`, volumes",
        "import pytorch_msssim",
        "pytorch_msssim.ssim(u, v, data_range=1)",
        'ssim3d(u, v, padding="valid")',
        "none",
        "11, Gaussian, rounded to float32",
        "1.5",
        _BIASED,
        "255 unless given",
        "mean, or one per volume",
        _HALF,
        "yes, the same",
        "the package",
    ),
    Definition(
        "kornia 0.9",
        "`kornia.losses.ssim_loss(a, b, 11)`",
        "import kornia",
        "kornia.losses.ssim_loss(a, b, 11)",
        '(1 - ssim(a, b, padding="reflect")) / 2',
        "reflect (`same`, the default)",
        "an argument without a default, Gaussian",
        "1.5, fixed",
        _BIASED,
        "1 (`max_val`)",
        "mean of (1 - S)/2, clamped to [0, 1]; `eps` 1e-12 in the denominator",
        "the images'",
        "`ssim3d_loss`",
        "the package",
    ),
    Definition(
        "kornia 0.9",
        "`kornia.metrics.ssim(a, b, 11)`",
        "import kornia",
        "kornia.metrics.ssim(a, b, 11)",
        'ssim(a, b, padding="reflect", reduction="none")',
        'reflect; `padding="valid"` has none',
        "an argument without a default, Gaussian",
        "1.5, fixed",
        _BIASED,
        "1 (`max_val`)",
        "the map; no clamp; `eps` 1e-12 in the denominator",
        "the images'",
        "`ssim3d`",
        "the package",
    ),
    Definition(
        "kornia 0.9",
        "`kornia.losses.ssim3d_loss(u, v, 11)`",
        "import kornia",
        "kornia.losses.ssim3d_loss(u, v, 11)",
        '(1 - ssim3d(u, v, padding="reflect")) / 2',
        "reflect; 0.8 and earlier: replicate",
        "an argument without a default, Gaussian",
        "1.5, fixed",
        _BIASED,
        "1 (`max_val`)",
        "mean of (1 - S)/2, clamped to [0, 1]; 0.8 and earlier: 1 - S, no clamp",
        "the volumes'; 0.8 rounds the window to float32",
        "yes",
        "the package",
    ),
    Definition(
        "torchmetrics 1.9",
        "`structural_similarity_index_measure(a, b, data_range=1.0)`",
        "from torchmetrics.functional.image import structural_similarity_index_measure",
        "structural_similarity_index_measure(a, b, data_range=1.0)",
        'ssim(a, b, padding="reflect")',
        "reflect, and the mean is over the full map (versions before late 2024 cropped it)",
        "int(3.5 sigma + 0.5)·2 + 1 taps: 11 for 1.5; `kernel_size` is ignored for Gaussians",
        "1.5",
        "biased, variances clamped at 0",
        "the larger of max - min of the two images, unless given",
        "mean; `reduction` sum or none (one per image)",
        "the images'",
        "yes, the same",
        "the package",
    ),
    Definition(
        "torchmetrics 1.9",
        "`structural_similarity_index_measure(u, v, data_range=1.0)`, volumes",
        "from torchmetrics.functional.image import structural_similarity_index_measure",
        "structural_similarity_index_measure(u, v, data_range=1.0)",
        'ssim3d(u, v, padding="reflect")',
        "reflect",
        "11 for sigma 1.5",
        "1.5",
        "biased, variances clamped at 0",
        "the larger of max - min of the two, unless given",
        "mean; `reduction` sum or none",
        "the volumes'",
        "yes, the same",
        "the package",
    ),
    Definition(
        "MONAI 1.6",
        "`SSIMLoss(spatial_dims=2)(a, b)`",
        "from monai.losses.ssim_loss import SSIMLoss",
        "SSIMLoss(spatial_dims=2)(a, b)",
        '1 - ssim(a, b, padding="valid")',
        "none",
        "11 (`win_size`), Gaussian or uniform",
        "1.5",
        _BIASED,
        "1 unless given",
        "mean of 1 - S; no clamp",
        "always float32",
        "`spatial_dims=3`",
        "the package",
    ),
    Definition(
        "MONAI 1.6",
        "`SSIMLoss(spatial_dims=3)(u, v)`",
        "from monai.losses.ssim_loss import SSIMLoss",
        "SSIMLoss(spatial_dims=3)(u, v)",
        '1 - ssim3d(u, v, padding="valid")',
        "none",
        "11 (`win_size`), Gaussian or uniform",
        "1.5",
        _BIASED,
        "1 unless given",
        "mean of 1 - S; no clamp",
        "always float32",
        "yes",
        "the package",
    ),
    Definition(
        "piq 0.8",
        "`piq.ssim(a, b)`",
        "import piq",
        "piq.ssim(a, b)",
        'ssim(a, b, padding="valid")',
        "none; images whose smaller side is 384 or more are first reduced by block means of about side / 256",
        "11, Gaussian",
        "1.5",
        _BIASED,
        "1 unless given; values outside are an error",
        "mean, sum or one per image; no clamp",
        "the images'",
        "no",
        "the package",
    ),
    Definition(
        "piq 0.8",
        "`piq.ssim` of images with a side of 384 or more",
        "import piq\nimport torch.nn.functional as F",
        "piq.ssim(F.interpolate(a, scale_factor=8), F.interpolate(b, scale_factor=8), downsample=False)",
        'ssim(F.interpolate(a, scale_factor=8), F.interpolate(b, scale_factor=8), padding="valid")',
        "`downsample=False` compares the images as they are",
        "11, Gaussian",
        "1.5",
        _BIASED,
        "1 unless given",
        "mean, sum or one per image",
        "the images'",
        "no",
        "the package",
    ),
    Definition(
        "scikit-image 0.26",
        "`structural_similarity(x, y, channel_axis=2, data_range=1, gaussian_weights=True, sigma=1.5, "
        "use_sample_covariance=False)`",
        "from skimage.metrics import structural_similarity\nx, y = (t[0].permute(1, 2, 0).numpy() for t in (a, b))",
        "structural_similarity(x, y, channel_axis=2, data_range=1, gaussian_weights=True, sigma=1.5, "
        "use_sample_covariance=False)",
        'ssim(a[:1], b[:1], padding="valid")',
        "reflect, but the mean leaves out a border of half the window: the same as none",
        "int(3.5 sigma + 0.5)·2 + 1 taps: 11 for 1.5",
        "1.5",
        "biased with `use_sample_covariance=False`",
        "required for floats; of the dtype for integers",
        "mean; `full=True` gives the map too",
        "float64; float32 for float32 images",
        "yes, the same",
        "the package",
    ),
    Definition(
        "scikit-image 0.26",
        "`structural_similarity(x, y, channel_axis=2, data_range=1, gaussian_weights=True)`",
        "from skimage.metrics import structural_similarity\nx, y = (t[0].permute(1, 2, 0).numpy() for t in (a, b))",
        "structural_similarity(x, y, channel_axis=2, data_range=1, gaussian_weights=True)",
        'ssim(a[:1], b[:1], padding="valid", k2=0.03 * (120 / 121) ** 0.5)',
        "as above",
        "11 for sigma 1.5",
        "1.5",
        "of a sample: times n/(n - 1), n = 121 for 11×11. The same as a smaller C2",
        "required for floats",
        "mean; `full=True` gives the map too",
        "float64; float32 for float32 images",
        "yes; there n = 1331",
        "the package",
    ),
    Definition(
        "scikit-image 0.26",
        "`structural_similarity(x, y, channel_axis=2, data_range=1)`",
        "from skimage.metrics import structural_similarity\nx, y = (t[0].permute(1, 2, 0).numpy() for t in (a, b))",
        "structural_similarity(x, y, channel_axis=2, data_range=1)",
        "compat.skimage.structural_similarity(x, y, channel_axis=2, data_range=1)",
        "as above",
        "7, uniform: not a window of `splat_ssim.ssim`, but the drop-in has it",
        "none",
        "of a sample: times n/(n - 1), n = 49",
        "required for floats",
        "mean; `full=True` gives the map too",
        "float64; float32 for float32 images",
        "yes, the same",
        "the package",
    ),
    Definition(
        "gsplat 1.6",
        "`gsplat.losses.ssim_loss(a, b)` on a CPU, or without fused-ssim",
        "from splat_ssim.compat import gsplat",
        'gsplat.ssim_loss(a, b, padding="same")',
        "1 - ssim(a, b)",
        "zeros; none where fused-ssim is installed and the images are on a GPU: **the value depends on what is "
        "installed**",
        "11, Gaussian",
        "1.5, fixed",
        _BIASED,
        "1, fixed",
        "mean of 1 - S; no clamp",
        "the images'",
        "no",
        "our drop-in: 1.5.3, the newest release on PyPI, has no such function",
    ),
    Definition(
        "gsplat 1.6",
        "`gsplat.losses.ssim_loss(a, b)` on a GPU with fused-ssim",
        "from splat_ssim.compat import gsplat",
        'gsplat.ssim_loss(a, b, padding="valid")',
        '1 - ssim(a, b, padding="valid")',
        "none",
        "11, Gaussian",
        "1.5, fixed",
        _BIASED,
        "1, fixed",
        "mean of 1 - S; no clamp",
        "float32",
        "no",
        "our drop-in: 1.5.3, the newest release on PyPI, has no such function",
    ),
]

#: Packages whose MS-SSIM is Wang's in another order of means and products: only pytorch-msssim's is `ms_ssim`.
MULTI_SCALE = [
    (
        "pytorch-msssim 1.0",
        "import pytorch_msssim",
        "pytorch_msssim.ms_ssim(large_a, large_b, data_range=1)",
        "ms_ssim(large_a, large_b)",
        "product over scales for each channel, then the mean of the channels; odd sides are padded with a zero, which "
        "counts in the block means that halve them; terms clamped at 0; sides must exceed 160",
    ),
    (
        "torchmetrics 1.9",
        "from torchmetrics.functional.image import multiscale_structural_similarity_index_measure",
        "multiscale_structural_similarity_index_measure(large_a, large_b, data_range=1.0)",
        "compat.torchmetrics.multiscale_structural_similarity_index_measure(large_a, large_b, data_range=1.0)",
        'reflect padding; the mean over channels comes before the product; `normalize="relu"` clamps the terms',
    ),
    (
        "MONAI 1.6",
        "from monai.metrics.regression import compute_ms_ssim",
        "compute_ms_ssim(large_a, large_b, spatial_dims=2)",
        "compat.monai.compute_ms_ssim(large_a, large_b, spatial_dims=2)",
        "the mean over channels comes before the product; other demands on the sides",
    ),
    (
        "piq 0.8",
        "import piq",
        "piq.multi_scale_ssim(large_a, large_b)",
        "compat.piq.multi_scale_ssim(large_a, large_b)",
        "odd sides are made even by repeating the first row and column; weights are normalised",
    ),
]


def table() -> str:
    """The rows as Markdown: one table of what is computed, one of what to write here instead."""
    columns = (
        "package",
        "call",
        "padding",
        "window",
        "sigma",
        "covariance",
        "K1, K2",
        "data range",
        "returns",
        "dtype",
    )
    lines = ["| " + " | ".join((*columns, "volumes")) + " |", "|---" * (len(columns) + 1) + "|"]
    for row in DEFINITIONS:
        cells = (row.package, row.call, row.padding, row.window, row.sigma, row.covariance, "0.01, 0.03")
        lines.append("| " + " | ".join((*cells, row.data_range, row.returns, row.dtype, row.volumes)) + " |")
    return "\n".join(lines) + "\n"


def calls() -> str:
    """What gives the same number here, call by call, as Markdown."""
    lines = ["| theirs | the same number here | measured with |", "|---|---|---|"]
    lines += [f"| {row.package}: `{row.theirs}` | `{row.ours}` | {row.held_to} |" for row in DEFINITIONS]
    return "\n".join(lines) + "\n"


def multi_scale() -> str:
    """The table of MS-SSIM as Markdown."""
    lines = ["| package | how it differs from the others | theirs | the same number here |", "|---|---|---|---|"]
    lines += [f"| {package} | {words} | `{theirs}` | `{ours}` |" for package, _, theirs, ours, words in MULTI_SCALE]
    return "\n".join(lines) + "\n"
