"""Rewriting test pipelines: every resize and crop by the same ratio."""
import copy

import pytest
from mmcv.transforms import RandomResize

from sct_mm.datasets.rescale_pipeline import (
    keeps_ratio,
    limits_of,
    nominal_size,
    rescale_pipeline,
    train_sizes,
)
from sct_mm.utils.config_walk import pipelines_of

IMAGENET = [
    dict(type='LoadImageFromFile'),
    dict(type='mmpretrain.ResizeEdge', scale=256, edge='short'),
    dict(type='CenterCrop', crop_size=224),
    dict(type='PackInputs'),
]


@pytest.mark.parametrize('size, resize', [(224, 256), (160, 183), (128, 146),
                                          (448, 512)])
def test_resize_and_crop_change_together(size, resize):
    before = copy.deepcopy(IMAGENET)
    changed = rescale_pipeline(IMAGENET, size)
    assert changed[1]['scale'] == resize
    assert changed[2]['crop_size'] == size
    assert changed[0] == before[0] and before == IMAGENET


@pytest.mark.parametrize('scale, size, want', [
    (28, 14, 14), ((28, 28), 21, (21, 21)), ((256, -1), 128, (128, -1)),
    ((1333, 800), 480, (800, 480))])
def test_forms_of_a_size(scale, size, want):
    pipeline = [dict(type='Resize', scale=scale), dict(type='PackInputs')]
    assert rescale_pipeline(pipeline, size)[0]['scale'] == want


def test_a_limit_of_the_longer_edge_changes_with_the_size():
    pipeline = [dict(type='torchvision/Resize', size=800, max_size=1333)]
    assert rescale_pipeline(pipeline, 480) == [
        dict(type='torchvision/Resize', size=480, max_size=800)]


def test_a_class_as_type():
    class CenterCrop:
        pass

    pipeline = [dict(type=CenterCrop, crop_size=32)]
    assert nominal_size(pipeline) == 32


def test_transforms_that_are_no_configs():
    built = RandomResize(scale=(64, 64), ratio_range=(1, 2))
    pipeline = [len, dict(type='Resize', scale=32), built]
    assert train_sizes(pipeline) == (32, )
    assert rescale_pipeline(pipeline, 16)[1]['scale'] == 16
    with pytest.raises(ValueError, match=r"but got \['RandomResize'\]"):
        nominal_size([built])


@pytest.mark.parametrize('name, key', [('CenterCrop', 'crop_size'),
                                       ('Pad', 'size')])
def test_a_crop_alone_resizes_nothing(name, key):
    """At half the size it would show a quarter, at the size that it had."""
    cut = {'type': name, key: (32, 32)}
    assert rescale_pipeline([cut], 32) == [cut]
    with pytest.raises(ValueError, match='must resize to test at 16 pixels '
                       f'what it shows at 32, but .* by {name} alone'):
        rescale_pipeline([dict(type='Resize', scale_factor=0.5), cut], 16)
    resized = rescale_pipeline([dict(type='Resize', scale=36), cut], 16)
    assert [resized[0]['scale'], resized[1][key]] == [18, (16, 16)]


@pytest.mark.parametrize('scale', ['28', 0, (-1, -1), None, ()])
def test_sizes_of_a_pipeline_that_are_none(scale):
    pipeline = [dict(type='Resize', scale=scale)]
    with pytest.raises(ValueError, match='positive pixels, but got|to set the '
                       'size, but got'):
        rescale_pipeline(pipeline, 14)


def test_nothing_to_rewrite():
    with pytest.raises(ValueError, match=r"but got \['Load', 'PackInputs'\]"):
        rescale_pipeline([dict(type='Load'), dict(type='PackInputs')], 8)


@pytest.mark.parametrize('size', ['224', (224, None), [], {224}])
def test_what_is_no_size(size):
    with pytest.raises(ValueError, match='must be positive pixels, but got'):
        nominal_size([dict(type='Resize', scale=size)])


def test_padding_and_its_resize_change_together():
    pipeline = [dict(type='Resize', scale=(640, 640), keep_ratio=True),
                dict(type='Pad', size=(640, 640)),
                dict(type='Pad', size_divisor=32)]
    changed = rescale_pipeline(pipeline, 384)
    assert changed[0]['scale'] == changed[1]['size'] == (384, 384)
    assert changed[2] == pipeline[2]


