"""SCTLossHook on a GPU: mixed precision, no waiting, the ImageNet recipe."""
import copy
import os.path as osp
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT
from gpu import (  # noqa: F401
    DEVICE,
    GPU,
    classifier,
    exact,
    images,
    labelled,
    needs_gpu,
    no_synchronisation,
    pytestmark,
)
from helpers import ScaledOptimWrapper
from mmengine.config import Config
from mmengine.optim import AmpOptimWrapper, build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope
from torch.testing import assert_close

from sct_mm import SCTLossHook


@needs_gpu
@pytest.mark.parametrize('options', [
    {}, dict(backward='joint'), dict(partition=True),
    dict(scales_per_step=2)])
def test_a_step_does_not_synchronise_and_nan_is_told_later(options):
    model, hook = classifier(), SCTLossHook(**options)
    hook.attach(model)
    run = SimpleNamespace(hooks=[hook])
    data = labelled(images())
    bad = labelled(images() * float('nan'))
    for step in range(2):  # the first does what a GPU does once
        hook.step = step
        model.zero_grad()
        with no_synchronisation() if step else torch.enable_grad():
            losses = model(**data, mode='loss')
        losses['loss'].backward()
    hook.before_save_checkpoint(run, {})
    for hook.step in (3, 4):
        with no_synchronisation():
            model(**bad, mode='loss')
    with pytest.raises(RuntimeError, match='scale .* at step 3'):
        hook.before_save_checkpoint(run, {})
    hook.before_save_checkpoint(run, {})  # it was told


def amp(model, dtype, **options):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    if not GPU:  # mmengine's AMP refuses a CPU
        return ScaledOptimWrapper(getattr(torch, dtype), True,
                                  optimizer=optimizer, **options)
    return AmpOptimWrapper(loss_scale=dict(init_scale=2.0**12), dtype=dtype,
                           optimizer=optimizer, **options)


def trained_by_both(dtype, batches, **options):
    """(the log, the state) after ``batches``, by joint and by per_scale, and
    the state before them."""
    start, results = copy.deepcopy(classifier().state_dict()), []
    for backward in ('joint', 'per_scale'):
        model = classifier()
        model.load_state_dict(start)
        wrapper, hook = amp(model, dtype, **options), SCTLossHook(
            backward=backward)
        hook.attach(model, wrapper.loss_scaler)
        wrapper.initialize_count_status(model, 0, len(batches))
        logs = [model.train_step(data, wrapper) for data in batches]
        results.append((logs[-1], model.state_dict()))
    return *results, start


@pytest.mark.parametrize('dtype', ['float16', 'bfloat16'])
def test_a_step_per_scale_is_a_joint_one_under_amp(dtype):
    """joint adds up the scales' gradients in half precision, per_scale in
    single: a step apart, rounding grows from step to step."""
    joint, per_scale, start = trained_by_both(dtype, [labelled(images())])
    assert_close(per_scale[0], joint[0])
    moved = total = 0
    for name, value in joint[1].items():
        if 'running' in name:
            assert_close(per_scale[1][name], value)
        elif value.is_floating_point():
            moved += (per_scale[1][name] - value).pow(2).sum()
            total += (value - start[name]).pow(2).sum()
    assert 0 < total and moved < 1e-2**2 * total


@pytest.mark.parametrize('dtype', ['float16', 'bfloat16'])
def test_per_scale_is_joint_under_amp(dtype):
    joint, per_scale, start = trained_by_both(
        dtype, [labelled(images()) for _ in range(4)],
        clip_grad=dict(max_norm=1.0), accumulative_counts=2)
    rough = dict(rtol=2e-2, atol=5e-3)
    assert_close(per_scale[0], joint[0], **rough)
    assert_close(per_scale[1], joint[1], **rough)
    assert not torch.equal(start['head.fc.weight'],
                           joint[1]['head.fc.weight'])


FIXED = range(8 if GPU else 2)  # the images of the one batch


def resnet50(norm=True):
    """The recipe's network and optimizer; plain without ``norm``."""
    import mmpretrain.models  # noqa: F401
    cfg = Config.fromfile(osp.join(ROOT, 'configs',
                                   'sct_resnet50_8xb32_in1k.py'))
    if not norm:
        del cfg.model.backbone.norm_cfg
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(dict(
            cfg.model, data_preprocessor=cfg.data_preprocessor)).to(DEVICE)
        cfg.optim_wrapper.optimizer.lr *= len(FIXED) / (
            cfg.auto_scale_lr.base_batch_size)
        if GPU:
            cfg.optim_wrapper.type = 'AmpOptimWrapper'
        wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    return model.train(), wrapper


def steps_of_resnet50(norm, steps):
    """The losses of steps on one batch, and the peak of the memory of the
    last of them above what the model held before it, in bytes."""
    model, wrapper = resnet50(norm)
    hook = SCTLossHook()
    if norm:
        hook.attach(model, getattr(wrapper, 'loss_scaler', None))
    data = labelled([torch.randint(256, (3, 224, 224), dtype=torch.uint8)
                     for _ in FIXED])
    losses, peak = [], 0
    for hook.step in range(steps):
        if GPU:
            held = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
        losses.append(model.train_step(data, wrapper)['loss'].item())
        if GPU:
            peak = torch.cuda.max_memory_allocated() - held
    return losses, peak


def test_resnet50_learns_one_batch_at_all_scales():
    losses, _ = steps_of_resnet50(True, 10 if GPU else 2)
    assert torch.tensor(losses).isfinite().all()
    assert losses[-1] < losses[0], losses


@needs_gpu
def test_resnet50_needs_the_memory_of_its_base_scale():
    _, plain = steps_of_resnet50(False, 3)
    _, sct = steps_of_resnet50(True, 3)
    assert sct <= 1.2 * plain, (sct, plain)
