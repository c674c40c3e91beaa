"""The images that a network ended its training on."""
import copy

import pytest

from sct_mm.datasets.last_stage import (
    batch_resize,
    last_stage,
    later_pipelines,
    sizes_in_training,
    smallest_in_training,
    without_batch_mixes,
)
from sct_mm.datasets.rescale_pipeline import train_sizes
from sct_mm.engine.sct.checks import check_pipeline
from sct_mm.utils.config_walk import type_name

LOAD, PACK = dict(type='LoadImageFromFile'), dict(type='PackDetInputs')
RESIZE = dict(type='Resize', scale=(64, 64), keep_ratio=True)
MOSAIC = dict(type='mmdet.Mosaic', img_scale=(64, 64))
CROP = dict(type='RandomAffine', border=(-32, -32))
CLEAN = [LOAD, dict(type='RandomResize', scale=(64, 64)), PACK]


def config(pipeline, hooks=(), wrap=lambda dataset: dataset):
    test = dict(type='Coco', pipeline=[LOAD, RESIZE, PACK])
    return dict(
        train_dataloader=dict(dataset=wrap(dict(type='Coco',
                                                pipeline=pipeline))),
        test_dataloader=dict(dataset=test), custom_hooks=list(hooks))


def names(pipeline):
    return [type_name(transform) for transform in pipeline]


@pytest.mark.parametrize('hook', [
    dict(type='mmdet.PipelineSwitchHook', switch_epoch=280,
         switch_pipeline=CLEAN),
    dict(type='mmyolo.YOLOXModeSwitchHook', num_last_epochs=15,
         new_train_pipeline=CLEAN),
    dict(type='YOLOXPoseModeSwitchHook', new_train_pipeline=CLEAN),
    dict(type='SwitchRecipeHook', schedule=[
        dict(action_epoch=9, train_pipeline=CLEAN),
        dict(action_epoch=3, train_pipeline=[LOAD, MOSAIC, PACK])])])
def test_the_last_pipeline_of_a_hook_counts(hook):
    cfg = config([LOAD, MOSAIC, CROP, RESIZE, PACK], [hook])
    before = copy.deepcopy(cfg)
    dataset, left_out = last_stage(cfg)
    assert dataset['pipeline'] == CLEAN and cfg == before
    assert left_out == ['Mosaic', 'RandomAffine']
    assert list(later_pipelines(cfg))[-1] == CLEAN


def test_what_no_test_image_shows_is_left_out_and_named():
    dataset, left_out = last_stage(config([
        LOAD, RESIZE, dict(type='RandomErasing'), dict(type='MixUp'),
        dict(type='RandomAffine', border=(0, 0)), PACK]))
    assert left_out == ['RandomErasing', 'MixUp']
    assert names(dataset['pipeline']) == [
        'LoadImageFromFile', 'Resize', 'RandomAffine', 'PackDetInputs']


def test_the_test_resizes_where_a_mosaic_did():
    dataset, _ = last_stage(config([LOAD, MOSAIC, CROP,
                                    dict(type='RandomFlip'), PACK]))
    assert names(dataset['pipeline']) == [
        'LoadImageFromFile', 'Resize', 'RandomFlip', 'PackDetInputs']
    assert train_sizes(dataset['pipeline']) == (64, )


def test_transforms_that_hold_mixes():
    choice = dict(type='RandomChoice', transforms=[
        [MOSAIC, CROP], [dict(type='Mosaic9', img_scale=(64, 64))],
        [dict(type='RandomFlip')]])
    maybe = dict(type='RandomApply', transforms=[dict(type='RandomErasing')])
    blur = dict(type='RandomApply', transforms=[
        dict(type='RandomMosaic', img_scale=(64, 64)), dict(type='Blur')])
    dataset, left_out = last_stage(config([LOAD, choice, maybe, blur,
                                           RESIZE, PACK]))
    assert left_out == ['Mosaic', 'RandomAffine', 'Mosaic9', 'RandomErasing',
                        'RandomMosaic']
    assert dataset['pipeline'] == [
        LOAD, dict(choice, transforms=[[dict(type='RandomFlip')]]),
        dict(blur, transforms=[dict(type='Blur')]), RESIZE, PACK]


def test_the_smallest_images_of_a_training():
    jitter = dict(type='RandomResize', scale=(64, 64), ratio_range=(0.1, 2))
    crop = dict(type='RandomCrop', crop_size=(64, 64))
    for transforms, want in [
            ([RESIZE], 64), ([jitter], 6), ([jitter, crop], 0),
            ([jitter, crop, dict(type='Pad', size=(64, 64))], 64), ([], 0),
            ([dict(type='RandomChoiceResize',
                   scales=[(40, 90), (64, 90)])], 40)]:
        assert smallest_in_training(config([LOAD, *transforms])) == want
    assert smallest_in_training({}) == 0


def test_no_image_has_several_indices():
    """One might be held out, and another train."""
    def repeated(dataset):
        return dict(type='MultiImageMixDataset', pipeline=CLEAN, dataset=dict(
            type='mmengine.RepeatDataset', times=3, dataset=dict(
                type='ConcatDataset', datasets=[dict(
                    type='ClassBalancedDataset', oversample_thr=1e-3,
                    dataset=dataset)])))

    cfg = config(CLEAN, wrap=repeated)
    before = copy.deepcopy(cfg)
    dataset, left_out = last_stage(cfg)
    assert dataset == dict(
        type='MultiImageMixDataset', pipeline=CLEAN, dataset=dict(
            type='ConcatDataset', datasets=[dict(type='Coco',
                                                 pipeline=CLEAN)]))
    assert cfg == before and not left_out