@pytest.mark.parametrize('transforms, want', [
    ([dict(type='Resize', scale=(1333, 800), keep_ratio=True)], (800, )),
    ([dict(type='mmdet.RandomChoiceResize', keep_ratio=True,
           scales=[(1333, 640), (1333, 800), (1333, 672)])], (800, 672, 640)),
    ([dict(type='RandomChoiceResize', scales=[480, 800],
           resize_type='ResizeShortestEdge', max_size=1333)], (800, 480)),
    ([dict(type=RandomResize, scale=(1333, 800), ratio_range=(0.5, 1.25))],
     (1000, 400)),
    ([dict(type='RandomResize', scale=(1280, 1280), ratio_range=(0.1, 2.0))],
     (2560, 128)),
    ([dict(type='RandomResize', scale=(1280, 1280), ratio_range=(0.1, 2.0)),
      dict(type='RandomCrop', crop_size=(640, 640))], (640, )),
    ([dict(type='RandomResize', scale=[(1333, 640), (1333, 800)])],
     (800, 640)),
    ([dict(type='RandomResizedCrop', scale=224)], (224, )),
    ([dict(type='RandomResize', scale=(1024, 1024), ratio_range=(0.1, 2.0)),
      dict(type='RandomCrop', crop_size=(1024, 1024),
           crop_type='absolute_range')], ()),
    # albumentations: `scale` is of the area, sizes have names of their own
    ([dict(type='mmpretrain.Albumentations', transforms=[
        dict(type='RandomResizedCrop', size=(224, 224), scale=(0.08, 1.0)),
        dict(type='HorizontalFlip')])], ()),
    ([dict(type='Resize', scale=256),
      dict(type='Albu', transforms=[dict(type='OneOf', transforms=[
          dict(type='RandomCrop', height=224, width=224)])])], ()),
    ([dict(type='RandomResizedCrop', scale=224),
      dict(type='RandomApply', transforms=[dict(
          type='Albu', transforms=[dict(type='RandomScale', scale=0.1)])])],
     (224, )),
    ([dict(type='RandomFlip')], ())])
def test_nominal_sizes_of_training_images(transforms, want):
    pipeline = [dict(type='LoadImageFromFile'), *transforms]
    assert train_sizes(pipeline) == want


def test_the_last_size_says_whether_the_ratio_is_kept():
    resize = dict(type='Resize', scale=(1333, 800), keep_ratio=True)
    assert keeps_ratio([resize, dict(type='Pack')])
    assert not keeps_ratio([resize, dict(type='Pad', size=(800, 800))])
    assert not keeps_ratio([dict(type='Pack')])
    assert keeps_ratio([dict(type='ResizeEdge', scale=28, edge='long')])


def test_pipeline_within_wrappers_of_the_data_set():
    pipeline = [dict(type='Pack')]
    inner = dict(type='CocoDataset', pipeline=pipeline)
    wrapped = dict(dataset=dict(type='RepeatDataset', dataset=inner))
    assert pipelines_of(wrapped) == [pipeline]
    mixed = dict(type='MultiImageMixDataset', dataset=dict(
        inner, pipeline=[dict(type='Load')]), pipeline=pipeline)
    assert pipelines_of(dict(dataset=mixed)) == [pipeline]
    joined = dict(type='ConcatDataset', datasets=[inner, mixed])
    assert pipelines_of(dict(dataset=joined)) == [pipeline, pipeline]
    assert pipelines_of({}) == []


def test_earlier_resizes_stay_as_they_are():
    pipeline = [dict(type='Resize', scale=256), dict(type='CenterCrop',
                                                     crop_size=200),
                dict(type='Resize', scale=(112, 112))]
    assert [t.get('scale') or t['crop_size'] for t in rescale_pipeline(
        pipeline, 56)] == [256, 200, (56, 56)]


@pytest.mark.parametrize('transform, size, want', [
    (dict(type='TopdownAffine', input_size=(192, 256)), 96,
     dict(input_size=(96, 128))),
    (dict(type='mmaction.Resize', scale=(-1, 256)), 128,
     dict(scale=(-1, 128))),
    (dict(type='Resize', scale=(float('inf'), 256)), 128,
     dict(scale=(float('inf'), 128))),
    (dict(type='RescaleToHeight', height=48, min_width=48, max_width=160), 24,
     dict(height=24, min_width=24, max_width=80)),
    (dict(type='RescaleToHeight', height=48, max_width=None), 24,
     dict(height=24, max_width=None)),
    (dict(type='EfficientNetCenterCrop', crop_size=224), 112,
     dict(crop_size=112, crop_padding=16)),
    (dict(type='EfficientNetCenterCrop', crop_size=224, crop_padding=0), 112,
     dict(crop_size=112, crop_padding=0))])
