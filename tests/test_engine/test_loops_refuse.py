"""What the loops at several sizes refuse, before anything runs."""
import pytest
import torch
from mmengine.model import BaseTTAModel
from mmengine.runner import Runner

from sct_mm.engine.config import UserError

from conftest import TinyModel
from pictures import loader, model, runner


def batch_norm(channels):
    return torch.nn.BatchNorm2d(channels)


class Views(BaseTTAModel):

    def merge_preds(self, data_samples_list):
        return data_samples_list


def test_a_model_without_ssbn_takes_sizes(tmp_path):
    got = runner(tmp_path, dict(type='ScalesValLoop', sizes=[16, 8]),
                 model=model(batch_norm)).val()
    assert {'16/accuracy/top1', '8/accuracy/top1'} < set(got)


@pytest.mark.parametrize('options, match', [
    (dict(model=model(batch_norm)), '`sizes` must be set for a model without'),
    (dict(val=dict(type='ScalesValLoop', sizes=(16, 0))),
     r'must be positive ints \(pixels\), but got \(16, 0\)'),
    (dict(val=dict(type='ScalesValLoop', sizes=())), 'positive ints'),
    (dict(val=dict(type='ScalesValLoop', sizes='16')), 'positive ints'),
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
     'pictures of 12 pixels, but makes 16'),
    (dict(val_dataloader=loader(lambda d: dict(type='Pictures'))),
     'with a `pipeline`, or wrap such ones, but got Pictures'),
])
def test_what_is_refused_before_anything_runs(options, match, tmp_path):
    run = runner(tmp_path, **options)
    with pytest.raises((UserError, ValueError), match=match):
        run.build_val_loop(run._val_loop)
