"""resize() does what Pillow, OpenCV and torch do."""
import cv2
import mmcv
import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from sct_mm.runtime.resize import RULES, resize, taps_of
from sct_mm.utils.errors import UserError

SHAPES = [((40, 50), (20, 25)), ((61, 47), (32, 24)), ((30, 20), (64, 48)),
          ((33, 100), (32, 17)), ((9, 200), (30, 30)), ((25, 25), (25, 10)),
          ((300, 300), (7, 7)), ((1, 5), (4, 4))]


def image(shape, channels=3):
    rng = np.random.default_rng(0)
    smooth = cv2.resize(rng.integers(0, 256, (6, 6, channels), np.uint8),
                        shape[::-1]).reshape(*shape, channels)
    noise = rng.integers(-30, 31, smooth.shape)
    return (smooth + noise).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize('shape, out', SHAPES)
@pytest.mark.parametrize('backend, interpolation', RULES)
def test_it_differs_from_the_hosts_by_one_at_most(backend, interpolation,
                                                  shape, out):
    x = image(shape)
    before = x.copy()
    got = resize(x, *out, backend, interpolation)
    want = mmcv.imresize(x, out[::-1], interpolation=interpolation,
                         backend=backend)
    assert got.dtype == np.uint8 and got.shape == want.shape
    apart = np.abs(got.astype(int) - want)
    assert apart.max() <= 1 and apart.mean() < 0.2
    assert (x == before).all()


@pytest.mark.parametrize('interpolation', ['bilinear', 'bicubic'])
@pytest.mark.parametrize('shape, out', SHAPES)
def test_floats_are_resized_as_by_torch(interpolation, shape, out):
    x = np.random.default_rng(0).normal(size=(*shape, 2)).astype(np.float32)
    want = interpolate(torch.from_numpy(x).permute(2, 0, 1)[None], out,
                       mode=interpolation, antialias=True)
    got = resize(x, *out, interpolation=interpolation)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, want[0].permute(1, 2, 0), atol=1e-5)


@pytest.mark.parametrize('rule', RULES.values())
def test_a_plain_image_stays_plain(rule):
    for length, out in ((50, 20), (20, 50), (7, 7), (1, 3)):
        places, weights = taps_of(length, out, rule)
        assert places.shape == weights.shape == (out, places.shape[1])
        assert places.min() >= 0 and places.max() < length
        np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-6)


def test_a_rule_that_is_not_known():
    with pytest.raises(UserError, match='bilinear of pillow, .* but the file '
                       'asks for area of cv2. Prepare'):
        resize(image((4, 4)), 2, 2, 'cv2', 'area')
