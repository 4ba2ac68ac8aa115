"""The MONAI drop-in, compared with the installed MONAI over random shapes, options and dtypes."""

import copy
import pickle
import random
import warnings

import numpy as np
import pytest
import torch

from splat_ssim.compat import monai as ours
from tests import devices
from tests.compare import assert_same, assert_same_error, joined, random_pair

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    losses = pytest.importorskip("monai.losses", reason="MONAI is not installed")
    import monai.data
    from monai.metrics import regression

pytestmark = pytest.mark.usefixtures("device", "threads")

#: Tolerances over the largest entry. The original computes E[x²] - E[x]² in float32, whatever the dtype.
TOLERANCE = 2e-3
#: Tolerances over the largest entry, from the original evaluated in float64.
ACCURACY = 1e-5


@pytest.fixture
def double(monkeypatch):
    """Makes the original compute in float64: it converts images to `torch.float`, and windows to the default dtype."""

    def use(function):
        def run(*images):
            with monkeypatch.context() as patch:
                convert = regression.convert_data_type
                patch.setattr(regression, "convert_data_type", lambda data, **_: convert(data, dtype=torch.float64))
                torch.set_default_dtype(torch.float64)
                try:
                    return joined(function)(*(image.double() for image in images)).float()
                finally:
                    torch.set_default_dtype(torch.float32)

        return run

    return use


def draw(seed, least=3):
    rng = random.Random(seed)
    dims, top = rng.choice([2, 2, 3]), rng.choice([1.0, 1.0, 255.0])
    sizes = [rng.choice([size for size in (3, 4, 5, 7) if size >= least]) for _ in range(dims)]
    sigmas = [rng.choice([0.5, 1.0, 1.5]) for _ in range(dims)]
    same = rng.random() < 0.5
    options = {"spatial_dims": dims, "data_range": top, "kernel_type": rng.choice(["gaussian", "gaussian", "uniform"])}
    options |= rng.choice([{}, {}, {"k1": 0.05, "k2": 0.02}])
    size = (sizes[0] if same else sizes), (sigmas[0] if rng.random() < 0.5 else sigmas)
    return rng, options, size, max(sizes)


def assert_held(make, images, double):
    assert_same(joined(make("ours")), joined(make("theirs")), images, TOLERANCE)
    if images[0].dtype == torch.float32:
        assert_same(joined(make("ours")), double(make("theirs")), images, ACCURACY)


@pytest.mark.parametrize(("device", "seed"), devices.draws(50, emulated=12), indirect=["device"])
def test_loss(seed, double):
    rng, options, (size, sigma), reach = draw(seed)
    options |= {"win_size": size, "kernel_sigma": sigma, "reduction": rng.choice(["mean", "sum", "none"])}
    shape = (
        rng.randint(1, 3),
        rng.randint(1, 3),
        *[rng.randint(reach, reach + 6) for _ in range(options["spatial_dims"])],
    )
    images = random_pair(
        torch.Generator().manual_seed(seed), shape, rng.choice([torch.float32, torch.float64]), options["data_range"]
    )
    packages = {"ours": ours, "theirs": losses}
    assert_held(lambda whose: packages[whose].SSIMLoss(**options), images, double)


@pytest.mark.parametrize(("device", "seed"), devices.draws(20, emulated=6), indirect=["device"])
def test_maps(seed, double):
    rng, options, (size, sigma), reach = draw(seed)
    dims = options["spatial_dims"]
    given = {
        "kernel_size": (size,) * dims if isinstance(size, int) else size,
        "kernel_sigma": (sigma,) * dims if isinstance(sigma, float) else sigma,
    }
    shape = (rng.randint(1, 2), rng.randint(1, 3), *[rng.randint(reach, reach + 6) for _ in range(dims)])
    images = random_pair(torch.Generator().manual_seed(seed), shape, torch.float32, options["data_range"])
    packages = {"ours": ours, "theirs": regression}
    assert_held(
        lambda whose: lambda a, b: packages[whose].compute_ssim_and_cs(a, b, **options, **given), images, double
    )


@pytest.mark.parametrize(("device", "seed"), devices.draws(20, emulated=6), indirect=["device"])
def test_multiscale(seed, double):
    rng, options, (size, sigma), reach = draw(seed)
    options |= {"kernel_size": size, "kernel_sigma": sigma}
    options["weights"] = rng.choice([(0.4, 0.6), [1.0], (0.3, 0.3, 0.4)][: 5 - options["spatial_dims"]])
    scales = len(options["weights"])
    least = max(reach * 2 ** (scales - 1), reach * max(1, scales - 1) ** 2)
    shape = (
        rng.randint(1, 2),
        rng.randint(1, 2),
        *[rng.randint(least, least + 5) for _ in range(options["spatial_dims"])],
    )
    images = random_pair(torch.Generator().manual_seed(seed), shape, torch.float32, options["data_range"])
    packages = {"ours": ours, "theirs": regression}
    assert_held(lambda whose: lambda a, b: packages[whose].compute_ms_ssim(a, b, **options), images, double)


