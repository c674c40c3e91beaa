"""Which size is it: in training, in a test, and what a scale serves."""
import pytest

from sct_mm.datasets.base_size import BaseSize, base_size, window_of
from sct_mm.datasets.base_size import test_base as base_of_test


def config(*transforms, **settings):
    dataset = dict(type='Images', pipeline=list(transforms))
    return dict(test_dataloader=dict(dataset=dataset), **settings)


def dataset_of(cfg):
    return cfg['test_dataloader']['dataset']


@pytest.mark.parametrize('base, pairs', [
    (BaseSize(224, 224), {224: 224, 128: 128, 97: 97}),
    (BaseSize(512, 1024), {1024: 512, 512: 256, 768: 384}),
    (BaseSize(224, 256), {256: 224, 128: 112, 192: 168}),
    (BaseSize(1024, 800), {800: 1024, 400: 512, 1: 1})])
def test_a_scale_serves_a_size_of_the_test(base, pairs):
    assert {size: base.scale_at(size) for size in pairs} == pairs
    assert all(base.size_of(scale) == size for size, scale in pairs.items())


@pytest.mark.parametrize('transforms, want', [
    ([dict(type='Resize', scale=(2048, 1024), keep_ratio=True)], 1024),
    ([dict(type='ResizeEdge', scale=256), dict(type='CenterCrop',
                                               crop_size=224)], 224),
    ([dict(type='mmaction.Resize', scale=(-1, 256)),
      dict(type='mmaction.TenCrop', crop_size=224)], 224),
    ([dict(type='Resize', scale=(-1, 256)), dict(type='ThreeCrop',
                                                 crop_size=256)], 256),
    ([dict(type='TopdownAffine', input_size=(192, 256))], 192),
    ([dict(type='YOLOv5KeepRatioResize', scale=(640, 640)),
      dict(type='LetterResize', scale=(640, 640), allow_scale_up=False)], 640),
    ([dict(type='RescaleToHeight', height=48, min_width=32, max_width=None),
      dict(type='PadToWidth', width=160)], 48),
    ([dict(type='FixShapeResize', width=96, height=64)], 64),
    ([dict(type='Resize', scale=512), dict(type='Resize', scale=64)], 64),
    ([dict(type='TestTimeAug', transforms=[
        [dict(type='Resize', scale=64)], [dict(type='RandomFlip', prob=0),
                                          dict(type='RandomFlip', prob=1)]])],
     64)])
def test_the_last_transform_that_sets_the_size_counts(transforms, want):
    cfg = config(dict(type='LoadImageFromFile'), *transforms,
                 dict(type='Pack'))
    assert base_of_test(cfg, dataset_of(cfg)) == want
    assert base_size(cfg, (48, 24)) == (48, want, (48, 24))
    assert base_size(cfg, None) == (want, want, ())


@pytest.mark.parametrize('train, test, scales', [
    (640, 416, (640, 576, 544, 416, 384)), (1280, 1024, (1280, 1152, 992))])
def test_each_scale_serves_its_own_size(train, test, scales):
    base = BaseSize(train, test, scales)
    assert [base.scale_at(base.size_of(s)) for s in scales] == [*scales]


def test_windows_are_what_the_network_sees():
    inner = dict(type='EncoderDecoder', test_cfg=dict(
        mode='slide', crop_size=(512, 768), stride=(341, 512)))
    model = dict(type='WithSSBN', scales=(512, 256), model=inner)
    assert window_of(model) == 512
    assert window_of(dict(inner, test_cfg=dict(mode='whole'))) is None
    cfg = config(dict(type='Resize', scale=(2048, 1024)), model=model)
    assert base_size(cfg, (512, 256))[:2] == (512, 512)
    points = dict(test_cfg=dict(mode='slide', num_points=4096))  # mmdet3d
    assert window_of(points) is None


def test_a_size_that_no_transform_sets_is_asked_for():
    cfg = config(dict(type='LoadImageFromFile'), dict(type='PackInputs'))
    with pytest.raises(ValueError, match=r'but got \[.LoadImageFromFile., '
                       r'.PackInputs.\].* by test_base=\.\.\. in the config'):
        base_of_test(cfg, dataset_of(cfg))
    named = dict(cfg, test_base=28)
    assert base_size(named, (28, 14))[:2] == (28, 28)
    for wrong in ('28', 0):
        with pytest.raises((TypeError, ValueError), match='`test_base`'):
            base_of_test(dict(cfg, test_base=wrong), dataset_of(cfg))


def test_a_resize_before_one_to_a_shape():
    cfg = config(dict(type='Resize', scale=(64, 64), keep_ratio=True),
                 dict(type='FixShapeResize', width=64, height=64))
    with pytest.raises(ValueError, match='FixShapeResize must be the only .* '
                       'comes after Resize. Leave one of them out'):
        base_of_test(cfg, dataset_of(cfg))


def test_sizes_that_contradict_each_other():
    cfg = config(dict(type='Resize', scale=64), test_base=32)
    with pytest.raises(ValueError, match='of the test images, 64 pixels, but '
                       'got 32. Leave it out'):
        base_of_test(cfg, dataset_of(cfg))
    two = dict(type='ConcatDataset', datasets=[
        dict(type='A', pipeline=[dict(type='Resize', scale=size)])
        for size in (64, 48)])
    with pytest.raises(ValueError, match=r'images of one size, but got '
                       r'\[48, 64\]'):
        base_of_test({}, two)


def test_without_a_test_set_it_is_the_size_of_training():
    assert base_size({}, (64, 32))[:2] == (64, 64)
    assert base_size(dict(test_base=128), (64, 32))[:2] == (64, 128)
