"""The scikit-image drop-in, compared with the installed scikit-image over random shapes, options and dtypes."""

import random
import warnings

import numpy as np
import pytest
import torch

from splat_ssim.compat.skimage import structural_similarity as ours
from tests import devices

theirs = pytest.importorskip("skimage.metrics", reason="scikit-image is not installed").structural_similarity

pytestmark = pytest.mark.usefixtures("device", "threads")

INTEGERS = (np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.int32, np.int64, np.bool_)
FLOATS = (np.float16, np.float32, np.float64)
#: dtypes with values that float32 cannot represent.
WIDE = (np.float64, np.uint32, np.int32, np.int64)


def as_tuple(found):
    return found if isinstance(found, tuple) else (found,)


def random_pair(rng, shape, dtype):
    """Two similar arrays that use the whole range of an integer dtype. Floats are in [0, 1]."""
    first = rng.random(shape)
    second = np.clip(first + 0.2 * rng.standard_normal(shape), 0, 1)
    if dtype == np.bool_:
        return first > 0.5, second > 0.5
    if dtype in FLOATS:
        return first.astype(dtype), second.astype(dtype)
    limits = np.iinfo(dtype)
    return tuple((limits.min + image * (limits.max - limits.min) * 0.99).astype(dtype) for image in (first, second))


def draw(seed):
    rng = random.Random(seed)
    options = {}
    if rng.random() < 0.5:
        options |= {"gaussian_weights": True, "sigma": rng.choice([0.5, 1.0, 1.5, 2.2])}
        reach = int(3.5 * options["sigma"] + 0.5)
        # win_size only sets the border that the mean leaves out. sigma determines the window.
        options |= rng.choice([{}, {}, {"win_size": rng.choice([3, 9, 13])}])
    else:
        reach = 3
        options |= rng.choice([{}, {"win_size": rng.choice([3, 5, 9])}])
    size = options.get("win_size", 2 * reach + 1)
    options |= rng.choice([{}, {"use_sample_covariance": False}])
    options |= rng.choice([{}, {}, {"K1": 0.05, "K2": 0.1}, {"K1": 0.0}])
    options |= rng.choice([{}, {}, {"full": True}, {"gradient": True}, {"full": True, "gradient": True}])
    axes = rng.choice([1, 2, 2, 2, 3, 3, 4])
    shape = [rng.randint(size, size + (9 if axes < 3 else 2)) for _ in range(axes)]
    if rng.random() < 0.5:
        options["channel_axis"] = rng.randint(-axes - 1, axes)
        shape.insert(options["channel_axis"] % (axes + 1), rng.randint(1, 3))
    return rng, options, shape


