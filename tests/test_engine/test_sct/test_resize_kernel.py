"""The kernel of a batch is the one that is nearest to what a test does."""
import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image
from torch.nn.functional import interpolate

from sct_mm.engine.sct.resize import (
    KERNELS,
    batch_transform_of,
    nearest_kernel,
)

PILLOW = dict(bilinear=Image.BILINEAR, bicubic=Image.BICUBIC)
OPENCV = dict(bilinear=cv2.INTER_LINEAR, bicubic=cv2.INTER_CUBIC)


def stored(count=3, edge=96):
    """Images with edges and texture, uint8."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        small = rng.integers(0, 256, (12, 12, 3), np.uint8)
        image = cv2.resize(small, (edge, edge), interpolation=cv2.INTER_CUBIC)
        noise = rng.normal(0, 20, image.shape)
        yield np.clip(image + noise, 0, 255).astype(np.uint8)


def batches(resize, sizes):
    """{size: batches of one image, as a test at that size makes them}"""
    return {size: [torch.from_numpy(resize(image, size)).permute(2, 0, 1)
                   .float()[None] for image in stored()] for size in sizes}


@pytest.mark.parametrize('kind', ['bilinear', 'bicubic'])
def test_an_antialiased_test(kind):
    found = nearest_kernel(batches(lambda image, size: np.asarray(
        Image.fromarray(image).resize((size, size), PILLOW[kind])),
        (56, 48, 40, 32)), 56)
    assert found == dict(interpolation='bicubic', antialias=True)


@pytest.mark.parametrize('kind', ['bilinear', 'bicubic'])
def test_a_test_that_is_not_antialiased(kind):
    found = nearest_kernel(batches(lambda image, size: cv2.resize(
        image, (size, size), interpolation=OPENCV[kind]),
        (56, 48, 40, 32)), 56)
    assert found['antialias'] is False


@pytest.mark.parametrize('kernel', KERNELS, ids=repr)
def test_images_that_are_stored_at_the_base(kernel):
    """They are resized once: by the kernel of the test itself."""
    whole = [torch.from_numpy(image).permute(2, 0, 1).float()[None]
             for image in stored()]
    images = {96: whole, **{size: [interpolate(
        image, (size, size), mode=kernel['interpolation'],
        antialias=kernel['antialias'], align_corners=False)
        for image in whole] for size in (72, 48)}}
    assert nearest_kernel(images, 96) == kernel


def test_padding_that_differs_is_left_out():
    images = batches(lambda image, size: np.asarray(Image.fromarray(
        image).resize((size, size), Image.BICUBIC)), (56, 40))
    images[40] = [torch.nn.functional.pad(image, (0, 24, 0, 8))
                  for image in images[40]]
    assert nearest_kernel(images, 56)['antialias'] is True


def test_the_transform_of_a_config():
    own = dict(type='MultiScaleBatch', interpolation='bicubic')
    for hooks, want in (
            (None, dict(type='MultiScaleBatch')), ([], dict(
                type='MultiScaleBatch')),
            ([dict(type='EMAHook'), dict(type='SCTLossHook')],
             dict(type='MultiScaleBatch')),
            ([dict(type='SCTLossHook', batch_transform=own)], own)):
        assert batch_transform_of(Config(dict(custom_hooks=hooks))) == want
