"""The torchmetrics drop-in, compared with the installed torchmetrics over random shapes, options and dtypes."""

import copy
import pickle
import random

import pytest
import torch

from splat_ssim.compat import torchmetrics as ours
from tests import devices
from tests.compare import assert_same, assert_same_error, in_float64, joined, random_pair

torchmetrics = pytest.importorskip("torchmetrics", reason="torchmetrics is not installed")
functional, image = (pytest.importorskip(f"torchmetrics.{part}") for part in ("functional.image", "image"))

pytestmark = pytest.mark.usefixtures("device", "threads")

# Over the largest entry. The original computes E[x²] - E[x]², also at a range of 255.
TOLERANCE = {torch.float64: 1e-7, torch.float32: 2e-3}
#: Tolerances over the largest entry, from the original in float64 on the same float32 images.
ACCURACY = 1e-5


def single(package, **options):
    return lambda a, b: package.structural_similarity_index_measure(a, b, **options)


def multiscale(package, **options):
    return lambda a, b: package.multiscale_structural_similarity_index_measure(a, b, **options)


def assert_held(make, options, images):
    """Value and gradients are near the original's, and nearer to its evaluation in float64."""
    dtype = images[0].dtype
    assert_same(joined(make(ours, **options)), joined(make(functional, **options)), images, TOLERANCE[dtype])
    if dtype == torch.float32:
        assert_same(joined(make(ours, **options)), in_float64(make(functional, **options)), images, ACCURACY)


def draw_window(rng, spatial_dims):
    """Draws options of the window. Returns them and the largest number of taps or padding size."""
    if rng.random() < 0.4:
        sizes = [rng.choice([3, 5, 7]) for _ in range(spatial_dims)]
        same = rng.random() < 0.5
        return {"gaussian_kernel": False, "kernel_size": sizes[0] if same else sizes}, max(sizes)
    # The original takes seconds for wider windows on volumes.
    sigmas = [rng.choice([0.5, 0.8, 1.0, 1.5][: 6 - spatial_dims]) for _ in range(spatial_dims)]
    same = rng.random() < 0.5
    options = {"sigma": sigmas[0] if same else sigmas}
    if rng.random() < 0.5 or spatial_dims == 3:
        options["kernel_size"] = rng.choice([3, 5, 7])
    return options, max(int(3.5 * max(sigmas) + 0.5) * 2 + 1, options.get("kernel_size", 1))


def draw(seed):
    rng = random.Random(seed)
    spatial_dims, top = rng.choice([2, 2, 3]), rng.choice([1.0, 1.0, 255.0])
    options, reach = draw_window(rng, spatial_dims)
    options["data_range"] = rng.choice([None, top, (0.2 * top, 0.7 * top)])
    if rng.random() < 0.3:
        options |= {"k1": 0.05, "k2": 0.02}
    return rng, spatial_dims, top, options, reach


@pytest.mark.parametrize(("device", "seed"), devices.draws(60, emulated=10), indirect=["device"])
def test_single_scale(seed):
    rng, spatial_dims, top, options, reach = draw(seed)
    options["reduction"] = rng.choice(["elementwise_mean", "sum", "none", None])
    options |= rng.choice([{}, {}, {"return_full_image": True}, {"return_contrast_sensitivity": True}])
    shape = (rng.randint(1, 2), rng.randint(1, 3), *[rng.randint(reach, reach + 6) for _ in range(spatial_dims)])
    dtype = rng.choice([torch.float64, torch.float32, torch.float32])
    assert_held(single, options, random_pair(torch.Generator().manual_seed(seed), shape, dtype, top))


@pytest.mark.parametrize(("device", "seed"), devices.draws(30, emulated=5), indirect=["device"])
def test_multiscale(seed):
    rng, spatial_dims, top, options, reach = draw(seed)
    options["betas"] = rng.choice([(0.4, 0.6), (1.0,), (0.3, 0.3, 0.4)][: 5 - spatial_dims])
    options["normalize"] = rng.choice(["relu", "simple", None])
    options["reduction"] = rng.choice(["elementwise_mean", "sum", "none", None])
    scales = len(options["betas"])
    kernel = options.get("kernel_size", 11)
    kernel = max(kernel) if isinstance(kernel, list) else kernel
    least = max(reach * 2 ** (scales - 1), kernel * max(1, scales - 1) ** 2, 2**scales)
    shape = (rng.randint(1, 2), rng.randint(1, 2), *[rng.randint(least, least + 5) for _ in range(spatial_dims)])
    dtype = rng.choice([torch.float64, torch.float32])
    assert_held(multiscale, options, random_pair(torch.Generator().manual_seed(seed), shape, dtype, top))


@pytest.mark.parametrize("device", devices.NATIVE, indirect=True)
def test_defaults_of_multiscale():
    pair = random_pair(torch.Generator().manual_seed(0), (1, 1, 176, 180), torch.float32)
    assert_held(multiscale, {}, pair)
    assert_held(multiscale, {"data_range": 1.0, "gaussian_kernel": False}, pair)