@pytest.mark.parametrize("device", devices.NATIVE, indirect=True)
def test_defaults_of_multiscale(double):
    images = random_pair(torch.Generator().manual_seed(0), (1, 1, 176, 180), torch.float32)
    packages = {"ours": ours, "theirs": regression}
    assert_held(lambda whose: lambda a, b: packages[whose].compute_ms_ssim(a, b, 2), images, double)


@pytest.mark.parametrize("device", devices.NATIVE, indirect=True)
def test_other_inputs():
    """Integers and half precision are converted to float32, arrays to tensors. MONAI's tensors and one axis work."""
    pair = random_pair(torch.Generator().manual_seed(0), (2, 1, 20, 20), torch.float32, 255.0)
    for change in (
        lambda image: image.byte(),
        lambda image: image.long(),
        lambda image: image.half(),
        lambda image: monai.data.MetaTensor(image),
    ):
        changed = [change(image) for image in pair]
        found, expected = (package.SSIMLoss(2, data_range=255)(*changed) for package in (ours, losses))
        assert type(found) is torch.Tensor and found.dtype == expected.dtype
        torch.testing.assert_close(found, torch.as_tensor(expected).as_subclass(torch.Tensor), rtol=0, atol=1e-4)
    arrays = [np.asarray(image.cpu()) for image in pair]
    given = (2, (11, 11), (1.5, 1.5), 255.0)
    found, expected = (package.compute_ssim_and_cs(*arrays, *given) for package in (ours, regression))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)
    rows = [image[:, 0] for image in pair]
    found, expected = (
        package.compute_ssim_and_cs(*rows, 1, (7,), (1.5,), 255.0, "uniform") for package in (ours, regression)
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("device", devices.NATIVE, indirect=True)
def test_a_default_device_does_not_move_metatensors():
    pair = random_pair(torch.Generator().manual_seed(0), (2, 1, 20, 20), torch.float32)
    expected = ours.SSIMLoss(2)(*pair)
    pair = [monai.data.MetaTensor(image) for image in pair]
    with torch.device("meta"):
        found = ours.SSIMLoss(2)(*pair)
    assert found == expected


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("kernel", ["gaussian", "uniform"])
def test_extremes(spatial_dims, kernel, double):
    image, _ = random_pair(torch.Generator().manual_seed(0), (1, 2, *[13] * spatial_dims), torch.float32)
    flat = torch.full_like(image, 0.5)
    for pair in ((image, image), (image, 1 - image), (flat, flat), (flat, 0 * flat), (0 * flat, 0 * flat)):
        found, exact = (
            ours.SSIMLoss(spatial_dims, kernel_type=kernel)(*pair),
            double(losses.SSIMLoss(spatial_dims, kernel_type=kernel))(*pair),
        )
        assert found.item() == pytest.approx(exact.item(), abs=1e-6)


@pytest.mark.parametrize("device", devices.NATIVE, indirect=True)
def test_gradient_where_a_term_is_not_positive():
    """The original's gradient is NaN there."""
    image, _ = random_pair(torch.Generator().manual_seed(0), (1, 1, 40, 40), torch.float32)
    pred = (1 - image).requires_grad_()
    value = ours.compute_ms_ssim(pred, image, 2, kernel_size=5, weights=(0.5, 0.5))
    value.sum().backward()
    assert value.item() == regression.compute_ms_ssim(pred, image, 2, kernel_size=5, weights=(0.5, 0.5)).item() == 0
    assert (pred.grad == 0).all()


@pytest.mark.parametrize("device", devices.NATIVE, indirect=True)
@pytest.mark.parametrize("seed", range(6))
def test_metrics(seed):
    """Two batches, aggregate, reset and pickles work as for the original's metric."""
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    name, options = "SSIMMetric", {"win_size": 5}
    if seed % 2:
        name, options = "MultiScaleSSIMMetric", {"kernel_size": 5, "weights": (0.4, 0.6)}
    reductions = ["mean", "sum", "none", "mean_batch", "sum_batch", "mean_channel", "sum_channel"]
    options |= {"spatial_dims": 2, "reduction": rng.choice(reductions), "get_not_nans": rng.random() < 0.5}
    batches = [random_pair(generator, (rng.randint(1, 3), 2, 24, 26), torch.float32) for _ in range(2)]
    metrics = [getattr(package, name)(**options) for package in (ours, regression)]
    assert isinstance(metrics[0], getattr(regression, name)) and type(metrics[0]).__module__ == ours.__name__
    results = []
    for metric in (*metrics, pickle.loads(pickle.dumps(metrics[0]))):
        metric.reset()
        results.append([*(metric(*batch) for batch in batches), metric.aggregate()])
    for found in (results[0], results[2]):
        torch.testing.assert_close(found, results[1], rtol=0, atol=1e-4)


@pytest.mark.parametrize("device", devices.NATIVE, indirect=True)
def test_the_range_of_a_loss_can_change():
    pair = random_pair(torch.Generator().manual_seed(0), (1, 1, 20, 20), torch.float32, 7.0)
    values = []
    for package in (ours, losses):
        loss = package.SSIMLoss(2)
        loss.data_range = 7.0
        values.append(loss(*pair))
    torch.testing.assert_close(*values, rtol=0, atol=1e-4)


@pytest.mark.parametrize("device", devices.NATIVE, indirect=True)
def test_the_metric_of_a_loss():
    pair = random_pair(torch.Generator().manual_seed(0), (2, 1, 20, 22), torch.float32, 7.0)
    results = []
    for package in (ours, losses):
        loss = package.SSIMLoss(2, kernel_type="uniform", win_size=(5, 7), kernel_sigma=0.7, k1=0.02, k2=0.05)
        metric = loss.ssim_metric
        loss.data_range = 7.0
        assert loss.ssim_metric is metric and metric.data_range == 7.0
        metric(*pair)
        results.append([metric.aggregate(), 1 - loss(*pair)])
        for again in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
            torch.testing.assert_close(again.ssim_metric(*pair).mean(), results[-1][1], rtol=0, atol=1e-6)
    assert isinstance(metric, regression.SSIMMetric)
    torch.testing.assert_close(*results, rtol=0, atol=1e-4)


@pytest.mark.parametrize("device", devices.NATIVE, indirect=True)
def test_errors():
    image, volume = torch.rand(1, 1, 20, 20), torch.rand(1, 1, 12, 12, 12)
    calls = [
        ((2,), {}, (image, image[..., :9]), r"same shape, got \(1, 1, 20, 20\) and \(1, 1, 20, 9\)"),
        ((2,), {}, (image, 1.0), "y must be a torch.Tensor, got float"),
        ((2,), {}, (volume, volume), r"must have the shape \(B, C, H, W\) for spatial_dims=2"),
        ((3,), {}, (image, image), r"must have the shape \(B, C, D, H, W\) for spatial_dims=3"),
        ((2,), {"win_size": 21}, (image, image), r"as large as the window of \(21, 21\)"),
        ((2,), {"data_range": "1"}, (image, image), "data_range must be a number, got str"),
    ]
    for arguments, options, pair, text in calls:
        assert_same_error(
            lambda a, b, arguments=arguments, options=options: ours.SSIMLoss(*arguments, **options)(a, b),
            lambda a, b, arguments=arguments, options=options: losses.SSIMLoss(*arguments, **options)(a, b),
            *pair,
            text=text,
        )
    assert_same_error(
        lambda: ours.SSIMLoss(2, reduction="max"), lambda: losses.SSIMLoss(2, reduction="max"), text="got 'max'"
    )
    for options, text in (({}, "sides larger than 160"), ({"weights": (1.0, 1.0), "kernel_size": 21}, "than 20 for 2")):
        multiscale = [lambda p=p, o=options: p.compute_ms_ssim(image, image, 2, **o) for p in (ours, regression)]
        assert_same_error(*multiscale, text=text)
    maps = [lambda p=p: p.compute_ssim_and_cs(volume, volume, 2, (5, 5), (1.0, 1.0)) for p in (ours, regression)]
    assert_same_error(*maps, text=r"y_pred must have the shape \(B, C, H, W\) for spatial_dims=2")
    empty = [lambda p=p: p.SSIMLoss(2, win_size=0)(image, image) for p in (ours, losses)]
    assert_same_error(*empty, text=r"kernel_size must be positive, got \(0, 0\)")
    pair = image.to(torch.complex64), image.to(torch.complex64)
    assert_same_error(
        *(lambda a, b, p=p: p.compute_ms_ssim(a, b, 2, weights=(0.5, 0.5)) for p in (ours, regression)),
        *pair,
        text="y_pred must be real, got torch.complex64",
    )
    # Cases that the original does not handle.
    for options, text in (
        ({"kernel_type": "box"}, "kernel_type must be 'gaussian' or 'uniform', got 'box'"),
        ({"win_size": (3,)}, "kernel_size must have one value for each of the 2 spatial axes"),
        ({"kernel_sigma": 0}, "kernel_sigma must not be 0"),
    ):
        with pytest.raises(ValueError, match=text):
            ours.SSIMLoss(2, **options)(image, image)
    with pytest.raises(ValueError, match="weights must have at least one exponent"):
        ours.compute_ms_ssim(image, image, 2, weights=())
