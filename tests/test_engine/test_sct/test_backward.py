"""backward='per_scale' against 'joint', through mmengine's train_step."""
import copy

import pytest
import torch
from conftest import SCALES, TinyModel
from helpers import ScaledOptimWrapper, batch
from mmengine.optim import OptimWrapper
from torch import nn
from torch.testing import assert_close

from sct_mm import SSBN, SCTLossHook


def checkpointed_net():
    from mmpretrain.models import ResNet_CIFAR

    class Last(nn.Module):
        def forward(self, maps):
            return maps[-1].mean((2, 3))

    model = TinyModel(nn.Identity)
    model.net = nn.Sequential(
        ResNet_CIFAR(18, base_channels=4, stem_channels=4, with_cp=True,
                     norm_cfg=dict(type='SSBN', scales=SCALES)),
        Last(), nn.Linear(32, 5))
    return model


def frozen_net():
    model = TinyModel(lambda c: SSBN(c, SCALES))
    for layer in model.net[:2]:
        layer.eval().requires_grad_(False)
    return model


def trained(backward, make=lambda: TinyModel(lambda c: SSBN(c, SCALES)),
            wrapper=OptimWrapper, compile=None, scaled=None, hook=(),
            **options):
    """Four steps of SGD: parameters, buffers, and what each step logged."""
    torch.manual_seed(0)
    model = make().train()
    if make is frozen_net:
        model.net[1].eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    if wrapper is not OptimWrapper:
        options.update(scaled=scaled)
    optim = wrapper(optimizer=optimizer, **options)
    sct = SCTLossHook(backward=backward, **dict(hook))
    sct.attach(model, getattr(optim, 'loss_scaler', None))
    step = model.train_step
    if compile:
        step = torch.compile(step, **compile)
    optim.initialize_count_status(model, 0, 4)
    logs = []
    for i in range(4):
        sct.step = i
        logs.append(step(batch(seed=i), optim))
    return model.state_dict(), logs


REGIMES = dict(
    plain=dict(),
    weights=dict(hook=dict(loss_weights=(2., 1., .5))),
    partition=dict(hook=dict(partition=True)),
    two_scales_a_step=dict(hook=dict(scales_per_step=2)),
    one_scale_a_step=dict(hook=dict(scales_per_step=1)),
    between=dict(hook=dict(between=0.6)),
    accumulation=dict(accumulative_counts=2),
    clipping=dict(clip_grad=dict(max_norm=0.1)),
    checkpointing=dict(make=checkpointed_net),
    frozen_stages=dict(make=frozen_net),
    fp16=dict(wrapper=ScaledOptimWrapper, dtype=torch.float16, scaled=True,
              accumulative_counts=2, clip_grad=dict(max_norm=1.)),
    bf16=dict(wrapper=ScaledOptimWrapper, dtype=torch.bfloat16, scaled=False))


@pytest.mark.parametrize('regime', REGIMES)
def test_both_backwards_train_alike(regime):
    options = REGIMES[regime]
    joint, joint_logs = trained('joint', **options)
    ours, logs = trained('per_scale', **options)
    if 'dtype' in options:
        # Rounding sends two trainings in half precision apart; up to the
        # first step of the optimizer they are the same. What a step may
        # differ by, the next test says.
        first = options.get('accumulative_counts', 1)
        assert_close(logs[:first], joint_logs[:first], rtol=0, atol=0)
    else:
        assert_close(ours, joint)
        assert_close(logs, joint_logs)


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


@pytest.mark.parametrize('dtype', (torch.float16, torch.bfloat16))
def test_in_half_precision_they_differ_by_the_rounding_of_a_sum(dtype):
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


def test_gradients_at_hand_are_added_to_and_survive_an_error():
    model = TinyModel(lambda c: SSBN(c, SCALES))
    before = [torch.randn_like(p) for p in model.parameters()]
    for p, grad in zip(model.parameters(), before, strict=True):
        p.grad = grad.clone()
    SCTLossHook().attach(model)
    data = batch()
    loss = model(**data, mode='loss')['loss']
    assert_close([p.grad for p in model.parameters()], before)
    loss.backward()
    after = [p.grad.clone() for p in model.parameters()]
    with pytest.raises(RuntimeError, match='was differentiated before'):
        loss.backward()

    def fail(module, args):
        if args[0].shape[-1] == SCALES[1]:
            raise OSError

    model.net.register_forward_pre_hook(fail)
    with pytest.raises(OSError):
        model(**data, mode='loss')
    assert_close([p.grad for p in model.parameters()], after)


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


def test_hooks_on_gradients_are_refused():
    model = TinyModel(lambda c: SSBN(c, SCALES))
    next(model.parameters()).register_hook(lambda grad: grad * 2)
    SCTLossHook().attach(model)
    with pytest.raises(RuntimeError, match="Set backward='joint'"):
        model(**batch(), mode='loss')


def test_compiled_scale_by_scale():
    graphs = []

    def recording(graph, inputs):
        graphs.append(str(graph.code))
        return graph.forward

    torch.compiler.reset()
    joint, joint_logs = trained('joint')
    ours, logs = trained('per_scale', compile=dict(backend=recording))
    assert_close(ours, joint)
    assert_close(logs, joint_logs)
    assert sum(g.count('conv2d(') for g in graphs) >= 2 * len(SCALES)
    assert len(graphs) < 40  # in the first steps, not in each