def test_hosts_have_sizes_of_their_own(transform, size, want):
    assert rescale_pipeline([transform], size) == [{**transform, **want}]


def test_letterboxes_and_crops_of_a_clip_change_with_their_resize():
    letterbox = [dict(type='YOLOv5KeepRatioResize', scale=(640, 640)),
                 dict(type='LetterResize', scale=(640, 640))]
    assert [t['scale'] for t in rescale_pipeline(letterbox, 320)] == [
        (320, 320)] * 2
    crops = [dict(type='Resize', scale=(-1, 256)),
             dict(type='TenCrop', crop_size=224)]
    changed = rescale_pipeline(crops, 112)
    assert [changed[0]['scale'], changed[1]['crop_size']] == [(-1, 128), 112]


def test_transforms_that_hold_others():
    short = [[dict(type='RandomChoiceResize', scales=[(480, 1333),
                                                      (800, 1333)])],
             [dict(type='RandomChoiceResize', scales=[(400, 4200)]),
              dict(type='RandomCrop', crop_type='absolute_range',
                   crop_size=(384, 600)),
              dict(type='RandomChoiceResize', scales=[(512, 1333)])]]
    choice = dict(type='RandomChoice', transforms=short)
    assert train_sizes([choice]) == (800, 512, 480)
    views = dict(type='MultiView', num_views=[2, 6], transforms=[
        [dict(type='RandomResizedCrop', scale=s)] for s in (224, 96)])
    assert train_sizes([views, dict(type='PackInputs')]) == (224, 96)
    maybe = dict(type='RandomApply', transforms=[dict(type='Blur')])
    assert train_sizes([maybe, dict(type='Resize', scale=8)]) == (8, )


def test_images_of_their_own_size_are_resized_behind_the_loading():
    load, pack = dict(type='LoadImageFromFile'), dict(type='PackSegInputs')
    changed = rescale_pipeline([load, dict(type='LoadAnnotations'), pack], 64,
                               base=128)
    assert [t['type'] for t in changed] == [
        'LoadImageFromFile', 'Resize', 'LoadAnnotations', 'PackSegInputs']
    assert changed[1]['scale_factor'] == 0.5
    half = [load, dict(type='Resize', scale_factor=0.5, keep_ratio=True), pack]
    assert rescale_pipeline(half, 64, base=128)[1]['scale_factor'] == 0.25
    assert rescale_pipeline(half, 128, base=128) == half
    pair = [load, dict(type='Resize', scale_factor=(1.0, 0.5))]
    assert rescale_pipeline(pair, 64, base=128)[1]['scale_factor'] == (
        0.5, 0.25)
    with pytest.raises(ValueError, match='of videos must resize them'):
        rescale_pipeline([dict(type='RawFrameDecode')], 64, base=128)


@pytest.mark.parametrize('pipeline, good, bad', [
    ([dict(type='Resize', scale=(1333, 800), keep_ratio=True)],
     [(800, 1200), (640, 1333)], [(800 - 1, 1200), (640, 1300)]),
    ([dict(type='Resize', scale=(64, 64)), dict(type='Pad',
                                                size_divisor=32)],
     [(64, 64), (32, 64), (64, 80)], [(32, 128), (63, 63)]),
    ([dict(type='BottomupResize', input_size=(400, 400))], [(416, 640)],
     [(399, 640)]),
    ([dict(type='Resize', scale=60), dict(type='ResizeToMultiple')],
     [(64, 96)], [(96, 96)]),
    ([dict(type='TenCrop', crop_size=224)], [(224, 224)], [(112, 112)])])
def test_what_images_may_measure(pipeline, good, bad):
    limits = limits_of(pipeline)
    assert all(limits.admits(*edges) for edges in good)
    assert not any(limits.admits(*edges) for edges in bad)
    assert limits_of([dict(type='Pack')]) is None
    assert limits_of([dict(type='LetterResize', scale=(64, 64),
                           use_mini_pad=True, allow_scale_up=False)]) is None