def test_target_takes_the_dtype_of_preds():
    preds, target = random_pair(torch.Generator().manual_seed(0), (1, 2, 20, 21), torch.float64)
    for dtypes in ((torch.float32, torch.float64), (torch.float64, torch.float32)):
        pair = [image.to(dtype) for image, dtype in zip((preds, target), dtypes, strict=True)]
        found, expected = (single(package, data_range=1.0)(*pair) for package in (ours, functional))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 if dtypes[0] == torch.float32 else 1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_rounded_once(dtype):
    pair = random_pair(torch.Generator().manual_seed(0), (2, 3, 24, 25), dtype)
    for make in (single, multiscale):
        options = {"data_range": 1.0} | (
            {"betas": (0.5, 0.5), "sigma": 0.8, "kernel_size": 5} if make is multiscale else {}
        )
        exact = make(functional, **options)(*(img.double() for img in pair))
        found = make(ours, **options)(*pair)
        assert found.dtype == make(functional, **options)(*(img.to(dtype) for img in pair)).dtype
        torch.testing.assert_close(found.double(), exact, rtol=torch.finfo(dtype).eps, atol=1e-6)


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("gaussian", [True, False])
def test_extremes(spatial_dims, gaussian):
    """Equal, opposite, flat and black images."""
    img, _ = random_pair(torch.Generator().manual_seed(0), (1, 2, *[11] * spatial_dims), torch.float32)
    flat = torch.full_like(img, 0.5)
    options = {"data_range": 1.0, "gaussian_kernel": gaussian, "kernel_size": 7}
    for pair in ((img, img), (img, 1 - img), (flat, flat), (flat, 0 * flat), (0 * flat, 0 * flat), (img, flat)):
        found = single(ours, **options)(*pair)
        exact = single(functional, **options)(*(x.double() for x in pair))
        assert found.item() == pytest.approx(exact.item(), abs=1e-6)
    assert single(ours)(flat, flat).isnan()  # as in the original, because the range is 0


def test_contrast_of_no_window_is_nan():
    pair = random_pair(torch.Generator().manual_seed(0), (2, 1, 8, 20), torch.float32)
    cases = [{}, {"gaussian_kernel": False, "kernel_size": (3, 1)}, {"sigma": (1.0, 0.1)}]
    for options in cases:
        options = {"data_range": 1.0, "return_contrast_sensitivity": True, **options}
        (found, cs), (expected, cs_expected) = (single(package, **options)(*pair) for package in (ours, functional))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
        assert cs.isnan().all() and cs_expected.isnan().all() and cs.shape == cs_expected.shape


def test_gradient_where_a_term_is_not_positive():
    """The original's gradient is NaN there."""
    img, _ = random_pair(torch.Generator().manual_seed(0), (1, 1, 40, 40), torch.float32)
    preds = (1 - img).requires_grad_()
    options = {"data_range": 1.0, "betas": (0.5, 0.5), "sigma": 0.8, "kernel_size": 5}
    value = multiscale(ours, **options)(preds, img)
    value.backward()
    assert value.item() == multiscale(functional, **options)(preds, img).item() == 0
    assert (preds.grad == 0).all()


@pytest.mark.parametrize("device", devices.NATIVE, indirect=True)
@pytest.mark.parametrize("make", [single, multiscale])
def test_errors(make):
    img = torch.rand(1, 1, 44, 44)
    volume = torch.rand(1, 1, 12, 12, 12)
    calls = [
        (img, img[..., :40], {}, r"same shape, got \(1, 1, 44, 44\) and \(1, 1, 44, 40\)"),
        (img[0], img[0], {}, r"must have the shape \(B, C, H, W\) or"),
        (img, 1.0, {}, "target must be a torch.Tensor, got float"),
        (img + 0j, img + 0j, {}, "preds must be of a floating-point dtype, got torch.complex64"),
        (img, img, {"kernel_size": (3, 3, 3)}, "kernel_size must have one value for each of the 2 spatial axes"),
        (img, img, {"sigma": (1.0,)}, "sigma must have one value for each of the 2 spatial axes"),
        (img, img, {"kernel_size": 4}, r"kernel_size must be odd and positive, got \(4, 4\)"),
        (img, img, {"kernel_size": -1}, r"kernel_size must be odd and positive, got \(-1, -1\)"),
        (img, img, {"sigma": (1.0, -2.0)}, r"sigma must be positive, got \(1.0, -2.0\)"),
        (img.byte(), img.byte(), {"kernel_size": 4}, r"kernel_size must be odd and positive, got \(4, 4\)"),
        (img.byte(), img.byte(), {"sigma": -1.0}, r"sigma must be positive, got \(-1.0, -1.0\)"),
        (img, img, {"reduction": "mean"}, "reduction must be one of .*, got 'mean'"),
        (img, img, {"data_range": "1"}, "data_range must be a number, got str"),
        (img[..., :5], img[..., :5], {}, "must be"),
    ]
    if make is single:
        both = {"return_full_image": True, "return_contrast_sensitivity": True}
        calls += [
            (img, img, both, "must not both be set"),
            (volume[..., :4], volume[..., :4], {}, "must be larger than the padding"),
            (volume[..., :2], volume[..., :2], {"kernel_size": 3}, "as large as the window"),
        ]
    else:
        calls += [
            (img, img, {"betas": [0.5, 0.5]}, "betas must be a tuple of floats"),
            (img, img, {"betas": (1, 2)}, "betas must be a tuple of floats"),
            (img, img, {"normalize": "sigmoid"}, "normalize must be 'relu', 'simple' or None, got 'sigmoid'"),
            (img[..., :31], img[..., :31], {"kernel_size": 3}, "at least 32 for 5 betas"),
            (img, img, {"kernel_size": 5}, "larger than 64 for 5 betas and kernel_size 5"),
        ]
    for first, second, options, text in calls:
        if make is multiscale and "betas" not in options and "5 betas" not in text:
            options = {"betas": (0.5, 0.5), "sigma": 1.5, **options}
        assert_same_error(make(ours, **options), make(functional, **options), first, second, text=text)
    small = {"betas": (0.5, 0.5)} if make is multiscale else {}
    with pytest.raises(TypeError, match=r"preds must be of a floating-point dtype, got torch.uint8"):
        make(ours, **small)(img.byte(), img.byte())
    with pytest.raises(ValueError, match=r"data_range must be a number, \(low, high\) or None, got \(1.0,\)"):
        make(ours, data_range=(1.0,), **small)(img, img)


