"""Training in half precision: step by step from one state, within bounds that
follow from the epsilon of the type."""
import copy

import pytest
import torch
from adapting import assert_kept, network, unlabelled
from conftest import SCALES, TinyModel
from helpers import Classifier, ScaledOptimWrapper, batch
from test_backward import trained
from torch.testing import assert_close

from sct_mm import SSBN, SCTLossHook

TYPES = (torch.float16, torch.bfloat16)


@pytest.mark.parametrize('options', [
    dict(dtype=torch.float16, scaled=True, accumulative_counts=2,
         clip_grad=dict(max_norm=1.)),
    dict(dtype=torch.bfloat16, scaled=False)], ids=['fp16', 'bf16'])
def test_both_backwards_start_alike(options):
    """Up to the first step of the optimizer they are the same; then rounding
    sends two trainings apart. What a step may differ by, the next test
    says."""
    (state, joint), (ours, logs) = (
        trained(backward, wrapper=ScaledOptimWrapper, **options)
        for backward in ('joint', 'per_scale'))
    first = options.get('accumulative_counts', 1)
    assert_close(logs[:first], joint[:first], rtol=0, atol=0)
    assert state.keys() == ours.keys()


def gradients(model, backward, weights, dtype, step):
    """Those of one training step under autocast, times AMP's factor."""
    scaler = torch.amp.GradScaler('cpu', init_scale=2.0**12)
    hook = SCTLossHook(backward=backward, loss_weights=weights)
    hook.attach(model, scaler)
    model.zero_grad()
    with torch.autocast('cpu', dtype=dtype):
        losses = model(**batch(seed=step), mode='loss')
    scaler.scale(losses['loss']).backward()
    hook.detach()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize('dtype', TYPES)
def test_both_backwards_differ_by_the_rounding_of_a_sum(dtype):
    """Each step starts from one state. A weight's gradients of the scales
    are the same; 'joint' adds them in half precision, where each of the
    S - 1 sums is rounded by eps / 2 of itself, 'per_scale' in single."""
    torch.manual_seed(0)
    model = TinyModel(lambda c: SSBN(c, SCALES)).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    weights = (0.5, 0.3, 0.2)
    half, single = torch.finfo(dtype), torch.finfo(torch.float32)
    differ = False
    for step in range(4):
        def taken(backward, weights, step=step):
            return gradients(copy.deepcopy(model), backward, weights, dtype,
                             step)

        each = [taken('joint', [w * (i == j) for j, w in enumerate(weights)])
                for i in range(len(SCALES))]
        joint, ours = taken('joint', weights), taken('per_scale', weights)
        for name, parameter in model.named_parameters():
            terms = torch.stack([grads[name] for grads in each])
            size, sums = terms.abs().sum(0), len(SCALES) - 1
            assert (ours[name] - terms.sum(0)).abs().le(
                2 * sums * single.eps * size).all(), name
            # Below the normal numbers the step between two is fixed.
            assert (joint[name] - ours[name]).abs().le(
                sums * half.eps * (size + half.tiny)).all(), name
            differ = differ or not torch.equal(joint[name], ours[name])
            parameter.grad = ours[name] / 2**12
        optimizer.step()
    assert differ  # else nothing was in half precision


def test_an_overflow_reaches_the_scaler():
    """An infinite gradient of one scale skips the step, as with one loss."""
    model = TinyModel(lambda c: SSBN(c, SCALES))
    scaler = torch.amp.GradScaler('cpu', init_scale=2.0**12)
    SCTLossHook(loss_weights=(1., 1., 3e38)).attach(model, scaler)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = [p.detach().clone() for p in model.parameters()]
    scaler.scale(model(**batch(), mode='loss')['loss']).backward()
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 2.0**11
    assert_close([p.detach() for p in model.parameters()], before)


@pytest.mark.parametrize('dtype', TYPES)
@pytest.mark.parametrize('teachers', ['larger', 'ensemble'])
def test_both_backwards_distill_alike(teachers, dtype):
    """Each step starts from one state, so that both compute from the same
    logits; the KL is of single precision."""
    models, optims, hooks = [], [], []
    for backward in ('joint', 'per_scale'):
        models.append(Classifier())
        optims.append(ScaledOptimWrapper(
            optimizer=torch.optim.SGD(models[-1].parameters(), lr=.1),
            dtype=dtype, scaled=dtype == torch.float16))
        hooks.append(SCTLossHook(distill=teachers, backward=backward))
        hooks[-1].attach(models[-1], optims[-1].loss_scaler)
    for step in range(3):
        models[1].load_state_dict(models[0].state_dict())
        joint, ours = (model.train_step(batch(seed=step), optim)
                       for model, optim in zip(models, optims, strict=True))
        assert ours['s8/distill'].dtype == torch.float32
        same = [name for name in ours if 'accuracy' not in name
                and (teachers == 'larger' or '8/distill' in name)]
        assert_close([joint[name] for name in same],
                     [ours[name] for name in same])
        for hook in hooks:
            assert len(hook._points) == 3 * (teachers == 'ensemble')
            assert all(point.dtype == torch.float32 and point.isfinite()
                       for point in hook._points.values())


def test_an_adapted_network_keeps_its_base():
    model, before = network(), network().state_dict()
    optim = ScaledOptimWrapper(torch.bfloat16, False, optimizer=torch.optim.
                               AdamW(model.parameters(), 0.05))
    hook = SCTLossHook(adapt=True)
    hook.attach(model)
    optim.initialize_count_status(model, 0, 4)
    for hook.step in range(4):
        logs = model.train_step(unlabelled(seed=hook.step), optim)
        assert logs['loss'].dtype is torch.float32
    hook.detach()
    assert_kept(model.state_dict(), before)
    assert not torch.equal(model.net[1].weight, before['net.1.weight'])