def test_a_pipeline_around_another():
    cfg = config([LOAD], [dict(type='YOLOXModeSwitchHook',
                               skip_type_keys=('Mosaic', 'Blur'))],
                 lambda inner: dict(type='MultiImageMixDataset',
                                    dataset=inner, pipeline=[
                                        MOSAIC, dict(type='Blur'), RESIZE]))
    dataset, left_out = last_stage(cfg)
    assert dataset['pipeline'] == [RESIZE]
    assert dataset['dataset']['pipeline'] == [LOAD]
    assert left_out == ['Mosaic', 'Blur']


def test_mixes_of_a_batch_are_left_out():
    mixup = dict(type='Mixup', alpha=0.2)
    fixed = dict(type='BatchFixedSizePad', size=(64, 64))
    for model, want in [
            (dict(train_cfg=dict(augments=[mixup])), ['Mixup']),
            (dict(train_cfg=dict(augments=mixup)), ['Mixup']),
            (dict(data_preprocessor=dict(batch_augments=dict(
                augments=[mixup, dict(type='CutMix')]))), ['Mixup',
                                                           'CutMix']),
            (dict(data_preprocessor=dict(blending=dict(
                augments=[dict(type='MixupBlending')]))), ['MixupBlending']),
            (dict(data_preprocessor=dict(batch_augments=[
                fixed, dict(type='BatchSyncRandomResize')])),
             ['BatchSyncRandomResize']),
            (dict(type='Plain'), [])]:
        before = copy.deepcopy(model)
        for cfg in (dict(model=model), dict(model=dict(
                type='WithSSBN', model=model)), {
                    'model': dict(type='Plain'), **model}):
            if 'type' in model:
                cfg.pop('type', None)
            new, found = without_batch_mixes(cfg)
            assert found == want
            assert 'Mix' not in str(new) and 'Random' not in str(new)
            assert ('Fixed' in str(new)) == ('Fixed' in str(before))
        assert model == before


def test_a_batch_resized_by_chance_is_found():
    augments = [dict(type='BatchFixedSizePad'),
                dict(type='mmdet.BatchSyncRandomResize')]
    model = dict(data_preprocessor=dict(batch_augments=augments))
    assert batch_resize(dict(model=model)) == 'BatchSyncRandomResize'
    assert batch_resize(dict(model=dict(type='WithSSBN', model=model)))
    assert batch_resize(dict(model=dict(data_preprocessor=dict(
        batch_augments=augments[:1])))) is None
    assert batch_resize({}) is None


def test_a_batch_resize_that_alone_sets_the_size():
    """As PPYOLOE's: without it, images of several shapes make no batch."""
    def resize(*ends):
        return dict(type='PPYOLOEBatchRandomResize', size_divisor=32,
                    random_size_range=ends)

    cfg = config([LOAD, PACK])
    cfg['model'] = dict(data_preprocessor=dict(batch_augments=[
        resize(320, 800)]))
    assert batch_resize(cfg) == 'PPYOLOEBatchRandomResize'
    with pytest.raises(ValueError, match=r'Set its random_size_range=\(64, 6'):
        check_pipeline(cfg['train_dataloader'], 64, cfg)
    new, left_out = without_batch_mixes(cfg)  # tested at 64
    assert left_out == ['PPYOLOEBatchRandomResize']
    assert new['model']['data_preprocessor']['batch_augments'] == [
        resize(64, 64)]
    assert batch_resize(new) is None and smallest_in_training(new) == 0
    assert sizes_in_training(new) == [(64, )]
    check_pipeline(new['train_dataloader'], 64, new)
    cfg['train_dataloader']['dataset']['pipeline'].insert(1, RESIZE)
    with pytest.raises(ValueError, match='Set batch_augments=None'):
        check_pipeline(cfg['train_dataloader'], 64, cfg)


def test_sizes_of_all_pipelines_of_a_training():
    switch = dict(type='PipelineSwitchHook', switch_pipeline=[
        LOAD, dict(type='Resize', scale=48), PACK])
    cfg = config([LOAD, RESIZE, PACK], [switch])
    assert sizes_in_training(cfg) == [(64, ), (48, )]
    cfg['model'] = dict(data_preprocessor=dict(batch_augments=[
        dict(type='BatchResize', scale=(96, 32))]))
    assert sizes_in_training(cfg) == [(32, )]
    assert smallest_in_training(cfg) == 0  # images of a padded batch
    assert sizes_in_training({}) == []


@pytest.mark.parametrize('kind', ['BatchFixedSizePad', 'BatchResize'])
def test_augments_that_draw_no_size_stay(kind):
    """Also where no transform of the test sets a size."""
    loader = dict(dataset=dict(pipeline=[LOAD, PACK]))
    augments = [dict(type=kind, scale=(64, 64))]
    cfg = dict(train_dataloader=loader, test_dataloader=loader, model=dict(
        data_preprocessor=dict(batch_augments=augments)))
    new, left_out = without_batch_mixes(cfg)
    assert new == cfg and not left_out
