"""Rewriting test pipelines: every resize and crop by the same ratio."""
import copy

import pytest

from sct_mm.pipeline import nominal_size, rescale_pipeline

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


def test_a_class_as_type():
    class CenterCrop:
        pass

    pipeline = [dict(type=CenterCrop, crop_size=32)]
    assert nominal_size(pipeline) == 32


def test_nothing_to_rewrite():
    with pytest.raises(ValueError, match=r"but got \['Load', 'PackInputs'\]"):
        rescale_pipeline([dict(type='Load'), dict(type='PackInputs')], 8)
