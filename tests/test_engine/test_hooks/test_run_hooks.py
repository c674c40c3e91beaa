"""Whole runs of mmengine's Runner: resumed, averaged, compiled, plain."""
import random
import warnings
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import SCALES, TinyModel
from helpers import Dies, ssbn_model, train
from mmengine.dataset import worker_init_fn
from mmengine.hooks import EMAHook
from torch import nn
from torch.testing import assert_close

from sct_mm import SSBN, EpochSeedHook, SCTLossHook, extract_scale, use_scale
from sct_mm.models.size_selection import ssbn_layers


@pytest.mark.parametrize('schedule', [
    {}, dict(scales_per_step=2), dict(scales_per_step=1),
    dict(partition=True), dict(between=0.6),
    dict(between=0.6, scales_per_step=1, progressive=0.6)])
def test_resumed_training_is_the_unbroken_one_to_the_bit(tmp_path, schedule):
    def hooks():
        return [SCTLossHook(**schedule), EpochSeedHook(), EMAHook()]

    whole = train(tmp_path / 'whole', 2, hooks=hooks()).model
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / 'parts', 2, hooks=[*hooks(), Dies()])
    resumed = train(tmp_path / 'parts', 2, hooks=hooks(), resume=True)
    assert resumed.iter == 4
    want = whole.state_dict()
    for name, value in resumed.model.state_dict().items():
        assert_close(value, want[name], rtol=0, atol=0)
    for ours, theirs in zip(ssbn_layers(resumed.model), ssbn_layers(whole),
                            strict=True):
        assert ours.extents == theirs.extents
    ema = [torch.load(tmp_path / d / 'epoch_2.pth', weights_only=True)
           ['state_dict'] for d in ('whole', 'parts')]
    for name, value in ema[0].items():
        assert_close(value, ema[1][name], rtol=0, atol=0)
    assert not list(tmp_path.rglob('*.partial'))


@pytest.mark.parametrize('seed, epoch', [(2**32 - 1, 0), (2**31 - 1, 9999)])
def test_any_seed_and_epoch_give_seeds_that_numpy_takes(seed, epoch):
    loader = SimpleNamespace(num_workers=4)
    EpochSeedHook().before_train_epoch(SimpleNamespace(
        seed=seed, epoch=epoch, train_dataloader=loader))
    drawn = []
    for worker in range(4):
        loader.worker_init_fn(worker)
        drawn.append((np.random.rand(), random.random(),
                      float(torch.rand(()))))
    assert len(set(drawn)) == 4


def test_a_worker_init_fn_of_the_config_runs_too():
    own, numbers = [], []
    for given in (own.append, partial(
            worker_init_fn, num_workers=1, rank=0, seed=7,
            disable_subprocess_warning=True)):
        loader = SimpleNamespace(num_workers=4, worker_init_fn=given)
        for epoch in range(2):
            EpochSeedHook().before_train_epoch(SimpleNamespace(
                seed=1, epoch=epoch, train_dataloader=loader))
            with warnings.catch_warnings():
                loader.worker_init_fn(3)
                numbers.append(np.random.rand())
                if given != own.append:
                    warnings.warn('of a worker', stacklevel=1)
    assert own == [3, 3]
    assert numbers[:2] == numbers[2:] and numbers[0] != numbers[1]


def test_both_backwards_under_ema_and_mmengines_compile(double_precision,
                                                        tmp_path):
    """Weights, their average and the checkpoint, after two epochs."""
    torch.compiler.reset()
    states = []
    for backward, cfg in (('joint', {}), ('per_scale', dict(
            compile=dict(backend='eager')))):
        ema = EMAHook(momentum=0.2)
        runner = train(tmp_path / backward, 2, cfg=cfg, hooks=[
            SCTLossHook(backward=backward), EpochSeedHook(), ema])
        states.append((runner.model.state_dict(),
                       ema.ema_model.module.state_dict(),
                       torch.load(tmp_path / backward / 'epoch_2.pth')
                       ['state_dict']))
    assert states[0][0]['net.0.weight'].dtype is torch.float64
    assert_close(*states)
    assert not torch.equal(states[1][0]['net.0.weight'],
                           states[1][1]['net.0.weight'])


def test_one_scale_is_plain_batchnorm_training_to_the_bit(tmp_path):
    torch.manual_seed(0)
    ours = TinyModel(lambda c: SSBN(c, (16, )))
    plain = TinyModel(nn.BatchNorm2d)
    plain.load_state_dict(extract_scale(ours, 16).state_dict())
    train(tmp_path / 'ours', 2, ours, [SCTLossHook(), EpochSeedHook()])
    train(tmp_path / 'plain', 2, plain, [EpochSeedHook()])
    assert_close(extract_scale(ours, 16).state_dict(), plain.state_dict(),
                 rtol=0, atol=0)


def test_the_ema_copy_and_its_checkpoint_choose_the_scale(tmp_path):
    ema = EMAHook()
    train(tmp_path, 1, hooks=[SCTLossHook(), ema])
    loaded = ssbn_model()
    checkpoint = torch.load(tmp_path / 'epoch_1.pth', weights_only=True)
    loaded.load_state_dict(checkpoint['state_dict'])
    average = ema.ema_model.module.cpu()
    for network in (average.eval(), loaded.eval()):
        for scale in SCALES:
            x = torch.randn(2, 3, scale, scale)
            with use_scale(network, scale):
                want = network(x)
            assert_close(network(x), want, rtol=0, atol=0)