@pytest.mark.parametrize("device", devices.NATIVE, indirect=True)
def test_further_values_of_a_range_are_ignored():
    pair = random_pair(torch.Generator().manual_seed(0), (2, 1, 20, 20), torch.float32, 2.0)
    found, expected = (single(package, data_range=(0.0, 1.0, 2.0))(*pair) for package in (ours, functional))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("device", devices.NATIVE, indirect=True)
def test_integers_clamped_to_floats_are_floats():
    pair = [
        image.byte() for image in random_pair(torch.Generator().manual_seed(0), (2, 1, 20, 20), torch.float32, 255.0)
    ]
    found, expected = (single(package, data_range=(10.0, 200.0))(*pair) for package in (ours, functional))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("device", devices.NATIVE, indirect=True)
@pytest.mark.parametrize("seed", range(12))
def test_metrics(seed):
    """Two updates, compute, forward, reset and pickles work as for the original's metric."""
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    options = {
        "reduction": rng.choice(["elementwise_mean", "sum", "none", None]),
        "data_range": rng.choice([None, 1.0]),
    }
    if seed % 2:
        name = "StructuralSimilarityIndexMeasure"
        options |= rng.choice([{}, {"return_full_image": True}, {"return_contrast_sensitivity": True}])
    else:
        name = "MultiScaleStructuralSimilarityIndexMeasure"
        options |= {"betas": (0.4, 0.6), "kernel_size": 3, "sigma": 0.8, "normalize": rng.choice(["relu", "simple"])}
    dtype = rng.choice([torch.float32, torch.float64])
    batches = [random_pair(generator, (rng.randint(1, 3), 2, 24, 26), dtype) for _ in range(3)]
    metrics = [getattr(package, name)(**options).to(devices.torch_device()) for package in (ours, image)]
    assert isinstance(metrics[0], getattr(image, name)) and type(metrics[0]).__module__ == ours.__name__
    results = []
    for metric in (*metrics, copy.deepcopy(metrics[0]), pickle.loads(pickle.dumps(metrics[0]))):
        found = [metric(*batches[0])]
        metric.update(*batches[1])
        found.append(metric.compute())
        metric.reset()
        metric.update(*batches[2])
        results.append([*found, metric.compute()])
    for found in (results[0], *results[2:]):
        torch.testing.assert_close(found, results[1], rtol=0, atol=1e-4 if dtype == torch.float32 else 1e-6)


@pytest.mark.parametrize("device", devices.NATIVE, indirect=True)
def test_metrics_in_a_collection():
    pair = random_pair(torch.Generator().manual_seed(0), (2, 1, 24, 26), torch.float32)
    collections = [
        torchmetrics.MetricCollection([package.StructuralSimilarityIndexMeasure(data_range=1.0)])
        for package in (ours, image)
    ]
    found, expected = (collection.to(devices.torch_device())(*pair) for collection in collections)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("device", devices.NATIVE, indirect=True)
@pytest.mark.parametrize("package", [ours, image])
def test_metrics_refuse_unknown_reductions(package):
    for name in ("StructuralSimilarityIndexMeasure", "MultiScaleStructuralSimilarityIndexMeasure"):
        with pytest.raises(ValueError, match="reduction"):
            getattr(package, name)(reduction="mean")


def test_the_drop_in_names_what_it_lacks():
    with pytest.raises(AttributeError, match="the drop-in for torchmetrics has no 'psnr'"):
        ours.psnr  # noqa: B018
