"""The definition page: our call in each row gives the package's number, to the accuracy of float32."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import splat_ssim
from splat_ssim import compat

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "docs" / "_ext"))
import definitions


def pair(*shape):
    generator = torch.Generator().manual_seed(3)
    image = torch.rand(*shape, generator=generator)
    return image, (image + 0.2 * torch.randn(*shape, generator=generator)).clamp(0, 1)


def names():
    from splat_ssim.compat import monai, piq, skimage, torchmetrics  # noqa: F401 - attributes of compat

    found = {"splat_ssim": splat_ssim, "compat": compat, "torch": torch}
    found |= {name: getattr(splat_ssim, name) for name in ("ssim", "ssim3d", "ms_ssim")}
    found["a"], found["b"] = pair(2, 3, 48, 56)
    found["u"], found["v"] = pair(1, 1, 20, 22, 24)
    found["large_a"], found["large_b"] = pair(2, 3, 192, 200)
    return found


def assert_same_number(imports, theirs, ours):
    given = names()
    try:
        exec(imports, given)
    except ImportError as missing:
        if missing.name not in ("piq", "torchvision", "monai"):
            raise
        pytest.skip(f"{missing.name} is not installed")
    if "kornia.losses.ssim3d" in theirs and given["kornia"].__version__.startswith("0.8"):
        pytest.skip("the row is of kornia 0.9, which Python 3.10 has not; splat_ssim.compat.kornia_0_8 is tested apart")
    first, second = np.asarray(eval(theirs, given)), np.asarray(eval(ours, given))
    if first.shape != second.shape:
        first, second = first.mean(), second.mean()
    # The packages' moments, E[x²] - E[x]² in float32, are off by up to 1e-6, and maps by more in nearly flat parts.
    assert first.size > 0 and np.isfinite(first).all()
    assert np.abs(first - second).max() < (2e-6 if first.size == 1 else 1e-4)
    # The images differ enough that another padding, window or constant would be noticed.
    assert 0.02 < float(first.mean()) < 0.98


@pytest.mark.parametrize("row", definitions.DEFINITIONS, ids=lambda row: row.call)
def test_the_call_of_each_row_gives_the_packages_number(row):
    assert_same_number(row.imports, row.theirs, row.ours)


@pytest.mark.parametrize("row", definitions.MULTI_SCALE, ids=lambda row: row[0])
def test_multi_scale_rows_give_the_packages_number(row):
    _, imports, theirs, ours, _ = row
    assert_same_number(imports, theirs, ours)


def test_paddings_and_covariances_differ_enough_to_be_told_apart():
    given = names()
    forms = [
        "ssim(a, b)",
        'ssim(a, b, padding="valid")',
        'ssim(a, b, padding="reflect")',
        'ssim(a, b, padding="valid", k2=0.03 * (120 / 121) ** 0.5)',
    ]
    values = [float(eval(form, given)) for form in forms]
    for i, first in enumerate(values):
        assert all(abs(first - second) > 4e-6 for second in values[i + 1 :])


def test_the_tables_show_every_row():
    shown = definitions.table(), definitions.calls(), definitions.multi_scale()
    assert all(
        row.call in shown[0] and row.theirs in shown[1] and row.ours in shown[1] for row in definitions.DEFINITIONS
    )
    assert all(row[3] in shown[2] for row in definitions.MULTI_SCALE)
    # Every line has as many cells as the head.
    for text in shown:
        assert len({line.replace("\\|", "").count("|") for line in text.splitlines()}) == 1
