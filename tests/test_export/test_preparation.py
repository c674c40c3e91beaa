"""The steps in a file make of an image what the host's pipeline makes."""
import numpy as np
import pytest
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.registry import DefaultScope
from mmpretrain.models import ClsDataPreprocessor

from sct_mm.datasets.rescale_pipeline import rescale_pipeline
from sct_mm.export.preparation import channels_of, preparation, steps_of
from sct_mm.runtime.prepare import check_steps, prepare, steps_at
from sct_mm.utils.errors import UserError

LOAD, PACK = dict(type='LoadImageFromFile'), dict(type='PackInputs')
PILLOW = dict(backend='pillow', interpolation='bicubic')
EDGE, CROP = (dict(type='ResizeEdge', scale=64, edge='short'),
              dict(type='CenterCrop', crop_size=56))
PIPELINES = {
    'resize': [dict(type='Resize', scale=56)],
    'a rectangle': [dict(type='Resize', scale=(72, 56), backend='pillow')],
    'ImageNet': [EDGE, CROP],
    'ImageNet by Pillow': [dict(EDGE, **PILLOW), CROP],
    'EfficientNet': [dict(type='EfficientNetCenterCrop', crop_size=56)],
    'EfficientNet by Pillow': [dict(
        type='EfficientNetCenterCrop', crop_size=56, crop_padding=8,
        backend='pillow', interpolation='bilinear')],
    'two resizes': [dict(type='Resize', scale=100), EDGE, CROP]}


def image(shape):
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (*shape, 3), np.uint8)


@pytest.mark.parametrize('size', [56, 48, 37, 80])
@pytest.mark.parametrize('pipeline', PIPELINES.values(), ids=PIPELINES)
def test_a_file_prepares_images_as_the_host(pipeline, size):
    steps, unknown = steps_of([LOAD, *pipeline, PACK])
    assert not unknown
    check_steps(steps)
    own, _ = steps_of(rescale_pipeline([*pipeline, PACK], size, 56))
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        host = Compose(rescale_pipeline([*pipeline, PACK], size, 56))
    for shape in ((90, 120), (121, 95), (40, 40), (33, 80), (1, 1)):
        x = image(shape)
        want = host(dict(img=x.copy()))['inputs'].permute(1, 2, 0).numpy()
        for each in (own, steps_at(steps, size / 56)):
            got = prepare(x, each)
            assert got.shape == want.shape
            # A second resize amplifies what the first one rounded.
            most = 2 if pipeline[0].get('scale') == 100 else 1
            assert np.abs(got.astype(int) - want).max() <= most


@pytest.mark.parametrize('transform', [
    dict(type='Albumentations', transforms=[]),
    dict(type='torchvision/Resize', size=32),
    dict(type='Resize', scale=(64, 56), keep_ratio=True),
    dict(type='Resize', scale_factor=0.5),
    dict(type='ResizeEdge', scale=64, edge='long'),
    dict(type='CenterCrop', crop_size=56, auto_pad=True),
    dict(LOAD, to_float32=True)])
def test_what_is_no_step_is_named(transform):
    steps, unknown = steps_of([transform, *PIPELINES['resize'], PACK])
    assert steps is None and unknown.startswith(transform['type'] + ' of the')


def test_steps_of_another_version():
    with pytest.raises(UserError, match="be one of resize, .* but the file "
                       "asks for 'rotate'. Update sct_mm"):
        check_steps([dict(type='rotate')])
    with pytest.raises(UserError, match='asks for area of cv2'):
        check_steps(steps_of([dict(type='Resize', scale=8,
                                   interpolation='area')])[0])


@pytest.mark.parametrize('loads, turns, order', [
    (True, True, 'RGB'), (True, False, 'BGR'), (False, False, 'RGB'),
    (False, True, 'BGR')])
def test_the_order_of_channels(loads, turns, order):
    """mmcv loads BGR; the arrays of mmpretrain's CIFAR are RGB."""
    pipeline = [LOAD] * loads + [PACK]
    preprocessor = ClsDataPreprocessor(to_rgb=turns)
    assert channels_of(3, pipeline, preprocessor) == order
    assert channels_of(1, pipeline, preprocessor) == 'GRAY'
    assert channels_of(4, pipeline, preprocessor) == ''


def test_preparation_of_a_config():
    pipeline = [LOAD, *PIPELINES['ImageNet'], PACK]
    cfg = Config(dict(test_dataloader=dict(dataset=dict(
        type='RepeatDataset', times=1, dataset=dict(pipeline=pipeline)))))
    assert preparation(cfg, 28, 3, None) == dict(channels='BGR', steps=[
        dict(type='resize_short', edge=32, backend='cv2',
             interpolation='bilinear'),
        dict(type='center_crop', height=28, width=28)])
    cfg.test_dataloader.dataset.dataset.pipeline.insert(1, dict(type='Rotate'))
    assert preparation(cfg, 28, 3, None)['unknown'].startswith('Rotate of')