def assert_held(pair, options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found, expected = as_tuple(ours(*pair, **options)), as_tuple(theirs(*pair, **options))
        exact = expected
        if pair[0].dtype.kind == "f":
            exact = as_tuple(theirs(*(image.astype(np.float64) for image in pair), **options))
    assert [type(value) for value in found] == [type(value) for value in expected]
    assert [value.dtype for value in found] == [value.dtype for value in expected]
    narrow = pair[0].dtype.type not in WIDE
    for index, (value, true) in enumerate(zip(found, exact, strict=True)):
        is_gradient = index == 1 and options.get("gradient", False)
        scale = np.abs(true).max() if is_gradient else 1.0
        # The map has the rounding errors of float32, which the mean averages out.
        tolerance = (1e-6 if index == 0 else 1e-5) if narrow else 1e-8
        # The original's gradient for equal images is nothing but rounding.
        np.testing.assert_allclose(value, true, rtol=0, atol=tolerance * scale + 1e-15)


@pytest.mark.parametrize(("device", "seed"), devices.draws(150, emulated=30), indirect=["device"])
def test_random_calls(seed):
    rng, options, shape = draw(seed)
    dtype = rng.choice(INTEGERS + FLOATS * 2)
    if dtype in FLOATS:
        options["data_range"] = rng.choice([1.0, 2, 1.5])
    elif rng.random() < 0.3:
        options["data_range"] = float(np.iinfo(dtype).max) if dtype != np.bool_ else 2.0
    assert_held(random_pair(np.random.default_rng(seed), shape, dtype), options)


def in_a_packed_structure(image):
    """float32 whose steps of five bytes are no whole number of elements."""
    pixels = np.zeros(image.shape, [("value", "f4"), ("flag", "u1")])
    pixels["value"] = image
    return pixels["value"]


@pytest.mark.parametrize("device", devices.NATIVE, indirect=True)
def test_arrays_that_are_no_plain_blocks():
    """Steps, negative strides, Fortran order, foreign byte order, read-only memory, and inputs of two dtypes."""
    pair = random_pair(np.random.default_rng(0), (30, 40), np.uint8)
    changes = [
        lambda image: image[::-1, ::2],
        np.asfortranarray,
        lambda image: image.T,
        lambda image: image.astype(">u2"),
        lambda image: np.broadcast_to(image[:1], image.shape),
        lambda image: image.astype(">f8"),
        in_a_packed_structure,
    ]
    for change in changes:
        changed = [change(image) for image in pair]
        assert_held(changed, {"data_range": 255})
        assert_held((changed[0], np.ascontiguousarray(changed[1]).astype(np.float64)), {"data_range": 255})


@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
@pytest.mark.parametrize("device", devices.NATIVE, indirect=True)
@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
@pytest.mark.parametrize("options", [{}, {"gradient": True}, {"full": True}, {"channel_axis": 0}])
def test_read_only_arrays_do_not_warn(dtype, options):
    """torch warns about them once in a process, unless it is asked to warn always."""
    pair = random_pair(np.random.default_rng(0), (16, 16), dtype)
    expected = as_tuple(ours(*pair, data_range=1.0, **options))
    for image in pair:
        image.flags.writeable = False
    torch.set_warn_always(True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = as_tuple(ours(*pair, data_range=1.0, **options))
    finally:
        torch.set_warn_always(False)
    for value, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(value, other)


@pytest.mark.parametrize("device", devices.NATIVE, indirect=True)
def test_a_matrix_counts_as_an_array():
    """It has two axes whatever is done with it. The original multiplies matrices where it should multiply pixels."""
    pair = random_pair(np.random.default_rng(0), (30, 40), np.float32)
    for options in ({"full": True}, {"gradient": True}, {"channel_axis": -1}):
        found = ours(*map(np.asmatrix, pair), data_range=1.0, **options)
        for value, expected in zip(as_tuple(found), as_tuple(ours(*pair, data_range=1.0, **options)), strict=True):
            np.testing.assert_array_equal(value, expected, strict=True)


@pytest.mark.parametrize("device", devices.NATIVE, indirect=True)
@pytest.mark.parametrize("options", [{}, {"full": True}, {"gradient": True}])
def test_a_default_device_changes_nothing(options):
    """ "meta" stands for "cuda": a tensor that is made there is of no use here."""
    pair = random_pair(np.random.default_rng(0), (30, 40), np.float32)
    expected = as_tuple(ours(*pair, data_range=1.0, **options))
    with torch.device("meta"):
        found = as_tuple(ours(*pair, data_range=1.0, **options))
    for value, right in zip(found, expected, strict=True):
        np.testing.assert_array_equal(value, right)


@pytest.mark.parametrize("device", devices.NATIVE, indirect=True)
def test_extremes():
    image, _ = random_pair(np.random.default_rng(0), (24, 25), np.uint8)
    flat, black = np.full_like(image, 128), np.zeros_like(image)
    for pair in ((image, image), (image, 255 - image), (flat, flat), (flat, black), (black, black), (image, flat)):
        for options in ({}, {"gaussian_weights": True}, {"full": True}, {"gradient": True}):
            assert_held(pair, options)
    for dtype in FLOATS + INTEGERS:
        for options in ({}, {"gaussian_weights": True}, {"full": True}):
            found = ours(image.astype(dtype), image.astype(dtype), data_range=255, **options)
            assert all((value == 1).all() for value in as_tuple(found))
    assert ours(image, 255 - image) == ours(image, 255 - image, full=True)[0]


@pytest.mark.parametrize("device", devices.NATIVE, indirect=True)
@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
@pytest.mark.parametrize("shape", [(8, 8, 0), (8, 9, 10, 0)])
def test_no_channels(shape, dtype):
    image = np.zeros(shape, dtype)
    for gradient in (False, True):
        for full in (False, True):
            options = {"data_range": 1.0, "channel_axis": -1, "gradient": gradient, "full": full}
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # numpy's of an empty mean
                expected = as_tuple(theirs(image, image, **options))
            found = as_tuple(ours(image, image, **options))
            assert np.isnan(found[0]) and np.isnan(expected[0])
            assert [(v.shape, v.dtype) for v in found] == [(v.shape, v.dtype) for v in expected]


@pytest.mark.parametrize("device", devices.NATIVE, indirect=True)
def test_large_images_in_slabs():
    pair = random_pair(np.random.default_rng(0), (300, 310), np.float64)
    for options in ({}, {"full": True}, {"gaussian_weights": True, "win_size": 21, "full": True}):
        assert_held(pair, {"data_range": 1.0, **options})


@pytest.mark.parametrize("device", devices.NATIVE, indirect=True)
def test_windows_beyond_the_kernels():
    pair = random_pair(np.random.default_rng(0), (60, 62), np.float32)
    for options in ({"win_size": 35}, {"gaussian_weights": True, "sigma": 6.0, "win_size": 11}, {"K2": 0}):
        assert_held(pair, {"data_range": 1.0, **options})


@pytest.mark.parametrize("device", devices.NATIVE, indirect=True)
def test_numpy_scalars_as_data_range_are_plain_numbers():
    """In the original, an np.float64 makes maps of float32 images float64, and an np.float32 rounds the constants."""
    pair = random_pair(np.random.default_rng(0), (12, 13), np.float32)
    value, ssim_map = ours(*pair, data_range=np.float64(1.5), full=True)
    assert ssim_map.dtype == np.float32
    assert value == ours(*pair, data_range=np.float32(1.5)) == ours(*pair, data_range=np.array([1.5]))


@pytest.mark.parametrize("device", devices.NATIVE, indirect=True)
def test_range_of_integers_is_told():
    """Like the original, it warns for every integer dtype except uint8, and if the dtypes differ."""
    for dtypes, count in (((np.uint8, np.uint8), 0), ((np.uint16, np.uint16), 1), ((np.int16, np.uint8), 2)):
        pair = [np.zeros((9, 9), dtype) for dtype in dtypes]
        for function in (ours, theirs):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                function(*pair)
            assert len(caught) == count, (function, dtypes)
            assert all(warning.filename == __file__ for warning in caught) or function is theirs


@pytest.mark.parametrize("device", devices.NATIVE, indirect=True)
@pytest.mark.parametrize(
    ("change", "options", "text"),
    [
        (lambda a: (a, a[:8]), {}, r"same shape, got \(9, 9\) and \(8, 9\)"),
        (lambda a: (a.tolist(), a), {}, "im1 must be a numpy.ndarray, got list"),
        (lambda a: (a * 1j, a), {"data_range": 1}, "im1 must be real, got complex128"),
        (lambda a: (a / 2, a), {}, "data_range must be given for floating-point images, got None"),
        (lambda a: (a, a / 2), {}, "data_range must be given for floating-point images, got None"),
        (lambda a: (a, a), {"win_size": 11}, r"win_size must not exceed an axis of the images, got 11 .* \(9, 9\)"),
        (lambda a: (a, a), {"channel_axis": -1}, None),
        (lambda a: (a, a), {"win_size": 4}, "win_size must be odd and positive, got 4"),
        (lambda a: (a, a), {"K1": -1}, "K1 must not be negative, got -1.0"),
        (lambda a: (a, a), {"K2": -1}, "K2 must not be negative, got -1.0"),
        (lambda a: (a, a), {"sigma": -1}, "sigma must not be negative, got -1.0"),
        (lambda a: (a, a), {"win_size": 1}, "win_size must be above 1 for a sample's covariance, got 1"),
    ],
)
def test_errors(change, options, text):
    pair = change(np.arange(81, dtype=np.uint8).reshape(9, 9))
    if text is None:  # without the axis of channels, 9 pixels are left, which is enough for both
        assert_held(pair, options)
        return
    with pytest.raises(Exception) as original:
        theirs(*pair, **options)
    with pytest.raises((ValueError, TypeError), match=text) as found:
        ours(*pair, **options)
    assert isinstance(found.value, type(original.value))


@pytest.mark.parametrize("device", devices.NATIVE, indirect=True)
def test_a_channel_axis_that_is_not_there():
    image = np.zeros((9, 9), np.uint8)
    for function in (ours, theirs):
        with pytest.raises(IndexError):
            function(image, image, channel_axis=2)


@pytest.mark.parametrize("device", devices.NATIVE, indirect=True)
def test_unknown_keywords_are_ignored_as_in_the_original():
    pair = random_pair(np.random.default_rng(0), (12, 13, 3), np.uint8)
    assert_held(pair, {"channel_axis": -1, "multichannel": True})
