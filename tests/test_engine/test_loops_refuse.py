"""What the loops at several sizes refuse, before anything runs."""
import pytest
import torch
from conftest import TinyModel
from images import loader, model, runner
from mmengine.model import BaseTTAModel
from mmengine.runner import Runner

from sct_mm.utils.errors import UserError
from sct_mm.utils.sizes import expand_sizes


def batch_norm(channels):
    return torch.nn.BatchNorm2d(channels)


class Views(BaseTTAModel):

    def merge_preds(self, data_samples_list):
        return data_samples_list


def test_a_model_without_ssbn_takes_sizes(tmp_path):
    got = runner(tmp_path, dict(type='ScalesValLoop', sizes=[16, 8]),
                 model=model(batch_norm)).val()
    assert {'16/accuracy/top1', '8/accuracy/top1'} < set(got)


@pytest.mark.parametrize('sizes, match', [
    ((), r'but got \(\)\. Write e\.g\. sizes='), ('', "but got ''"),
    ([''], "''"), (16, 'but got 16'), (None, 'but got None'),
    ((16, True), r'\(16, True\)'),
    ((16.0, ), r'\(16.0,\)'), ('a:b', "'a:b'"), ('16:', "'16:'"),
    (':16', "':16'"), ('8:16:4:2', "'8:16:4:2'"), ('16:8:-4', "'16:8:-4'"),
    ('-8:16', "'-8:16'"), ('0:16:8', "'0:16:8'"), ([16, '0'], r"\[16, '0'\]"),
    (range(0), r'range\(0, 0\)'), ('1.5:3', "'1.5:3'"),
    ('8:16:0', "step of at least 1, but got '8:16:0'. Leave the step out"),
    ('1:99999999999', 'at most 1000 sizes, .* which are 99999999999. Take')])
def test_what_is_no_size_and_no_range(sizes, match):
    with pytest.raises(UserError, match=match):
        expand_sizes(sizes)


@pytest.mark.parametrize('options, match', [
    (dict(model=model(batch_norm)), '`sizes` must be set for a model without'),
    (dict(val=dict(type='ScalesValLoop', sizes=(16, 0))),
     r'must be positive ints \(pixels\) or ranges .* but got \(16, 0\)'),
    (dict(val=dict(type='ScalesValLoop', sizes='8:16:0')),
     "`sizes` must have ranges with a step of at least 1, but got '8:16:0'"),
    (dict(model=Views(TinyModel(batch_norm))), 'Views makes views of sizes'),
    (dict(default_hooks=dict(checkpoint=dict(
        type='CheckpointHook', save_best='accuracy/top1'))),
     "CheckpointHook must name .* Write 'mean/accuracy/top1' or '16/acc"),
    (dict(custom_hooks=[dict(type='EarlyStoppingHook', monitor='acc')]),
     "EarlyStoppingHook must name .* got 'acc'"),
    (dict(val_dataloader=Runner.build_dataloader(loader())),
     'needs its config, but got a built one'),
    (dict(val_dataloader=dict(loader(), dataset=[1, 2])), 'but got a built'),
    (dict(val_dataloader=loader(lambda d: dict(
        d, pipeline=[dict(type='mmpretrain.PackInputs')]))), 'must have one'),
    (dict(val_dataloader=loader(lambda d: dict(
        d, pipeline=[dict(type='mmcv.Resize', scale=16),
                     dict(type='mmpretrain.RandomCrop', crop_size=16,
                          pad_if_needed=True),
                     dict(type='mmpretrain.PackInputs')]))),
     'shorter edge of 12, but the pipeline makes 16 x 16'),
    (dict(val_dataloader=loader(lambda d: dict(type='Images'))),
     'with a `pipeline`, or wrap such ones, but got Images'),
    (dict(val_dataloader=loader(lambda d: dict(d, pipeline=None))),
     'with a `pipeline`, or wrap such ones, but got Images'),
    (dict(val_dataloader=loader(lambda d: dict(
        d, indices=0, serialize_data=False))), 'makes an empty one. Look at'),
])
def test_what_is_refused_before_anything_runs(options, match, tmp_path):
    run = runner(tmp_path, **options)
    with pytest.raises((UserError, ValueError), match=match):
        run.build_val_loop(run._val_loop)
